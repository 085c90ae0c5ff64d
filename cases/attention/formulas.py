"""What attention cases share: their sizes in words, and how much work and memory they are."""

from __future__ import annotations

import random
from typing import Any

from flagperf.kernel import Work

BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
HOLDING = ("naive", "math")
"""Providers that hold all scores in memory."""


def pairs(seq: int, causal: bool) -> int:
    """Return how many pairs of tokens attend: with a causal mask the lower triangle with its diagonal."""
    return seq * (seq + 1) // 2 if causal else seq * seq


def lengths(dims: dict[str, Any]) -> tuple[int, ...]:
    """Return the lengths of `batch` sequences, unequal: the longest has `seq` tokens, the others an eighth or more."""
    rest = random.Random(dims["seq"]).choices(range(max(1, dims["seq"] // 8), dims["seq"] + 1), k=dims["batch"] - 1)
    return (dims["seq"], *rest)


def work(dims: dict[str, Any], pairs: int, queries: int, keys: int) -> Work:
    """Return the work of the forward pass: Q Kᵀ and P V over the pairs seen; q, k, v and the output moved once.

    `pairs`, `queries` and `keys` count tokens of all sequences, a head.
    """
    h, kv, d = dims["heads"], dims["kv_heads"], dims["head_dim"]
    return Work(flops=4.0 * h * d * pairs, bytes=2.0 * (h * queries + kv * keys) * d * BYTES[dims["dtype"]])


def gradient(forward: Work) -> Work:
    """Return the work of the gradients of q, k and v.

    FLOPs are 2.5 times the forward pass's, whatever a provider does: five products over the same pairs, S computed
    again, dV, dP, dQ and dK (Dao, FlashAttention-2, arXiv:2307.08691, section 4.1). Who holds P computes four of them.
    q, k, v, the output and its gradient are read, three gradients written: twice what the forward pass moves.
    """
    return Work(flops=2.5 * forward.flops, bytes=2 * forward.bytes)


def scores(dims: dict[str, Any], pairs: int, provider: str) -> float:
    """Predict the bytes of the scores before and after the softmax, for providers that hold both at once."""
    return 2.0 * dims["heads"] * pairs * BYTES[dims["dtype"]] if provider in HOLDING else 0.0
