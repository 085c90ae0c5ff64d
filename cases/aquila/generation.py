"""Aquila generation as an engine sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from flagperf.data import open_tokens
from flagperf.inference import prompts
from flagperf.inference.engine import GenerationTask, Request
from flagperf.schema.trial import Trial

from .cached import CachedAquila
from .config import AquilaConfig
from .generate import GenerateSettings
from .model import Aquila
from .weights import initial_weight

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class AquilaGeneration(GenerationTask):
    """The model with its weights, what it is asked, and what it is judged by."""

    def __init__(self, settings: GenerateSettings, trial: Trial) -> None:
        self.settings, self.seed = settings, trial.seed
        self.config: AquilaConfig = settings.model
        self.decoder, self.load = self.config.decoder, settings.load
        self.dtype = DTYPES[trial.dtype]
        self.quantized, self.prefix_cache = settings.quantized, settings.prefix_cache
        self._data = open_tokens(settings.data)
        self._model: Aquila | None = None

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the canonical weights."""
        with torch.device("meta"):
            shapes = {name: each.shape for name, each in Aquila(self.config).named_parameters()}
        for name, shape in shapes.items():
            yield name, initial_weight(self.config, name, tuple(shape), self.seed)

    def module(self, *, functional: bool) -> torch.nn.Module:
        """Return the model with a cache."""
        return CachedAquila(self._plain(self.dtype), functional=functional)

    def reference(self) -> torch.nn.Module:
        """Return the plain model in fp32, of weights rounded to the dtype."""
        return self._plain(self.dtype).float().eval()

    def _plain(self, dtype: torch.dtype) -> Aquila:
        with torch.device("meta"):
            model = Aquila(self.config)
        model.to_empty(device="cpu").to(dtype)
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, weight in self.weights():
                parameters[name].copy_(weight)
        return model

    def folder(self) -> Path:
        """Return the weights in Hugging Face's format."""
        raise NotImplementedError

    def requests(self) -> list[Request]:
        """Return the queries' prompts."""
        from tokenizers import Tokenizer

        path = self._data.tokenizer
        tokenizer = Tokenizer.from_file(str(path)) if path is not None else None
        if self.load.prompts:
            if tokenizer is None:
                encode: prompts.Encode = _no_text
            else:
                encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
            return prompts.from_file(self.load, encode, self.config.vocab_size, self.seed)
        decode = tokenizer.decode if tokenizer is not None else None
        return prompts.passages(self.load, self._data.validation, decode, self.config.seq_len, self.seed)

    def held_out(self) -> list[tuple[Sequence[int], int]]:
        """Return passages that the model wasn't trained on, each with the token that follows it."""
        stream, count = self._data.validation, self.settings.held_out
        length = min(64, self.config.seq_len - 1)
        stride = max(1, (len(stream) - length - 1) // max(1, count))
        starts = range(0, min(count * stride, len(stream) - length - 1), stride)
        return [([int(token) for token in stream[at : at + length]], int(stream[at + length])) for at in starts]


def _no_text(text: str) -> list[int]:
    return []
