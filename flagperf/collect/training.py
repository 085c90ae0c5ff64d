"""The metrics of a training trial, by the meanings that metrics.toml gives them: over ranks first, then over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flagperf.collect.journals import Floats, RankJournal, Steps, Telemetry, number
from flagperf.collect.reduce import QUANTILES, REDUCTIONS
from flagperf.collect.resources import Span, over_ranks, put, put_energy, put_memory, put_telemetry_cost
from flagperf.metrics import metric
from flagperf.schema.event import Key
from flagperf.schema.metric import MetricValue
from flagperf.schema.trial import Trial
from flagperf.statistics import quantile_interval


@dataclass(frozen=True, kw_only=True)
class Window:
    """The measured steps that every rank has, reduced over ranks."""

    seconds: Floats
    """From the end of one step on its last rank to the end of the next; the ranks begin together."""
    data_seconds: Floats
    """Of the rank that waited longest, a step."""
    compute_seconds: Floats
    """Of a step, without the longest wait of a rank for its data."""
    tokens: Floats
    """Of the global batch, a step."""
    loss: Floats
    """Mean over the global batch, a step; NaN where it wasn't finite."""
    step: Floats
    start_ns: float
    stop_ns: float


def window(ranks: Sequence[RankJournal]) -> Window | None:
    """Return the measured steps all ranks have in common; None if there are none."""
    measured = [_once(rank.steps.take(rank.steps.measured)) for rank in ranks]
    common = measured[0].step if measured else np.array([], np.int64)
    for steps in measured[1:]:
        if not np.array_equal(steps.step, common):
            common = np.intersect1d(common, steps.step, assume_unique=True)
    if not len(common):
        return None
    aligned = [steps if len(steps) == len(common) else steps.take(np.isin(steps.step, common)) for steps in measured]
    seconds = np.stack([steps.seconds for steps in aligned])
    waits = np.stack([steps.data_seconds for steps in aligned])
    # Only leaders speak for their data-parallel group: of its ranks each read the same tokens.
    shares = np.stack([np.where(steps.leader, steps.tokens, 0).astype(np.float64) for steps in aligned])
    losses = np.stack([steps.loss for steps in aligned])
    tokens = shares.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = np.where(shares > 0, losses * shares, 0.0).sum(axis=0) / tokens
    first = aligned[0]
    # A step ends when its last rank does. The slowest rank of each step by itself would count jitter between
    # neighbouring steps every time, and more steps than there was time.
    whole = np.diff(seconds.cumsum(axis=1).max(axis=0), prepend=0.0)
    waited = waits.max(axis=0)
    return Window(
        seconds=whole,
        data_seconds=waited,
        compute_seconds=np.maximum(whole - waited, 0.0),
        tokens=tokens,
        loss=loss,
        step=common.astype(np.float64),
        start_ns=float(first.ns[0]) - float(first.seconds[0]) * 1e9,
        stop_ns=float(first.ns[-1]),
    )


def _once(steps: Steps) -> Steps:
    """Return the steps in order of their number, the first of any that is there twice."""
    if (np.diff(steps.step) > 0).all():
        return steps
    return steps.take(np.unique(steps.step, return_index=True)[1])


def peak_flops(trial: Trial, ranks: Sequence[RankJournal]) -> float | None:
    """Return the measured GEMM peak of all ranks together, FLOP/s.

    A rank's is the largest that was seen of it: a machine that was busy when its peak was measured must not make a
    trial look better than it was.
    """
    seen = [x for rank in ranks for x in rank.numbers(Key.PULSE, "flops_per_second")]
    if (planned := number(trial.peak_flops)) is not None:
        seen.append(planned)
    return max(seen) * trial.ranks if seen and max(seen) > 0 else None


def training_metrics(
    trial: Trial, ranks: Sequence[RankJournal], steps: Window | None, telemetry: Telemetry
) -> dict[str, MetricValue]:
    """Return every metric that the journals have the data for."""
    values: dict[str, MetricValue] = {}
    if steps is not None:
        _speed(values, trial, ranks, steps)
        put(values, "loss_final", _over_steps("loss_final", steps.loss)[0])
        put_energy(values, ranks, Span(steps.start_ns, steps.stop_ns), telemetry, float(steps.tokens.sum()))
        skipped = [float(rank.steps.skipped.sum()) for rank in ranks]
        put(values, "steps_skipped", over_ranks("steps_skipped", skipped), n=len(ranks[0].steps))
    first = [x for rank in ranks for x in rank.numbers(Key.FIRST_STEP, "seconds")]
    if first:
        put(values, "time_to_first_step", over_ranks("time_to_first_step", first), n=len(first))
    put_memory(values, ranks)
    _communication(values, ranks)
    _validation(values, ranks)
    pulses = machine_speeds(ranks)
    if pulses:
        put(values, "machine_speed", min(pulses.values()) / 1e9, n=len(pulses))
    put_telemetry_cost(values, telemetry)
    return values


