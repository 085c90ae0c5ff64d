"""Operators that torch has under no one name, or whose tensors don't come first among its arguments."""

from __future__ import annotations

from torch import Tensor, cat
from torch.nn import functional


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int) -> Tensor:
    """Normalise x [N, C, …] over each of `groups` groups of channels; weight and bias [C]."""
    return functional.group_norm(x, groups, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise x over its last dimensions, those of weight and bias."""
    return functional.layer_norm(x, weight.shape, weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x ÷ √(mean(x²) + 1e-5) · weight over the last dimension."""
    return functional.rms_norm(x, weight.shape, weight, 1e-5)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of x [H, S, D] by angles whose cosines and sines are given, [S, D/2]."""
    first, second = x.chunk(2, dim=-1)
    return cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    return functional.silu(gate) * up
