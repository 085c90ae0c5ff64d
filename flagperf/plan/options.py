"""What the user asked for."""

from __future__ import annotations

from typing import Any

import msgspec

from flagperf.schema.link import Link
from flagperf.schema.trial import Nodes


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; `None` leaves it to the case."""

    cases: list[str]
    preset: str = "tiny"
    """Or one contest by its name."""
    engines: list[str] = []
    """`ddp` or `fsdp:zero=2,micro=4`."""
    compare: tuple[str, str] | None = None
    """Candidate and baseline of a contest, each as `engines` takes it; in place of those."""
    search: bool = True
    """Whether a contest looks for the best layout of each, and a survey for the best of all."""
    memory_budget: int | None = None
    """Bytes of the framework's allocator a rank in which the best layouts must fit."""
    budget: float | None = None
    """Seconds that a survey may look for the best layout."""
    rank_counts: list[int] = []
    """Of a survey; empty for halves of the most, down to one."""
    scenarios: list[str] = []
    """Of inference cases; empty for the case's own."""
    scale: float | None = None
    """What durations and counts of inference scenarios are multiplied by."""
    layout: str = ""
    """For every engine, under what the engine's own item says."""
    vendor: str = "auto"
    ranks: int | None = None
    oversubscribe: bool = False
    trials: int | None = None
    steps: int | None = None
    warmup: int | None = None
    dtype: str | None = None
    seed: int | None = None
    settings: dict[str, Any] = {}
    timeout: float | None = None
    memory_limit: int | None = None
    link: Link | None = None
    launcher: str = "local"
    nodes: Nodes = Nodes()
    plugins: list[str] = []
    baseline: str | None = None
