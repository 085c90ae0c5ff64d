"""What telemetry tells of a trial's devices: their energy while steps were measured, and what befell them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flagperf.collect.journals import DeviceReading, Floats, RankJournal, Telemetry, number
from flagperf.schema.event import Key
from flagperf.schema.result import Reason

LEAST_COVERED = 0.95
"""Share of the measured time for which a device's power must be known; below it there is no energy."""
GAP = 2.5
"""Samples further apart than this many of the usual distances have a gap between them, in which nothing is known."""
LONGEST_GAP = 15e9
"""Nanoseconds between two samples that are a gap however slow a tool is."""
CLOCK_FALL = 0.10
"""Relative fall of a device's clock, from the first to the last quarter of the measured time, that must be told."""
BUSY_BEFORE = 10.0
"""Percent of utilisation before the first rank began that must be told."""


@dataclass(frozen=True, kw_only=True)
class DeviceEnergy:
    """One device's energy over the measured steps."""

    index: int
    joules: float | None
    """None where too little of the time is covered."""
    covered: float
    """Share of the measured time for which it's known."""
    samples: int
    source: str
    """`counter`: the device's own; `power`: its power, integrated."""


def trial_devices(ranks: Sequence[RankJournal], telemetry: Telemetry) -> list[int]:
    """Return the indices of the devices that the trial's ranks run on: local rank k has the k-th that it may see."""
    here = sum(1 for rank in ranks if rank.last(Key.HEADER).get("host") in (None, telemetry.header.get("host")))
    places = {index: _place(readings) for index, readings in telemetry.devices.items()}
    if all(place is None for place in places.values()):  # an adapter that doesn't say: all of them
        return sorted(places)
    return sorted(index for index, place in places.items() if place is not None and place < (here or len(ranks)))


def _place(readings: Sequence[DeviceReading]) -> int | None:
    told = next((number(reading.values["visible"]) for reading in readings if "visible" in reading.values), None)
    return None if told is None else int(told)


def device_energies(
    ranks: Sequence[RankJournal], telemetry: Telemetry, start_ns: float, stop_ns: float
) -> list[DeviceEnergy]:
    """Return the energy of each of the trial's devices; of those whose power nothing is known, too."""
    return [_energy(telemetry, index, start_ns, stop_ns) for index in trial_devices(ranks, telemetry)]


def _energy(telemetry: Telemetry, index: int, start_ns: float, stop_ns: float) -> DeviceEnergy:
    times, counted = _series(telemetry, index, "energy_j")
    inside = int(((times >= start_ns) & (times <= stop_ns)).sum())
    if len(times) > 1 and times[0] <= start_ns and times[-1] >= stop_ns and (np.diff(counted) >= 0).all():
        begin, end = np.interp([start_ns, stop_ns], times, counted)
        return DeviceEnergy(index=index, joules=float(end - begin), covered=1.0, samples=inside, source="counter")
    times, watts = _series(telemetry, index, "power_w")
    inside = int(((times >= start_ns) & (times <= stop_ns)).sum())
    joules, covered = integrated(times, watts, start_ns, stop_ns, longest_gap(telemetry, times))
    # What is missing is taken to be like the rest: so little of it may be that this can't matter.
    known = joules / covered if covered >= LEAST_COVERED else None
    return DeviceEnergy(index=index, joules=known, covered=covered, samples=inside, source="power")


def integrated(times: Floats, watts: Floats, start_ns: float, stop_ns: float, longest: float) -> tuple[float, float]:
    """Return the joules in the window by the trapezoidal rule, and the share of the window that they are of.

    Two samples further apart than `longest` nanoseconds have a gap between them that counts for nothing.
    """
    if len(times) < 2 or stop_ns <= start_ns:
        return 0.0, 0.0
    begin, end = np.clip(times[:-1], start_ns, stop_ns), np.clip(times[1:], start_ns, stop_ns)
    known = (np.diff(times) <= longest) & (end > begin)
    begin, end = begin[known], end[known]
    means = (np.interp(begin, times, watts) + np.interp(end, times, watts)) / 2
    covered = float((end - begin).sum()) / (stop_ns - start_ns)
    return float((means * (end - begin)).sum()) / 1e9, min(1.0, covered)


def longest_gap(telemetry: Telemetry, times: Floats) -> float:
    """Return how far apart samples may be, nanoseconds, so that what is between them counts as known."""
    interval = (number(telemetry.header.get("interval")) or 0.0) * 1e9
    usual = float(np.median(np.diff(times))) if len(times) > 2 else 0.0
    return min(GAP * max(interval, usual), LONGEST_GAP) or LONGEST_GAP


