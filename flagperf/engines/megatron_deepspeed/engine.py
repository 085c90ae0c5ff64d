"""Engine `megatron-deepspeed`: model and groups are Megatron's; gradients, optimizer and its sharding DeepSpeed's."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from megatron.core import parallel_state

from flagperf.engine import Batch
from flagperf.engines.deepspeed.engine import DeepSpeed
from flagperf.engines.megatron import weights
from flagperf.engines.megatron.model import build
from flagperf.engines.megatron.parallel import MegatronParallel


class Mpu:
    """Megatron's parallel state as DeepSpeed asks for it: with three names that Megatron-Core has dropped."""

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)


class MegatronDeepSpeed(DeepSpeed, MegatronParallel):
    """DeepSpeed's engine on this rank's tensor-parallel shard of the model, its ZeRO over the data-parallel ranks."""

    mpu = Mpu()

    def unit(self) -> int:
        """Return the elements of this rank's shard of a block."""
        block = [name for name in weights.places(self.task.decoder, 1) if name.startswith("blocks.0.")]
        return sum(prod(weights.shape(name, self.task.decoder)) for name in block) // self.layout.tp

    def construct(self) -> torch.nn.Module:
        """Return this rank's part of the model with parameters yet to be filled."""
        import deepspeed

        parts = (self.task.decoder, self.layout, self.dtype)
        if self.stage == 3:
            group = parallel_state.get_data_parallel_group()
            with deepspeed.zero.Init(data_parallel_group=group, config_dict_or_path=self.config, mpu=self.mpu):
                model: torch.nn.Module = build(*parts)
        else:
            model = build(*parts).to(self.context.runtime.device)
        self.know(model)
        return model

    def initial(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return what a parameter of this rank starts as."""
        return MegatronParallel.initial(self, name, parameter)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch."""
        losses: torch.Tensor = self.engine(batch.tokens, None, None, labels=batch.targets)
        return losses.mean()

    def master(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return this rank's shard of a weight, gathered over the data-parallel ranks."""
        return self.full(parameter)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name."""
        return MegatronParallel.weights(self)

    def facts(self) -> dict[str, object]:
        """Return what is known of both."""
        both = [*self.shims, *self.cuda_shims]
        return {**MegatronParallel.facts(self), **DeepSpeed.facts(self), "shims": both}
