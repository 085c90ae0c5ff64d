"""Serial work against the same work shared out to processes: the cases `parallel/inference` and `parallel/data`.

The work is a list of items, each made into an outcome by itself. A pass over all of them by one process takes turns
with a pass by k, which divide the host's cores, or have a device each. Their outcomes must be the same, in order.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec

from flagperf.errors import FlagPerfError, UsageError
from flagperf.schema.sweep import At, ClaimedRatio, Samples
from flagperf.sweep import SweepCase, SweepSettings

if TYPE_CHECKING:
    from flagperf.context import RankContext
    from flagperf.vendor import Runtime

SERIAL = "serial"
_METHOD: Literal["spawn"] = "spawn"
"""A fork would have the threads of torch, but not run them."""
_STARTING = 300.0
"""Seconds that a worker may take until it's ready."""


class Job(ABC):
    """The work. It is sent to every worker, which calls `start` once."""

    @abstractmethod
    def start(self, runtime: Runtime) -> None:
        """Make ready in this process."""

    @abstractmethod
    def items(self) -> int:
        """Return how many items there are; called after `start`."""

    @abstractmethod
    def outcome(self, item: int) -> bytes:
        """Do one item, and return all of what came of it."""

    def run(self, items: Sequence[int]) -> list[bytes]:
        """Do some items; return a digest of each one's outcome."""
        return [hashlib.sha256(self.outcome(item)).digest() for item in items]


class Place(NamedTuple):
    """Where a worker is among the others."""

    vendor: str
    plugins: list[str]
    number: int
    workers: int
    threads: int


class WorkersSettings(SweepSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What these cases can be told. The axis `workers` must be there."""

    items: Annotated[int, msgspec.Meta(ge=1)]
    """Of which the work consists."""
    claim: ClaimedRatio | None = None
    """What has been published on it."""


class WorkersCase(SweepCase):
    """One process against several."""

    Settings: ClassVar[type[WorkersSettings]] = WorkersSettings

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete; refuse numbers of workers that there can't be."""
        plain = super().check(settings)
        for count in plain["sweep"].get("workers", [None]):
            if type(count) is not int or count < 1:
                raise UsageError(f"workers is {count!r}; it is a whole number, from 1 on.", "--set sweep.workers=[2]")
        return plain

    def job(self) -> Job:
        """Return the work."""
        raise NotImplementedError

    def measure(self, context: RankContext) -> None:
        """Measure both ways at every number of workers."""
        import torch

        from flagperf.measure.timer import Timer
        from flagperf.schema.event import Key

        points = self.points()
        context.journal.write(Key.SWEEP, {"points": len(points), "providers": self.trial.providers})
        job = self.job()
        job.start(context.runtime)
        timer = Timer(torch.device("cpu"), context.runtime.synchronize)
        for at in points:
            for samples in self._point(at, job, timer):
                context.journal.write(Key.SAMPLES, samples)

    def _point(self, at: At, job: Job, timer: Any) -> Iterator[Samples]:
        from flagperf.measure.timer import in_turn

        count, protocol = int(at["workers"]), self.trial.protocol
        every = range(job.items())
        expected = job.run(every)
        threads = max(1, self.trial.threads // count)
        place = Place(self.trial.vendor, self.trial.plugins, 0, count, threads)
        facts: dict[str, Any] = {"items": len(every), "threads_a_worker": threads}
        if self.settings.claim is not None:
            facts["claim"] = msgspec.to_builtins(self.settings.claim)
        with ExitStack() as stack:
            calls = {SERIAL: lambda number: job.run(every)}
            if len(self.trial.providers) > 1:
                workers = stack.enter_context(_workers(job, place))
                calls["workers"] = lambda number: _shared(workers, len(every))
            calls = {name: calls[name] for name in self.trial.providers}
            taken = in_turn(timer, calls, warmup=protocol.warmup, rounds=protocol.steps, seconds=protocol.seconds)
        for name, rounds in taken.items():
            differing = sum(a != b for a, b in zip(expected, rounds.result, strict=True))
            yield Samples(
                at=at,
                provider=name,
                seconds=rounds.seconds,
                calls=rounds.calls,
                uncertainty=timer.uncertainty(rounds.calls),
                verdict="wrong" if differing else "valid",
                why=f"{differing} of {len(every)} outcomes differ from the serial ones" if differing else "",
                facts=facts,
            )


@contextmanager
def _workers(job: Job, place: Place) -> Iterator[list[Connection]]:
    """Have workers that are ready while the body runs."""
    os.environ["FLAGPERF_PARENT"] = str(os.getpid())  # by which they see that this process is gone
    context = multiprocessing.get_context(_METHOD)
    pipes, processes = [], []
    try:
        for number in range(place.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, job, place._replace(number=number)), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        deadline = time.monotonic() + _STARTING
        for pipe in pipes:
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise FlagPerfError(f"A worker wasn't ready after {_STARTING:.0f} s.")
            _answer(pipe)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.terminate()
            process.join()


def _shared(workers: Sequence[Connection], count: int) -> list[bytes]:
    """Share items out to workers, each an equal run of them; return the outcomes in the items' order."""
    for number, pipe in enumerate(workers):
        pipe.send(range(count * number // len(workers), count * (number + 1) // len(workers)))
    return [outcome for pipe in workers for outcome in _answer(pipe)]


def _answer(pipe: Connection) -> list[bytes]:
    try:
        told: list[bytes] | str = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise FlagPerfError("A worker has died.", "The trial's output may say why: want of memory?") from None
    if isinstance(told, str):
        raise FlagPerfError(f"A worker failed: {told}.")
    return told


def _work(pipe: Connection, job: Job, place: Place) -> None:
    """Be a worker."""
    from flagperf.processes import die_with_parent
    from flagperf.registry import Registries

    die_with_parent()
    try:
        vendor = Registries([Path(folder) for folder in place.plugins]).vendors.adapter(place.vendor)
        job.start(vendor.runtime(place.number, place.workers, place.threads))
        pipe.send([])
        while True:
            pipe.send(job.run(pipe.recv()))
    except EOFError:  # there is no more work
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
