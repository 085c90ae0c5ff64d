"""Aquila generation as an engine sees it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flagperf import paths
from flagperf.data import Prepared, cache, open_tokens
from flagperf.inference import prompts
from flagperf.inference.engine import GenerationTask, Request
from flagperf.measure.inputs import DTYPES
from flagperf.schema.trial import Trial

from . import checkpoints, huggingface
from .cached import CachedAquila
from .config import AquilaConfig
from .generate import RANDOM, TRAINED, GenerateSettings
from .model import Aquila
from .trained import trained
from .weights import initial_weight

FORMAT = 1
"""Of the folders made here."""


class AquilaGeneration(GenerationTask):
    """The model with its weights, what it is asked, and what it is judged by."""

    def __init__(self, settings: GenerateSettings, trial: Trial) -> None:
        self.settings, self.trial, self.seed = settings, trial, trial.seed
        self.config: AquilaConfig = settings.model
        self.decoder, self.load = self.config.decoder, settings.load
        self.dtype = DTYPES[trial.dtype]
        self.prefix_cache = settings.prefix_cache

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the canonical weights."""
        if self._source is not None:
            yield from checkpoints.read(self._source, self.config)
            return
        with torch.device("meta"):
            shapes = {name: each.shape for name, each in Aquila(self.config).named_parameters()}
        for name, shape in shapes.items():
            yield name, initial_weight(self.config, name, tuple(shape), self.seed)

    def module(self, *, functional: bool) -> torch.nn.Module:
        """Return the model with a cache."""
        return CachedAquila(self._plain(), functional=functional)

    def reference(self) -> torch.nn.Module:
        """Return the plain model in fp32, of weights rounded to the dtype."""
        return self._plain().float().eval()

    def _plain(self) -> Aquila:
        with torch.device("meta"):
            model = Aquila(self.config)
        model.to_empty(device="cpu").to(self.dtype)
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, weight in self.weights():
                parameters[name].copy_(weight)
        return model

    def folder(self) -> Path:
        """Return the weights in Hugging Face's format: the folder that they are from, or one made in the cache."""
        if self._source is not None:
            return self._source
        tokenizer = self._data.tokenizer
        told = {
            "format": FORMAT,
            "model": msgspec.to_builtins(self.config),
            "seed": self.seed,
            "dtype": self.trial.dtype,
            "torch": torch.__version__.partition("+")[0],
            "tokenizer": self._data.meta.tokenizer_sha256,
        }
        digest = hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()
        with cache.storage_errors():
            return cache.made(
                paths.cache() / "weights" / f"random-{digest[:16]}",
                lambda folder: checkpoints.write(folder, self.config, self.weights(), self.dtype, tokenizer),
                lambda stage, done: None,
            )

    @functools.cached_property
    def _source(self) -> Path | None:
        """The folder that weights are read from, or None where they are random."""
        settings = self.settings
        if settings.weights == RANDOM:
            return None
        if settings.weights == TRAINED:
            return trained(settings.model, settings.data, settings.training, self.trial, lambda stage, done: None)
        return Path(settings.weights)

    @functools.cached_property
    def _data(self) -> Prepared:
        return open_tokens(self.settings.data)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer | None:
        """What turns text into the model's tokens: that of its folder, or of the data, which may have none."""
        own = self._source and self._source / huggingface.TOKENIZER
        path = own if own and own.is_file() else self._data.tokenizer
        return Tokenizer.from_file(str(path)) if path is not None else None

    @functools.cached_property
    def _stream(self) -> npt.NDArray[np.integer[Any]]:
        """Held-out text in the model's tokens."""
        kept = self._data.validation
        path = self._data.tokenizer
        if self.settings.weights in (RANDOM, TRAINED) or path is None or self._tokenizer is None:
            return kept
        text = Tokenizer.from_file(str(path)).decode(kept.tolist())
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def requests(self) -> list[Request]:
        """Return the queries' prompts."""
        tokenizer = self._tokenizer
        if self.load.prompts:
            encode = (lambda text: tokenizer.encode(text).ids) if tokenizer is not None else _no_text
            return prompts.from_file(self.load, encode, self.config.vocab_size, self.seed)
        decode = tokenizer.decode if tokenizer is not None else None
        return prompts.passages(self.load, self._stream, decode, self.config.seq_len, self.seed)

    def held_out(self) -> list[tuple[Sequence[int], int]]:
        """Return passages that the model wasn't trained on, each with the token that follows it."""
        stream, count = self._stream, self.settings.held_out
        length = min(64, self.config.seq_len - 1)
        stride = max(1, (len(stream) - length - 1) // max(1, count))
        starts = range(0, min(count * stride, len(stream) - length - 1), stride)
        return [([int(token) for token in stream[at : at + length]], int(stream[at + length])) for at in starts]


def _no_text(text: str) -> list[int]:
    return []
