"""Journals into columns: what the collector needs of each, read in one pass. Nothing in a journal makes it raise."""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from flagperf.collect.queries import NONE, Queries, QueryColumns
from flagperf.journal import Reader
from flagperf.schema.event import Event, Key, Step
from flagperf.schema.inference import Query
from flagperf.schema.trial import Outcome

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_CHUNK = 65_536
"""Steps held as objects before they are turned into arrays; bounds the memory of a long journal."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One rank's steps, a column an attribute, in the order of the journal. What wasn't finite is NaN."""

    step: Integers
    measured: Booleans
    seconds: Floats
    data_seconds: Floats
    tokens: Integers
    loss: Floats
    gradient_norm: Floats
    learning_rate: Floats
    skipped: Booleans
    """Whether the update was left out because gradients overflowed."""
    leader: Booleans
    ns: Integers
    """The host's monotonic clock at the end of the step."""

    def __len__(self) -> int:
        return len(self.step)

    def take(self, rows: Booleans | npt.NDArray[np.intp]) -> Steps:
        """Return some rows, by mask or by number."""
        return Steps(**{name: getattr(self, name)[rows] for name in COLUMNS})


COLUMNS: dict[str, Any] = {
    "step": np.int64,
    "measured": np.bool_,
    "seconds": np.float64,
    "data_seconds": np.float64,
    "tokens": np.int64,
    "loss": np.float64,
    "gradient_norm": np.float64,
    "learning_rate": np.float64,
    "skipped": np.bool_,
    "leader": np.bool_,
    "ns": np.int64,
}


@dataclass(kw_only=True)
class RankJournal:
    """What one rank wrote."""

    rank: int
    present: bool = True
    steps: Steps
    events: dict[str, list[Event]] = field(default_factory=dict)
    """All others, by key."""
    queries: Queries = NONE
    flaws: Counter[str] = field(default_factory=Counter)
    """Lines that couldn't be used, by kind."""

    def last(self, key: str) -> dict[str, Any]:
        """Return the value of the last event of this key; empty if there is none or it is no object."""
        for event in reversed(self.events.get(key, [])):
            if isinstance(event.value, dict):
                return event.value
        return {}

    def numbers(self, key: str, name: str) -> list[float]:
        """Return a number from each event of this key that has it."""
        values = (event.value for event in self.events.get(key, []))
        return [x for value in values if isinstance(value, dict) and (x := number(value.get(name))) is not None]

    @property
    def began_ns(self) -> int | None:
        """When the rank began to write, on its host's monotonic clock."""
        return next((_ns(event) for event in self.events.get(Key.HEADER, [])), None)

    @property
    def succeeded(self) -> bool:
        """Whether the rank wrote that it came to its end."""
        return self.last(Key.RUN_STOP).get("status") == "success"


class DeviceReading(NamedTuple):
    """What one device said at a moment of the host's monotonic clock."""

    ns: int
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Samples of the telemetry process, a number a row; of devices, what isn't a number too."""

    ns: Integers
    sensor: list[str]
    """`host.cpu_percent`, `ranks.4711.rss`: the path to the number in the sample."""
    value: Floats
    cost: dict[str, Any]
    flaws: Counter[str]
    header: dict[str, Any] = field(default_factory=dict)
    devices: dict[int, list[DeviceReading]] = field(default_factory=dict)
    """By index, in the order of the journal."""
    devices_unavailable: str = ""
    """Why devices couldn't be read, the last time that was said."""
    pids: frozenset[int] = frozenset()
    """Processes that were the trial's or the harness's."""
    clock_jump: float = 0.0
    """Seconds that the wall clock was set by while telemetry ran, as far as samples tell."""

    @functools.cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.sensor):
            rows.setdefault(name, []).append(row)
        return rows

    def series(self, sensor: str) -> tuple[Integers, Floats]:
        """Return one sensor's times and values."""
        chosen = self._rows.get(sensor, [])
        return self.ns[chosen], self.value[chosen]


@dataclass(kw_only=True)
class HarnessJournal:
    """What the harness wrote of a run, by trial."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    environments: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Trial → `before` or `after` → the snapshot."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Trial → how long it took, the looks at the machine around it included."""
    prepared: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Trial → what its case made ready: the data, say."""
    interrupted: bool = False
    flaws: Counter[str] = field(default_factory=Counter)


def number(value: Any) -> float | None:
    """Return a finite number as a float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number no float can hold
        return None


