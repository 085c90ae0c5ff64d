"""Engines that only pretend, in this process and without a model: with known times, or known faults."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from flagperf.inference.answers import Recorder
from flagperf.inference.engine import GenerationTask, InferenceEngine, Reply, Request
from flagperf.inference.rig import Rig
from flagperf.journal import Journal, Reader
from flagperf.schema.inference import Fault, HeldByInference, Lengths, LoadSettings

Plan = Callable[[int, Request], Sequence[float]]
"""Of the query of a number: when each token comes, in seconds since it was submitted."""


class Timed(InferenceEngine):
    """Makes each token at the moment that a plan says; queries don't disturb each other."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._numbers = itertools.count()
        self._tokens = itertools.count()
        self._due: list[tuple[float, int, Reply, bool]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, task: GenerationTask) -> None:
        """Do nothing."""

    def held(self) -> HeldByInference:
        """Hold nothing."""
        return HeldByInference()

    def submit(self, request: Request, reply: Reply) -> None:
        """Note when each token is due."""
        now = time.monotonic()
        times = self._plan(next(self._numbers), request)
        with self._wake:
            for place, after in enumerate(times, 1):
                heapq.heappush(self._due, (now + after, next(self._tokens), reply, place == len(times)))
            self._wake.notify()

    def close(self) -> None:
        """End the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._closed and (not self._due or self._due[0][0] > time.monotonic()):
                    self._wake.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                _, _, reply, last = heapq.heappop(self._due)
            reply.tokens((1,))
            if last:
                reply.done()


class OneServer(InferenceEngine):
    """A queue with one server, each of whose services takes exactly the same time; the answer comes at its end.

    A service begins when it can by the clock, not when the thread wakes: that one wakes late makes no queue longer.
    """

    def __init__(self, service: float) -> None:
        self._free = 0.0

        def plan(_number: int, request: Request) -> list[float]:
            now = time.monotonic()
            self._free = max(now, self._free) + service
            return [self._free - now + 1e-6 * place for place in range(request.limit)]

        self._timed = Timed(plan)

    def start(self, task: GenerationTask) -> None:
        """Do nothing."""

    def held(self) -> HeldByInference:
        """Hold nothing."""
        return HeldByInference()

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request."""
        self._timed.submit(request, reply)

    def close(self) -> None:
        """End the thread."""
        self._timed.close()


class Faulty(Timed):
    """Answers at once, but for the queries of some numbers: `fail`, `hang`, `raise`, `more`, `empty` or `die`."""

    def __init__(self, faults: dict[int, str], after: float = 0.001) -> None:
        super().__init__(lambda _, request: [after] * request.limit)
        self.faults = faults
        self._asked = itertools.count()

    def submit(self, request: Request, reply: Reply) -> None:
        """Answer, or not."""
        fault = self.faults.get(next(self._asked), self.faults.get(-1, ""))
        if fault == "raise":
            raise MemoryError("the cache is full")
        if fault == "fail":
            reply.failed("memory", "there is no more of it")
        elif fault == "empty":
            reply.done()
        elif fault == "more":
            super().submit(request._replace(limit=request.limit + 3), reply)
        elif fault == "die":
            super().submit(request, _Deadly())
        elif fault != "hang":
            super().submit(request, reply)


class _Deadly:
    """Ends the thread that tells it something."""

    def tokens(self, ids: Sequence[int]) -> None:
        raise SystemExit

    def recounted(self, total: int) -> None: ...

    def done(self) -> None: ...

    def failed(self, fault: Fault, why: str) -> None: ...


LOAD = LoadSettings(
    count=8,
    batch=2,
    input=Lengths(median=4, least=2, most=8),
    output=Lengths(median=4, least=2, most=8),
    ttft=0.05,
    tpot=0.05,
    duration=0.2,
    clients=[1, 3],
    patience=5.0,
)
REQUESTS = [Request([1, 2, 3], limit) for limit in (4, 2, 3, 5, 4, 2, 3, 5)]


class Bench:
    """A rig in a folder, with what it journals."""

    def __init__(
        self,
        folder: Path,
        engine: InferenceEngine,
        *,
        requests: Sequence[Request] = REQUESTS,
        scale: float = 1.0,
        **options: Any,
    ) -> None:
        self.journal = Journal(folder / "rank0.journal", {})
        self.recorder = Recorder(self.journal)
        self.rig = Rig(
            engine=engine,
            requests=requests,
            load=msgspec.structs.replace(LOAD, **options),
            scale=scale,
            seed=7,
            recorder=self.recorder,
            folder=folder / "loadgen",
        )

    def __enter__(self) -> Rig:
        self.recorder.__enter__()
        return self.rig

    def __exit__(self, *exception: object) -> None:
        self.recorder.__exit__(*exception)
        self.rig.engine.close()
        self.journal.close()

    def events(self, key: str) -> list[dict[str, Any]]:
        """Return the values of a key's events."""
        return [event.value for event in Reader(self.journal.path) if event.key == key]
