"""Adapters made from the template, whole or broken, and single checks made of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagperf.conformance.check import Declared, told
from flagperf.conformance.kit import Kit
from flagperf.conformance.runner import known_groups
from flagperf.conformance.template import write_adapter
from flagperf.registry import Registries


def whole(out: Path, name: str = "mychip") -> Path:
    """Write a new adapter and fill it in: the marks go, and `install` says something."""
    folder = write_adapter(name, out, Registries())
    for path in folder.rglob("*.*"):
        lines = [line for line in path.read_text().splitlines(keepends=True) if "FILL IN" not in line]
        path.write_text("".join(lines))
    change(folder, f"{folder.name}.toml", 'install = ""', 'install = "pip install mychip"')
    return folder


def change(folder: Path, file: str, old: str, new: str) -> None:
    """Replace a text that is there once."""
    path = folder / file
    text = path.read_text()
    assert text.count(old) == 1, (file, old, text.count(old))
    path.write_text(text.replace(old, new))


def declared() -> Iterator[tuple[str, Declared]]:
    """Yield every check of the kit with its name."""
    for group in known_groups():
        module = importlib.import_module(f"flagperf.conformance.test_{group}")
        for name, function in vars(module).items():
            if isinstance(getattr(function, "declared", None), Declared):
                yield f"{group}.{name.removeprefix('test_')}", function.declared


def problems(kit: Kit, check: str, **parameters: str) -> list[str]:
    """Make one check and return what it finds wrong; a check that is skipped is an error here."""
    found = dict(declared())[check]
    try:
        if found.where == "here":
            return told(found.function, kit, parameters)
        return kit.ask(found.where, found.function.__module__, found.function.__name__, parameters)
    except pytest.skip.Exception as why:
        raise AssertionError(f"{check} was skipped: {why}") from None
