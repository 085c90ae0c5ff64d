"""A survey: one case's training throughput over rank counts and over layouts."""

from __future__ import annotations

from typing import Literal

import msgspec

from flagperf.schema.contest import Arm
from flagperf.schema.protocol import Protocol

ScaleKind = Literal["base", "strong", "weak"]
"""`base`: the fewest ranks, which the others are related to. `strong`: the same global batch on more ranks. `weak`: a
global batch that grows with the ranks."""


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a scaling curve: who is measured on how many ranks, at which batch."""

    kind: ScaleKind
    ranks: int
    global_batch: int
    """Sequences."""
    arm: Arm


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A layout of the space that is searched."""

    arm: Arm
    predicted: int | None = None
    """Bytes a rank by formula; None where the case has none, or the layout can't be."""
    refused: str = ""
    """Why it can't be; empty if it can."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What is surveyed. Which trials follow depends on this and on the results so far, on nothing else."""

    name: str
    title: str
    title_zh: str
    arm: Arm
    """Whose scaling is measured; the best layout is compared with it."""
    ranks: int
    """Most ranks; layouts are searched on so many."""
    scales: list[Scale]
    """The base first, then by rising ranks."""
    candidates: list[Candidate] = []
    """The space that is searched, in the order of planning, `arm` first; empty where nothing is searched."""
    left_out: dict[str, str] = {}
    """Engines that the case would have searched, each with the reason why it isn't."""
    budget: float = 0.0
    """Seconds for the search."""
    memory_budget: int | None = None
    """Bytes of the framework's allocator that a rank may hold at its peak; None: nothing was said."""
    room: int | None = None
    """Bytes that a rank can have at most, by that, by its limit, or by its share of the device; None: unknown."""
    protocol: Protocol
    """Of the measured trials; those that search are shorter."""
