"""How samples become a metric's value, by what the catalogue declares."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flagperf.collect.journals import Floats
from flagperf.metrics import metric
from flagperf.schema.metric import MetricValue

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
REDUCTIONS: dict[str, Callable[[Floats], float]] = {
    "median": np.median,
    "p90": lambda series: np.quantile(series, 0.9),
    "p99": lambda series: np.quantile(series, 0.99),
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "min": np.min,
    "last": lambda series: series[-1],
}


def measured(name: str, value: float, n: int = 1, interval: tuple[float, float] | None = None) -> MetricValue:
    """Return a value with its metric's unit and direction; an interval that isn't finite is none."""
    declared = metric(name)
    low, high = sorted(interval) if interval and all(map(math.isfinite, interval)) else (None, None)
    return MetricValue(value=float(value), unit=declared.unit, direction=declared.direction, n=n, low=low, high=high)
