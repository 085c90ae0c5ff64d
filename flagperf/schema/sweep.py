"""Sweeps: cases of many points, at each of which one or several providers are measured side by side."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flagperf.schema.metric import MetricValue

Label = str | int | float | bool
At = dict[str, Label]
"""Where a point lies: each axis of the sweep with its value, such as `{"shape": "aquila-7b", "seq": 2048}`."""

PointVerdict = Literal["valid", "wrong", "too big", "unsupported", "failed"]
"""`wrong`: measured, but its results aren't right, so that its speed doesn't count. The last three weren't measured."""


Bound = Literal["", "compute", "memory"]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How far the very tensors that were timed lie from the float64 reference."""

    max_absolute: float | None
    """Largest difference; None where a value isn't finite and the reference's is."""
    max_relative: float | None
    """The same, divided by the largest magnitude in the reference."""
    absolute: float
    """Tolerances: an element is right within `absolute` + `relative` × |reference|."""
    relative: float
    wrong: int
    """Elements outside the tolerance."""
    elements: int


class Samples(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rank measured of one provider at one point. In the journal; nothing is left out or averaged."""

    at: At
    provider: str
    seconds: list[float] = []
    """Of a call, a round each. Providers of one point take turns, so that their n-th rounds are pairs."""
    calls: int = 1
    """In a round, which was divided by them."""
    clock: Literal["host", "device"] = "host"
    """What `seconds` were read from: the host's clock with the device idle before and after, or the device's events."""
    host_seconds: list[float] = []
    """The same rounds by the host's clock, where `seconds` are the device's."""
    uncertainty: float = 0.0
    """Seconds a call that the timer and the loop around the call may be off by."""
    first: float | None = None
    """Seconds of the first call in this process, whatever it compiles or allocates included."""
    flops: float = 0.0
    """Of a call, by formula; 0 where it does none worth counting."""
    bytes: float = 0.0
    """That a call must at least move, by formula: what it reads once and what it writes once."""
    bus_bytes: float = 0.0
    """Of a collective operation: what every link must at least carry, by the definitions of nccl-tests."""
    memory: int | None = None
    """Bytes that a call needs at most beyond its inputs, measured."""
    accuracy: Accuracy | None = None
    figure: str = ""
    """Of a specification: the chip's rated figure that it measures, by its name in the table of chips."""
    values: dict[str, float] = {}
    """Metrics of the catalogue that aren't made of times: a capacity, a power."""
    verdict: PointVerdict = "valid"
    why: str = ""
    """Why it wasn't measured, or what is wrong with it."""
    facts: dict[str, Any] = {}


class Roofs(msgspec.Struct, frozen=True, kw_only=True):
    """What the device can do at most, measured by the rank in the same process."""

    flops: dict[str, float]
    """FLOP/s of a GEMM, by dtype."""
    bandwidth: float
    """Bytes/s that a stream over memory larger than the caches reads and writes."""


class ClaimedRatio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published ratio of speeds, other providers over the first, told beside what was measured."""

    title: str
    title_zh: str = ""
    ratio: float
    source: str


class PointRatio(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's speed ÷ the baseline's at the same point, from the rounds in which they took turns."""

    baseline: str
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Literal["better", "worse", "equivalent", "cannot tell"]
    pairs: int


class Rated(msgspec.Struct, frozen=True, kw_only=True):
    """What the maker rates a device at, for the metric that a specification measures."""

    metric: str
    value: float
    """Of one device, in the metric's unit; `rated_share` is what was measured divided by it."""
    chip: str
    source: str
    confidence: str


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One provider at one point, over all ranks."""

    at: At
    provider: str
    verdict: PointVerdict
    why: str = ""
    metrics: dict[str, MetricValue] = {}
    bound: Bound = ""
    """Which roof its work meets first, by its FLOPs a byte."""
    speedup: PointRatio | None = None
    """None for the baseline itself, and where one of the two wasn't measured."""
    rated: Rated | None = None
    """Of a specification whose chip is known, where a source rates it."""
    facts: dict[str, Any] = {}
