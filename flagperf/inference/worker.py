"""A thread that answers requests, with a queue in front of it: what engines share that serve in their own process.

That thread alone computes with torch. Every thread that does keeps a team of OpenMP's threads, idle or not, and where
there are more of them than cores GNU's OpenMP puts threads to sleep between any two operations rather than let them
spin: a token of a small model then takes up to three times as long. So the thread also builds what it serves with, and
what else computes is done `apart`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from flagperf.inference.engine import Reply, Request
from flagperf.measure.memory import short_of_memory
from flagperf.schema.inference import Fault


class Job:
    """A request with its reply."""

    def __init__(self, request: Request, reply: Reply) -> None:
        self.request, self.reply = request, reply
        self.made = 0
        """Tokens that the reply has been told."""

    def tell(self, token: int) -> bool:
        """Tell the reply a token; return whether that was the last one, of which it's to be told by the caller."""
        self.made += 1
        self.reply.tokens((token,))
        return self.done

    @property
    def done(self) -> bool:
        """Whether it has all tokens that were asked for."""
        return self.made >= self.request.limit


J = TypeVar("J", bound=Job)
T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Return what `work` returns, done in a thread that ends with it, and with it what OpenMP keeps for a thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


class Worker(ABC, Generic[J]):
    """Takes requests at once and works on them turn by turn, in a thread of its own, until it's closed.

    The thread starts with `build`; `begin` returns when that is done.
    """

    job: type[J]

    def __init__(self, context: int) -> None:
        self.context = context
        """Tokens that a prompt and its answer may have together."""
        self.queue: deque[J] = deque()
        """Jobs that nobody works on yet; taken out by the thread alone."""
        self._wake = threading.Condition()
        self._closed = False
        self._built: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    @abstractmethod
    def build(self) -> None:
        """Make ready what turns need."""

    @abstractmethod
    def turn(self) -> None:
        """Do some work, on jobs in hand or on new ones from the queue; there are some. Raises nothing."""

    @abstractmethod
    def in_hand(self) -> Sequence[J]:
        """Return the jobs that have been taken from the queue and aren't done."""

    @property
    def closing(self) -> bool:
        """Whether a turn that takes long should end."""
        return self._closed

    def begin(self) -> None:
        """Start the thread and wait until it is ready; raises what `build` raises."""
        self._thread.start()
        self._built.result()

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request; one that can't fit is refused at once."""
        if len(request.prompt) + request.limit > self.context or not request.prompt:
            why = f"{len(request.prompt)} tokens of prompt and {request.limit} to make; the context has {self.context}"
            reply.failed("too_long", why)
            return
        with self._wake:
            closed = self._closed
            if not closed:
                self.queue.append(self.job(request, reply))
                self._wake.notify()
        if closed:
            reply.failed("engine", "the engine has been closed")

    def close(self) -> None:
        """End the thread after the turn it is in; what isn't done fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self.build()
        except BaseException as error:  # raised in the thread that has begun this one
            self._built.set_exception(error)
            return
        self._built.set_result(None)
        with torch.inference_mode():
            while self._awaited():
                self.turn()
        left = [*self.in_hand(), *self.queue]
        self.queue.clear()
        for job in left:
            job.reply.failed("engine", "the engine was closed before the answer was complete")

    def _awaited(self) -> bool:
        """Wait until there is something to do; return whether that isn't to end."""
        with self._wake:
            while not (self.queue or self.in_hand() or self._closed):
                self._wake.wait()
            return not self._closed


def fault_of(error: Exception) -> tuple[Fault, str]:
    """Tell want of memory from other errors."""
    return ("memory" if short_of_memory(error) else "engine"), f"{type(error).__name__}: {error}"[:500]


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each counted once; of one made of several, of all of these."""
    storages = {each.data_ptr(): each.nbytes() for each in (part.untyped_storage() for part in _parts(tensors))}
    return sum(storages.values())


def _parts(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    for each in tensors:
        flatten = getattr(each, "__tensor_flatten__", None)  # of quantized ones, which have values and scales
        if flatten is None:
            yield each
        else:
            yield from _parts(getattr(each, name) for name in flatten()[0])
