"""Holds journals against themselves and each other: readable line by line, clocks that run on, one story told twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flagperf.collect.journals import Floats, Integers, Telemetry, number
from flagperf.collect.resources import Span
from flagperf.schema.event import PREFIX, Event, Key, Step
from flagperf.schema.inference import Agreement, Load, Probe, Query
from flagperf.schema.submission import Rules, Tolerances
from flagperf.schema.sweep import Roofs, Samples
from flagperf.schema.trial import Trial
from flagperf.submit import strict
from flagperf.submit.conformance import limits, outside
from flagperf.submit.findings import Findings

_MOST_LINE = 2**20
"""Bytes of a line of a journal."""
_MOST_BAD = 10
"""Bad lines told of one journal."""
_AGES = (1_500_000_000_000, 4_102_444_800_000)
"""Milliseconds since 1970 that a benchmark can be from: 2017 to 2099."""


_TYPED: dict[str, type[msgspec.Struct]] = {
    Key.STEP: Step,
    Key.SAMPLES: Samples,
    Key.ROOFS: Roofs,
    Key.QUERY: Query,
    Key.LOAD: Load,
    Key.PROBE: Probe,
    Key.AGREEMENT: Agreement,
}
"""What results are made of is as it's written, to the last field."""

Series = dict[str, tuple[Integers, Floats]]
"""Times, ns, and values by sensor."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """An event and the line it's on."""

    number: int
    key: str
    value: Any
    ns: int
    time_ms: int

    @property
    def told(self) -> dict[str, Any]:
        """The value, if it's an object; empty otherwise."""
        return self.value if isinstance(self.value, dict) else {}


@dataclass(kw_only=True)
class Log:
    """A journal, line by line."""

    file: str
    lines: list[Line] = field(default_factory=list)

    def all(self, key: str) -> list[Line]:
        """Return the events of a key."""
        return [line for line in self.lines if line.key == key]

    def first(self, key: str) -> Line | None:
        """Return the first event of a key."""
        return next((line for line in self.lines if line.key == key), None)

    @property
    def header(self) -> dict[str, Any]:
        """What the journal says of itself."""
        first = self.first(Key.HEADER)
        return first.told if first else {}


def read_log(path: Path, file: str, findings: Findings, *, torn: bool = False) -> Log:
    """Read a journal strictly: every line an event, as the harness writes them, and clocks that don't go back.

    With `torn` the last line may be cut off, as a kill leaves it.
    """
    log = Log(file=file)
    bad = 0
    for number_, raw in _raw_lines(path):
        try:
            log.lines.append(_event(number_, raw))
        except strict.Malformed as error:
            if torn and not raw.endswith(b"\n"):
                break
            findings.refuse("journal_line", f"The line isn't an event: {error}.", file=file, line=number_)
            bad += 1
            if bad == _MOST_BAD:
                break
    if not log.lines or log.lines[0].key != Key.HEADER:
        findings.refuse("journal_line", "A journal begins with its header.", file=file, line=1, expected=Key.HEADER,
                        found=log.lines[0].key if log.lines else "nothing")  # fmt: skip
    for before, after in itertools.pairwise(log.lines):
        # A resumed run's header begins a new process, maybe after a reboot.
        if after.key != Key.HEADER and after.ns < before.ns:
            findings.refuse(
                "clock_back", "The monotonic clock goes back.", file=file, line=after.number,
                expected=f"at least {before.ns} ns", found=after.ns,
            )  # fmt: skip
            break
    return log


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        count = 0
        while raw := file.readline(_MOST_LINE + 1):
            count += 1
            yield count, raw
            if len(raw) > _MOST_LINE:
                return


def _event(count: int, raw: bytes) -> Line:
    if len(raw) > _MOST_LINE:
        raise strict.Malformed(f"it is longer than {_MOST_LINE >> 20} MiB")
    if not raw.startswith(PREFIX):
        raise strict.Malformed(f"it doesn't begin with {PREFIX.decode().strip()}")
    if not raw.endswith(b"\n"):
        raise strict.Malformed("it is cut off")
    value = strict.json_line(raw[len(PREFIX) : -1])
    try:
        event = msgspec.convert(value, Event, strict=True)
        if event.key in _TYPED:
            msgspec.convert(event.value, _TYPED[event.key], strict=True)
    except msgspec.ValidationError as error:
        raise strict.Malformed(str(error)) from None
    ns = event.metadata.get("ns")
    if not isinstance(ns, int) or isinstance(ns, bool) or not 0 < ns < 2**63:
        raise strict.Malformed("it has no monotonic clock (metadata.ns)")
    if not _AGES[0] < event.time_ms < _AGES[1]:
        raise strict.Malformed(f"its wall clock, {event.time_ms} ms, isn't of our time")
    return Line(number=count, key=event.key, value=event.value, ns=ns, time_ms=event.time_ms)


