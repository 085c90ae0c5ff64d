"""What a trial took beside time: memory and energy, and what watching it did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flagperf.collect.devices import device_energies
from flagperf.collect.journals import RankJournal, Telemetry, number
from flagperf.collect.reduce import REDUCTIONS, measured
from flagperf.metrics import metric
from flagperf.schema.event import Key
from flagperf.schema.metric import MetricValue

_MIB = 2**20


class Span(NamedTuple):
    """What was on the clock, on the host's monotonic one."""

    start_ns: float
    stop_ns: float


def put(
    values: dict[str, MetricValue], name: str, value: float, n: int = 1, interval: tuple[float, float] | None = None
) -> None:
    """Put a metric that is a number."""
    if math.isfinite(value):
        values[name] = measured(name, value, n, interval)


def over_ranks(name: str, amounts: Sequence[float]) -> float:
    """Return what a metric's declaration makes of the ranks' figures."""
    return float(REDUCTIONS[metric(name).over_ranks](np.asarray(amounts)))


def put_memory(values: dict[str, MetricValue], ranks: Sequence[RankJournal]) -> None:
    """Put peaks, and what was held, each of the rank with most."""
    peaks, held = ([rank.last(key) for rank in ranks] for key in (Key.MEMORY, Key.HELD))
    for name, source, told in (
        ("memory_peak_allocated", "peak_allocated", peaks),
        ("memory_peak_reserved", "peak_reserved", peaks),
        ("memory_peak_rss", "peak_rss", peaks),
        ("memory_pss", "pss", peaks),
        ("memory_device_used", "device_used", peaks),
        ("memory_weights", "weights", held),
        ("memory_gradients", "gradients", held),
        ("memory_optimizer", "optimizer", held),
        ("memory_cache", "cache", held),
        ("memory_offloaded", "host", held),
    ):
        _bytes(values, name, [number(each.get(source)) for each in told])
    states = [number(each.get("allocated")) for each in held]
    whole = [number(each.get("peak_allocated")) for each in peaks]
    rests = [None if p is None or s is None else p - s for p, s in zip(whole, states, strict=True)]
    _bytes(values, "memory_activations", rests)


def _bytes(values: dict[str, MetricValue], name: str, amounts: Sequence[float | None]) -> None:
    known = [amount for amount in amounts if amount is not None]
    # A rank that doesn't tell may be the largest: then there is no answer.
    if known and len(known) == len(amounts):
        put(values, name, over_ranks(name, known) / _MIB, n=len(known))


def put_energy(
    values: dict[str, MetricValue], ranks: Sequence[RankJournal], span: Span, telemetry: Telemetry, tokens: float
) -> None:
    """Put the energy of what computed: the devices', or the host's where its cores are the devices."""
    if len({str(rank.last(Key.HEADER).get("host")) for rank in ranks}) > 1:
        return  # telemetry is of one host
    host = energy(telemetry, *span)
    joules, n = host, 1
    if telemetry.devices or telemetry.devices_unavailable:
        if host is not None:
            put(values, "energy_host", host)
        each = device_energies(ranks, telemetry, *span)
        known = [one.joules for one in each if one.joules is not None]
        # A device that doesn't tell may draw the most: then there is no answer.
        joules = sum(known) if known and len(known) == len(each) else None
        n = sum(one.samples for one in each)
    if joules is None:
        return
    put(values, "energy", joules, n)
    if joules > 0:
        put(values, "tokens_per_joule", tokens / joules, n)


def energy(telemetry: Telemetry, start_ns: float, stop_ns: float) -> float | None:
    """Return the joules that all of the host's energy counters went up by in the window; None where there are none.

    Counters are read between samples by straight lines. A counter that doesn't span the window counts for nothing,
    and then there is no figure: half a machine's energy would be taken for the whole.
    """
    total = 0.0
    sensors = sorted({name for name in telemetry.sensor if name.startswith("energy_joules.")})
    for sensor in sensors:
        times, counted = telemetry.series(sensor)
        if len(times) < 2 or times[0] > start_ns or times[-1] < stop_ns or (np.diff(counted) < 0).any():
            return None
        start, stop = np.interp([start_ns, stop_ns], times.astype(np.float64), counted)
        total += float(stop - start)
    return total if sensors else None


def put_telemetry_cost(values: dict[str, MetricValue], telemetry: Telemetry) -> None:
    """Put the share of one core that telemetry took."""
    cpu, wall = number(telemetry.cost.get("cpu_seconds")), number(telemetry.cost.get("wall_seconds"))
    if cpu is not None and wall:
        put(values, "telemetry_cost", 100 * cpu / wall)
