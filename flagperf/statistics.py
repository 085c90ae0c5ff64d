"""Intervals and comparisons that keep what they promise with few trials.

Steps within a trial aren't independent of each other, trials are; so what is said of an engine rests on its trials, and
the interval over a trial's steps only says how well that one trial is known. Ratios are treated as logarithms: then
`a ÷ b` and `b ÷ a` are judged alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flagperf.schema.metric import Direction
from flagperf.schema.result import ComparisonVerdict

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
MOST_TRIALS = 1000
"""More additional trials than this count as: no number that anyone would run."""
MANY_PAIRS = 20
"""From so many pairs on the interval of a median needs no help from a distribution."""
_NORMAL = NormalDist()
_ROUNDING = 1e-12
"""Logarithms of ratios nearer than this are the same: rounding in the last bits is no spread."""


def quantile_interval(values: Sequence[float] | Floats, q: float = 0.5) -> tuple[float, float] | None:
    """Return the 95 % interval of a quantile from order statistics, free of any assumption on the distribution.

    It takes the ranks l < u with P(l ≤ B < u) ≥ 0.95 for B binomial(n, q), the tails apart (David & Nagaraja, Order
    Statistics, §7.1). None where too few values lie beyond the quantile: for a median fewer than 6.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n, tail = len(ordered), (1 - CONFIDENCE) / 2
    if n < 2:
        return None
    if n * q * (1 - q) > 1000:  # the normal limit is then exact to a fraction of a rank
        spread = _NORMAL.inv_cdf(1 - tail) * math.sqrt(n * q * (1 - q))
        below, above = math.floor(n * q - spread), math.ceil(n * q + spread)
    else:
        at_most = np.cumsum(_binomial(n, q))
        below = int(np.searchsorted(at_most, tail, side="right")) - 1  # largest k with P(B ≤ k) ≤ tail
        above = int(np.searchsorted(at_most, 1 - tail, side="left")) + 1  # smallest k with P(B ≥ k) ≤ tail
    if below < 0 or above > n:
        return None
    return float(ordered[below]), float(ordered[above - 1])


def _binomial(n: int, q: float) -> Floats:
    """Return P(B = k) for k = 0 … n."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    weights: Floats = np.exp(logs[n] - logs[k] - logs[n - k] + k * math.log(q) + (n - k) * math.log1p(-q))
    return weights


def trial_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over trials, by Student's t; on logarithms where all are above zero."""
    n = len(values)
    if n < 2:
        return None
    positive = all(value > 0 for value in values)
    points = [math.log(value) for value in values] if positive else list(values)
    mean = sum(points) / n
    spread = math.sqrt(sum((point - mean) ** 2 for point in points) / (n - 1))
    reach = _student(n - 1) * spread / math.sqrt(n)
    low, high = mean - reach, mean + reach
    return (math.exp(low), math.exp(high)) if positive else (low, high)


def mean_interval(values: Floats, independent: float) -> tuple[float, float] | None:
    """Return the 95 % interval of a series' mean by Student's t, for as many independent values as it is worth."""
    if len(values) < 2 or independent < 2:
        return None
    reach = _student(independent - 1) * float(values.std(ddof=1)) / math.sqrt(independent)
    return float(values.mean()) - reach, float(values.mean()) + reach


def outliers(values: Sequence[float] | Floats, threshold: float = 3.5) -> npt.NDArray[np.bool_]:
    """Mark values whose modified z-score is beyond the threshold (Iglewicz & Hoaglin 1993); they are never dropped."""
    array = np.asarray(values, np.float64)
    if len(array) < 3:
        return np.zeros(len(array), np.bool_)
    centre = np.median(array)
    away = np.abs(array - centre)
    scale = np.median(away)
    if scale == 0:  # more than half are alike: by the mean deviation then, as the authors propose
        scale = away.mean() * 1.253314 / 1.4826
    marked: npt.NDArray[np.bool_] = 0.6745 * away > threshold * scale
    return marked


class RatioEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate ÷ baseline with its 95 % interval and what follows from it."""

    ratio: float | None
    low: float | None
    high: float | None
    verdict: ComparisonVerdict
    pairs: int
    """Pairs used; for groups that aren't paired, the size of the smaller one."""
    more_trials: int | None = None
    why: str = ""
    """Why it can't be told, where the spread isn't the reason."""


