"""What commands share: the registries, printing, and the options that mean the same everywhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flagperf.registry import Registries

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]

_folders: list[Path] = []


def _add_adapters(folders: list[Path] | None) -> list[Path] | None:
    _folders.extend(folder.resolve() for folder in folders or [])
    return folders


VENDOR_PATH = Annotated[
    list[Path] | None,
    typer.Option(
        "--vendor-path",
        help="An adapter's folder, or one with several in it; may be repeated. Like --plugins, for adapters alone.",
        callback=_add_adapters,
        file_okay=False,
    ),
]
"""Taken into account as soon as it's read: a command needs it as a parameter only to have the option."""


def use_plugins(folders: list[Path]) -> None:
    """Search these folders for cases, engines, vendors and launchers too."""
    _folders[:] = [folder.resolve() for folder in folders]


def plugins() -> list[Path]:
    """Return the folders given by --plugins and FLAGPERF_PLUGINS."""
    named = os.environ.get("FLAGPERF_PLUGINS", "")
    return [*_folders, *(Path(part).resolve() for part in named.split(os.pathsep) if part)]


def registries() -> Registries:
    """Return the registries, the user's folders included."""
    from flagperf.registry import Registries

    return Registries(plugins())


def out() -> Console:
    """Return the console for what was asked for: stdout. In a pipe or a file no line is cut to a terminal's width."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)


def err() -> Console:
    """Return the console for progress and messages: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as one JSON object, readable by a person as well."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()