def _series(telemetry: Telemetry, index: int, name: str) -> tuple[Floats, Floats]:
    """Return the times and values of a number of a device, in order; negative ones can't be."""
    rows = [(r.ns, x) for r in telemetry.devices[index] if (x := number(r.values.get(name))) is not None and x >= 0]
    columns = np.array(rows, np.float64).reshape(-1, 2)
    columns = columns[np.argsort(columns[:, 0], kind="stable")]
    return columns[:, 0], columns[:, 1]


def device_notes(
    ranks: Sequence[RankJournal], telemetry: Telemetry, start_ns: float, stop_ns: float
) -> Iterator[Reason]:
    """Tell what befell the trial's devices while steps were measured."""
    for index in trial_devices(ranks, telemetry):
        readings = telemetry.devices[index]
        inside = [reading for reading in readings if start_ns <= reading.ns <= stop_ns]
        yield from _lost(telemetry, index, start_ns, stop_ns)
        yield from _throttled(index, inside)
        yield from _errors(index, readings, start_ns, stop_ns)
        yield from _clocks(telemetry, index, start_ns, stop_ns)
        yield from _busy_before(index, ranks, readings)
    yield from _foreign(ranks, telemetry, start_ns, stop_ns)


def energy_notes(
    ranks: Sequence[RankJournal], telemetry: Telemetry, start_ns: float, stop_ns: float
) -> Iterator[Reason]:
    """Tell why there is no energy though devices told of their power, and where there are gaps."""
    for each in device_energies(ranks, telemetry, start_ns, stop_ns):
        if 0 < each.covered < LEAST_COVERED:
            yield Reason(
                "energy_unknown",
                f"There is no energy: the power of device {each.index} is known for {each.covered:.0%} of the measured "
                f"time, which is less than {LEAST_COVERED:.0%}.",
                "Its tool failed or hung, or the steps were too few for the sampling interval.",
            )
        elif LEAST_COVERED <= each.covered < 0.9995:
            yield Reason(
                "energy_gaps",
                f"The power of device {each.index} is known for {each.covered:.1%} of the measured time; "
                "its mean counts for the rest.",
            )


def _lost(telemetry: Telemetry, index: int, start_ns: float, stop_ns: float) -> Iterator[Reason]:
    hint = "The driver's log says more; look at the device before the next trial."
    readings = [reading for reading in telemetry.devices[index] if reading.ns <= stop_ns]
    first = next((place for place, reading in enumerate(readings) if reading.values.get("faulty")), None)
    if first is not None:
        ns, values = readings[first]
        moment = f"{(ns - start_ns) / 1e9:.1f} s after the first measured step began"
        if ns < start_ns:
            moment = "before the first measured step"
        again = any(not reading.values.get("faulty") for reading in readings[first:])
        what = f"Device {index} couldn't be read {moment}: {values['faulty']}."
        yield Reason(*(("device_faltered", f"{what} Later it could.") if again else ("device_lost", what)), hint)
        return
    times = np.array([reading.ns for reading in telemetry.devices[index]], np.float64)
    last, sampled_on = float(times.max()), len(telemetry.ns) and float(telemetry.ns.max()) > float(times.max())
    if sampled_on and start_ns <= last < stop_ns - longest_gap(telemetry, times):
        what = f"Device {index} told nothing in the last {(stop_ns - last) / 1e9:.1f} s of the measured steps"
        why = f": {telemetry.devices_unavailable}" if telemetry.devices_unavailable else ""
        yield Reason("device_silent", f"{what}{why}.", hint)


def _throttled(index: int, inside: Sequence[DeviceReading]) -> Iterator[Reason]:
    told = [reading.values["throttled"] for reading in inside if isinstance(reading.values.get("throttled"), list)]
    held = [why for why in told if why]
    if held:
        why = ", ".join(sorted({str(one) for each in held for one in each}))
        yield Reason(
            "device_throttled",
            f"Device {index} held its clocks down in {len(held)} of {len(told)} samples of the measured steps: {why}.",
            "Better cooling or a higher power limit would change the result; as shipped, it is what the device does.",
        )


