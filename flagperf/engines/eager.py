"""Engine `eager`: the project's own model, run by torch operation by operation."""

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