def check_clocks(log: Log, allowed: Tolerances, findings: Findings) -> None:
    """Hold the two clocks of a process against each other, and the times of steps against the clock."""
    begins = [place for place, line in enumerate(log.lines) if line.key == Key.HEADER]
    for begin, end in zip(begins, [*begins[1:], len(log.lines)], strict=True):
        first = log.lines[begin]
        for line in log.lines[begin:end]:
            wall, steady = (line.time_ms - first.time_ms) / 1e3, (line.ns - first.ns) / 1e9
            if abs(wall - steady) > allowed.clock_seconds + allowed.clock_share * abs(steady):
                findings.refuse(
                    "clocks_differ", "The wall clock and the monotonic clock tell different times.", file=log.file,
                    line=line.number, expected=f"{steady:.3f} s since the header", found=f"{wall:.3f} s",
                )  # fmt: skip
                break


def check_rank(log: Log, trial: Trial, rank: int, allowed: Tolerances, findings: Findings) -> None:
    """Hold a rank's journal against its trial and its clock."""
    for key, name, expected in (
        (Key.HEADER, "trial", trial.id),
        (Key.HEADER, "rank", rank),
        (Key.HEADER, "world_size", trial.ranks),
        *([(Key.BUILD, "layout", str(trial.layout))] if trial.kind == "training" else []),
    ):
        line = log.first(key)
        if line is None or line.told.get(name) != expected:
            findings.refuse(
                "wrong_journal", f"The journal's {key} tells another {name} than the trial.", file=log.file,
                line=line.number if line else None, expected=expected, found=line.told.get(name) if line else "nothing",
            )  # fmt: skip
    seed = log.first("seed")
    if seed is None or seed.value != trial.seed:
        findings.refuse(
            "seed", "The rank wasn't seeded as planned.", file=log.file, line=seed.number if seed else None,
            expected=trial.seed, found=seed.value if seed else "nothing",
        )  # fmt: skip
    check_clocks(log, allowed, findings)
    steps = [(line, step) for line in log.all(Key.STEP) if (step := msgspec.convert(line.value, Step)).measured]
    if not steps:
        return  # the verdict says so
    told, first = 0.0, steps[0]
    for line, step in steps[1:]:
        told += step.seconds
        seen = (line.ns - first[0].ns) / 1e9
        if abs(told - seen) > allowed.clock_seconds + allowed.clock_share * seen:
            findings.refuse(
                "step_times", "The times of the steps don't add up to what the clock says.", file=log.file,
                line=line.number, expected=f"{seen:.3f} s since step {first[1].step}", found=f"{told:.3f} s",
            )  # fmt: skip
            break
    for (_, before), (line, after) in itertools.pairwise(steps):
        if after.step != before.step + 1:
            findings.refuse(
                "step_gap", "Steps aren't in order, or one is missing.", file=log.file, line=line.number,
                expected=before.step + 1, found=after.step,
            )  # fmt: skip
            break


def check_telemetry(
    log: Log, telemetry: Telemetry, window: Span | None, trial: Trial, rules: Rules, findings: Findings
) -> None:
    """Hold telemetry against the measured window and against what sensors can say."""
    allowed = rules.tolerances
    check_clocks(log, allowed, findings)
    interval = number(log.header.get("interval"))
    if interval is None or interval != trial.protocol.telemetry:
        findings.refuse(
            "telemetry_interval", "Telemetry didn't sample as often as planned.", file=log.file, line=1,
            expected=trial.protocol.telemetry, found=interval,
        )  # fmt: skip
    samples = log.all(Key.TELEMETRY)
    cost = log.first(Key.TELEMETRY_COST)
    if cost is None or cost.told.get("samples") != len(samples):
        findings.refuse(
            "telemetry_lost", "The journal doesn't have as many samples as telemetry says it took.", file=log.file,
            line=cost.number if cost else None, found=len(samples),
            expected=cost.told.get("samples") if cost else "a last line with their number",
        )  # fmt: skip
    for before, after in itertools.pairwise(samples):
        ticks = number(before.told.get("tick")), number(after.told.get("tick"))
        if ticks[0] is None or ticks[1] is None or ticks[1] < ticks[0]:
            findings.refuse(
                "telemetry_order", "Samples aren't in order.", file=log.file, line=after.number,
                expected=f"a tick of at least {ticks[0]}", found=ticks[1],
            )  # fmt: skip
            break
    series = _series(telemetry)
    if window is not None:
        _coverage(log, samples, window, trial.protocol.telemetry, allowed, findings)
        _work(log, series, window, findings)
    _sensors(log, series, rules, findings)


