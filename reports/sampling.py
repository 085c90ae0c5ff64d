"""Long series made short enough to draw, with nothing hidden: each bin keeps its least, middle and largest value."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_POINTS = 2000
"""Numbers a series at most, whatever it was made from."""


def share(series: int) -> int:
    """Return how many points each of so many series may have, so that a page stays small."""
    return max(60, min(MOST_POINTS // 4, 24_000 // max(series, 1)))


def binned(x: Floats, y: Floats, limit: int) -> dict[str, list[float | None]]:
    """Return columns x, low, middle and high of at most `limit` bins of neighbours; a bin of one is that point."""
    n = len(x)
    if n <= limit:
        values = compact(y)
        return {"x": compact(x), "low": values, "middle": values, "high": values}
    edges = np.linspace(0, n, limit + 1).astype(np.int64)
    parts = [y[start:stop] for start, stop in itertools.pairwise(edges)]
    finite = [part[np.isfinite(part)] for part in parts]
    columns = {
        name: np.array([reduce(part) if len(part) else np.nan for part in finite])
        for name, reduce in (("low", np.min), ("middle", np.median), ("high", np.max))
    }
    return {"x": compact(x[edges[:-1]]), **{name: compact(column) for name, column in columns.items()}}


def quantiles(values: Floats, limit: int) -> tuple[list[float | None], list[float | None]]:
    """Return the empirical distribution: values in order and the share that is at most as large."""
    ordered = np.sort(values[np.isfinite(values)])
    n = len(ordered)
    if not n:
        return [], []
    chosen = np.arange(n) if n <= limit else np.unique(np.linspace(0, n - 1, limit).round().astype(np.int64))
    return compact(ordered[chosen]), compact((chosen + 1) / n)


def compact(values: npt.ArrayLike, digits: int = 6) -> list[float | None]:
    """Return numbers with as many digits as a chart can show; what isn't finite is None."""
    return [float(f"{x:.{digits}g}") if np.isfinite(x) else None for x in np.asarray(values, np.float64).tolist()]
