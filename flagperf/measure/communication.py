"""How much of a step's communication computation hides: a few steps under torch's profiler, reduced to five numbers.

A rank's step is computing, communicating, both, or neither. What it only communicates is exposed: the time that a
better overlap could save. Waiting for a slower rank inside a collective counts as communication.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from flagperf.schema.event import Communication

if TYPE_CHECKING:
    import torch

Span = tuple[float, float]
"""Start and stop of something, in the same unit as all others."""

_STEP = "flagperf: step"

_COLLECTIVE = re.compile(
    r"\w+:(all_reduce|sparse_all_reduce|reduce|all_gather|gather|scatter|reduce_scatter|all_to_all|broadcast|barrier"
    r"|send|recv|recvAnySource)"
)
"""What a backend of torch.distributed calls its work, `gloo:all_reduce`: a span from its start to its completion."""

_KERNEL = re.compile(r"[a-z]?ccl|cncl|hcom_", re.IGNORECASE)
"""What accelerators' collective libraries call their kernels: `ncclDevKernel_AllReduce…`, `hcom_allReduce_` …"""

_OPERATION = re.compile(r"[\w.]+(::\w+)*::\w+")
_WRAPPERS = ("c10d::", "_c10d_functional::", "_dtensor::")
"""Operations that only hand over to a backend, or block until it is done."""
_NO_WORK = (*_WRAPPERS, "autograd::", "torch::autograd::", "profiler::")
"""Operations that aren't work themselves: what is inside them is recorded by itself."""
_COMPILED = "## Call CompiledFxGraph"
"""What torch.compile's output runs under; its own kernels aren't recorded on a CPU."""


class Parts(NamedTuple):
    """What became of a step: `compute` + `exposed` + `idle` is its length, `communication` - `exposed` was hidden."""

    communication: float
    exposed: float
    compute: float
    idle: float


def parts(step: Span, communication: Iterable[Span], compute: Iterable[Span]) -> Parts:
    """Divide a step's time by spans that may overlap, repeat, be out of order, or reach beyond the step."""
    talking, working = _union(communication, step), _union(compute, step)
    busy = _length(_union([*talking, *working], step))
    told, worked = _length(talking), _length(working)
    return Parts(communication=told, exposed=busy - worked, compute=worked, idle=step[1] - step[0] - busy)


def _union(spans: Iterable[Span], within: Span) -> list[Span]:
    """Return disjoint spans in order that cover what the given ones do inside a window."""
    joined: list[Span] = []
    for start, stop in sorted((max(start, within[0]), min(stop, within[1])) for start, stop in spans):
        if stop <= start:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def _without(spans: Iterable[Span], holes: Iterable[Span], within: Span) -> list[Span]:
    """Return what the spans cover inside a window and the holes don't."""
    left: list[Span] = []
    cuts = _union(holes, within)
    first = 0
    for start, stop in _union(spans, within):
        while first < len(cuts) and cuts[first][1] <= start:
            first += 1
        for hole_start, hole_stop in cuts[first:]:
            if hole_start >= stop:
                break
            left.append((start, hole_start))
            start = hole_stop
        left.append((start, stop))
    return [(start, stop) for start, stop in left if stop > start]


def _length(disjoint: Iterable[Span]) -> float:
    return sum(stop - start for start, stop in disjoint)


class StepProfiler:
    """Records steps. What fails in the profiler is kept in `failure`: it mustn't cost a trial that is measured already.

    What fails in a step propagates.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.failure = ""
        self._profile: torch.profiler.profile | None = None

    def __enter__(self) -> StepProfiler:
        import torch

        try:
            self._profile = torch.profiler.profile(activities=torch.profiler.supported_activities())  # type: ignore[no-untyped-call]
            self._profile.start()
        except Exception as error:  # what a chip's profiler raises is its own affair
            self._fail(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._profile is not None:
                self._profile.stop()
        except Exception as failure:
            self._fail(failure)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Mark what runs inside as one step; the device's work must have finished at its end."""
        import torch

        with torch.profiler.record_function(_STEP):
            yield

    def observed(self) -> Communication:
        """Return what the recorded steps say, or why they say nothing."""
        if self._profile is None:
            return Communication(failure=self.failure or "no step was recorded")
        try:
            return _reduce(self._profile.profiler.kineto_results.events(), self.device)  # type: ignore[union-attr]
        except Exception as error:
            self._fail(error)
            return Communication(failure=self.failure)

    def export(self, path: Path) -> str:
        """Write the trace for Perfetto or chrome://tracing; return what went wrong, or nothing."""
        if self._profile is None:
            return self.failure
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(path))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or f"{type(error).__name__}: {error}"
        self._profile = None


def _reduce(events: Sequence[Any], device: torch.device) -> Communication:
    """Return the mean over the recorded steps; `events` are the profiler's own."""
    marks = [event for event in events if event.name() == _STEP and _on_host(event)]
    if not marks:
        return Communication(failure="the profiler recorded no step")
    thread = marks[0].start_thread_id()
    host = [event for event in events if _on_host(event)]
    own = [event for event in events if not _on_host(event) and event.activity_type() != "gpu_user_annotation"]
    if device.type != "cpu" and not own:
        return Communication(failure=f"the profiler recorded nothing of the device ({device.type})")
    collectives = [event for event in host if event.is_async() and _COLLECTIVE.fullmatch(event.name())]
    if device.type == "cpu":
        communication, compute = collectives, []
    else:
        communication = [event for event in own if _KERNEL.search(event.name())] or collectives
        compute = [event for event in own if not _KERNEL.search(event.name())]
    # A backend's threads copy and add up too; that is part of its work.
    theirs = {event.start_thread_id() for event in collectives} - {thread}
    rows: list[Parts] = []
    for mark in marks:
        step = _span(mark)
        working = [_span(event) for event in compute]
        if device.type == "cpu":
            working = _host_work([event for event in host if event.start_thread_id() not in theirs], step)
        rows.append(parts(step, map(_span, communication), working))
    count = len(marks)
    inside = [_span(event)[0] for event in communication]
    return Communication(
        steps=count,
        seconds=sum(_length([_span(mark)]) for mark in marks) / count / 1e9,
        operations=sum(start <= begun < stop for start, stop in map(_span, marks) for begun in inside) / count,
        communication=sum(row.communication for row in rows) / count / 1e9,
        exposed=sum(row.exposed for row in rows) / count / 1e9,
        compute=sum(row.compute for row in rows) / count / 1e9,
        idle=sum(row.idle for row in rows) / count / 1e9,
    )


def _host_work(events: Iterable[Any], step: Span) -> list[Span]:
    """Return when threads of the host computed: inside operations, but not inside those that wait for a backend."""
    working: dict[int, list[Span]] = {}
    waiting: dict[int, list[Span]] = {}
    for event in events:
        name = event.name()
        if name.startswith(_WRAPPERS):
            waiting.setdefault(event.start_thread_id(), []).append(_span(event))
        elif name.startswith(_COMPILED) or (_OPERATION.fullmatch(name) and not name.startswith(_NO_WORK)):
            working.setdefault(event.start_thread_id(), []).append(_span(event))
    return [span for thread, spans in working.items() for span in _without(spans, waiting.get(thread, []), step)]


def _on_host(event: Any) -> bool:
    return bool(event.device_type().name == "CPU")


def _span(event: Any) -> Span:
    return event.start_ns(), event.end_ns()