def _coverage(
    log: Log, samples: Sequence[Line], window: Span, interval: float, allowed: Tolerances, findings: Findings
) -> None:
    """The machine must have been watched all the while that was measured."""
    longest = allowed.telemetry_gap * interval + allowed.telemetry_seconds
    inside = [line for line in samples if window.start_ns < line.ns < window.stop_ns]
    before = max((line.ns for line in samples if line.ns <= window.start_ns), default=None)
    after = min((line.ns for line in samples if line.ns >= window.stop_ns), default=None)
    if before is None or after is None:
        findings.refuse(
            "telemetry_window", "Telemetry doesn't span the measured steps.", file=log.file,
            expected=f"samples before {window.start_ns:.0f} ns and after {window.stop_ns:.0f} ns",
            found=f"{samples[0].ns} to {samples[-1].ns} ns" if samples else "no samples",
        )  # fmt: skip
        return
    last = before
    for number_, ns in [*((line.number, line.ns) for line in inside), (None, after)]:
        if (ns - last) / 1e9 > longest:
            findings.refuse(
                "telemetry_window", "Telemetry has a gap while steps were measured.", file=log.file, line=number_,
                expected=f"at most {longest:g} s", found=f"{(ns - last) / 1e9:.1f} s",
            )  # fmt: skip
            return
        last = ns


def _series(telemetry: Telemetry) -> Series:
    """Return the times and values of each sensor, but for those of single processes."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(telemetry.sensor):
        if not name.startswith("processes."):
            rows.setdefault(name, []).append(row)
    return {name: (telemetry.ns[at], telemetry.value[at]) for name, at in sorted(rows.items())}


def _work(log: Log, series: Series, window: Span, findings: Findings) -> None:
    """Steps leave a trace: a machine that did nothing meanwhile isn't the one that took them."""
    for ending in ("cpu_percent", "utilisation_pct"):
        seen = [
            values[(times > window.start_ns) & (times <= window.stop_ns + 1e9)]
            for name, (times, values) in series.items()
            if name.rsplit(".", 1)[-1] == ending
        ]
        seen = [values for values in seen if len(values)]
        if seen and not any((values > 0).any() for values in seen):
            findings.refuse(
                "telemetry_idle", "Telemetry saw no work while steps were measured.", file=log.file,
                expected=f"{ending} above 0", found=0,
            )  # fmt: skip


def _sensors(log: Log, series: Series, rules: Rules, findings: Findings) -> None:
    lines = {line.ns: line.number for line in log.lines}
    for name, (times, values) in series.items():
        kind = next((part for part in reversed(name.split(".")) if part in rules.sensors), "")
        if not kind:
            continue
        bound = rules.sensors[kind]
        for ns, value in ((times[place], values[place]) for place in (values.argmin(), values.argmax())):
            if outside(bound, float(value)):
                findings.refuse(
                    "sensor", f"{name} is more than can be, or less.", file=log.file, line=lines.get(int(ns)),
                    expected=limits(bound), found=float(value),
                )  # fmt: skip
                break
        if kind == "energy_joules" and "power_w" in rules.sensors and len(times) > 1:
            _energy(log, name, times, values, rules, lines, findings)


def _energy(
    log: Log, name: str, times: Integers, values: Floats, rules: Rules, lines: dict[int, int], findings: Findings
) -> None:
    """A counter only rises, and not faster than the power there can be."""
    span, rise = np.diff(times) / 1e9, np.diff(values)
    most = rules.sensors["power_w"].most or float("inf")
    wrong = np.flatnonzero((rise < 0) | (rise > most * np.maximum(span, 0.01)))
    if len(wrong):
        place = int(wrong[0])
        findings.refuse(
            "energy", f"{name} falls, or rises faster than it can.", file=log.file,
            line=lines.get(int(times[place + 1])), expected=f"0 to {most:g} W",
            found=f"{rise[place]:g} J in {span[place]:.3f} s",
        )  # fmt: skip
