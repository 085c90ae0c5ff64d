"""Batches: which tokens are sample number n, the same for every engine and any number of ranks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from flagperf.errors import FlagPerfError, UsageError

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
_MODULUS = 1 << 128


class Batches:
    """The order in which a run sees its training windows.

    Window w is tokens[w·seq_len : w·seq_len + seq_len + 1]: inputs and, shifted by one, targets. Sample number n is in
    step n // batch_size. Every epoch is a permutation of all windows of its own, from `seed`, computed one window at a
    time, so an engine may ask for any sample in any order and nothing of the size of the corpus is kept.
    """

    def __init__(
        self, tokens: Tokens, seq_len: int, batch_size: int, seed: int = 0, validation: Tokens | None = None
    ) -> None:
        """Take the train tokens [N]; `batch_size` is global, in sequences. Raises FlagPerfError if N is too small."""
        if seq_len < 1 or batch_size < 1:
            raise UsageError(f"A batch of {batch_size} sequences of {seq_len} tokens has no tokens.", "Give 1 or more.")
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.windows = window_count(tokens, seq_len)
        if self.windows < batch_size:
            raise FlagPerfError(
                f"The corpus is too short: {len(tokens):,} tokens make {self.windows:,} sequences of {seq_len:,}, "
                f"less than one batch of {batch_size:,}.",
                "Use a larger corpus, a smaller batch or shorter sequences.",
            )
        self._tokens = tokens
        self._validation = validation
        self._seed = seed

    def sample(self, step: int, index: int) -> npt.NDArray[np.int64]:
        """Return sample number step·batch_size + index, int64 [seq_len + 1]."""
        if not 0 <= index < self.batch_size or step < 0:
            raise IndexError(f"no sample {index} of {self.batch_size} in step {step}")
        return window(self._tokens, self.seq_len, self.window_of(int(step) * self.batch_size + int(index)))

    def window_of(self, number: int) -> int:
        """Return the window that is sample `number`."""
        epoch, place = divmod(number, self.windows)
        return permuted(place, self.windows, f"{self._seed}/{epoch}".encode())

    def validation(self, count: int) -> npt.NDArray[np.int64]:
        """Return windows of the validation tokens, the same at every call, int64 [min(count, all), seq_len + 1]."""
        if self._validation is None:
            raise FlagPerfError("These batches were made without validation tokens.", "Pass validation=….")
        return validation_windows(self._validation, self.seq_len, count)


def window_count(tokens: Tokens, seq_len: int) -> int:
    """Return how many windows of seq_len + 1 tokens there are; neighbours share one token."""
    return max(0, (len(tokens) - 1) // seq_len)


def window(tokens: Tokens, seq_len: int, number: int) -> npt.NDArray[np.int64]:
    """Return a window, int64 [seq_len + 1]."""
    return tokens[number * seq_len : number * seq_len + seq_len + 1].astype(np.int64)


def validation_windows(tokens: Tokens, seq_len: int, count: int) -> npt.NDArray[np.int64]:
    """Return `count` windows spread evenly over the tokens (all of them where there are fewer)."""
    windows = window_count(tokens, seq_len)
    if not windows:
        raise FlagPerfError(
            f"The validation text is too short: {len(tokens):,} tokens, less than one sequence of {seq_len:,}.",
            "Use a larger corpus, shorter sequences, or hold out more: data.validation=0.1.",
        )
    count = min(count, windows)
    return np.stack([window(tokens, seq_len, number * windows // count) for number in range(count)])


def permuted(place: int, size: int, key: bytes) -> int:
    """Return where a permutation of range(size), chosen by `key`, puts `place`.

    A generalized Feistel network of eight rounds over rows x columns, walked until it lands inside range(size), at
    once nearly always (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Memory is constant.
    """
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    while True:
        row, column = divmod(place, columns)
        for turn in range(0, 8, 2):
            row = (row + _hashed(turn, column, key)) % rows
            column = (column + _hashed(turn + 1, row, key)) % columns
        place = row * columns + column
        if place < size:
            return place


def _hashed(turn: int, number: int, key: bytes) -> int:
    digest = hashlib.blake2b(number.to_bytes(8, "little") + bytes([turn]), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def sample_digest(number: int, tokens: npt.NDArray[np.integer]) -> int:
    """Return blake2b-128 of a sample's number (u64) and its tokens (u32 each), little-endian."""
    data = int(number).to_bytes(8, "little") + tokens.astype("<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "little")


def combine(digests: Iterable[int]) -> int:
    """Return the sum modulo 2^128: ranks may add up their own samples in any order, then the ranks' sums."""
    return sum(digests) % _MODULUS


def fingerprint_text(digest: int) -> str:
    """Return a combined digest as 32 hex digits."""
    return f"{digest:032x}"
