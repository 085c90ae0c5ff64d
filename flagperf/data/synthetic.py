"""A made-up corpus that can be learnt: no network, the same tokens everywhere, made in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flagperf.data.settings import END_OF_DOCUMENT_ID, DataSettings
from flagperf.data.stream import Piece, Stream, token_dtype

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LANGUAGE = "synthetic"
DOCUMENT_TOKENS = 1024
CLASSES = 16  # of tokens; a pair of them is a context
SUCCESSORS = 16  # likely tokens after a context
SUCCESSOR_CHANCE = 0.7
_BLOCK_DOCUMENTS = 4096


def synthetic(settings: DataSettings) -> Stream:
    """Return the stream of a Zipfian Markov source of order 2.

    A token is one of the 16 likely successors of the classes of the two tokens before it (chance 0.7, Zipf's law), or
    any token of the vocabulary (Zipf's law). Counting tokens gets a model below ln V, attending to the last two far
    below. Only integers and the four operations decide, so every platform draws the same tokens.
    """
    stream = Stream({}, {LANGUAGE: 1.0}, settings.tokens, END_OF_DOCUMENT_ID)
    stream.pieces[LANGUAGE] = _documents(settings, stream)
    return stream


def _documents(settings: DataSettings, stream: Stream) -> Iterator[Piece]:
    import numpy as np

    dice = np.random.PCG64(settings.seed)
    words = settings.vocab_size - 1  # the end-of-document token, 0, is never drawn
    classes = dice.random_raw(settings.vocab_size) % CLASSES
    successors = dice.random_raw((CLASSES * CLASSES, SUCCESSORS)) % words + 1
    any_chance, any_table = _zipf(words)
    next_chance, next_table = _zipf(SUCCESSORS)
    threshold = round(SUCCESSOR_CHANCE * 2**32)
    surprise = 0.0
    drawn = 0
    left = -(-settings.tokens // DOCUMENT_TOKENS)
    while left > 0:
        count = min(left, _BLOCK_DOCUMENTS)
        left -= count
        block = np.full((count, DOCUMENT_TOKENS), END_OF_DOCUMENT_ID, token_dtype(settings.vocab_size))
        before = classes[np.zeros(count, np.int64)]
        last = before
        for place in range(DOCUMENT_TOKENS - 1):
            raw = dice.random_raw(count)
            choice = raw >> np.uint64(32)
            context = (before * np.uint64(CLASSES) + last).astype(np.int64)
            likely = successors[context, np.searchsorted(next_table, choice, side="right")]
            anything = np.searchsorted(any_table, choice, side="right").astype(np.uint64) + np.uint64(1)
            token = np.where((raw & np.uint64(0xFFFFFFFF)) < np.uint64(threshold), likely, anything)
            block[:, place] = token
            chance = ((successors[context] == token[:, None]) * next_chance).sum(axis=1) * SUCCESSOR_CHANCE
            chance += any_chance[token.astype(np.int64) - 1] * (1 - SUCCESSOR_CHANCE)
            surprise -= float(np.log(chance).sum())
            before, last = last, classes[token.astype(np.int64)]
        drawn += count * (DOCUMENT_TOKENS - 1)
        stream.entropy = round(surprise / drawn, 4)
        for document in block:
            yield Piece(document, 0, ends=True)


def _zipf(count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
    """Return the chances of ranks 0 to count-1, and where each but the last ends on a scale of 2^32."""
    import numpy as np

    weights = 1.0 / (np.arange(count) + 2.0)
    chances = weights / np.cumsum(weights)[-1]  # cumsum adds in order: the same sum on every platform
    return chances, np.round(np.cumsum(chances)[:-1] * 2**32).astype(np.uint64)
