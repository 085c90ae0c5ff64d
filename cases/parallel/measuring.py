"""One rank's part in measuring collective operations: all ranks make the same calls at the same time.

What one rank decides by what it saw would leave the others waiting, so whatever depends on a time, on free memory or on
an error is agreed on first, over the host's network.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from flagperf.context import RankContext
from flagperf.kernel import Unsupported
from flagperf.kernels import free_memory, provider_of, worst
from flagperf.measure.inputs import DTYPES
from flagperf.measure.timer import Timer, uncollected
from flagperf.schema.event import Key
from flagperf.schema.manifest import VendorManifest
from flagperf.schema.sweep import Accuracy, At, PointVerdict, Samples

from .collectives import Collectives
from .operations import OPERATIONS, Message, message
from .patterns import Pattern
from .providers import Perform

_SHORTEST = 5e-3
"""Seconds that a round lasts at least …"""
_MEETINGS = 20
"""… and how many times as long as a barrier takes, by which ranks may start apart …"""
_LONGEST = 0.1
"""… up to this."""
_MOST_ROUNDS = 1000
_SLAB = 64 * 2**20
"""Bytes of all messages of a round together, where one alone isn't larger."""
_ROWS = 4096
_ALIGNED = 256
_CHECKED = 2048
"""Stretches of results that are compared after a round at most."""
_FREE = 0.8
"""Share of the free memory that a point may need."""

_OUTCOMES: tuple[PointVerdict, ...] = ("valid", "unsupported", "too big", "failed")
"""From good to bad: that of the rank with the worst is everyone's."""
_LACKING = re.compile(
    r"not support|unsupported|not implemented|not (yet )?available|no backend|invalid (scalar|data) ?type", re.I
)
_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|OutOfMemory", re.I)
_LOST = re.compile(r"connection|broken pipe|timed? ?out|read error|peer|socket", re.I)


def measure_collectives(context: RankContext, case: Collectives) -> None:
    """Measure all points and journal what was seen; an operation that can't be done doesn't stop the others.

    Raises what torch.distributed raises when a rank or a link is lost: there is no going on without it.
    """
    trial, journal = context.trial, context.journal
    points = case.points()
    journal.write(Key.SWEEP, {"points": len(points), "providers": trial.providers})
    bench = Bench(context, case)
    for at in points:
        for samples in bench.point(at):
            journal.write(Key.SAMPLES, samples)


class Agreement:
    """What ranks agree on: over the host's network where they can, else by their devices."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cpu") if dist.is_gloo_available() else device

    def most(self, value: float) -> float:
        """Return the largest of all ranks' values, the same on each."""
        told = torch.tensor([value], dtype=torch.float32, device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return float(told)

    def meet(self) -> None:
        """Wait until every rank has come here; `dist.barrier` would do it on the device that ranks are bound to."""
        self.most(0.0)

    def everyone(self, own: str) -> list[str]:
        """Return what each rank says."""
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, own)
        return told


