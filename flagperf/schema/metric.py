"""What a metric is: its name, unit, which direction is better and how it is reduced, declared once in metrics.toml."""

from __future__ import annotations

from typing import Literal

import msgspec

Direction = Literal["higher", "lower", "none"]
Reduction = Literal["median", "p90", "p99", "mean", "sum", "max", "min", "last"]


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A declared metric. `over_*` say how raw samples become one number a trial; over trials the median is taken."""

    name: str
    unit: str
    direction: Direction
    title: str
    title_zh: str
    meaning: str
    meaning_zh: str
    group: Literal["speed", "memory", "accuracy", "energy", "harness"]
    over_steps: Reduction = "last"
    over_ranks: Reduction = "max"
    over_points: Reduction | None = None
    """How a sweep's points become one number a trial; None where such a number says nothing."""
    compared: bool = False
    """Whether comparisons show it by default."""


class MetricValue(msgspec.Struct, frozen=True, kw_only=True):
    """A measured value with what it needs to be believed. `low` and `high` bound the 95 % interval over `n` samples."""

    value: float
    unit: str
    direction: Direction
    n: int = 1
    low: float | None = None
    high: float | None = None
