"""The specification protocol of one rank: find the best size, then keep the device at it and watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import msgspec
import torch

from flagperf.context import RankContext
from flagperf.kernels import free_memory, not_measured
from flagperf.measure.inputs import DTYPES
from flagperf.measure.roofs import last_level_cache
from flagperf.measure.timer import Call, Timer, in_turn
from flagperf.schema.event import Key
from flagperf.schema.sweep import At, Samples
from flagperf.specification import Load, SpecificationCase
from flagperf.vendor import Vendor

Size = tuple[int, ...]
CURVE = 200
"""Rounds of a curve, about."""
LONG = 5e-3
"""Seconds of a call that is a round by itself."""
_DRAWN = 2**20 - 3
"""Values that are drawn and then repeated: a prime, so that no two rows of a matrix are alike."""


def measure_specification(context: RankContext, case: SpecificationCase) -> None:
    """Measure all points and journal what was seen; one that fails doesn't stop the others."""
    journal, trial = context.journal, context.trial
    points = case.points()
    chip = context.registries.vendors.adapter(trial.vendor).chip()
    journal.write(Key.SWEEP, {"points": len(points), "providers": trial.providers, "chip": chip})
    timer = Timer(context.runtime.device, context.runtime.synchronize)
    for at in points:
        dims = case.dims(at)
        for name in trial.providers:
            context.barrier()
            bench = Bench(context, timer, at, name)
            try:
                samples = case.probe(bench, dims)
            except Exception as error:  # a device may fail in any way; what it is goes into the journal
                samples = not_measured(at, name, error)
            bench.together()  # where it failed before: the other ranks wait there
            bench.release()
            journal.write(Key.SAMPLES, msgspec.structs.replace(samples, figure=case.figure(dims)))


