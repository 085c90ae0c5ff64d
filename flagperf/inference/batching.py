"""Continuous batching: requests join and leave a batch between steps, each with a row of the cache of its own.

A step either reads the prompts of requests that have just been taken in, or makes one more token of every request that
is worked on. Rows in use are always the first ones: when a request in the middle is done, the last one moves into its
row. So what a module is given are views of the cache, never copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from flagperf.inference.prefixes import PrefixCache
from flagperf.inference.worker import Job, Worker, fault_of, tensor_bytes
from flagperf.schema.inference import Fault, HeldByInference

if TYPE_CHECKING:
    from flagperf.inference.engine import Function, GenerationTask, ModuleEngine

SPAN = 16
"""Positions that views of the cache are rounded up to, so that memory is asked for in few sizes."""
PREFILL = 2048
"""Tokens, padding included, of prompts that are read in one step, unless a single one is longer."""


class _Row(Job):
    """A request that is worked on."""

    past = 0
    """Tokens in the cache."""
    last = 0
    """The token made last, which the next step reads."""


class Batcher(Worker[_Row]):
    """Serves one module: a thread that runs it, a queue in front, a cache behind."""

    job = _Row

    def __init__(self, engine: ModuleEngine, task: GenerationTask) -> None:
        super().__init__(task.decoder.seq_len)
        self._engine, self._task = engine, task
        self._device, self._functional = engine.context.runtime.device, engine.functional
        self._size = task.load.batch
        self._rows: list[_Row] = []
        self._steps = self._advanced = 0
        self.begin()

    def build(self) -> None:
        """Make the cache and the weights, have the engine compile the model, and try it out."""
        engine, task, model = self._engine, self._task, self._task.decoder
        # Room for one position more than there are, so that no view is contiguous: a compiler would tell these apart.
        shape = (self._size, 2 * model.kv_heads, self.context + 1, model.head_dim)
        self._cache = [torch.zeros(shape, dtype=task.dtype, device=self._device) for _ in range(model.layers)]
        self._prefixes = PrefixCache(tensor_bytes(self._cache)) if task.prefix_cache else None
        module = task.module(functional=engine.functional).eval().to(self._device)
        width = 3 if engine.reads_prompts else 1
        self._step = engine.compile(module, self._examples(min(2, self._size), width), self._dynamic())
        self._prompt_step = self._step if engine.reads_prompts else module
        self._weights = tensor_bytes([*module.parameters(), *module.buffers()])
        with torch.inference_mode():
            for rows, width in {(1, 1), (1, 3), (self._size, 1), (self._size, 3)}:  # compilers make code of its own
                self._step_of(width)(*self._examples(rows, width))

    def held(self) -> HeldByInference:
        """Return the bytes of weights and cache."""
        kept = self._prefixes.bytes if self._prefixes is not None else 0
        return HeldByInference(weights=self._weights, cache=tensor_bytes(self._cache) + kept)

    def facts(self) -> dict[str, object]:
        """Return how requests are batched, and how that went so far."""
        told: dict[str, object] = {
            "rows": self._size,
            "context": self.context,
            "prefix_cache": self._prefixes is not None,
            "steps": self._steps,
            "rows_a_step": self._advanced / self._steps if self._steps else None,
        }
        return told | (self._prefixes.facts() if self._prefixes is not None else {})

    def _examples(self, rows: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return arguments of the module: rows that read `width` tokens each."""
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=self._device)
        past = torch.arange(rows, device=self._device) % 3
        return tokens, past, torch.full_like(past, width), *self._views(0, rows, 4 * SPAN)

    def _dynamic(self) -> Mapping[int, Sequence[int]]:
        """Return the dimensions of the module's arguments that change: rows, tokens read, positions."""
        return {0: (0, 1), 1: (0,), 2: (0,)} | {3 + layer: (0, 2) for layer in range(len(self._cache))}

    def _step_of(self, width: int) -> Function:
        """Return what reads so many tokens a row."""
        return self._step if width == 1 else self._prompt_step

    def _views(self, first: int, last: int, span: int) -> list[torch.Tensor]:
        """Return the cache of some rows, with room for `span` positions or as many as there are."""
        rounded = min(-(-max(span, 1) // SPAN) * SPAN, self.context)
        return [each[first:last, :, :rounded] for each in self._cache]

    def in_hand(self) -> Sequence[_Row]:
        """Return the rows in use."""
        return self._rows

    def turn(self) -> None:
        """Read the prompts of new requests, if there is room for them, or else make one more token of each."""
        taken = self._taken()
        try:
            if taken:
                self._read(taken)
            else:
                self._advance()
        except Exception as error:  # of the engine, or for want of memory: told to whom it concerns
            self._fail(taken or self._rows, *fault_of(error))

    def _taken(self) -> list[_Row]:
        """Take requests in from the queue, as many as there are rows and tokens for in one step."""
        taken: list[_Row] = []
        longest = 0
        while self.queue and len(self._rows) + len(taken) < self._size:
            longest = max(longest, len(self.queue[0].request.prompt))
            if taken and longest * (len(taken) + 1) > PREFILL:
                break
            taken.append(self.queue.popleft())
        return taken

    def _read(self, taken: list[_Row]) -> None:
        """Read the prompts of new requests, and make the first token of each."""
        first = len(self._rows)
        for place, row in enumerate(taken):
            if self._prefixes is not None:
                row.past = self._prefixes.restore(row.request.prompt, [each[first + place] for each in self._cache])
        unread = [row.request.prompt[row.past :] for row in taken]
        self._rows += taken
        self._forward(taken, first, unread)
        if self._prefixes is not None:
            for place, row in enumerate(taken):
                self._prefixes.keep(row.request.prompt, [each[first + place] for each in self._cache])
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
        views = self._views(first, first + len(rows), longest)
        step = self._step_of(width)
        if self._functional:
            logits, *made = step(tokens, past, count, *views)
            places = torch.arange(first, first + len(rows), device=self._device).unsqueeze(1)
            positions = past.unsqueeze(1) + torch.arange(width, device=self._device)
            positions.clamp_(max=self.context)
            for cache, new in zip(self._cache, made, strict=True):
                cache.transpose(1, 2)[places, positions] = new.transpose(1, 2)
        else:
            logits = step(tokens, past, count, *views)
        likeliest = logits.argmax(-1).tolist()
        for row, token, read in zip(rows, likeliest, unread, strict=True):
            row.past += len(read)
            row.last = token
            row.tell(token)

    def _leave(self) -> None:
        """Let go of requests that are done; those after them move up."""
        for place in reversed(range(len(self._rows))):
            row = self._rows[place]
            if row.done:
                self._remove(place)
                row.reply.done()

    def _remove(self, place: int) -> None:
        last = self._rows.pop()
        if place < len(self._rows):
            self._rows[place] = last
            for cache in self._cache:
                cache[place, :, : last.past] = cache[len(self._rows), :, : last.past]

    def _fail(self, rows: Sequence[_Row], fault: Fault, why: str) -> None:
        for row in list(rows):
            if row in self._rows:
                self._remove(self._rows.index(row))
            row.reply.failed(fault, why)
