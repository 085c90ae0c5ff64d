"""Tensors that kernels are given: seeded, never zeros, made on the host so that every device gets the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "bool": torch.bool,
}
"""torch's types by the names that cases use. tf32 is how a device multiplies fp32."""


class Inputs:
    """Makes the inputs of one point: the same for the same seed."""

    def __init__(self, seed: int, dtype: str, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device = DTYPES[dtype], device

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Return values of a normal distribution, of the point's dtype."""
        drawn = torch.randn(shape, generator=self.generator)
        return (drawn * scale).to(self.dtype).to(self.device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Return values between `low` and `high`, of the point's dtype."""
        drawn = torch.rand(shape, generator=self.generator) * (high - low) + low
        return drawn.to(self.dtype).to(self.device)

    def integers(self, *shape: int, low: int = 0, high: int = 128, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return whole numbers from `low` up to below `high`, of the point's dtype or of another."""
        drawn = torch.randint(low, high, shape, generator=self.generator)
        return drawn.to(dtype or self.dtype).to(self.device)

    def lengths(self, counts: Sequence[int]) -> torch.Tensor:
        """Return the offsets at which sequences of these lengths begin and the last one ends: int32."""
        ends = torch.tensor([0, *counts]).cumsum(0)
        return ends.to(torch.int32).to(self.device)