class Bench:
    """What a probe measures with, on one rank at one point."""

    def __init__(self, context: RankContext, timer: Timer, at: At, name: str) -> None:
        self.context, self.timer, self.at, self.name = context, timer, at, name
        self.device, self.synchronize = context.runtime.device, context.runtime.synchronize
        self.protocol = context.trial.protocol
        self._met = False
        self._pools: dict[tuple[str, int], torch.Tensor] = {}

    def together(self) -> None:
        """Wait, once, until all ranks are here: what is measured from here on all of them do at the same time."""
        if not self._met:
            self._met = True
            self.context.barrier()

    def free(self) -> float:
        """Return the bytes of device memory that this rank may take; ranks of one CPU share what is free."""
        shared = self.context.local_ranks if self.device.type == "cpu" else 1
        return free_memory(self.context.runtime) / shared

    def cache(self) -> int:
        """Return the bytes of the last cache before the device's memory."""
        return last_level_cache(self.device)

    def vendor(self) -> Vendor:
        """Return the vendor's adapter."""
        adapter: Vendor = self.context.registries.vendors.adapter(self.context.trial.vendor)
        return adapter

    @property
    def place(self) -> int:
        """The device's place among those that ranks see."""
        return self.device.index or 0

    def too_big(self, error: Exception) -> None:
        """Raise the error again unless it says that memory is used up."""
        if not_measured(self.at, self.name, error).verdict != "too big":
            raise error

    def release(self) -> None:
        """Give back to the device what the allocator keeps for later."""
        self._pools.clear()
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()

    def filled(self, dtype: str, count: int, which: int = 0) -> torch.Tensor:
        """Return so many values on the device, of a normal distribution or whole numbers, never zeros alone."""
        pool = self._pools.get((dtype, which))
        if pool is None or pool.numel() < count:
            self._pools.pop((dtype, which), None)
            generator = torch.Generator().manual_seed(self.context.trial.seed + which)
            kind = DTYPES[dtype]
            if kind.is_floating_point:
                drawn = torch.randn(_DRAWN, generator=generator).to(kind)
            else:
                drawn = torch.randint(-127, 128, (_DRAWN,), generator=generator).to(kind)
            pool = drawn.to(self.device).repeat(-(-count // _DRAWN))
            self._pools[dtype, which] = pool
        return pool[:count]

    def quick(self, call: Call) -> float:
        """Return the least seconds of a call in a few rounds: what it can do undisturbed."""
        call(0)
        took = [self.timer.round(call, 1).seconds]
        calls = 1 if took[0] > LONG else self.timer.calibrate(call)
        return min(took + [self.timer.round(call, calls).seconds for _ in range(3)])

    def search(self, load: Callable[[Size], Load], starts: Sequence[Size], step: int, seconds: float) -> list[Size]:
        """Return the sizes that were tried, the fastest first; those that don't fit or take too long are left out.

        See `best_sizes`. Raises MemoryError where none can be measured.
        """
        best = 0.0

        def rate(size: Size) -> float | None:
            nonlocal best
            try:
                made = load(size)
                amount = made.flops or made.bytes
                if best and amount / best > seconds / 10:
                    return None
                found = amount / self.quick(made.call)
            except (MemoryError, RuntimeError) as error:
                self.too_big(error)
                return None
            best = max(best, found)
            return found

        if not (sizes := best_sizes(rate, starts, step, seconds)):
            raise MemoryError(f"not even the smallest size fits: {starts[0]}")
        return sizes

    def fastest(self, loads: Sequence[Load], rounds: int = 5) -> Load:
        """Return the fastest of some loads that take turns: the best of a search owes something to chance."""
        calls = {str(number): load.call for number, load in enumerate(loads)}
        taken = in_turn(self.timer, calls, warmup=1, rounds=rounds, seconds=0.0)

        def rate(number: int) -> float:
            load = loads[number]
            return (load.flops or load.bytes) / median(taken[str(number)].seconds)

        return loads[max(range(len(loads)), key=rate)]

    def sustain(self, load: Load, **fields: Any) -> Samples:
        """Keep the device at a load, on all ranks at once, as long as the protocol says; the rounds are its curve."""
        self.together()
        rules = self.protocol
        shortest = rules.seconds / CURVE
        calls = {self.name: load.call}
        rounds = in_turn(
            self.timer, calls, warmup=rules.warmup, rounds=rules.steps, seconds=rules.seconds, shortest=shortest
        )[self.name]
        host = self.timer.clock == "host"
        return self.samples(
            **{
                "seconds": rounds.seconds,
                "calls": rounds.calls,
                "clock": "host" if host else "device",
                "host_seconds": [] if host else rounds.host_seconds,
                "uncertainty": self.timer.uncertainty(rounds.calls),
                "flops": load.flops,
                "bytes": load.bytes,
                "facts": load.facts,
                **fields,
            }
        )

    def samples(self, **fields: Any) -> Samples:
        """Return this point's samples."""
        return Samples(**{"at": self.at, "provider": self.name, **fields})


def best_sizes(rate: Callable[[Size], float | None], starts: Sequence[Size], step: int, seconds: float) -> list[Size]:
    """Return sizes, the fastest first: the starts are tried, then steps from the best in each dimension.

    `rate` says how fast a size is, or None for one that can't be measured, which isn't returned. Starts grow; after two
    in a row that are a tenth slower than the best, no larger one is tried. Sizes are multiples of `step`. Nothing new
    is begun after `seconds`.
    """
    until = time.perf_counter() + seconds
    known: dict[Size, float] = {}

    def tried(size: Size) -> float:
        if size not in known:
            known[size] = rate(size) or 0.0
        return known[size]

    behind = 0
    for size in starts:
        found = tried(size)
        behind = behind + 1 if found < 0.9 * max(known.values()) else 0
        if behind == 2 or time.perf_counter() > until:
            break
    best = max(known, key=tried)
    moved = known[best] > 0
    while moved and time.perf_counter() < until:
        moved = False
        for size in _near(best, step):
            if time.perf_counter() < until and tried(size) > known[best]:
                best, moved = size, True
    return sorted((size for size in known if known[size]), key=tried, reverse=True)


def _near(size: Size, step: int) -> Iterator[Size]:
    """Yield the sizes that differ from one in a single dimension, by half or by double, or by half as much again."""
    for place, value in enumerate(size):
        for factor in (2.0, 0.5, 1.5):
            moved = max(step, round(value * factor / step) * step)
            if moved != value:
                yield (*size[:place], moved, *size[place + 1 :])