def compare_pairs(
    candidate: Sequence[float] | Floats,
    baseline: Sequence[float] | Floats,
    direction: Direction,
    minimum_effect: float,
    seed: int = 0,
) -> RatioEstimate:
    """Compare two arms by pairs of trials: `candidate[i]` was measured next to `baseline[i]`.

    The ratio is that of the medians. Its interval rests on the logarithms of the pairs' ratios, in which a drift of the
    machine cancels out: the hull of the bias-corrected and accelerated bootstrap of their median (Efron 1987), of
    Student's t, and of the ratio itself. With 3 pairs the bootstrap alone would hold the truth in three cases of four.
    Pairs with a value that isn't finite are left out. Raises ValueError for unequal counts.
    """
    c, b = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    if c.shape != b.shape or c.ndim != 1:
        raise ValueError(f"Pairs need as many candidates as baselines, not {c.size} and {b.size}.")
    finite = np.isfinite(c) & np.isfinite(b)
    c, b = c[finite], b[finite]
    if (early := _unanswerable(c, b)) is not None:
        return early
    logs = np.log(c), np.log(b)
    n = len(c)
    differences = logs[0] - logs[1]
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    left_out = np.array([np.median(np.delete(differences, i)) for i in range(n)])
    return _judge(
        centre=float(differences.mean()),
        estimate=float(np.median(logs[0]) - np.median(logs[1])),
        error=float(differences.std(ddof=1)) / math.sqrt(n),
        freedom=n - 1,
        bootstrap=_bca(float(np.median(differences)), np.median(differences[draws], axis=1), left_out),
        width=lambda extra: _half_width(float(differences.std(ddof=1)), n + extra),
        direction=direction,
        minimum_effect=minimum_effect,
        pairs=n,
    )


def compare_rounds(
    candidate: Sequence[float] | Floats,
    baseline: Sequence[float] | Floats,
    direction: Direction,
    minimum_effect: float,
) -> RatioEstimate:
    """Compare two calls by rounds that took turns: `candidate[i]` was measured next to `baseline[i]`.

    What else a machine does disturbs some rounds, often several in a row. So the ratio is the median of the pairs'
    ratios, and its interval the one from order statistics, for as many independent pairs as the correlation of those
    that follow each other leaves. Few pairs are compared as trials are. Raises ValueError for unequal counts.
    """
    c, b = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    if c.shape == b.shape and c.ndim == 1:
        finite = np.isfinite(c) & np.isfinite(b)
        c, b = c[finite], b[finite]
    if len(c) < MANY_PAIRS or len(c) != len(b) or _unanswerable(c, b) is not None:
        return compare_pairs(c, b, direction, minimum_effect)
    differences = np.log(c) - np.log(b)
    ordered, n = np.sort(differences), len(differences)
    estimate = float(np.median(ordered))
    reach = _NORMAL.inv_cdf((1 + CONFIDENCE) / 2) * n / (2 * math.sqrt(independent(differences > estimate)))
    interval = ordered[max(math.floor(n / 2 - reach), 0)], ordered[min(math.ceil(n / 2 + reach), n - 1)]
    half = float(interval[1] - interval[0]) / 2
    return _judge(
        centre=estimate,
        estimate=estimate,
        error=0.0,
        freedom=n - 1,
        bootstrap=(float(interval[0]), float(interval[1])),
        width=lambda extra: half * math.sqrt(n / (n + extra)),
        direction=direction,
        minimum_effect=minimum_effect,
        pairs=n,
    )


def independent(series: npt.NDArray[Any]) -> float:
    """Return how many independent values tell as much of the mean as this series does: at most as many as it has.

    n ÷ (1 + 2 Σ ρ), the correlations ρ summed by pairs of lags until a pair isn't positive (Geyer 1992, §3.3).
    """
    n = len(series)
    away = np.asarray(series, np.float64) - np.mean(series)
    squares = float(away @ away)
    total = -1.0
    for lag in range(0, n - 1, 2):
        pair = float(away[lag:] @ away[: n - lag] + away[lag + 1 :] @ away[: n - lag - 1])
        if squares == 0 or pair <= 0:
            break
        total += 2 * pair / squares
    return n / max(total, 1.0)


