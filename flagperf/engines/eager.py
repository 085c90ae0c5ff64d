"""Engines `eager` and `eager-int8`: the project's own model, run by torch operation by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from flagperf.inference.engine import Function, ModuleEngine


class Eager(ModuleEngine):
    """Modules as they are; the cache is written in place."""

    functional = False

    def compile(
        self, module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
    ) -> Function:
        """Return the module."""
        return module


class EagerInt8(Eager):
    """Weights of linear layers as int8 with a scale a row, by torchao; products are computed in the trial's type."""

    exact = False

    def compile(
        self, module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
    ) -> Function:
        """Quantize the module, in place."""
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(module, Int8WeightOnlyConfig())
        return module
