"""A contest: two engines, and the questions asked of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol

Question = Literal["equal", "best", "overlap"]
"""`equal`: both as they were named, the same batch. `best`: each in the fastest layout found that fits. `overlap`: the
candidate with overlapped communication against itself without."""


class Arm(msgspec.Struct, frozen=True):
    """One side of a comparison: an engine and its layout."""

    engine: str
    layout: Layout

    def __str__(self) -> str:
        return f"{self.engine}:{self.layout}" if str(self.layout) else self.engine


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published ratio, candidate over baseline in throughput, shown beside what was measured."""

    title: str
    title_zh: str
    question: Question
    """What is measured here in its place."""
    candidate: str
    """Engine."""
    baseline: str
    """Engine; the candidate itself where the question is `overlap`."""
    low: float
    """The ratio, or its least where a range was published."""
    high: float | None = None
    source: str
    note: str = ""
    """What a reader must know to compare the two."""
    note_zh: str = ""


class Ladder(msgspec.Struct, frozen=True, kw_only=True):
    """Layouts of one engine from the fastest to the leanest: the first that fits is the one that is taken."""

    engine: str
    rungs: list[Layout]


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """Two engines, and all that is needed to answer the questions asked of them."""

    name: str = ""
    """Of one that a case declares; empty for one made up on the command line."""
    title: str = ""
    title_zh: str = ""
    candidate: Arm
    baseline: Arm
    without_overlap: Arm | None = None
    """The candidate without overlapped communication; None where that can't be chosen."""
    protocol: Protocol
    """Of the measured trials; those that search are shorter."""
    ladders: list[Ladder] = []
    """What is tried for the best layout of each; empty where it isn't looked for."""
    memory_budget: int | None = None
    """Bytes of the framework's allocator that a rank may hold at its peak; None: whatever the device has."""
    claims: list[Claim] = []

    @property
    def arms(self) -> list[Arm]:
        """Return the arms that are measured whatever is found to be best, the baseline first, each once."""
        named = [self.baseline, self.candidate, *([self.without_overlap] if self.without_overlap else [])]
        return list(dict.fromkeys(named))