def compare_groups(
    candidate: Sequence[float] | Floats,
    baseline: Sequence[float] | Floats,
    direction: Direction,
    minimum_effect: float,
    seed: int = 0,
) -> RatioEstimate:
    """Compare two arms whose trials weren't interleaved: as `compare_pairs`, with Welch's t and each arm drawn alone.

    A drift of the machine between the two isn't seen, so pairs are to be preferred.
    """
    c, b = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    c, b = c[np.isfinite(c)], b[np.isfinite(b)]
    if (early := _unanswerable(c, b)) is not None:
        return early
    logs = np.log(c), np.log(b)
    random = np.random.default_rng(seed)
    drawn = [np.median(x[random.integers(len(x), size=(RESAMPLES, len(x)))], axis=1) for x in logs]
    medians = float(np.median(logs[0])), float(np.median(logs[1]))
    left_out = np.array(
        [np.median(np.delete(logs[0], i)) - medians[1] for i in range(len(c))]
        + [medians[0] - np.median(np.delete(logs[1], i)) for i in range(len(b))]
    )
    variances = [float(x.var(ddof=1)) for x in logs]
    shares = [variance / len(x) for variance, x in zip(variances, logs, strict=True)]
    weight = sum(share**2 / (len(x) - 1) for share, x in zip(shares, logs, strict=True))
    spread = math.sqrt(sum(variances))
    smaller = min(len(c), len(b))
    return _judge(
        centre=float(logs[0].mean() - logs[1].mean()),
        estimate=medians[0] - medians[1],
        error=math.sqrt(sum(shares)),
        freedom=sum(shares) ** 2 / weight if weight else float(len(c) + len(b) - 2),
        bootstrap=_bca(medians[0] - medians[1], drawn[0] - drawn[1], left_out),
        width=lambda extra: _half_width(spread, smaller + extra),
        direction=direction,
        minimum_effect=minimum_effect,
        pairs=smaller,
    )


def _unanswerable(c: Floats, b: Floats) -> RatioEstimate | None:
    """Answer the cases in which there is no interval."""
    n = min(len(c), len(b))

    def cannot(ratio: float | None, why: str, more: int | None = None) -> RatioEstimate:
        return RatioEstimate(
            ratio=ratio, low=None, high=None, verdict="cannot tell", pairs=n, more_trials=more, why=why
        )

    if n == 0:
        return cannot(None, "no trial of both has a finite value")
    if n > 1 and (c == c[0]).all() and (b == c[0]).all():  # zeros too: alike is alike
        return RatioEstimate(ratio=1.0, low=1.0, high=1.0, verdict="equivalent", pairs=n)
    if (c <= 0).any() or (b <= 0).any():
        return cannot(None, "a ratio needs values above zero")
    ratio = float(np.median(c) / np.median(b))
    if n == 1:
        return cannot(ratio, "one trial has no spread, --trials 3 measures three", 2)
    return None


def _judge(
    *,
    centre: float,
    estimate: float,
    error: float,
    freedom: float,
    bootstrap: tuple[float, float],
    width: Callable[[int], float],
    direction: Direction,
    minimum_effect: float,
    pairs: int,
) -> RatioEstimate:
    """Turn estimates of the logarithm of the ratio into an interval and a verdict."""
    reach = _student(freedom) * error
    low, high = min(bootstrap[0], estimate, centre - reach), max(bootstrap[1], estimate, centre + reach)
    if high - low < _ROUNDING:
        low = high = estimate
    band = math.log1p(minimum_effect)
    verdict: ComparisonVerdict = "cannot tell"
    more: int | None = None
    why = ""
    if -band <= low and high <= band:
        verdict = "equivalent"
    elif abs(estimate) > band and (low > 0 or high < 0):
        if direction == "none":
            why = "neither more nor less of it is better"
        else:
            verdict = "better" if (estimate > 0) == (direction == "higher") else "worse"
    else:
        # The interval must shrink until it leaves 1, or until it lies within the band, wherever the ratio is now.
        goal = abs(estimate) if abs(estimate) > band else band - abs(estimate)
        more = next((extra for extra in range(1, MOST_TRIALS + 1) if width(extra) < goal), None)
    return RatioEstimate(
        ratio=math.exp(estimate),
        low=math.exp(low),
        high=math.exp(high),
        verdict=verdict,
        pairs=pairs,
        more_trials=more,
        why=why,
    )


def _bca(estimate: float, replicates: Floats, left_out: Floats) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval from replicates and the jackknife."""
    if np.ptp(replicates) < _ROUNDING:
        return estimate, estimate
    count = len(replicates)
    # Ties count half on either side, so that swapping the arms mirrors the interval.
    below = np.count_nonzero(replicates < estimate - _ROUNDING)
    beyond = np.count_nonzero(replicates > estimate + _ROUNDING)
    bias = _NORMAL.inv_cdf(min(max((below + (count - below - beyond) / 2) / count, 1 / count), 1 - 1 / count))
    away = left_out.mean() - left_out
    squares = float((away**2).sum())
    acceleration = float((away**3).sum()) / (6 * squares**1.5) if squares > _ROUNDING**2 else 0.0
    levels = []
    for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        z = bias + _NORMAL.inv_cdf(tail)
        levels.append(_NORMAL.cdf(bias + z / max(1 - acceleration * z, 0.1)))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def _student(freedom: float) -> float:
    """Return the quantile of Student's t for the two-sided 95 %."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _half_width(deviation: float, n: int) -> float:
    return _student(n - 1) * deviation / math.sqrt(n)
