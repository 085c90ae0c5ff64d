"""Continuous batching: requests join and leave a batch between steps, each with a row of the cache of its own.

A step either reads the prompts of requests that have just been taken in, or makes one more token of every request that
is worked on. Rows in use are always the first ones: when a request in the middle is done, the last one moves into its
row. So what a module is given are views of the cache, never copies.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from flagperf.inference.prefixes import PrefixCache
from flagperf.schema.inference import Fault, HeldByInference

if TYPE_CHECKING:
    from flagperf.inference.engine import GenerationTask, ModuleEngine, Reply, Request

SPAN = 16
"""Positions that views of the cache are rounded up to, so that memory is asked for in few sizes."""
PREFILL = 2048
"""Tokens, padding included, of prompts that are read in one step, unless a single one is longer."""
DYNAMIC: dict[int, Sequence[int]] = {0: (0, 1), 1: (0,), 2: (0,), 3: (0, 3)}
"""Dimensions of a module's arguments that change: rows, tokens read, positions."""


class _Row:
    """A request that is worked on."""

    def __init__(self, request: Request, reply: Reply) -> None:
        self.request, self.reply = request, reply
        self.past = 0
        """Tokens in the cache."""
        self.made = 0
        self.last = 0
        """The token made last, which the next step reads."""


class _Sizes(NamedTuple):
    rows: int
    capacity: int


