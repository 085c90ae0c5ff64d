from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.data.batches import Batches, combine, fingerprint_text, permuted, sample_digest, validation_windows
from flagperf.errors import FlagPerfError, UsageError


def numbered(windows: int, seq_len: int) -> np.ndarray:
    return np.arange(windows * seq_len + 1, dtype=np.uint32)


@given(st.integers(1, 700), st.binary(max_size=20))
def test_permutation(size: int, key: bytes) -> None:
    assert sorted(permuted(place, size, key) for place in range(size)) == list(range(size))


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 3))
def test_every_window_once_an_epoch(windows: int, seq_len: int, batch: int, seed: int, epoch: int) -> None:
    batches = Batches(numbered(windows, seq_len), seq_len, min(batch, windows), seed)
    first = epoch * windows
    samples = [batches.sample(*divmod(number, batches.batch_size)) for number in range(first, first + windows)]
    assert sorted(int(sample[0]) for sample in samples) == [number * seq_len for number in range(windows)]
    for sample in samples:
        assert sample.dtype == np.int64
        assert (sample == np.arange(sample[0], sample[0] + seq_len + 1)).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(Batches(numbered(50, 4), 4, 5, seed).window_of(epoch * 50 + number) for number in range(50))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_never_changes() -> None:
    batches = Batches(numbered(1000, 4), 4, 8, seed=7)
    assert [batches.window_of(number) for number in (0, 1, 2, 999, 1000)] == [646, 727, 417, 595, 780]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 100))
def test_ranks_add_up_to_the_same_fingerprint(ranks: int, steps: int, seed: int) -> None:
    batches = Batches(numbered(40, 3), 3, 12, seed)
    digests = [
        [sample_digest(step * 12 + index, batches.sample(step, index)) for step in range(steps) for index in part]
        for part in np.array_split(np.arange(12).tolist(), ranks)
    ]
    whole = combine(sample_digest(n, batches.sample(*divmod(n, 12))) for n in range(steps * 12))
    assert combine(combine(digest) for digest in digests) == whole
    assert len(fingerprint_text(whole)) == 32


def test_the_fingerprint_depends_on_order_and_content() -> None:
    one, two = np.array([1, 2]), np.array([3, 4])
    straight = combine([sample_digest(0, one), sample_digest(1, two)])
    assert straight != combine([sample_digest(0, two), sample_digest(1, one)])
    assert straight != combine([sample_digest(0, one), sample_digest(1, one)])
    assert sample_digest(0, one) == sample_digest(0, one.astype(np.uint16))
    data = (5).to_bytes(8, "little") + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    assert fingerprint_text(sample_digest(5, one)) == hashlib.blake2b(data, digest_size=16).digest()[::-1].hex()


def test_a_corpus_shorter_than_a_batch() -> None:
    with pytest.raises(FlagPerfError, match="40 tokens make 3 sequences of 10, less than one batch of 4"):
        Batches(np.zeros(40, np.uint16), 10, 4)
    with pytest.raises(UsageError):
        Batches(np.zeros(40, np.uint16), 0, 4)


def test_validation_windows_are_spread_and_fixed() -> None:
    tokens = numbered(100, 4)
    assert validation_windows(tokens, 4, 5)[:, 0].tolist() == [0, 80, 160, 240, 320]
    assert len(validation_windows(tokens, 4, 1000)) == 100
    batches = Batches(tokens, 4, 2, validation=tokens)
    assert (batches.validation(5) == validation_windows(tokens, 4, 5)).all()
    with pytest.raises(FlagPerfError, match="without validation"):
        Batches(tokens, 4, 2).validation(5)
    with pytest.raises(FlagPerfError, match="validation text is too short"):
        validation_windows(tokens[:4], 4, 5)
