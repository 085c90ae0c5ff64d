"""The case `attention/decode`: one new token of every sequence against a cache of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flagperf.kernel import Work

from .formulas import scores, work
from .forward import AttentionForward

if TYPE_CHECKING:
    import torch

    from flagperf.measure.inputs import Inputs


class AttentionDecode(AttentionForward):
    """softmax(q Kᵀ ÷ √d) V for q [B, H, 1, D] and a cache of `seq` tokens, k and v [B, K, S, D], all of them seen."""

    def inputs(self, dims: dict[str, Any], make: Inputs) -> tuple[torch.Tensor, ...]:
        """Return q, k and v."""
        b, d = dims["batch"], dims["head_dim"]
        cache = (make.normal(b, dims["kv_heads"], dims["seq"], d) for _ in range(2))
        return (make.normal(b, dims["heads"], 1, d), *cache)

    def arguments(self, dims: dict[str, Any]) -> dict[str, Any]:
        """Return that nothing is masked: the new token is the last."""
        return {"causal": False}

    def work(self, dims: dict[str, Any]) -> Work:
        """Count a pair for every token in the caches."""
        cached = dims["batch"] * dims["seq"]
        return work(dims, cached, dims["batch"], cached)

    def memory(self, dims: dict[str, Any], provider: str) -> float:
        """Predict the scores."""
        return scores(dims, dims["batch"] * dims["seq"], provider)