def _ns(event: Event) -> int:
    ns = event.metadata.get("ns")
    return ns if isinstance(ns, int) and abs(ns) < 2**63 else 0


class _Stamp(msgspec.Struct, frozen=True, gc=False):
    ns: int = 0


class _StepLine(msgspec.Struct, frozen=True, gc=False):
    """An event that is a step, decoded at once: nearly all lines of a long journal are."""

    time_ms: int
    key: Literal["step"]
    value: Step
    metadata: _Stamp = _Stamp()


class _QueryLine(msgspec.Struct, frozen=True, gc=False):
    """An event that is a query, likewise."""

    key: Literal["query"]
    value: Query


_STEP_MARK, _QUERY_MARK = b'"key":"step"', b'"key":"query"'


def _decoder() -> Any:
    step, query = msgspec.json.Decoder(_StepLine).decode, msgspec.json.Decoder(_QueryLine).decode
    event = msgspec.json.Decoder(Event).decode

    def decode(line: bytes) -> _StepLine | _QueryLine | Event:
        known = step if _STEP_MARK in line else query if _QUERY_MARK in line else None
        if known is not None:
            try:
                return known(line)
            except msgspec.ValidationError:
                pass  # readable, but not as we know it: kept as an event, and then counted as malformed
        return event(line)

    return decode


class _StepColumns:
    """Gathers steps and turns them into arrays by and by."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._ns: list[int] = []
        self._parts: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.malformed = 0

    def add(self, step: Step, ns: int) -> None:
        self._steps.append(step)
        self._ns.append(ns)
        if len(self._steps) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        try:
            part = _arrays(self._steps, self._ns)
        except OverflowError:  # a whole number beyond 64 bits: only damage or malice writes that
            rows = list(zip(self._steps, self._ns, strict=True))
            good = [row for row in rows if all(abs(x) < 2**63 for x in (row[0].step, row[0].tokens, row[1]))]
            self.malformed += len(rows) - len(good)
            part = _arrays([step for step, _ in good], [ns for _, ns in good])
        for name, column in part.items():
            self._parts[name].append(column)
        self._steps, self._ns = [], []

    def steps(self) -> Steps:
        self._flush()
        return Steps(**{name: np.concatenate(self._parts[name]) for name in COLUMNS})


def _arrays(steps: Sequence[Step], ns: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    columns = {
        name: np.array(list(map(operator.attrgetter(name), steps)), kind)  # numpy makes NaN of None
        for name, kind in COLUMNS.items()
        if name != "ns"
    }
    return columns | {"ns": np.array(ns, COLUMNS["ns"])}


def read_rank(path: Path, rank: int) -> RankJournal:
    """Read a rank's journal; a missing one gives a record with `present` false."""
    columns, answers = _StepColumns(), QueryColumns()
    events: dict[str, list[Event]] = {}
    reader = Reader(path)
    malformed = 0
    try:
        for event in reader.decoded(_decoder()):
            if isinstance(event, _StepLine):
                columns.add(event.value, event.metadata.ns)
            elif isinstance(event, _QueryLine):
                answers.add(event.value)
            elif event.key == Key.STEP:
                try:
                    columns.add(msgspec.convert(event.value, Step), _ns(event))
                except msgspec.ValidationError:
                    malformed += 1
            elif event.key == Key.QUERY:
                try:
                    answers.add(msgspec.convert(event.value, Query))
                except msgspec.ValidationError:
                    malformed += 1
            else:
                events.setdefault(event.key, []).append(event)
        present = True
    except FileNotFoundError:
        present = False
    steps, queries = columns.steps(), answers.queries()
    flaws = Counter(flaw.kind for flaw in reader.flaws)
    if malformed := malformed + columns.malformed + answers.malformed:
        flaws["malformed"] = malformed
    return RankJournal(rank=rank, present=present, steps=steps, events=events, queries=queries, flaws=flaws)