def _over_steps(name: str, series: Floats) -> tuple[float, int, tuple[float, float] | None]:
    """Return what a metric's declaration makes of its samples, their number, and the interval where there is one."""
    how = metric(name).over_steps
    if how in QUANTILES:
        q = QUANTILES[how]
        return float(np.quantile(series, q)), len(series), quantile_interval(series, q)
    return float(REDUCTIONS[how](series)), len(series), None


def _speed(values: dict[str, MetricValue], trial: Trial, ranks: Sequence[RankJournal], steps: Window) -> None:
    n = len(steps.seconds)
    if not (np.isfinite(steps.seconds) & (steps.seconds > 0)).all():
        return  # the verdict says so
    for name in ("step_time", "step_time_p90", "step_time_p99"):
        put(values, name, *_over_steps(name, steps.seconds))
    put(values, "data_wait", *_over_steps("data_wait", steps.data_seconds))
    tokens = float(np.median(steps.tokens))

    def rate(name: str, factor: float) -> None:
        seconds, _, interval = _over_steps(name, steps.seconds)
        bounds = (factor * tokens / interval[1], factor * tokens / interval[0]) if interval else None
        put(values, name, factor * tokens / seconds, n, bounds)

    rate("tokens_per_second", 1.0)
    rate("tokens_per_second_per_device", 1 / trial.ranks)
    built = ranks[0].last(Key.BUILD)
    flops, peak = number(built.get("flops_per_token")), peak_flops(trial, ranks)
    if flops is not None and peak is not None:
        rate("mfu", flops / peak)
        rate("hfu", flops * (number(built.get("hfu_factor")) or 1.0) / peak)
    if flops is not None and trial.rated_flops:
        rate("mfu_rated", flops / (trial.rated_flops * trial.ranks))

    # FlagPerf's three, over the measured steps, so that all that tells them apart is what their names say.
    sequences = n * trial.protocol.global_batch
    training = float(steps.seconds.sum())
    evaluation = max((x for rank in ranks for x in rank.numbers(Key.EVAL, "seconds")), default=0.0)
    put(values, "p_whole", sequences / (training + evaluation))
    put(values, "p_train", sequences / training, n)
    compute = float(steps.compute_seconds.sum())
    if compute > 0:
        put(values, "p_core", sequences / compute, n)


PARTS = ("seconds", "communication", "exposed", "compute", "idle")
"""Of a step under the profiler."""


def profiled(ranks: Sequence[RankJournal]) -> list[dict[str, float]]:
    """Return each rank's PARTS, seconds a step; nothing unless all ranks tell of theirs what the first three are."""
    told = [rank.last(Key.COMMUNICATION) for rank in ranks]
    rows = [{name: x for name in PARTS if (x := number(each.get(name))) is not None} for each in told]
    return rows if all({*PARTS[:3]} <= row.keys() and row["seconds"] > 0 for row in rows) else []


def _communication(values: dict[str, MetricValue], ranks: Sequence[RankJournal]) -> None:
    known = profiled(ranks)
    if not known:
        return
    for name, series in (
        ("communication_time", [row["communication"] for row in known]),
        ("communication_exposed", [row["exposed"] for row in known]),
        ("communication_exposed_share", [row["exposed"] / row["seconds"] for row in known]),
        ("compute_time", [row["compute"] for row in known if "compute" in row]),
        ("idle_time", [row["idle"] for row in known if "idle" in row]),
    ):
        if len(series) < len(known):
            continue
        put(values, name, over_ranks(name, series), n=len(series))


def _validation(values: dict[str, MetricValue], ranks: Sequence[RankJournal]) -> None:
    shares = [share for rank in ranks if (share := rank.last(Key.EVAL)).get("leader", True)]
    told = [[number(share.get(name)) for name in ("loss", "tokens", "bytes")] for share in shares]
    if not told or any(loss is None or not tokens or tokens < 0 for loss, tokens, _ in told):
        return
    tokens = sum(t or 0.0 for _, t, _ in told)
    nats = sum((loss or 0.0) * (t or 0.0) for loss, t, _ in told)
    put(values, "loss_validation", nats / tokens)
    size = sum(b or 0.0 for *_, b in told)
    if all(b for *_, b in told) and size > 0:
        put(values, "bits_per_byte", nats / math.log(2) / size)


def machine_speeds(ranks: Sequence[RankJournal]) -> dict[str, float]:
    """Return what all ranks' pulses come to, FLOP/s, `before` and `after` the steps, where every rank has one."""
    speeds: dict[str, float] = {}
    for when in ("before", "after"):
        seen: list[float] = []
        for rank in ranks:
            values: list[Any] = [event.value for event in rank.events.get(Key.PULSE, [])]
            pulses = [value for value in values if isinstance(value, dict) and value.get("when") == when]
            seen += [x for pulse in pulses[-1:] if (x := number(pulse.get("flops_per_second"))) is not None]
        if seen and len(seen) == len(ranks):
            speeds[when] = sum(seen)
    return speeds
