"""Memory statistics: what the harness reports as peaks, tried with allocations of a known size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Absent, Problems, check

if TYPE_CHECKING:
    import torch

    from flagperf.schema.event import Memory

_MIB = 2**20
_SIZE = 64 * _MIB
_SLACK = 4 * _MIB
"""An allocator may round up, and keep a little for itself."""


@check(
    "The peak is what is compared between engines, and what a layout must fit in.",
    "Have the runtime's `memory` return the allocator's peak since the last reset; on a CPU the observer fills it in.",
    where="device",
)
def test_peak_follows_an_allocation(bench: Bench) -> Problems:
    little, much = (_peak(bench, lambda size=size: _block(bench, size)) for size in (_MIB, _SIZE))  # type: ignore[misc]
    if abs(much - little - (_SIZE - _MIB)) > _SLACK:
        yield f"{_SIZE - _MIB:,} bytes more were allocated, the peak rose by {much - little:,}"


@check(
    "A peak that forgets what was freed tells only what is left at the end.",
    "Return the largest amount that was alive at once, not the present one.",
    where="device",
)
def test_peak_remembers_what_was_freed(bench: Bench) -> Problems:
    def freed() -> None:
        block = _block(bench, _SIZE)
        del block

    peak = _peak(bench, freed)
    if peak < _SIZE:
        yield f"{_SIZE:,} bytes were allocated and freed, the peak is {peak:,}"


@check(
    "Two blocks one after the other need the space of one.",
    "Count what is alive at once, not the sum of all that was ever given out.",
    where="device",
)
def test_peak_counts_what_is_alive_at_once(bench: Bench) -> Problems:
    def in_turn() -> None:
        for _ in range(4):
            block = _block(bench, _SIZE)
            del block

    once, often = _peak(bench, lambda: _block(bench, _SIZE)), _peak(bench, in_turn)
    if often - once > _SIZE / 2 + _SLACK:
        yield f"one block: {once:,} bytes, four in turn: {often:,}"


@check(
    "Warm-up and building the model must not be counted among the measured steps.",
    "Have `reset_peak_memory` begin a new period.",
    where="device",
)
def test_peak_is_reset(bench: Bench) -> Problems:
    _peak(bench, lambda: _block(bench, _SIZE))
    after = _peak(bench, lambda: _block(bench, _MIB))
    again = _peak(bench, lambda: _block(bench, _MIB))
    if after - again > _SLACK:
        yield f"after a reset the peak is {after:,} bytes, where a period of its own has {again:,}"


@check(
    "A reader must know what a figure counts: one allocator's to the byte isn't another's pool.",
    "Fill in `allocated_source` where `peak_allocated` is given.",
    where="device",
)
def test_says_where_the_peak_is_from(bench: Bench) -> Problems:
    memory = _observed(bench, lambda: _block(bench, _MIB))
    if memory.peak_allocated is not None and not memory.allocated_source:
        yield "`allocated_source` is empty"


@check(
    "These are compared and drawn: a negative one, or more allocated than reserved, is nonsense.",
    "Return bytes; `None` for what the device doesn't tell.",
    where="device",
)
def test_figures_are_consistent(bench: Bench) -> Problems:
    memory = _observed(bench, lambda: _block(bench, _SIZE))
    for name in ("peak_allocated", "peak_reserved", "peak_rss", "pss", "device_used"):
        value = getattr(memory, name)
        if value is not None and value < 0:
            yield f"{name} is {value}"
    if memory.peak_allocated and memory.peak_reserved is not None and memory.peak_reserved < memory.peak_allocated:
        yield f"{memory.peak_reserved:,} bytes reserved, but {memory.peak_allocated:,} allocated"


@check(
    "Ledgers and engines ask torch how much is allocated now; it must follow each block given out and taken back.",
    "Have the device's allocator count: `torch.accelerator.memory_allocated`.",
    where="device",
)
def test_allocated_follows_a_release(bench: Bench) -> Problems:
    import torch

    device = _own_memory(bench)
    before = torch.accelerator.memory_allocated(device)
    block = _block(bench, _SIZE)
    during = torch.accelerator.memory_allocated(device)
    del block
    after = torch.accelerator.memory_allocated(device)
    if not _SIZE <= during - before <= _SIZE + _SLACK:
        yield f"{_SIZE:,} bytes were allocated, it rose by {during - before:,}"
    if abs(after - before) > _SLACK:
        yield f"all was freed, and {after - before:,} bytes are left"


@check(
    "What a device has and what is free decides which layouts are tried.",
    "Have `torch.accelerator.get_memory_info` return free and total bytes, free at most total.",
    where="device",
)
def test_free_memory_follows_an_allocation(bench: Bench) -> Problems:
    import torch

    device = _own_memory(bench)
    torch.accelerator.empty_cache()
    free, total = torch.accelerator.get_memory_info(device)
    block = _block(bench, 4 * _SIZE)
    less, _ = torch.accelerator.get_memory_info(device)
    del block
    if not 0 <= free <= total:
        yield f"{free:,} of {total:,} bytes are free"
    if free - less < 2 * _SIZE:
        yield f"{4 * _SIZE:,} bytes were allocated, {free - less:,} fewer are free"


@check(
    "The ladder of layouts goes down when memory runs out: a crash or a hang ends the search instead.",
    "Raise torch.OutOfMemoryError, and let the next smaller allocation succeed.",
    where="device",
)
def test_running_out_is_an_error_one_recovers_from(bench: Bench) -> Problems:
    import torch

    device = _own_memory(bench)
    _, total = torch.accelerator.get_memory_info(device)
    try:
        block = _block(bench, total + 1024 * _MIB)
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        yield f"{type(error).__name__}, which isn't torch.OutOfMemoryError: {str(error)[:120]}"
    else:
        del block
        yield f"{total + 1024 * _MIB:,} bytes were given of a device that has {total:,}"
    if float(_block(bench, _MIB).float().sum().cpu()) < 0:
        yield "a small block after that is wrong"


def _block(bench: Bench, size: int) -> torch.Tensor:
    import torch

    return torch.zeros(size, dtype=torch.uint8, device=bench.runtime.device)


def _observed(bench: Bench, allocate: Callable[[], object]) -> Memory:
    """Return what is reported of a period in which this is all that happens, as for a training step."""
    runtime = bench.runtime
    with runtime.observe_allocation() as observer:
        runtime.reset_peak_memory()
        with observer.observing(True):
            kept = allocate()
            runtime.synchronize()
        del kept
        observer.stop()
        return observer.complete(runtime.memory())


def _peak(bench: Bench, allocate: Callable[[], object]) -> int:
    memory = _observed(bench, allocate)
    if memory.peak_allocated is None:
        raise Absent(f"a count of allocations: {memory.allocated_source or 'this runtime gives none'}")
    return memory.peak_allocated


def _own_memory(bench: Bench) -> torch.device:
    if bench.runtime.device.type == "cpu":
        raise Absent("a device with memory of its own")
    return bench.runtime.device