def _errors(index: int, readings: Sequence[DeviceReading], start_ns: float, stop_ns: float) -> Iterator[Reason]:
    counts = [(r.ns, x) for r in readings if (x := number(r.values.get("ecc_uncorrected"))) is not None]
    before = [count for ns, count in counts if ns <= start_ns] or [count for _, count in counts[:1]]
    after = [count for ns, count in counts if ns >= stop_ns] or [count for _, count in counts[-1:]]
    if before and after and after[0] > before[-1]:
        yield Reason(
            "ecc_errors",
            f"Device {index} had {after[0] - before[-1]:.0f} new memory errors that couldn't be corrected.",
            "What was computed may be wrong; replace the device or retire its pages before the next trial.",
        )
    events = [str(one) for r in readings if isinstance(r.values.get("xid"), list) for one in r.values["xid"]]
    if events:
        codes = ", ".join(dict.fromkeys(events))
        yield Reason(
            "device_errors",
            f"The driver told of {len(events)} errors of device {index} during the trial, with the numbers {codes}.",
            "The maker's list of these numbers says what they mean.",
        )


def _clocks(telemetry: Telemetry, index: int, start_ns: float, stop_ns: float) -> Iterator[Reason]:
    times, clocks = _series(telemetry, index, "clock_mhz")
    quarter = (stop_ns - start_ns) / 4
    first = clocks[(times >= start_ns) & (times <= start_ns + quarter)]
    last = clocks[(times >= stop_ns - quarter) & (times <= stop_ns)]
    if not len(first) or not len(last):
        return
    begin, end = float(np.median(first)), float(np.median(last))
    if end < (1 - CLOCK_FALL) * begin:
        yield Reason(
            "clocks_fell",
            f"The clock of device {index} fell from {begin:.0f} to {end:.0f} MHz while steps were measured.",
            "It grew hot or met its power limit: later steps are slower than earlier ones.",
        )


def _busy_before(index: int, ranks: Sequence[RankJournal], readings: Sequence[DeviceReading]) -> Iterator[Reason]:
    begins = [ns for rank in ranks if (ns := rank.began_ns) is not None]
    if not begins:
        return
    seen = [number(r.values.get("utilisation_pct")) for r in readings if r.ns < min(begins)]
    busiest = max((x for x in seen if x is not None), default=0.0)
    if busiest > BUSY_BEFORE:
        yield Reason(
            "foreign_load",
            f"Device {index} was {busiest:.0f} % busy before the trial's first rank began.",
            "Someone else uses it: the times aren't those of a free device.",
        )


def _foreign(ranks: Sequence[RankJournal], telemetry: Telemetry, start_ns: float, stop_ns: float) -> Iterator[Reason]:
    """Tell of processes on the trial's devices that aren't the trial's.

    Only where one of its own is among them: in a container the driver may number processes as the host does, and then
    none can be told from another.
    """
    own = telemetry.pids
    numbered_alike = any(
        process["pid"] in own
        for readings in telemetry.devices.values()
        for reading in readings
        for process in _processes(reading)
    )
    for index in trial_devices(ranks, telemetry):
        readings = telemetry.devices[index]
        times = np.array([reading.ns for reading in readings], np.float64)
        around = longest_gap(telemetry, times)
        most: dict[int, tuple[float, str]] = {}
        for reading in readings:
            if start_ns - around <= reading.ns <= stop_ns + around:
                for process in _processes(reading):
                    held = number(process.get("memory_mib")) or 0.0
                    most[process["pid"]] = max(
                        most.get(process["pid"], (0.0, "")), (held, str(process.get("name", "")))
                    )
        foreign = {pid: told for pid, told in most.items() if pid not in own}
        if not foreign:
            continue
        listed = ", ".join(
            f"{pid}{f' ({name})' if name else ''}{f' with {held:.0f} MiB' if held else ''}"
            for pid, (held, name) in sorted(foreign.items())
        )
        if numbered_alike:
            yield Reason(
                "foreign_load",
                f"Device {index} was shared with processes that aren't this trial's: {listed}.",
                "The times aren't those of a free device: end them, and run the trial again.",
            )
        else:
            yield Reason(
                "processes_unknown",
                f"Device {index} was used by {listed}, and nothing tells whether these are this trial's: "
                "none of its own process numbers is among them.",
                "In a container the driver may count processes as the host does; look at the host.",
            )


def _processes(reading: DeviceReading) -> list[dict[str, Any]]:
    told = reading.values.get("processes")
    processes = told if isinstance(told, list) else []
    return [one for one in processes if isinstance(one, dict) and type(one.get("pid")) is int]
