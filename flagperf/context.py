"""What a rank knows of itself."""

from __future__ import annotations

from dataclasses import dataclass

from flagperf.journal import Journal
from flagperf.registry import Registries
from flagperf.schema.trial import Trial
from flagperf.vendor import Runtime


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """A rank's place in the trial, its device and its journal."""

    trial: Trial
    rank: int
    world_size: int
    local_rank: int
    local_ranks: int
    runtime: Runtime
    journal: Journal
    registries: Registries
