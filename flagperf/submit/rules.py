"""Finds the rules that a submission is held to: data, one file a version."""

from __future__ import annotations

import functools
from pathlib import Path

from flagperf.errors import UnknownName
from flagperf.schema.submission import Rules
from flagperf.submit import strict

_FOLDER = Path(__file__).parent / "rules"


def versions() -> list[str]:
    """Return the versions of the rules, the newest last."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=int)


@functools.cache
def read_rules(version: str) -> Rules:
    """Return the rules of a version; raise UnknownName if there is none."""
    if version not in versions():
        raise UnknownName("version of the rules", version, versions())
    return strict.typed(strict.yaml_document((_FOLDER / f"{version}.yaml").read_bytes()), Rules)
