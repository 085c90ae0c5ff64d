"""What torch's allocator holds on a CPU, for which torch keeps no statistics.

The allocator can count: with the flag behind `caffe2_report_cpu_memory_usage` on, it keeps the size of every block it
gives out, in whatever thread or language, and the profiler's memory records carry the running total. The flag is on
from before anything is built, the profiler for the length of one warm-up step; both are off when the clock starts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from flagperf.schema.event import Memory
from flagperf.vendor import AllocationObserver


class CpuAllocations(AllocationObserver):
    """Finds the peak of torch's CPU allocator during one training step.

    Counting starts on entering, which must be before the model is built. `peak` is the largest number of bytes that
    were alive at once during the step taken inside `observing(True)`, weights and optimizer state included; `None`
    where this build of torch doesn't count. To the byte what the allocator gave out: without other libraries' scratch
    memory and Python's heap.
    """

    def __init__(self) -> None:
        self.peak: int | None = None
        self._counting: ctypes.c_bool | None = None
        self._before = 0
        """Bytes in the allocator's total on entering."""

    def __enter__(self) -> CpuAllocations:
        self._counting = _counting_flag()
        if self._counting is not None:
            self._counting.value = True
            # Blocks that were counted once and freed while nobody counted are in the total for ever.
            with _recorded() as totals:
                pass
            self._before = min(totals, default=0)
        return self

    @contextmanager
    def observing(self, now: bool) -> Iterator[None]:
        """Count the allocations of what runs inside, if `now`."""
        from torch.autograd import kineto_available  # type: ignore[attr-defined]

        if not now or self._counting is None or not kineto_available():
            yield
            return
        with _recorded() as totals:
            yield
        self.peak = max(totals) - self._before

    def stop(self) -> None:
        """Stop counting, which costs each allocation a lock and a look-up."""
        if self._counting is not None:
            self._counting.value = False
            self._counting = None

    def complete(self, memory: Memory) -> Memory:
        """Return the peaks with `peak_allocated` filled in."""
        source = "torch's CPU allocator: running total of all its blocks, largest during one warm-up step"
        if self.peak is None:
            source = "not measured: this build of torch doesn't count CPU allocations"
        return msgspec.structs.replace(memory, peak_allocated=self.peak, allocated_source=source)


def _counting_flag() -> ctypes.c_bool | None:
    """Return torch's switch for counting CPU allocations, or None where it isn't exported."""
    import torch

    for library in sorted((Path(torch.__file__).parent / "lib").glob("libc10.*")):
        try:
            return ctypes.c_bool.in_dll(ctypes.CDLL(str(library)), "FLAGS_caffe2_report_cpu_memory_usage")
        except (OSError, ValueError):  # built with gflags, which mangles the name
            continue
    return None


@contextmanager
def _recorded() -> Iterator[list[int]]:
    """Fill a list with the totals of the CPU allocator's records of what runs inside, bytes."""
    import torch
    from torch.autograd.profiler import profile

    totals: list[int] = []
    with profile(profile_memory=True) as recorded:
        # Makes a record of the total at the start, which a step that only frees would lack.
        torch.empty(1, dtype=torch.uint8)
        yield totals
    stack = list(recorded.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.name == "[memory]" and event.extra_fields.device.type == "cpu":
            totals.append(event.extra_fields.total_allocated)