class Bench:
    """What a rank measures all points with."""

    def __init__(self, context: RankContext, case: Collectives) -> None:
        self.context, self.case, self.runtime = context, case, context.runtime
        self.vendor: VendorManifest = context.registries.vendors.get(context.trial.vendor)
        self.providers = {
            name: provider_of(context.registries, context.trial, name) for name in context.trial.providers
        }
        self.ranks = Agreement(self.runtime.device)
        self.timer = Timer(self.runtime.device, self.runtime.synchronize)
        self.meeting = self.ranks.most(median(self._meeting() for _ in range(21)))
        """Seconds a barrier takes."""
        node = f"/{os.environ.get('GROUP_RANK', '0')}" if context.local_ranks < context.world_size else ""
        self.hosts = dict(Counter(self.ranks.everyone(f"{socket.gethostname()}{node}")))
        self.patterns: dict[str, Pattern] = {}

    def point(self, at: At) -> Iterator[Samples]:
        """Measure one point; yields each provider's samples, those that couldn't be measured first."""
        dtype = str(at.get("dtype", "fp32"))
        kind, protocol = DTYPES[dtype], self.context.trial.protocol
        about = message(
            str(at["operation"]), self.case.place(at), self.context.world_size, int(at["size"]), kind.itemsize
        )
        facts: dict[str, Any] = {"message_bytes": about.bytes, "hosts": self.hosts}
        if self.context.trial.link is not None:
            facts["link"] = str(self.context.trial.link)
        runs: dict[str, Run] = {}
        accuracies: dict[str, Accuracy] = {}
        for name in self.providers:
            outcome, why = self.attempt(name, about, dtype, runs)
            if outcome != "valid":
                runs.pop(name, None)
                yield Samples(at=at, provider=name, verdict=outcome, why=why[:500], facts=facts)
        for name, run in runs.items():
            accuracies[name] = run.judge(1)
            run.calls, took = self.calibrated(run)
            run.rounds = min(_MOST_ROUNDS, max(protocol.steps, math.ceil(protocol.seconds / took)))
        most = max((run.rounds for run in runs.values()), default=0)
        with uncollected():
            for number in range(-protocol.warmup, most):
                for run in runs.values() if number % 2 == 0 else reversed(runs.values()):
                    if number < run.rounds:
                        self.round(run, run.calls, keep=number >= 0)
        for name, run in runs.items():
            accuracy = worst(accuracies[name], run.judge(run.calls))
            right = accuracy.wrong == 0
            yield Samples(
                at=at,
                provider=name,
                seconds=run.seconds,
                calls=run.calls,
                clock="host" if self.timer.clock == "host" else "device",
                host_seconds=[] if self.timer.clock == "host" else run.host_seconds,
                uncertainty=self.timer.uncertainty(run.calls) + self.meeting / run.calls,
                first=run.first,
                bytes=float(about.bytes),
                bus_bytes=about.bus_bytes,
                accuracy=accuracy,
                verdict="valid" if right else "wrong",
                why="" if right else f"{accuracy.wrong} of {accuracy.elements} elements aren't what they must be",
                facts=facts,
            )

    def attempt(self, name: str, about: Message, dtype: str, runs: dict[str, Run]) -> tuple[PointVerdict, str]:
        """Do an operation once, into `runs` if it went well on this rank; return how it went on the worst one."""
        outcome: PointVerdict = "valid"
        why = self._ruled_out(about, dtype)
        if why:
            return "unsupported", why  # on every rank alike
        needed = Run.memory(about)
        if needed > (room := _FREE * free_memory(self.runtime) / self.context.local_ranks):
            outcome, why = "too big", f"{needed / 2**30:,.1f} GiB are needed, {room / 2**30:,.1f} GiB are free for it"
        if agreed := int(self.ranks.most(_OUTCOMES.index(outcome))):
            return _OUTCOMES[agreed], why or "another rank has too little memory free"
        try:
            if dtype not in self.patterns:
                self.patterns[dtype] = Pattern(about.ranks, DTYPES[dtype], self.context.trial.seed)
            perform = self.providers[name](about, self.context.rank)
            runs[name] = Run(about, self.context.rank, perform, self.patterns[dtype], self.runtime.device)
            runs[name].prepare(1)
            self.runtime.synchronize()
        except Exception as error:  # a provider may raise anything; what it is goes into the journal
            outcome, why = _kind(error), _told(error)
        if agreed := int(self.ranks.most(_OUTCOMES.index(outcome))):
            return _OUTCOMES[agreed], why or "it couldn't be prepared on another rank"
        try:
            began = time.perf_counter()
            runs[name].call(0)
            self.runtime.synchronize()
            runs[name].first = time.perf_counter() - began
        except Exception as error:
            outcome, why = _kind(error), _told(error)
            if outcome == "failed" and _LOST.search(why):
                raise
        agreed = int(self.ranks.most(_OUTCOMES.index(outcome)))
        return _OUTCOMES[agreed], why or "it went wrong on another rank"

    def _ruled_out(self, about: Message, dtype: str) -> str:
        """Return why the vendor says that its backend can't do this, or nothing."""
        for name in (dtype, about.operation, *OPERATIONS[about.operation].functions):
            if reason := self.vendor.limits.get(name) or self.vendor.lacking.get(name):
                return f"{self.vendor.backend} lacks {name}: {reason}"
        return ""

    def calibrated(self, run: Run) -> tuple[int, float]:
        """Return how many calls make a round, and the seconds that one takes, the same on every rank."""
        least = max(_SHORTEST, min(_MEETINGS * self.meeting, _LONGEST))
        calls = 1
        while True:
            took = max(self.ranks.most(self.round(run, calls) * calls), 1e-9)
            if took >= least or calls == len(run.sent):
                return calls, took
            calls = min(len(run.sent), max(2 * calls, math.ceil(1.1 * calls * least / took)))

    def round(self, run: Run, calls: int, *, keep: bool = False) -> float:
        """Time a round; return its seconds a call."""
        run.prepare(calls)
        self.runtime.synchronize()
        self.ranks.meet()
        timing = self.timer.round(run.call, calls)
        if keep:
            run.seconds.append(timing.seconds)
            run.host_seconds.append(timing.host_seconds)
        return timing.seconds

    def _meeting(self) -> float:
        began = time.perf_counter()
        self.ranks.meet()
        return time.perf_counter() - began


