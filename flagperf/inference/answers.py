"""Answers as they come: every token is stamped, and every query that has ended goes into the journal."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from flagperf.inference.engine import Reply, Request
from flagperf.journal import Journal
from flagperf.schema.event import Key
from flagperf.schema.inference import Fault, Query


class Answer:
    """The reply to one query. Tokens beyond those asked for make it a fault."""

    def __init__(
        self,
        number: int,
        prompt: int,
        request: Request,
        *,
        clients: int = 0,
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
        self.ended_ns = 0
        self.issued = time.monotonic_ns()

    def tokens(self, ids: Sequence[int]) -> None:
        """Stamp tokens; see `Reply`."""
        now = (time.monotonic_ns() - self.issued) // 1000
        if self._over or not ids:
            return
        self._times.append(now)
        self._counts.append(len(ids))
        self.ids.extend(ids)
        if len(self._counts) == 1 and self._first is not None:
            self._first(self)

    def done(self) -> None:
        """Complete the answer; see `Reply`."""
        if len(self.ids) > self.request.limit:
            self.failed("too_many", f"{len(self.ids)} tokens came, {self.request.limit} were asked for")
        elif not self.ids:
            self.failed("closed", "the answer ended before its first token")
        else:
            self._done = (time.monotonic_ns() - self.issued) // 1000
            self._end()

    def failed(self, fault: Fault, why: str) -> None:
        """End without a complete answer; see `Reply`."""
        if not self._over:
            self.fault, self._why = fault, why
            self._end()

    def _end(self) -> None:
        if not self._over:
            self._over, self.ended_ns = True, time.monotonic_ns()
            if self._ended is not None:
                self._ended(self)

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


class Recorder:
    """Writes queries as they end, in a thread of its own: whoever makes tokens doesn't wait for a disk."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="recorder")

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __call__(self, answer: Answer) -> None:
        """Keep an answer that has ended."""
        self._queue.put(answer)

    def _run(self) -> None:
        while (answer := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._journal.write(Key.QUERY, answer.query())
            except OSError as error:  # told when the scenario is over
                self._error = error


def collected(engine_submit: Callable[[Request, Reply], None], requests: Sequence[Request]) -> list[Answer]:
    """Submit requests at once and wait until all have ended; nothing is journalled."""
    left = threading.Semaphore(0)
    answers = [Answer(n, n, request, ended=lambda _: left.release()) for n, request in enumerate(requests)]
    for answer in answers:
        engine_submit(answer.request, answer)
    for _ in answers:
        left.acquire()
    return answers
