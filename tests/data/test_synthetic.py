from __future__ import annotations

import math

import numpy as np

from flagperf.data import DataSettings, prepare


def test_the_same_tokens_everywhere() -> None:
    meta = prepare(DataSettings(source="synthetic", vocab_size=1000, tokens=20_000, seed=3)).meta
    assert meta.fingerprint == "d58058a23502161c201c06d0228ecfed2d2f2c1fb2d863547d0d18d09c87d5a7"
    other = prepare(DataSettings(source="synthetic", vocab_size=1000, tokens=20_000, seed=4)).meta
    assert other.fingerprint != meta.fingerprint


def cross_entropy(train: np.ndarray, validation: np.ndarray, size: int, order: int) -> float:
    """Loss in nats a token of counting: each order smoothed by the one below."""
    estimate = np.full(len(validation), 1 / size)
    for length in range(order + 1):
        contexts, targets = (np.zeros(len(each) - order, np.int64) for each in (train, validation))
        for back in range(length, 0, -1):
            contexts = contexts * size + train[order - back : len(train) - back]
            targets = targets * size + validation[order - back : len(validation) - back]
        seen = dict(zip(*np.unique(contexts, return_counts=True), strict=True))
        pairs = dict(zip(*np.unique(contexts * size + train[order:], return_counts=True), strict=True))
        below = estimate[-len(targets) :]
        both = targets * size + validation[order:]
        estimate = np.array(
            [
                (pairs.get(pair, 0) + 20 * chance) / (seen.get(context, 0) + 20)
                for pair, context, chance in zip(both.tolist(), targets.tolist(), below.tolist(), strict=True)
            ]
        )
    return float(-np.log(estimate).mean())


def test_it_can_be_learnt_from_the_last_two_tokens() -> None:
    prepared = prepare(DataSettings(source="synthetic", vocab_size=257, tokens=1_000_000, validation=0.01))
    train, validation = (np.asarray(each, np.int64) for each in (prepared.train, prepared.validation))
    losses = [cross_entropy(train, validation, 257, order) for order in range(3)]
    assert prepared.meta.entropy is not None
    assert math.log(257) > losses[0] + 0.1
    assert losses[0] > losses[1] + 0.1
    assert losses[1] > losses[2] + 0.1
    assert losses[2] > prepared.meta.entropy - 0.02


def test_counts() -> None:
    meta = prepare(DataSettings(source="synthetic", tokens=300_000, validation=0.1)).meta
    assert meta.tokens("train") + meta.tokens("validation") == 293 * 1024
    assert meta.validation["synthetic"].documents == 30
    assert meta.entropy is not None and meta.entropy < 0.55 * math.log(meta.vocab_size)
