"""Specifications: the slowest device's figure, beside what its maker rates it at, and how well it was kept up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from flagperf.collect.journals import RankJournal
from flagperf.collect.reduce import measured
from flagperf.schema.chip import Chip
from flagperf.schema.event import Key
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Reason
from flagperf.schema.sweep import Point, Rated, Samples

_METRICS = {"memory_bandwidth_gbs": "bandwidth", "memory_gb": "capacity", "tdp_w": "power_load"}
"""Which metric measures a figure of the table of chips; all others are of `flops_rate`. The units agree."""
IMPOSSIBLE = {"memory_gb": 1.075, "tdp_w": float("inf")}
"""Above so many times the rated figure a measurement can't be right: 1.05, but rated gigabytes may be binary ones, and
what a chip is rated to draw it may draw more of for a while."""
_LEAST_ROUNDS = 20
"""Of a curve that has a beginning and an end."""
_PARTS = 10


def slowest(samples: Sequence[Samples]) -> Samples:
    """Return the samples of the device that is slowest for its work: each looked for its own best size."""

    def effort(each: Samples) -> float:
        return float(np.median(each.seconds)) / (each.flops or each.bytes or 1.0) if each.seconds else 0.0

    return max(samples, key=effort)


def kept_up(seconds: Sequence[float]) -> float | None:
    """Return the speed over the last tenth of the rounds ÷ that over the best tenth; None of too few."""
    if len(seconds) < _LEAST_ROUNDS:
        return None
    parts = [float(np.median(part)) for part in np.array_split(np.asarray(seconds, np.float64), _PARTS)]
    return min(parts) / parts[-1] if parts[-1] > 0 else None


def chip_of(ranks: Sequence[RankJournal]) -> Chip | None:
    """Return the chip that the ranks' devices are; None where one isn't known or they differ."""
    found = []
    for rank in ranks:
        try:
            found.append(msgspec.convert(rank.last(Key.SWEEP).get("chip"), Chip | None))
        except msgspec.ValidationError:
            return None
    return found[0] if found and all(chip == found[0] for chip in found) else None


def specified(point: Point, samples: Samples, chip: Chip | None) -> Point:
    """Return a point that was measured with what it says of the device: the rated figure, and how it was kept up."""
    metrics = dict(point.metrics)
    if (share := kept_up(samples.seconds)) is not None:
        metrics["sustained_share"] = measured("sustained_share", share, len(samples.seconds))
    name = _METRICS.get(samples.figure, "flops_rate")
    rated = chip.rated(samples.figure) if chip and samples.figure else None
    if not chip or not rated or name not in metrics:
        return msgspec.structs.replace(point, metrics=metrics)
    metrics["rated_share"] = _share(metrics[name], rated)
    told = Rated(metric=name, value=rated, chip=chip.chip, source=chip.source, confidence=chip.confidence)
    limit = IMPOSSIBLE.get(samples.figure, 1.05)
    if metrics["rated_share"].value > limit:
        why = (
            f"{metrics[name].value:,.4g} {metrics[name].unit} is over {limit:g} times what {chip.chip} is rated at "
            f"({rated:,.4g}): a clock, a count or the table is wrong"
        )
        return msgspec.structs.replace(point, metrics=metrics, rated=told, verdict="wrong", why=why)
    return msgspec.structs.replace(point, metrics=metrics, rated=told)


def specification_notes(points: Sequence[Point]) -> Iterator[Reason]:
    """Tell which figures are above the rated ones, and which devices didn't keep up their speed."""
    for point in points:
        share = point.metrics.get("rated_share")
        if point.verdict == "valid" and point.rated and share and share.value > 1 and point.rated.metric != "capacity":
            yield Reason(
                "above_rated",
                f"{point.provider} at {_shown(point)}: {share.value:.3f} times what {point.rated.chip} is rated at.",
                "The table of chips may have the figure of another version of it.",
            )
        kept = point.metrics.get("sustained_share")
        if point.verdict == "valid" and kept and kept.value < 0.9:
            yield Reason(
                "not_kept_up",
                f"{point.provider} at {_shown(point)}: at the end {1 - kept.value:.0%} slower than at its best.",
                "It throttles, or someone else uses it: its rounds are the curve.",
            )


def _shown(point: Point) -> str:
    return " ".join(f"{axis}={value}" for axis, value in point.at.items())


def _share(value: MetricValue, rated: float) -> MetricValue:
    interval = None if value.low is None or value.high is None else (value.low / rated, value.high / rated)
    return measured("rated_share", value.value / rated, value.n, interval)
