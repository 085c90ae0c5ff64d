"""A sweep's journals → its points: metrics over ranks, rooflines, and who is faster than the baseline.

Ranks measure the same points at the same time. As a step ends when its last rank does, a point's time is the slowest
rank's, and everything that is made of a time follows from it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from flagperf.collect.journals import Floats, RankJournal
from flagperf.collect.reduce import REDUCTIONS, measured
from flagperf.collect.specifications import chip_of, slowest, specification_notes, specified
from flagperf.metrics import catalogue, metric
from flagperf.schema.chip import Chip
from flagperf.schema.event import Key
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Comparison, Reason, Result
from flagperf.schema.sweep import Bound, ClaimedRatio, Point, PointRatio, Roofs, Samples
from flagperf.schema.trial import Trial
from flagperf.statistics import compare_pairs, compare_rounds, quantile_interval

_MIB = 2**20
_PROBLEMS = {"wrong": "wrong_result", "failed": "point_failed"}
"""Verdicts of points that make a trial invalid, and the code of the reason."""


def sweep_points(trial: Trial, ranks: Sequence[RankJournal]) -> list[Point]:
    """Return every provider at every point that a rank told of, in the order of the first rank's journal."""
    told = [told_samples(rank) for rank in ranks]
    roofs = [found for rank in ranks if (found := told_roofs(rank)) is not None]
    order = dict.fromkeys(key for each in told for key in each)
    points = {key: point_of([each.get(key) for each in told], roofs) for key in order}
    if trial.kind == "specification":
        chip = chip_of(ranks)
        return [_specified([each.get(key) for each in told], point, chip) for key, point in points.items()]
    baseline = trial.providers[0]
    for key, point in points.items():
        reference = points.get((baseline, key[1]))
        if key[0] != baseline and reference is not None and {point.verdict, reference.verdict} == {"valid"}:
            ratio = _speedup(trial, [each[key] for each in told], [each[baseline, key[1]] for each in told])
            points[key] = msgspec.structs.replace(point, speedup=ratio)
    return list(points.values())


def _specified(ranks: Sequence[Samples | None], point: Point, chip: Chip | None) -> Point:
    """Return a device's own point: ranks don't wait for one another, so the slowest one's times are told, not a mix."""
    there = [each for each in ranks if each is not None]
    if point.verdict != "valid":
        return point
    own = slowest(there)
    return specified(point_of([own], []) if own.seconds else point, own, chip)


def sweep_metrics(trial: Trial, points: Sequence[Point]) -> dict[str, MetricValue]:
    """Return the metrics of a whole sweep: those whose declaration says how points become one number."""
    values: dict[str, MetricValue] = {}
    for name in trial.metrics:
        how = metric(name).over_points
        found = [point.metrics[name].value for point in points if point.verdict == "valid" and name in point.metrics]
        if how is not None and found:
            values[name] = measured(name, float(REDUCTIONS[how](np.asarray(found))), n=len(found))
    return values


def sweep_reasons(trial: Trial, points: Sequence[Point], ranks: Sequence[RankJournal]) -> Iterator[Reason]:
    """Return why a sweep is no valid measurement: points that are wrong, failed, missing, or all of them absent."""
    for verdict, code in _PROBLEMS.items():
        bad = [point for point in points if point.verdict == verdict]
        if bad:
            first = bad[0]
            who = ", ".join(f"{name} at {count}" for name, count in Counter(point.provider for point in bad).items())
            what = "failed" if verdict == "failed" else "is wrong" if len(bad) == 1 else "are wrong"
            yield Reason(
                code,
                f"{len(bad)} of {len(points)} points {what}: {who}. The first: {first.provider} at {shown(first.at)}: "
                f"{first.why}.",
                "Every point has its own verdict; leave a provider out with --engine.",
            )
    planned = max((x for rank in ranks for x in rank.numbers(Key.SWEEP, "points")), default=0.0) * len(trial.providers)
    if len(points) < planned:
        yield Reason("points_missing", f"{len(points)} of {planned:.0f} points are there.", "See the other reasons.")
    if not any(point.verdict == "valid" for point in points):
        why = "; ".join(dict.fromkeys(f"{point.provider}: {point.why}" for point in points)) or "none was reached"
        absent = points and all(point.verdict == "unsupported" for point in points)
        hint = "Leave this case out on these devices." if absent else "Choose points that fit: --set sweep.…"
        yield Reason("nothing_measured", f"No point was measured: {why[:500]}.", hint)


