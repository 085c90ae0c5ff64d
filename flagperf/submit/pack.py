"""Packs runs into a bundle: everything that is needed to compute the results again, and nothing else."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import flagperf
from flagperf.collect.runs import read_run
from flagperf.collect.trials import read_trial
from flagperf.errors import FlagPerfError, UnknownName, UsageError
from flagperf.journal import Reader
from flagperf.measure.environment import variables
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.result import Result
from flagperf.schema.submission import (
    BundledFile,
    BundleManifest,
    ClaimedResults,
    DivisionName,
    SubmitPackOutput,
    SystemDescription,
)
from flagperf.schema.trial import Run
from flagperf.submit import archive, signing, system
from flagperf.submit.bundle import (
    ADAPTER,
    LICENCE,
    MANIFEST,
    RESULTS,
    RUN_FILE,
    RUNS,
    SIGNATURE,
    SYSTEM,
    TRIAL_FILE,
    chained,
    encoded,
    sealed,
    sha256,
)
from flagperf.submit.rules import read_rules, versions


def pack(
    runs: Sequence[Path],
    vendor: str,
    form: Path,
    output: Path,
    registries: Registries,
    *,
    division: DivisionName = "closed",
    rules: str | None = None,
    private_key: Path | None = None,
) -> SubmitPackOutput:
    """Write a bundle of these runs; the same input gives the same bytes.

    Raises UsageError for what isn't fit to be packed. Whether the rules are kept is for `check` to say.
    """
    chosen = read_rules(rules or versions()[-1])
    key = signing.read_key(private_key) if private_key else None
    described, description = system.read(form)
    if description.licence not in chosen.licences:
        raise UnknownName("licence of a submission", description.licence, chosen.licences)
    contents: dict[str, bytes | Path] = {SYSTEM: described, LICENCE: _licence(description)}
    for name, path in registries.vendors.files(vendor).items():
        contents[f"{ADAPTER}/{name}"] = path
    results: list[Result] = []
    left_out: list[str] = []
    identities: list[str] = []
    for folder in runs:
        run = read_run(folder)
        _check_run(folder, run, vendor, identities)
        identities.append(run.id)
        results += [read_trial(folder, run, trial).result for trial in run.trials]
        for name, path in _files(folder):
            if _belongs(name):
                contents[f"{RUNS}/{run.id}/{name}"] = path
            else:
                left_out.append(str(folder / name))
    contents[RESULTS] = encoded(ClaimedResults(results=results))
    for name, content in contents.items():
        _check_file(name, content)
    contents = dict(sorted(contents.items()))
    manifest = sealed(_listed(contents, chosen.version, division, vendor, sorted(identities)))
    head: dict[str, bytes | Path] = {MANIFEST: encoded(manifest)}
    signature = signing.sign(encoded(manifest), key) if key else None
    if signature:
        head[SIGNATURE] = encoded(signature)
    digest, size = _write(output, {**head, **contents})
    return SubmitPackOutput(
        bundle=str(output),
        sha256=digest,
        size=size,
        seal=manifest.seal,
        signed_by=signature.public_key if signature else "",
        files=manifest.files,
        left_out=left_out,
    )


def _listed(
    contents: dict[str, bytes | Path], rules: str, division: DivisionName, vendor: str, runs: list[str]
) -> BundleManifest:
    files = []
    for name, content in contents.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        files.append(BundledFile(path=name, size=len(data), sha256=sha256(data)))
    whole = sum(file.size for file in files)
    if whole > archive.MOST_BYTES * 0.9 or len(files) > archive.MOST_FILES * 0.9:
        raise UsageError(
            f"These runs have {whole >> 20} MiB in {len(files)} files; a bundle holds {archive.MOST_BYTES >> 20} MiB.",
            "Pack fewer runs into one bundle.",
        )
    return BundleManifest(
        rules=rules,
        division=division,
        vendor=vendor,
        flagperf=flagperf.__version__,
        runs=runs,
        files=files,
        chain=chained(files),
    )


def _licence(description: SystemDescription) -> bytes:
    return (
        f"SPDX-License-Identifier: {description.licence}\n"
        f"SPDX-FileCopyrightText: {description.submitter}\n\n"
        f"The results, journals and descriptions in this bundle are given under {description.licence} by "
        f"{description.submitter}.\nFiles in {ADAPTER}/ that name a licence of their own are under that one.\n"
    ).encode()


def _check_run(folder: Path, run: Run, vendor: str, known: Sequence[str]) -> None:
    if run.id in known:
        raise UsageError(f"The run {run.id} is given twice.", "Name each run once.")
    if others := sorted({trial.vendor for trial in run.trials} - {vendor}):
        raise UsageError(
            f"{folder} has trials of {', '.join(others)}, not of {vendor} only.", "A bundle is of one vendor: --vendor"
        )
    if not any(trial.purpose == "measure" for trial in run.trials):
        raise UsageError(f"{folder} has no measured trial.", "Finish it with `flagperf run --resume`.")
    for path in folder.glob("harness*.journal"):
        for event in Reader(path):
            told = (
                event.value.get("variables") if event.key == Key.ENVIRONMENT and isinstance(event.value, dict) else {}
            )
            kept = {str(name): str(value) for name, value in told.items()} if isinstance(told, dict) else {}
            if secret := sorted(kept.keys() - variables(kept.items()).keys()):
                raise UsageError(
                    f"{path} tells environment variables that a journal leaves out: {', '.join(secret)}.",
                    "They may hold secrets. Run it again with this FlagPerf.",
                )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield a run's files in order; what hides, and the store, which can be made again, is passed over."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not name.parts[0].startswith((".", "store")) and (path.is_file() or path.is_symlink()):
            yield name.as_posix(), path


def _belongs(name: str) -> bool:
    parts = name.split("/")
    if len(parts) == 1:
        return RUN_FILE.fullmatch(name) is not None
    return len(parts) == 3 and parts[0] == "trials" and TRIAL_FILE.fullmatch(parts[2]) is not None


def _check_file(name: str, content: bytes | Path) -> None:
    if wrong := archive.unsafe(name):
        raise UsageError(f"The file can't be packed as {name!r}: {wrong}.", "Rename it.")
    if isinstance(content, Path) and content.is_symlink():
        raise UsageError(f"{content} is a link.", "A bundle holds files only: put the file itself there.")


def _write(output: Path, contents: dict[str, bytes | Path]) -> tuple[str, int]:
    """Write the archive whole or not at all; return its digest and size."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                archive.write(file, contents)
                file.flush()
                temporary.chmod(0o644)
                temporary.replace(output)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        with output.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), output.stat().st_size
    except OSError as error:
        raise FlagPerfError(f"Can't write {output}: {error.strerror}.", "Choose another file with -o.") from error
