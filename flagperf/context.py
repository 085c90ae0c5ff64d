"""What a rank knows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from flagperf.journal import Journal
from flagperf.registry import Registries
from flagperf.schema.trial import Trial
from flagperf.vendor import Runtime


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """A rank's place in the trial, its device and its journal."""

    trial: Trial
    rank: int
    world_size: int
    local_rank: int
    local_ranks: int
    runtime: Runtime
    journal: Journal
    registries: Registries

    @classmethod
    def alone(cls, trial: Trial, runtime: Runtime, journal: Journal, registries: Registries) -> RankContext:
        """Return what the only rank of a trial knows."""
        return cls(
            trial=trial,
            rank=0,
            world_size=1,
            local_rank=0,
            local_ranks=1,
            runtime=runtime,
            journal=journal,
            registries=registries,
        )

    def connect(self, patience: float | None = None, *, host: bool = False) -> None:
        """Bring up torch.distributed on the vendor's backend; an operation that takes `patience` seconds has failed.

        With `host`, tensors on the host can be sent as well, by gloo, where this torch has it.
        """
        import torch.distributed as dist

        device, backend = self.runtime.device, self.runtime.backend
        if host and device.type != "cpu" and dist.is_gloo_available():
            backend = f"cpu:gloo,{device.type}:{backend}"
        dist.init_process_group(
            backend,
            timeout=None if patience is None else timedelta(seconds=patience),
            device_id=None if device.type == "cpu" else device,
        )

    def barrier(self) -> None:
        """Wait until every rank has come here; nothing where there is only one, or no process group."""
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()

    @contextmanager
    def connected(self, patience: float | None = None, *, host: bool = False) -> Iterator[None]:
        """Have torch.distributed up while the body runs, where there is more than one rank."""
        import torch.distributed as dist

        if self.world_size > 1:
            self.connect(patience, host=host)
        try:
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
