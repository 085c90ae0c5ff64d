"""The case `spec/host-device`: copies between the host's memory and the device's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flagperf.kernel import Unsupported
from flagperf.specification import Load, SpecificationCase
from flagperf.sweep import SweepSettings

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench, Size


class CopySettings(SweepSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the best size is looked for."""

    search: float = 2.0
    """Seconds of looking, about, a point."""
    largest: int = 2**30
    """Bytes."""


class HostDevice(SpecificationCase):
    """To the device, from it, and both at once on two streams; the host's memory pinned and pageable."""

    Settings: ClassVar[type[SweepSettings]] = CopySettings

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Find the size that is copied fastest, and stay with it."""
        import torch

        if bench.device.type == "cpu":
            raise Unsupported("the CPU computes in the host's own memory: there is nothing between them")
        streams = [torch.Stream(bench.device) for _ in range(2)]
        main = torch.accelerator.current_stream(bench.device)

        def load(size: Size) -> Load:
            pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
            for way in ("to", "from") if dims["direction"] == "both" else (dims["direction"],):
                there = bench.filled("int8", size[0], len(pairs))
                here = torch.ones(size[0], dtype=torch.int8, pin_memory=dims["pinned"])
                pairs.append((there, here) if way == "to" else (here, there))

            def copy(number: int) -> None:
                if len(pairs) == 1:
                    pairs[0][0].copy_(pairs[0][1], non_blocking=True)
                    return
                for stream, (target, source) in zip(streams, pairs, strict=True):
                    stream.wait_stream(main)
                    with stream:
                        target.copy_(source, non_blocking=True)
                for stream in streams:
                    main.wait_stream(stream)

            return Load(copy, bytes=float(size[0] * len(pairs)), facts={"bytes_each_way": size[0]})

        starts = [(size,) for size in (2**power for power in range(20, 40, 2)) if size <= self.settings.largest]
        sizes = bench.search(load, starts, 2**20, self.settings.search)
        return bench.sustain(load(sizes[0]))
