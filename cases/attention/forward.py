"""The case `attention/forward`: what goes in, what must come out, and how much work it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flagperf.kernel import KernelCase, Work

from .formulas import pairs, scores, work

if TYPE_CHECKING:
    import torch

    from flagperf.measure.inputs import Inputs


class AttentionForward(KernelCase):
    """softmax(Q Kᵀ ÷ √d) V for whole sequences; q [B, H, S, D], k and v [B, K, S, D]."""

    def inputs(self, dims: dict[str, Any], make: Inputs) -> tuple[torch.Tensor, ...]:
        """Return q, k and v."""
        b, s, d = dims["batch"], dims["seq"], dims["head_dim"]
        return (make.normal(b, dims["heads"], s, d), *(make.normal(b, dims["kv_heads"], s, d) for _ in range(2)))

    def arguments(self, dims: dict[str, Any]) -> dict[str, Any]:
        """Return whether a token sees only those before it."""
        return {"causal": bool(dims["causal"])}

    def reference(self, *inputs: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Return attention head by head, so that no more than one head's scores are held."""
        from .providers import exact

        return exact(*inputs, **arguments)

    def work(self, dims: dict[str, Any]) -> Work:
        """Count the pairs of tokens that a causal mask leaves."""
        tokens = dims["batch"] * dims["seq"]
        return work(dims, dims["batch"] * pairs(dims["seq"], dims["causal"]), tokens, tokens)

    def memory(self, dims: dict[str, Any], provider: str) -> float:
        """Predict the scores, those behind the mask included."""
        return scores(dims, dims["batch"] * dims["seq"] ** 2, provider)