def read_telemetry(path: Path) -> Telemetry:
    """Read a telemetry journal; a missing one gives no samples."""
    rows: list[tuple[int, str, float]] = []
    cost: dict[str, Any] = {}
    header: dict[str, Any] = {}
    devices: dict[int, list[DeviceReading]] = {}
    unavailable = ""
    pids: set[int] = set()
    offsets: list[float] = []
    reader = Reader(path)
    try:
        for event in reader:
            if not isinstance(event.value, dict):
                continue
            value: dict[str, Any] = event.value
            if event.key == Key.TELEMETRY:
                ns = _ns(event)
                offsets.append(event.time_ms / 1e3 - ns / 1e9)
                read = [_reading(each, ns) for each in _dicts(value.get("devices"))]
                for reading in read:
                    index = reading.values.get("index")
                    if type(index) is int:
                        devices.setdefault(index, []).append(reading)
                    label = {key: x for key, x in reading.values.items() if key not in ("ns", "processes")}
                    rows += [(reading.ns, sensor, x) for sensor, x in _numbers({"devices": [label]}, "")]
                rest = {key: each for key, each in value.items() if key != "devices"}
                rows += [(ns, sensor, x) for sensor, x in _numbers(rest, "")]
                pids |= {each["pid"] for each in _dicts(value.get("processes")) if type(each.get("pid")) is int}
                said = value.get("unavailable")
                if isinstance(said, dict) and "devices" in said:
                    unavailable = str(said["devices"])
            elif event.key == Key.TELEMETRY_COST:
                cost = value
            elif event.key == Key.HEADER:
                header = value
                pids |= {each for each in (value.get("pid"), value.get("parent")) if type(each) is int}
    except FileNotFoundError:
        pass
    times, sensors, values = zip(*rows, strict=True) if rows else ((), (), ())
    return Telemetry(
        ns=np.array(times, np.int64),
        sensor=list(sensors),
        value=np.array(values, np.float64),
        cost=cost,
        flaws=Counter(flaw.kind for flaw in reader.flaws),
        header=header,
        devices=devices,
        devices_unavailable=unavailable,
        pids=frozenset(pids),
        clock_jump=max(offsets) - min(offsets) if offsets else 0.0,
    )


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _reading(device: dict[str, Any], ns: int) -> DeviceReading:
    """Return a device's reading with its own moment: it was asked before the sample was written."""
    own = device.get("ns")
    return DeviceReading(own if type(own) is int and 0 < own < 2**63 else ns, device)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Yield every finite number in a sample with the path that leads to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            label = index
            if isinstance(inner, dict):  # named by what it is, so that a series keeps its name when others come and go
                label = next((inner[key] for key in ("rank", "pid", "index", "name") if key in inner), index)
            yield from _numbers(inner, f"{path}.{label}" if path else str(label))
    elif (x := number(value)) is not None:
        yield path, x


def read_harness(run_dir: Path) -> HarnessJournal:
    """Read the harness's journals of a run, one a node; a missing one is an empty one.

    A trial that ended badly on any node ended badly; the environment is the first node's.
    """
    whole = HarnessJournal()
    for node in map(_read_node, sorted(run_dir.glob("harness*.journal"), key=lambda path: (len(path.name), path.name))):
        for trial, outcome in node.outcomes.items():
            known = whole.outcomes.get(trial)
            if known is None or (known.status == "finished" and outcome.status != "finished"):
                whole.outcomes[trial] = outcome
        whole.started |= node.started
        whole.environments = node.environments | whole.environments
        whole.seconds = node.seconds | whole.seconds
        whole.prepared = node.prepared | whole.prepared
        whole.interrupted = whole.interrupted or node.interrupted
        whole.flaws.update(node.flaws)
    return whole


def _read_node(path: Path) -> HarnessJournal:
    harness = HarnessJournal()
    began: dict[str, int] = {}
    reader = Reader(path)
    try:
        for event in reader:
            value = event.value if isinstance(event.value, dict) else {}
            if event.key == Key.TRIAL_START:
                began[str(value.get("id"))] = _ns(event)
                harness.interrupted = False  # resumed
                harness.started.add(str(value.get("id")))
                harness.outcomes.pop(str(value.get("id")), None)
                if isinstance(value.get("prepared"), dict):
                    harness.prepared[str(value.get("id"))] = value["prepared"]
            elif event.key == Key.TRIAL_STOP:
                try:
                    outcome = msgspec.convert(value.get("outcome"), Outcome)
                except msgspec.ValidationError:
                    harness.flaws["malformed"] += 1
                else:
                    name = str(value.get("id"))
                    harness.outcomes[name] = outcome
                    harness.seconds[name] = max(0.0, (_ns(event) - began.get(name, _ns(event))) / 1e9)
            elif event.key == Key.ENVIRONMENT:
                moments = harness.environments.setdefault(str(value.get("trial")), {})
                moments[str(value.get("when"))] = value
            elif event.key == Key.INTERRUPTED:
                harness.interrupted = True
    except FileNotFoundError:
        pass
    harness.flaws.update(flaw.kind for flaw in reader.flaws)
    return harness