class Run:
    """A provider at a point: memory for a round's calls, and what was seen of it."""

    def __init__(self, about: Message, rank: int, perform: Perform, pattern: Pattern, device: torch.device) -> None:
        self.about, self.rank, self.perform, self.pattern = about, rank, perform, pattern
        rows, padded = _shape(about)
        dtype = pattern.rows.dtype
        self.results = list(torch.empty(rows, padded, dtype=dtype, device=device)[:, : about.length])
        self.sent = self.results
        own = slice(rank * about.part, (rank + 1) * about.part)
        if about.place == "out":
            self.sent = list(torch.empty(rows, padded, dtype=dtype, device=device)[:, : about.sent()])
            self.results = [row[: about.received()] for row in self.results]
        elif about.operation == "all_gather":
            self.sent = [row[own] for row in self.results]
        elif about.operation == "reduce_scatter":
            self.results = [row[own] for row in self.results]
        self.turn = 0
        """How often the memory has been filled."""
        self.first = 0.0
        self.calls = self.rounds = 1
        self.seconds: list[float] = []
        self.host_seconds: list[float] = []

    @staticmethod
    def memory(about: Message) -> float:
        """Return the bytes that a run takes, with as much for the backend as a message has."""
        rows, padded = _shape(about)
        return float(rows * padded * about.itemsize * (2 if about.place == "out" else 1) + about.bytes)

    def call(self, number: int) -> None:
        """Do the operation on the memory of this number."""
        self.perform(self.sent[number], self.results[number])

    def prepare(self, calls: int) -> None:
        """Fill what so many calls are given with values of this turn, and poison what they are to write."""
        self.turn += 1
        sends = self.about.sends(self.rank)
        for number in range(calls):
            self.results[number].fill_(self.pattern.poison)
            if sends:
                self.pattern.fill(self.sent[number], self.rank, self._call(number))

    def judge(self, calls: int) -> Accuracy:
        """Compare the results of a round's calls, the last and as many evenly before it as doesn't take long."""
        expected = self.about.expected(self.rank)
        step = max(1, math.ceil(calls * len(expected) / _CHECKED))
        found = Accuracy(max_absolute=0.0, max_relative=0.0, absolute=0.0, relative=0.0, wrong=0, elements=0)
        for number in range(calls - 1, -1, -step):
            seen = self.pattern.differences(self.results[number], expected, self._call(number))
            found = _both(found, seen)
        return found

    def _call(self, number: int) -> int:
        return self.turn * len(self.sent) + number


def _shape(about: Message) -> tuple[int, int]:
    """Return for how many messages a run has memory, and the elements from one to the next."""
    padded = -(-about.bytes // _ALIGNED) * _ALIGNED
    return max(1, min(_ROWS, _SLAB // padded)), padded // about.itemsize


def _both(a: Accuracy, b: Accuracy) -> Accuracy:
    """Return two comparisons as one."""
    further = worst(a, b)
    return Accuracy(
        max_absolute=further.max_absolute,
        max_relative=further.max_relative,
        absolute=0.0,
        relative=0.0,
        wrong=a.wrong + b.wrong,
        elements=a.elements + b.elements,
    )


def _kind(error: Exception) -> PointVerdict:
    if isinstance(error, Unsupported | NotImplementedError):
        return "unsupported"
    text = _told(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return "too big"
    return "unsupported" if _LACKING.search(text) else "failed"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
