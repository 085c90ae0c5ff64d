"""Engine `fsdp`: torch FSDP2 (`fully_shard`), weights, gradients and optimizer state sharded over the ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from flagperf.engines.common import NARROW, TorchEngine


class FSDP(TorchEngine):
    """Each block is gathered before it computes. ZeRO 3 frees it again after the forward pass, ZeRO 2 keeps it."""

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """Return the model sharded, each rank holding its part of the canonical weights."""
        mesh = init_device_mesh(device.type, (self.context.world_size,))
        policy = MixedPrecisionPolicy()
        if narrow := NARROW.get(self.context.trial.dtype):
            policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32)
        free = self.layout.zero != 2
        for block in self.task.blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=free)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=free)
        model.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                shard = cast(DTensor, parameter)
                full = self.task.initial_weight(name, shard.shape).to(device)
                # Every rank makes the same tensor, so nothing needs to be sent.
                shard.copy_(distribute_tensor(full, mesh, shard.placements, src_data_rank=None))
        return model

    def precision(self) -> AbstractContextManager[object]:
        """FSDP casts by its own policy."""
        return nullcontext()

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Scatter gradients on the last micro-batch only, as DDP does."""
        cast(FSDPModule, self.model).set_requires_gradient_sync(last)
        return nullcontext()
