"""Engine `ddp`: torch DistributedDataParallel, a full copy of everything on each rank."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel

from flagperf.engines.common import TorchEngine


class DDP(TorchEngine):
    """Gradients are all-reduced in buckets while the backward pass goes on."""

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """Return the model wrapped in DistributedDataParallel."""
        placed = super().wrap(model, device)
        self.parallel = DistributedDataParallel(placed, gradient_as_bucket_view=True, broadcast_buffers=False)
        return self.parallel

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients on the last micro-batch only."""
        return nullcontext() if last else self.parallel.no_sync()