def sweep_notes(points: Sequence[Point]) -> Iterator[Reason]:
    """Tell which points weren't measured though nothing is wrong with them."""
    for verdict, what in (("too big", "don't fit"), ("unsupported", "aren't supported")):
        for name, count in Counter(point.provider for point in points if point.verdict == verdict).items():
            why = next(point.why for point in points if (point.provider, point.verdict) == (name, verdict))
            code = verdict.replace(" ", "_")
            yield Reason(code, f"{count} points {what} with {name}: {why}.", "They are shown as such.")
    for source in dict.fromkeys(str(point.facts["imported"]) for point in points if "imported" in point.facts):
        yield Reason(
            "imported",
            f"Measured by {source}: providers one after the other, not in turn.",
            "What changed on the machine meanwhile is in their ratios; `flagperf run` measures in turn.",
        )
    yield from _claims(points)
    yield from specification_notes(points)


def _claims(points: Sequence[Point]) -> Iterator[Reason]:
    """Tell what has been published of these providers beside what was measured."""
    found = [point for point in points if "claim" in point.facts and point.speedup and point.speedup.ratio]
    if not found:
        return
    best = max(found, key=lambda point: point.speedup.ratio if point.speedup and point.speedup.ratio else 0.0)
    told = best.speedup
    assert told is not None and told.ratio is not None
    try:
        claim = msgspec.convert(best.facts["claim"], ClaimedRatio)
    except msgspec.ValidationError:  # a damaged journal: nothing of the result rests on it
        return
    interval = f" ({told.low:.2f} to {told.high:.2f})" if told.low is not None and told.high is not None else ""
    yield Reason(
        "claim",
        f"{claim.title}, say the {claim.source}. Here {best.provider} reached {told.ratio:.2f} times the speed of "
        f"{told.baseline}{interval}, at {shown(best.at)}.",
        "No set-up is published with the claim; hold it against what was measured on hardware of your own.",
    )


def compare_points(results: Sequence[Result]) -> list[Comparison]:
    """Compare each provider's time with the baseline's at every point: by rounds in one trial, by trials in several."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        if result.points and not result.scenario:
            settings = result.facts.get("settings_digest")
            key = (result.run, result.case, result.preset, result.vendor, result.engine, result.ranks, settings)
            groups.setdefault(key, []).append(result)
    return [each for group in groups.values() for each in _compared(group)]


def _compared(results: Sequence[Result]) -> Iterator[Comparison]:
    first = results[0]
    minimum = float(first.facts.get("minimum_effect") or 0.03)
    trials = [{(point.provider, shown(point.at)): point for point in result.points} for result in results]
    for key, point in trials[0].items():
        ratios = [found.speedup for trial in trials if (found := trial.get(key)) is not None and found.speedup]
        if not ratios or point.speedup is None:
            continue
        name, told = "kernel_speed", point.speedup
        ratio, low, high, verdict, pairs = told.ratio, told.low, told.high, told.verdict, told.pairs
        logs = [each.ratio for each in ratios if each.ratio]
        if len(logs) > 1:
            over = compare_pairs(logs, [1.0] * len(logs), "higher", minimum)
            ratio, low, high, verdict, pairs = over.ratio, over.low, over.high, over.verdict, over.pairs
        yield Comparison(
            metric=name,
            candidate=key[0],
            baseline=told.baseline,
            ratio=ratio,
            low=low,
            high=high,
            verdict=verdict,
            case=first.case,
            preset=first.preset,
            pairs=pairs,
            at=point.at,
            minimum_effect=minimum,
            direction="higher",
        )


def shown(at: Mapping[str, object]) -> str:
    """Return a point as a person reads it."""
    return " ".join(f"{axis}={str(value).lower() if isinstance(value, bool) else value}" for axis, value in at.items())


def told_samples(rank: RankJournal) -> dict[tuple[str, str], Samples]:
    """Return what a rank measured, by provider and point; what can't be read or can't be is counted as a flaw."""
    found: dict[tuple[str, str], Samples] = {}
    for event in rank.events.get(Key.SAMPLES, []):
        try:
            each = msgspec.convert(event.value, Samples)
        except msgspec.ValidationError:
            rank.flaws["samples that can't be read"] += 1
            continue
        if not possible(each):
            rank.flaws["samples that can't be"] += 1
            continue
        found.setdefault((each.provider, shown(each.at)), each)
    return found


def possible(samples: Samples) -> bool:
    """Whether times, counts and values are numbers that a measurement can give."""
    times = np.array([*samples.seconds, *samples.host_seconds], np.float64)
    amounts = [samples.flops, samples.bytes, samples.bus_bytes, samples.uncertainty, samples.first or 0.0]
    return (
        bool((np.isfinite(times) & (times > 0)).all())
        and all(math.isfinite(x) and x >= 0 for x in amounts)
        and all(name in catalogue() and math.isfinite(x) for name, x in samples.values.items())
    )


def told_roofs(rank: RankJournal) -> Roofs | None:
    """Return the roofs that a rank measured, if it did."""
    try:
        return msgspec.convert(rank.last(Key.ROOFS), Roofs)
    except msgspec.ValidationError:
        return None


def point_of(ranks: Sequence[Samples | None], roofs: Sequence[Roofs]) -> Point:
    """Reduce one provider at one point over ranks; what went wrong on one of them went wrong."""
    there = [each for each in ranks if each is not None]
    bad = next((each for each in there if each.verdict != "valid"), None)
    head = bad or there[0]
    if bad is not None or len(there) < len(ranks):
        why = head.why if bad else "a rank has no samples of it"
        verdict = head.verdict if bad else "failed"
        errors = _accuracy(there) if verdict == "wrong" else {}
        return Point(at=head.at, provider=head.provider, verdict=verdict, why=why, metrics=errors, facts=head.facts)
    metrics: dict[str, MetricValue] = {**_accuracy(there)}
    seconds = _slowest([each.seconds for each in there])
    bound: Bound = ""
    dtype = str(head.at.get("dtype", "fp32"))
    if len(seconds):
        time, interval = float(np.median(seconds)), quantile_interval(seconds)
        uncertain = max(each.uncertainty for each in there)
        if interval is not None:
            interval = (max(interval[0] - uncertain, 0.0), interval[1] + uncertain)
        metrics["kernel_time"] = measured("kernel_time", time, len(seconds), interval)

        def rate(name: str, amount: float) -> None:
            bounds = (amount / interval[1], amount / interval[0]) if interval and interval[0] > 0 else None
            if amount > 0 and time > 0:
                metrics[name] = measured(name, amount / time, len(seconds), bounds)

        rate("flops_rate", head.flops / 1e12)
        rate("bandwidth", head.bytes / 1e9)
        rate("bus_bandwidth", head.bus_bytes / 1e9)
        hosts = _slowest([each.host_seconds for each in there])
        if len(hosts):
            metrics["host_time"] = measured("host_time", float(np.median(hosts)), len(hosts), quantile_interval(hosts))
        share, bound = _roofline(head, dtype, time, roofs)
        if share is not None:
            metrics["roofline_share"] = measured("roofline_share", share, len(seconds))
    firsts = [each.first for each in there if each.first is not None]
    if firsts:
        metrics["first_call"] = measured("first_call", max(firsts))
    memories = [each.memory for each in there if each.memory is not None]
    if memories:
        metrics["kernel_memory"] = measured("kernel_memory", max(memories) / _MIB, len(memories))
    for name in head.values:
        amounts = np.array([each.values[name] for each in there if name in each.values])
        if len(amounts) and np.isfinite(amounts).all():
            metrics[name] = measured(name, float(REDUCTIONS[metric(name).over_ranks](amounts)), len(amounts))
    return Point(at=head.at, provider=head.provider, verdict="valid", metrics=metrics, bound=bound, facts=head.facts)


def _slowest(rounds: Sequence[Sequence[float]]) -> Floats:
    """Return the slowest rank's time, round by round, as far as all ranks have rounds."""
    count = min(map(len, rounds), default=0)
    return np.array([each[:count] for each in rounds], np.float64).max(axis=0) if count else np.array([])


