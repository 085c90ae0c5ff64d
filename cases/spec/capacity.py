"""The case `spec/capacity`: how much memory can be had and used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flagperf.specification import SpecificationCase
from flagperf.sweep import SweepSettings

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench


class CapacitySettings(SweepSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far to go."""

    host_share: float = 0.5
    """Of the host's available memory that is taken at most where it is what is measured: more would endanger it."""
    smallest: int = 2**20
    """Bytes of the last blocks that are tried."""


class Capacity(SpecificationCase):
    """Blocks are taken, written and read again until there are no more; after one that fails they are half as large."""

    Settings: ClassVar[type[SweepSettings]] = CapacitySettings

    def figure(self, dims: dict[str, Any]) -> str:
        """Return the rated memory."""
        return "memory_gb"

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Take memory until there is none, and give it back."""
        import torch

        host = bench.device.type == "cpu"
        bound = self.settings.host_share * bench.free() if host else float("inf")
        bench.together()
        blocks: list[torch.Tensor] = []
        spare = [torch.empty(self.settings.smallest, dtype=torch.uint8, device=bench.device)]  # for reading again
        taken, size = 0, 2 ** int(bench.free() / 4).bit_length()
        while size >= self.settings.smallest:
            try:
                if taken + size > bound:
                    raise MemoryError
                block = torch.empty(size, dtype=torch.uint8, device=bench.device)
                blocks.append(block.fill_(len(blocks) % 251 + 1))  # memory that isn't written may not be there
                taken += size
            except (MemoryError, RuntimeError) as error:
                bench.too_big(error)
                size //= 2
        spare.clear()
        steps = [max(4096, len(block) // 1000) for block in blocks]
        found = [set(block[::step].cpu().tolist()) for block, step in zip(blocks, steps, strict=True)]
        lost = sum(values != {number % 251 + 1} for number, values in enumerate(found))
        stop = f"{self.settings.host_share:.0%} of what the host had available" if host else "there was no more"
        facts = {"stopped_at": stop}
        if lost:
            return bench.samples(verdict="wrong", why=f"{lost} blocks lost what was written", facts=facts)
        return bench.samples(values={"capacity": taken / 1e9}, facts=facts)
