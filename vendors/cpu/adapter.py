"""The CPU as a vendor: one device, whose cores the ranks divide among themselves."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flagperf.measure.host import Host, read_host, usable_cores
from flagperf.measure.memory import process_memory, reset_peak_rss
from flagperf.schema.event import Memory
from flagperf.schema.machine import Device
from flagperf.schema.manifest import VendorManifest
from flagperf.vendor import Runtime, Vendor

from .allocations import CpuAllocations

if TYPE_CHECKING:
    import torch


class Cpu(Vendor):
    """This host's CPU. A rank's slice of the allowed cores counts as its device."""

    @functools.cached_property
    def _host(self) -> Host:
        return read_host()

    def devices(self) -> list[Device]:
        """Return the one device there is: all allowed cores with the host's memory."""
        host = self._host
        total, available = host.memory_total, host.memory_available
        used = None if total is None or available is None else (total - available) / 2**20
        return [
            Device(
                vendor=self.name,
                index=0,
                name=host.cpu_model,
                memory_total_mib=None if total is None else total / 2**20,
                memory_used_mib=used,
                facts=self.facts(),
            )
        ]

    def facts(self) -> dict[str, Any]:
        """Return the host's facts."""
        facts: dict[str, Any] = msgspec.to_builtins(self._host)
        return facts

    def slots(self) -> int:
        """Return how many ranks can have a core of their own."""
        return usable_cores(self._host)

    def default_ranks(self) -> int:
        """Return 2 where there are two cores: the fewest ranks that have to talk to each other."""
        return min(2, self.slots())

    def threads(self, ranks: int) -> int:
        """Return how many compute threads each of `ranks` local ranks gets: its share of the cores, at least one."""
        return max(1, usable_cores(self._host) // ranks)

    def runtime(self, local_rank: int, local_ranks: int, threads: int) -> CpuRuntime:
        """Bind the rank to its slice of the cores and return its runtime."""
        return CpuRuntime(self.manifest, rank_cores(self._host.allowed_cores, local_rank, local_ranks), threads)


def rank_cores(cores: list[int], local_rank: int, local_ranks: int) -> list[int]:
    """Return a rank's slice of the cores: neighbours, disjoint from other ranks' while there are enough.

    With more ranks than cores each gets one, and some share.
    """
    if local_ranks > len(cores):
        return [cores[local_rank % len(cores)]]
    share, extra = divmod(len(cores), local_ranks)
    first = local_rank * share + min(local_rank, extra)
    return cores[first : first + share + (local_rank < extra)]


class CpuRuntime(Runtime):
    """A rank on its slice of the cores."""

    def __init__(self, manifest: VendorManifest, cores: list[int], threads: int) -> None:
        import torch

        self.backend = manifest.backend
        self.device: torch.device = torch.device("cpu")
        self.cores = cores
        _bind(cores)
        torch.set_num_threads(threads)
        # Tried here so that the facts, which are asked for before the first step, can say it.
        self._peak_rss_resets = reset_peak_rss()

    def synchronize(self) -> None:
        """Return at once: on a CPU an operation has finished when its call returns."""

    def reset_peak_memory(self) -> None:
        """Let the resident set's peak start anew, where the kernel allows that."""
        reset_peak_rss()

    def memory(self) -> Memory:
        """Return the resident set's peak; the allocator's is what the observer saw."""
        rss, pss = process_memory()
        return Memory(peak_allocated=None, peak_rss=rss, pss=pss)

    def observe_allocation(self) -> CpuAllocations:
        """Return what counts the blocks of torch's CPU allocator."""
        return CpuAllocations()

    def facts(self) -> dict[str, Any]:
        """Return the cores this rank is bound to and what its resident peak covers."""
        covers = "measured steps" if self._peak_rss_resets else "the process from its start: the kernel allows no reset"
        return {"cores": self.cores, "peak_rss_covers": covers}


def _bind(cores: list[int]) -> None:
    """Bind this process to cores: every thread there is, and by inheritance those to come."""
    if not hasattr(os, "sched_setaffinity"):  # macOS has no such call
        return
    tasks = Path("/proc/self/task")
    threads = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [threading.get_native_id()]
    for thread in threads:
        try:
            os.sched_setaffinity(thread, cores)
        except ProcessLookupError:  # ended since it was listed
            continue
