"""The vendor contract: all that the harness asks of a chip maker's stack.

An adapter is a folder with a manifest (`*.toml`, see `VendorManifest`) and an entry class derived from `Vendor`; for an
accelerator from `flagperf.accelerator.Accelerator`, which needs nothing but a parser of what the maker's tool prints.
The methods of `Vendor` may be called anywhere, must be quick, and never import torch or start a vendor's runtime,
but for `runtime`; that one and what it returns belong to a rank.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from flagperf.detection import Surroundings
from flagperf.errors import FlagPerfError
from flagperf.schema.chip import Chip
from flagperf.schema.event import Memory
from flagperf.schema.machine import Availability, Device
from flagperf.schema.manifest import VendorManifest
from flagperf.schema.reading import Readings

if TYPE_CHECKING:
    import torch


class Vendor(ABC):
    """What the harness knows of one chip maker's stack on this host."""

    def __init__(self, manifest: VendorManifest, around: Surroundings | None = None) -> None:
        self.manifest = manifest
        self.around = around or Surroundings()

    @property
    def name(self) -> str:
        """The vendor's name, as options and results spell it."""
        return self.manifest.name

    @abstractmethod
    def devices(self) -> list[Device]:
        """Return the devices of this vendor on this host; an empty list where there are none."""

    def availability(self) -> Availability:
        """Say whether trials can run on these devices, and if not, why and what to do."""
        if not self.devices():
            return Availability(name=self.name, available=False, reason="no device found")
        return Availability(name=self.name, available=True)

    def facts(self) -> dict[str, Any]:
        """Return what a reader of a report should know of the hardware, as plain JSON."""
        return {}

    def sample(self) -> list[dict[str, Any]]:
        """Return one reading a device for telemetry: `index`, and of `Reading`'s fields those that are known.

        `visible` is its place among the devices that ranks see: local rank k runs on the k-th.

        Called about once a second in a process of its own, in a thread that may be given up if it doesn't return.
        """
        return []

    def parse(self, text: str, command: str = "") -> Readings:
        """Return what a tool of this vendor said, from what it printed.

        `command` is the command line that printed it, if known. Never raises for any text: what can't be made out is
        unknown, and what the tool complains of is the `error`.
        """
        raise FlagPerfError(f"The vendor {self.name!r} has no tool whose output could be parsed.")

    def chip(self) -> Chip | None:
        """Return which chip all devices are, with what its maker rates it at; None where that isn't known for sure."""
        return None

    def rated(self, dtype: str) -> float | None:
        """Return the maker's dense peak a device, FLOP/s; None where the devices differ or no source says it."""
        return None

    def threads(self, ranks: int) -> int:
        """Return how many compute threads each of `ranks` local ranks gets."""
        return max(1, len(os.sched_getaffinity(0)) // ranks)

    def slots(self) -> int:
        """Return how many ranks this host can take without sharing a device."""
        return len(self.devices())

    def default_ranks(self) -> int:
        """Return how many ranks a trial uses on this host unless the user says."""
        return self.slots()

    def runtime(self, local_rank: int, local_ranks: int, threads: int) -> Runtime:
        """Return the runtime of one rank; called once in its process, before any tensor is made."""
        return Runtime(self.manifest, local_rank)


class Runtime:
    """A rank's device, through torch's device-neutral interfaces. Override only what a stack does differently."""

    def __init__(self, manifest: VendorManifest, local_rank: int) -> None:
        import importlib

        import torch

        if manifest.plugin:
            importlib.import_module(manifest.plugin)
        self.backend = manifest.backend
        self.device: torch.device = torch.device(manifest.device_type, local_rank)
        torch.accelerator.set_device_index(local_rank)

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""
        import torch

        torch.accelerator.synchronize(self.device)

    def reset_peak_memory(self) -> None:
        """Begin a new period for the peaks that `memory` returns."""
        import torch

        torch.accelerator.reset_peak_memory_stats(self.device)

    def memory(self) -> Memory:
        """Return the peaks since the last reset."""
        import torch

        from flagperf.measure.memory import process_memory

        free, total = torch.accelerator.get_memory_info(self.device)
        rss, pss = process_memory()
        return Memory(
            peak_allocated=torch.accelerator.max_memory_allocated(self.device),
            peak_reserved=torch.accelerator.max_memory_reserved(self.device),
            peak_rss=rss,
            pss=pss,
            device_used=total - free,
            allocated_source="torch.accelerator",
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader should know of how this rank uses its device, as plain JSON."""
        return {}

    def observe_allocation(self) -> AllocationObserver:
        """Return what watches the allocator while a model is built and one warm-up step is taken."""
        return AllocationObserver()


class AllocationObserver:
    """Watches the allocator, off the clock, where a device doesn't count by itself. This one leaves it to the device.

    Entered before the model is built; one warm-up step is taken inside `observing(True)`; `stop` is called before the
    first measured step, and `complete` fills in what was seen.
    """

    def __enter__(self) -> AllocationObserver:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def observing(self, now: bool) -> AbstractContextManager[object]:
        """Return a context in which a step's allocations are counted if `now`, and left alone otherwise."""
        return nullcontext()

    def stop(self) -> None:
        """Stop watching; nothing may be left that slows a step."""

    def complete(self, memory: Memory) -> Memory:
        """Return the peaks with `peak_allocated` filled in, if this is what knows it."""
        return memory
