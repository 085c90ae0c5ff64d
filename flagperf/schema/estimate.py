"""What a preset will cost, by formula, before anything runs."""

from __future__ import annotations

import msgspec


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted size and work of a trial. Bytes are a rank's."""

    parameters: int
    flops_per_token: float
    """Training FLOPs a token, by the convention in `convention`."""
    convention: str
    tokens_per_step: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    offloaded: int = 0
    """On the host, and not in the total."""

    @property
    def total(self) -> int:
        """Bytes a rank, on the device, without what the framework itself takes."""
        return self.weights + self.gradients + self.optimizer + self.activations
