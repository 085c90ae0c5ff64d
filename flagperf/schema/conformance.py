"""What a conformance check of an adapter found."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["passed", "failed", "skipped", "to fill in"]
"""skipped: it needs something that isn't here; to fill in: the template's mark for it is still there."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check. Its name stays the same from version to version."""

    name: str
    """`group.name`, and what it was tried with in brackets: `collectives.all_reduce[bf16]`."""
    status: Status
    why: str
    """Why it matters."""
    fix: str
    """What to do where it fails."""
    problems: list[str] = []
    """What is wrong, all of it; for a check that was skipped what it needs."""
    seconds: float = 0.0


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a new adapter that is still as the template has it."""

    file: str
    line: int
    part: str
    text: str
    """What to put there."""


class VendorNewOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf vendor new --json`."""

    vendor: str
    path: str
    to_fill_in: list[Mark]


class ConformanceOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf vendor check --json`."""

    vendor: str
    path: str
    """The adapter's folder."""
    flagperf: str
    conforms: bool
    """Nothing failed and nothing is left to fill in; what was skipped isn't proven."""
    counts: dict[Status, int]
    to_fill_in: list[Mark]
    checks: list[CheckResult]
