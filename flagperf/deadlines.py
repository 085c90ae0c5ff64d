"""Calls into a maker's library that may never return: each has a thread for its key, and is given up in time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Deadlines(Generic[K, T]):
    """Makes calls at the same time, one a key, and waits for them together.

    A call that hangs can't be ended; its key isn't called again until it has returned, so that it costs the others one
    time-out at most. What it returns then is dropped: nobody knows any more which moment it is of. The threads are
    daemons, which a process doesn't wait for at its end.
    """

    def __init__(self) -> None:
        self._workers: dict[K, _Worker[T]] = {}

    def call(self, calls: Mapping[K, Callable[[], T]], timeout: float) -> dict[K, T]:
        """Return what came back within `timeout` seconds, by key; raises what a call raised."""
        deadline = time.monotonic() + timeout
        asked = []
        for key, function in calls.items():
            worker = self._workers.get(key)
            if worker is None:
                worker = self._workers[key] = _Worker()
            if worker.ask(function):
                asked.append((key, worker))
        answers: dict[K, T] = {}
        for key, worker in asked:
            if worker.answered.wait(max(0.0, deadline - time.monotonic())):
                answers[key] = worker.answer()
        return answers


class _Worker(Generic[T]):
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        self.answered = threading.Event()
        self.answered.set()
        self._result: T
        self._error: BaseException | None = None
        threading.Thread(target=self._work, name="deadline", daemon=True).start()

    def ask(self, function: Callable[[], T]) -> bool:
        """Begin a call; False if the one before hasn't returned."""
        if not self.answered.is_set():
            return False
        self.answered.clear()
        self._calls.put(function)
        return True

    def answer(self) -> T:
        """Return what the call returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result

    def _work(self) -> None:
        while True:
            function = self._calls.get()
            try:
                self._result, self._error = function(), None
            except BaseException as error:  # for whoever asked
                self._error = error
            self.answered.set()
