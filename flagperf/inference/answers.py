"""Answers as they come: every token is stamped, and every query that has ended goes into the journal."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from flagperf.errors import FlagPerfError
from flagperf.inference.engine import Reply, Request
from flagperf.journal import Journal
from flagperf.schema.event import Key
from flagperf.schema.inference import Fault, Query

FIRST_PATIENCE = 600.0
"""Seconds without a token before the measurement: a compiler may be at work."""

RECORDED_EVERY = 0.2
"""Seconds."""


class Answer:
    """The reply to one query. Tokens beyond those asked for make it a fault."""

    def __init__(
        self,
        number: int,
        prompt: int,
        request: Request,
        *,
        clients: int = 0,
        issued: int | None = None,
        first: Callable[[Answer], None] | None = None,
        ended: Callable[[Answer], None] | None = None,
    ) -> None:
        self.number, self.prompt, self.request, self.clients = number, prompt, request, clients
        self.ids: list[int] = []
        self.fault: Fault | None = None
        self._why = ""
        self._first, self._ended = first, ended
        self._counts: list[int] = []
        self._times: list[int] = []
        self._done: int | None = None
        self._over = False
        self._lock = threading.RLock()  # the engine and whoever waits for it may both end an answer
        self.ended_ns = 0
        self.issued = time.monotonic_ns() if issued is None else issued

    def tokens(self, ids: Sequence[int]) -> None:
        """Stamp tokens; see `Reply`."""
        now = (time.monotonic_ns() - self.issued) // 1000
        with self._lock:
            if self._over or not ids:
                return
            self._times.append(now)
            self._counts.append(len(ids))
            self.ids.extend(ids)
            if len(self._counts) == 1 and self._first is not None:
                self._first(self)

    def recounted(self, total: int) -> None:
        """Share `total` tokens among the pieces that came; see `Reply`."""
        with self._lock:
            if self._over:
                return
            ends = list(itertools.accumulate(self._counts, initial=0))
            shares = [round(total * end / max(1, ends[-1])) for end in ends]
            counts = [after - before for before, after in itertools.pairwise(shares)]
            self._times = [time for time, count in zip(self._times, counts, strict=True) if count]
            self._counts = [count for count in counts if count]
            self.ids = self.ids[:1] * total

    def done(self) -> None:
        """Complete the answer; see `Reply`."""
        now = (time.monotonic_ns() - self.issued) // 1000
        with self._lock:
            if len(self.ids) > self.request.limit:
                self.failed("too_many", f"{len(self.ids)} tokens came, {self.request.limit} were asked for")
            elif not self.ids:
                self.failed("closed", "the answer ended before its first token")
            elif not self._over:
                self._done = now
                self._end()

    def failed(self, fault: Fault, why: str) -> None:
        """End without a complete answer; see `Reply`."""
        with self._lock:
            if not self._over:
                self.fault, self._why = fault, why
                self._end()

    def _end(self) -> None:
        self._over, self.ended_ns = True, time.monotonic_ns()
        if self._ended is not None:
            self._ended(self)

    @property
    def last_ns(self) -> int:
        """When something was heard of it last: a token, or its issue."""
        return self.issued + 1000 * self._times[-1] if self._times else self.issued

    def query(self) -> Query:
        """Return what is to be kept of it."""
        return Query(
            number=self.number,
            prompt=self.prompt,
            input=len(self.request.prompt),
            asked=self.request.limit,
            issued=self.issued,
            tokens=self._counts,
            times=self._times,
            done=self._done,
            fault=self.fault or "",
            why=self._why,
            clients=self.clients,
        )


class Watch:
    """Ends answers of which nothing comes any more, when it's told to look.

    One that has begun is given up after `patience` seconds without a token. One that hasn't may wait for its turn as
    long as others go on. Raises FlagPerfError when nothing at all has come so many times in a row.
    """

    def __init__(self, patience: float, times: int = 2) -> None:
        self.patience, self.times = patience, times
        self._going: dict[int, Answer] = {}
        self._heard = self._looked = time.monotonic_ns()
        self._silences = 0

    @property
    def pause(self) -> float:
        """Seconds until another look is worth while."""
        return min(1.0, self.patience / 4)

    def issued(self, answer: Answer) -> None:
        """Watch an answer, before it's asked for."""
        if not self._going:
            self._heard = max(self._heard, answer.issued)
        self._going[id(answer)] = answer

    def ended(self, answer: Answer) -> None:
        """Watch it no longer."""
        self._going.pop(id(answer), None)
        if answer.fault != "stalled":
            self._heard, self._silences = answer.ended_ns, 0

    def look(self) -> None:
        """Give up what has stalled."""
        now = time.monotonic_ns()
        if now - self._looked < self.pause * 5e8:
            return
        self._looked, late = now, now - round(self.patience * 1e9)
        going = list(self._going.values())
        why = f"nothing came for {self.patience:g} s"
        heard = max([self._heard, *(answer.last_ns for answer in going if answer.ids)])
        if going and heard < late:
            self._silences += 1
            self._heard = now
            for answer in going:
                answer.failed("stalled", why)
            if self._silences >= self.times:
                often = " twice in a row" if self.times > 1 else ""
                raise FlagPerfError(
                    f"The engine has stalled: nothing came for {self.patience:g} s{often}, of {len(going)} queries.",
                    "What it was doing may be in the trial's output; --set load.patience=SECONDS waits longer.",
                )
            return
        for answer in going:
            if answer.ids and answer.last_ns < late:
                answer.failed("stalled", why)


class Recorder:
    """Writes queries that have ended, in a thread of its own: whoever makes tokens doesn't wait for a disk.

    It wakes a few times a second: to be woken by each query would cost more than writing it. While it runs nobody else
    may write to the journal.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: deque[tuple[str, Any]] = deque()
        self._over = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __call__(self, answer: Answer) -> None:
        """Keep an answer that has ended."""
        self.write(Key.QUERY, answer)

    def write(self, key: str, value: Any) -> None:
        """Keep something else."""
        self._waiting.append((key, value))

    def _run(self) -> None:
        while not self._over.wait(RECORDED_EVERY):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                key, value = self._waiting.popleft()
                if self._error is None:
                    self._journal.write(key, value.query() if isinstance(value, Answer) else value)
        except OSError as error:  # told when the scenario is over
            self._error = error


def collected(
    engine_submit: Callable[[Request, Reply], None], requests: Sequence[Request], patience: float = FIRST_PATIENCE
) -> list[Answer]:
    """Submit requests at once and wait until all have ended; nothing is journalled.

    Raises FlagPerfError where nothing comes for `patience` seconds.
    """
    left = threading.Semaphore(0)
    watch = Watch(patience, 1)

    def ended(answer: Answer) -> None:
        watch.ended(answer)
        left.release()

    answers = [Answer(n, n, request, ended=ended) for n, request in enumerate(requests)]
    for answer in answers:
        watch.issued(answer)
        engine_submit(answer.request, answer)
    for _ in answers:
        while not left.acquire(timeout=watch.pause):
            watch.look()
    return answers