class Batcher:
    """Serves one module: a thread that runs it, a queue in front, a cache behind."""

    def __init__(self, engine: ModuleEngine, task: GenerationTask) -> None:
        self._device, self._functional = engine.context.runtime.device, engine.functional
        self._sizes = _Sizes(task.load.batch, task.decoder.seq_len)
        rows, capacity = self._sizes
        model = task.decoder
        # Room for one position more than there are, so that no view is contiguous: a compiler would tell these apart.
        shape = (rows, model.layers, 2 * model.kv_heads, capacity + 1, model.head_dim)
        self._cache = torch.zeros(shape, dtype=task.dtype, device=self._device)
        self._prefixes = PrefixCache(self._cache.nbytes) if task.prefix_cache else None
        module = task.module(functional=engine.functional).eval().to(self._device)
        self._weights = tensor_bytes([*module.parameters(), *module.buffers()])
        self._step = engine.compile(module, self._examples(min(2, rows), 3), DYNAMIC)
        with torch.inference_mode():
            for few, width in {(1, 1), (1, 3), (rows, 1), (rows, 3)}:  # whose code compilers make when first called
                self._step(*self._examples(few, width))
        self._rows: list[_Row] = []
        self._queue: deque[_Row] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._reads = self._steps = self._advanced = 0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request; one that can't fit is refused at once."""
        wanted = len(request.prompt) + request.limit
        if wanted > self._sizes.capacity or not request.prompt:
            why = f"{len(request.prompt)} tokens of prompt and {request.limit} to make; the context has "
            reply.failed("too_long", f"{why}{self._sizes.capacity}")
            return
        with self._wake:
            closed = self._closed
            if not closed:
                self._queue.append(_Row(request, reply))
                self._wake.notify()
        if closed:
            reply.failed("engine", "the engine has been closed")

    def held(self) -> HeldByInference:
        """Return the bytes of weights and cache."""
        kept = self._prefixes.bytes if self._prefixes is not None else 0
        return HeldByInference(weights=self._weights, cache=self._cache.nbytes + kept)

    def facts(self) -> dict[str, object]:
        """Return how requests are batched, and how that went so far."""
        told: dict[str, object] = {
            "rows": self._sizes.rows,
            "context": self._sizes.capacity,
            "prefix_cache": self._prefixes is not None,
            "steps": self._steps,
            "rows_a_step": self._advanced / self._steps if self._steps else None,
        }
        return told | (self._prefixes.facts() if self._prefixes is not None else {})

    def close(self) -> None:
        """End the thread after the step it is in; what isn't done fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _examples(self, rows: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return arguments of the module: rows that read `width` tokens each."""
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=self._device)
        past = torch.arange(rows, device=self._device)
        return tokens, past, torch.full_like(past, width), self._view(0, rows, 4 * SPAN)

    def _view(self, first: int, last: int, span: int) -> torch.Tensor:
        """Return the cache of some rows, with room for `span` positions or as many as there are."""
        rounded = min(-(-max(span, 1) // SPAN) * SPAN, self._sizes.capacity)
        return self._cache[first:last, :, :, :rounded]

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not (self._queue or self._rows or self._closed):
                        self._wake.wait()
                    if self._closed:
                        break
                    taken = self._taken()
                try:
                    if taken:
                        self._read(taken)
                    else:
                        self._advance()
                except Exception as error:  # of the engine, or for want of memory: told to whom it concerns
                    self._fail(taken or self._rows, *fault_of(error))
        with self._wake:
            left = [*self._rows, *self._queue]
            self._queue.clear()
        self._fail(left, "engine", "the engine was closed before the answer was complete")

    def _taken(self) -> list[_Row]:
        """Take requests in from the queue, as many as there are rows and tokens for in one step."""
        taken: list[_Row] = []
        longest = 0
        while self._queue and len(self._rows) + len(taken) < self._sizes.rows:
            longest = max(longest, len(self._queue[0].request.prompt))
            if taken and longest * (len(taken) + 1) > PREFILL:
                break
            taken.append(self._queue.popleft())
        return taken

    def _read(self, taken: list[_Row]) -> None:
        """Read the prompts of new requests, and make the first token of each."""
        first = len(self._rows)
        for place, row in enumerate(taken):
            if self._prefixes is not None:
                row.past = self._prefixes.restore(row.request.prompt, self._cache[first + place])
        unread = [row.request.prompt[row.past :] for row in taken]
        self._rows += taken
        self._reads += 1
        self._forward(taken, first, unread)
        if self._prefixes is not None:
            for place, row in enumerate(taken):
                self._prefixes.keep(row.request.prompt, self._cache[first + place])
        self._leave()

    def _advance(self) -> None:
        """Make one more token of every request."""
        self._steps += 1
        self._advanced += len(self._rows)
        self._forward(self._rows, 0, [[row.last] for row in self._rows])
        self._leave()

    def _forward(self, rows: Sequence[_Row], first: int, unread: Sequence[Sequence[int]]) -> None:
        width = max(map(len, unread))
        padded = [[*tokens, *([0] * (width - len(tokens)))] for tokens in unread]
        tokens = torch.tensor(padded, device=self._device)
        past = torch.tensor([row.past for row in rows], device=self._device)
        count = torch.tensor([len(each) for each in unread], device=self._device)
        longest = max(row.past for row in rows) + (0 if self._functional else width)
        view = self._view(first, first + len(rows), longest)
        if self._functional:
            logits, made = self._step(tokens, past, count, view)
            places = torch.arange(first, first + len(rows), device=self._device).unsqueeze(1)
            positions = past.unsqueeze(1) + torch.arange(width, device=self._device)
            positions.clamp_(max=self._sizes.capacity)
            self._cache[places, :, :, positions] = made.permute(0, 3, 1, 2, 4)
        else:
            logits = self._step(tokens, past, count, view)
        likeliest = logits.argmax(-1).tolist()
        for row, token, read in zip(rows, likeliest, unread, strict=True):
            row.past += len(read)
            row.last = token
            row.made += 1
            row.reply.tokens((token,))

    def _leave(self) -> None:
        """Let go of requests that are done; those after them move up."""
        for place in reversed(range(len(self._rows))):
            row = self._rows[place]
            if row.made >= row.request.limit:
                self._remove(place)
                row.reply.done()

    def _remove(self, place: int) -> None:
        last = self._rows.pop()
        if place < len(self._rows):
            self._rows[place] = last
            self._cache[place, :, :, : last.past] = self._cache[len(self._rows), :, :, : last.past]

    def _fail(self, rows: Sequence[_Row], fault: Fault, why: str) -> None:
        for row in list(rows):
            if row in self._rows:
                self._remove(self._rows.index(row))
            row.reply.failed(fault, why)


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def fault_of(error: Exception) -> tuple[Fault, str]:
    """Tell want of memory from other errors."""
    text = f"{type(error).__name__}: {error}"
    short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    return ("memory" if short else "engine"), text[:500]
