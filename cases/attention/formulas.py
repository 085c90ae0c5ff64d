"""Counts that attention cases share."""

from __future__ import annotations

from typing import Any

BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}


def pairs(seq: int, causal: bool) -> int:
    """Return how many pairs of tokens attend: with a causal mask the lower triangle with its diagonal."""
    return seq * (seq + 1) // 2 if causal else seq * seq


def naive_scores(dims: dict[str, Any]) -> float:
    """Return the bytes of the scores before and after the softmax, held at once."""
    return float(2 * dims["batch"] * dims["heads"] * dims["seq"] ** 2 * BYTES[dims["dtype"]])
