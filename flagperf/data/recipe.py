"""Recipes: corpora that anyone can make again, byte for byte, from what a package index serves."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flagperf.errors import UnknownName

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wheel and the text in it."""

    language: str
    distribution: str
    version: str
    wheel: str  # file name
    sha256: Sha256  # of the wheel
    licence: str
    extract: Literal["docstrings"]
    text_sha256: Sha256  # of the documents extracted, each followed by a zero byte


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings under which the recipe's token arrays are known."""

    chinese: float
    vocab_size: int
    validation: float
    seed: int


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SHA-256 of the token files under the recipe's settings."""

    train: Sha256
    validation: Sha256


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A corpus as data."""

    name: str
    description: str
    settings: Settings
    sources: list[Source]
    expected: Expected | None = None


def names() -> list[str]:
    """Return the names of the recipes that come with FlagPerf."""
    return sorted(Path(f.name).stem for f in resources.files(__package__).iterdir() if f.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """Return a recipe by its name."""
    if name not in names():
        raise UnknownName("corpus recipe", name, names())
    text = resources.files(__package__).joinpath(f"{name}.toml").read_bytes()
    return msgspec.toml.decode(text, type=Recipe)