def _accuracy(ranks: Sequence[Samples]) -> dict[str, MetricValue]:
    found = [each.accuracy for each in ranks if each.accuracy is not None]
    values: dict[str, MetricValue] = {}
    for name, field in (("error_absolute", "max_absolute"), ("error_relative", "max_relative")):
        amounts = [getattr(each, field) for each in found]
        if amounts and None not in amounts:
            values[name] = measured(name, max(amounts), sum(each.elements for each in found))
    return values


def _roofline(samples: Samples, dtype: str, seconds: float, roofs: Sequence[Roofs]) -> tuple[float | None, Bound]:
    """Return the share of the roof that a call reaches, and which roof its work meets first; of the slowest rank."""
    found = [(each.flops.get(dtype), each.bandwidth) for each in roofs]
    if not found or seconds <= 0 or not (samples.flops or samples.bytes):
        return None, ""
    flops, bandwidth = found[0]
    if samples.flops and flops is None:
        return None, ""  # without the roof of its data type it can't be said which of the two is lower
    computing = samples.flops / flops if flops else 0.0
    moving = samples.bytes / bandwidth if bandwidth else 0.0
    least = max(computing, moving)
    if not least or not math.isfinite(least):
        return None, ""
    return least / seconds, "compute" if computing > moving else "memory"


def _speedup(trial: Trial, own: Sequence[Samples], reference: Sequence[Samples]) -> PointRatio:
    mine, theirs = (_slowest([each.seconds for each in some]) for some in (own, reference))
    count = min(len(mine), len(theirs))
    found = compare_rounds(theirs[:count], mine[:count], "higher", trial.protocol.minimum_effect)
    return PointRatio(
        baseline=trial.providers[0],
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        verdict=found.verdict,
        pairs=found.pairs,
    )
