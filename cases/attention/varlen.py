"""The case `attention/varlen`: sequences of unequal lengths, packed one behind the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flagperf.kernel import KernelCase, Work

from .formulas import lengths, pairs, scores, work

if TYPE_CHECKING:
    import torch

    from flagperf.measure.inputs import Inputs


class AttentionVarlen(KernelCase):
    """Attention within each of `batch` sequences; q [T, H, D], k and v [T, K, D], offsets [B + 1] of int32."""

    def inputs(self, dims: dict[str, Any], make: Inputs) -> tuple[torch.Tensor, ...]:
        """Return q, k, v, and where each sequence begins and the last one ends."""
        counts, d = lengths(dims), dims["head_dim"]
        total = sum(counts)
        packed = (make.normal(total, heads, d) for heads in (dims["heads"], dims["kv_heads"], dims["kv_heads"]))
        return (*packed, make.lengths(counts))

    def arguments(self, dims: dict[str, Any]) -> dict[str, Any]:
        """Return whether a token sees only those before it, and the lengths as the host knows them."""
        return {"causal": bool(dims["causal"]), "lengths": lengths(dims)}

    def reference(self, *inputs: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Return attention sequence by sequence, head by head."""
        from .packed import exact

        return exact(*inputs, **arguments)

    def work(self, dims: dict[str, Any]) -> Work:
        """Count the pairs within sequences."""
        counts = lengths(dims)
        return work(dims, sum(pairs(count, dims["causal"]) for count in counts), sum(counts), sum(counts))

    def memory(self, dims: dict[str, Any], provider: str) -> float:
        """Predict the scores of the longest sequence: one at a time is computed."""
        return scores(dims, dims["seq"] ** 2, provider)
