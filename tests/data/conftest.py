"""Every test has a cache of its own; small wheels and recipes are built on the spot."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagperf.data import recipe
from flagperf.data.docstrings import wheel_documents


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLAGPERF_CACHE", str(folder))
    monkeypatch.delenv("FLAGPERF_WHEELS", raising=False)
    return folder


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount small file systems: call with mount options; again to remount."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"can't mount a small file system here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def write_wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, code in files.items():
            archive.writestr(name, code)
    return path


@pytest.fixture
def make_wheel() -> Callable[[Path, dict[str, str]], Path]:
    return write_wheel


def docstrings_by_ast(code: str) -> list[str]:
    nodes = (
        n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return sorted(text for node in nodes if (text := ast.get_docstring(node, clean=False)) is not None)


@pytest.fixture(scope="session")
def by_ast() -> Callable[[str], list[str]]:
    """What the reference, Python's own parser, finds."""
    return docstrings_by_ast


def module(lines: list[str], per_class: int = 20) -> str:
    code = []
    for start in range(0, len(lines), per_class):
        body = "\n    ".join(lines[start : start + per_class])
        code.append(f'class C{start}:\n    r"""{body}\n    """\n')
    return "\n".join(code)


@pytest.fixture
def small_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipe.Recipe:
    """The recipe `bilingual` with two small wheels in the place of the real ones, which lie in $FLAGPERF_WHEELS."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lines = {
        "zh": [
            f"第{number}号云服务器的说明:每台实例有{number * 7 % 97}个网卡和{number % 13}块硬盘。"
            for number in range(4000)
        ],
        "en": [
            f"Server {number} has {number * 7 % 97} network cards and {number % 13} disks." for number in range(3000)
        ],
    }
    sources = []
    for language, distribution in (("zh", "small-zh"), ("en", "small-en")):
        name = f"{distribution.replace('-', '_')}-1.0-py3-none-any.whl"
        wheel = write_wheel(wheels / name, {f"{language}/a.py": module(lines[language])})
        text = "".join(f"{each}\0" for each in wheel_documents(wheel)).encode("utf-8")
        sources.append(
            recipe.Source(
                language=language,
                distribution=distribution,
                version="1.0",
                wheel=name,
                sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
                licence="Apache-2.0",
                extract="docstrings",
                text_sha256=hashlib.sha256(text).hexdigest(),
            )
        )
    made = recipe.Recipe("bilingual", "small", recipe.Settings(0.4, 8192, 0.02, 0), sources)
    monkeypatch.setattr(recipe, "load", lambda name: made)
    monkeypatch.setenv("FLAGPERF_WHEELS", str(wheels))
    return made
