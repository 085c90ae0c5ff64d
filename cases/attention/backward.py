"""The case `attention/backward`: the gradients of attention alone; the forward pass that they need is off the clock."""

from __future__ import annotations

from typing import Any, ClassVar

from flagperf.kernel import Work

from .formulas import gradient
from .forward import AttentionForward


class AttentionBackward(AttentionForward):
    """dQ, dK and dV of whole sequences."""

    backward: ClassVar[bool] = True

    def work(self, dims: dict[str, Any]) -> Work:
        """Count five products of the forward pass's two."""
        return gradient(super().work(dims))

    def memory(self, dims: dict[str, Any], provider: str) -> float:
        """Predict the scores of both input sets, whose graphs are kept, and their gradients."""
        return 3 * super().memory(dims, provider)
