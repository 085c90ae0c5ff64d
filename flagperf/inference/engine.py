"""The inference-engine contract: what eager torch, exported graphs and whole servers have in common.

An engine is a manifest (`*.toml`, kind `inference`, with the `tasks` it can do) and an entry class derived from
`InferenceEngine`, or from `ModuleEngine` where it computes what a torch module says and leaves the serving to us.
Every engine is given the same weights, and must answer as the plain model in fp32 does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from flagperf.context import RankContext
from flagperf.schema.decoder import Decoder
from flagperf.schema.event import Memory
from flagperf.schema.inference import Agreement, Fault, HeldByInference, LoadSettings
from flagperf.schema.trial import Trial

if TYPE_CHECKING:
    from flagperf.inference.batching import Batcher

Function = Callable[..., Any]


class Request(NamedTuple):
    """What is asked of an engine: to go on after the prompt, the likeliest token each time, whatever ends a text."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    limit: int
    """Tokens to generate."""
    text: str = ""
    """The prompt as text, where it came so."""


class Reply(Protocol):
    """Is told what comes of a request, as it comes, by one thread at a time; after `done` or `failed` nothing more."""

    def tokens(self, ids: Sequence[int]) -> None:
        """Some tokens have been generated; they are stamped with the time now."""

    def recounted(self, total: int) -> None:
        """So many tokens came in all: those told so far were guesses, and share the total in proportion."""

    def done(self) -> None:
        """The answer is complete."""

    def failed(self, fault: Fault, why: str) -> None:
        """There will be no complete answer."""


class GenerationTask(ABC):
    """What a case of generation gives to an engine."""

    decoder: Decoder
    """Shape of the model; `seq_len` is the longest context, prompt and answer together."""
    load: LoadSettings
    dtype: torch.dtype
    """In which engines compute and hold weights and cache."""
    prefix_cache: bool
    """Whether keys and values of a prompt's beginning may be taken over from an earlier prompt."""
    encode: Callable[[str], Sequence[int]] | None = None
    """The tokenizer of its text, if it has one."""

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the canonical weights by name, float32 on the host."""

    @abstractmethod
    def module(self, *, functional: bool) -> torch.nn.Module:
        """Return the model with a cache, on the host in `dtype`, weights filled in: see `flagperf.inference.batching`.

        With `functional` nothing is written in place: for exporters.
        """

    @abstractmethod
    def reference(self) -> torch.nn.Module:
        """Return the plain model in fp32, `model(tokens [B, S])` being the logits [B, S, V]; weights as engines see
        them, that is, rounded to `dtype`."""

    def agreement(self, engine: InferenceEngine, requests: Sequence[Request]) -> Agreement:
        """Return how an engine's answers to some requests stand against the reference."""
        from flagperf.inference.agreement import CHECKED, agreement

        return agreement(engine, self, requests[:CHECKED])

    @abstractmethod
    def folder(self) -> Path:
        """Return a folder in Hugging Face's format with these weights in `dtype`, made on the first call."""


class InferenceEngine(ABC):
    """One engine in one process, or the client of one elsewhere."""

    exact = True
    """Whether its answers must be the reference's; where weights are quantized, how far they are is what's told."""
    checked = True
    """Whether it computes with the case's weights, so that its answers can be held against the reference."""

    def __init__(self, context: RankContext) -> None:
        self.context = context

    @classmethod
    def check(cls, trial: Trial) -> None:
        """Raise a FlagPerfError for a trial that can't be run; called before anything is started."""
        return

    @abstractmethod
    def start(self, task: GenerationTask) -> None:
        """Load the model and be ready for `submit`."""

    @abstractmethod
    def submit(self, request: Request, reply: Reply) -> None:
        """Take a request and return at once; the reply is told from a thread of the engine's own.

        Requests that come while others are worked on wait for them; nothing is refused for being many.
        """

    @abstractmethod
    def held(self) -> HeldByInference:
        """Return what is held for serving."""

    def facts(self) -> dict[str, object]:
        """Return what a reader should know of how the engine ran, as plain JSON; called when it has started."""
        return {}

    def memory(self, rank: Memory) -> Memory:
        """Return the peaks of the rank's memory, or of the processes that serve in its stead."""
        return rank

    def close(self) -> None:
        """End what `start` began; requests that are still worked on fail."""
        return


class ModuleEngine(InferenceEngine):
    """An engine that computes what a torch module computes; serving is the same for all of them."""

    functional = True
    """Whether modules must not write in place."""
    reads_prompts = True
    """Whether what is compiled reads prompts, too, and doesn't only make one token after the other."""
    batcher: Batcher

    @abstractmethod
    def compile(
        self, module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
    ) -> Function:
        """Return what computes the same as the module, for arguments like the examples.

        `dynamic` names the arguments by place whose sizes change, each with the dimensions that do. What is returned
        takes tensors on the rank's device and returns a tensor, or a tuple of them, there.
        """

    def start(self, task: GenerationTask) -> None:
        """Compile the module and start the thread that batches requests."""
        from flagperf.inference.batching import Batcher

        self.batcher = Batcher(self, task)

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request."""
        self.batcher.submit(request, reply)

    def held(self) -> HeldByInference:
        """Return the bytes of the module's weights and of the cache."""
        return self.batcher.held()

    def facts(self) -> dict[str, object]:
        """Return how requests were batched, where they are ours to batch."""
        return self.batcher.facts() if hasattr(self, "batcher") else {}

    def close(self) -> None:
        """End the batching thread."""
        if hasattr(self, "batcher"):
            self.batcher.close()
