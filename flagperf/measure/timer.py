"""Timing calls that may take a microsecond: by the device's own events where there is a device, rounds in turn.

A round is as many calls as it takes to be long against the timer's own error, and no longer: what else the machine
does then falls into some rounds and leaves the others alone. Providers take turns, A B C, C B A, …, so that what slows
the machine slows all, and the n-th rounds of two providers are a pair. When to stop depends on the time alone, never on
what was measured: that would favour chance. Every round is kept.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch

Call = Callable[[int], Any]
"""A call to be timed. It is given its number, from 0, by which it can take other inputs than the call before."""

SHORTEST = 200e-6
"""Seconds a round lasts at least."""
PRECISION = 1e-3
"""Largest share of a round that the timer may be off by: the calls in a round grow until it's less."""
MOST_CALLS = 1 << 20
MOST_ROUNDS = 1000
"""Rounds last longer where there would be more of them."""


class Timing(NamedTuple):
    """One round: seconds a call."""

    seconds: float
    host_seconds: float
    result: Any
    """What the last call returned."""


class Timer:
    """Times rounds of calls on one device."""

    def __init__(self, device: torch.device, synchronize: Callable[[], None]) -> None:
        self.device, self.synchronize = device, synchronize
        self.clock = "host" if device.type == "cpu" else "device"
        torch.zeros(1, device=device)  # torch waits for a device only once it has been used
        self.error = self._error()
        """Seconds a round may be off by: the timer's step and what starting and stopping it takes."""
        self.overhead = self._overhead()
        """Seconds a call that the loop around it takes on the host, which is in what it measures."""

    def round(self, call: Call, calls: int, first: int = 0) -> Timing:
        """Time `calls` calls, numbered from `first`, the device idle before and after."""
        numbers = range(first, first + calls)
        result = None
        self.synchronize()
        if self.clock == "host":
            began = time.perf_counter_ns()
            for number in numbers:
                result = call(number)
            host = device = (time.perf_counter_ns() - began) / 1e9
        else:
            start, stop = (torch.Event(self.device, enable_timing=True) for _ in range(2))
            began = time.perf_counter_ns()
            start.record()
            for number in numbers:
                result = call(number)
            stop.record()
            self.synchronize()
            host = (time.perf_counter_ns() - began) / 1e9
            device = start.elapsed_time(stop) / 1e3
        return Timing(device / calls, host / calls, result)

    def calibrate(self, call: Call, shortest: float = SHORTEST) -> int:
        """Return how many calls make a round of at least `shortest` seconds that the timer's error doesn't show in."""
        least = max(shortest, self.error / PRECISION)
        calls = 1
        while calls < MOST_CALLS:
            # The shortest of three: a round is long enough only if it is so undisturbed.
            took = calls * min(self.round(call, calls).seconds for _ in range(3))
            if took >= least:
                break
            calls = min(MOST_CALLS, max(2 * calls, math.ceil(1.1 * calls * least / max(took, 1e-9))))
        return calls

    def uncertainty(self, calls: int) -> float:
        """Return the seconds a call that a round of so many calls may be off by."""
        return self.error / calls + (self.overhead if self.clock == "host" else 0.0)

    def _error(self) -> float:
        """Return what an empty round takes, at the median: the longest ones tell of the machine, not of the timer."""
        return median(self.round(_nothing, 1).seconds for _ in range(51))

    def _overhead(self) -> float:
        return median(self.round(_nothing, 2000).host_seconds for _ in range(11))


def _nothing(number: int) -> None:
    return None


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave Python's garbage where it is while the body runs."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Rounds(NamedTuple):
    """The rounds of one call."""

    calls: int
    seconds: list[float]
    host_seconds: list[float]
    result: Any
    """What the very last call returned."""


def in_turn(
    timer: Timer,
    calls: Mapping[str, Call],
    *,
    warmup: int,
    rounds: int,
    seconds: float,
    shortest: float = SHORTEST,
    before: Callable[[str], None] | None = None,
) -> dict[str, Rounds]:
    """Measure calls in turn: at least `rounds` rounds of each, and more until each has had about `seconds`.

    A round lasts `shortest` seconds at least. `before` is told, off the clock, whose round comes next.
    """
    names = list(calls)
    sizes = {}
    for name, call in calls.items():
        if before is not None:
            before(name)
        sizes[name] = timer.calibrate(call, max(shortest, seconds / MOST_ROUNDS))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    last: dict[str, Any] = dict.fromkeys(calls)
    spent = 0.0
    number = -warmup
    with uncollected():
        while number < rounds or (number < 2 * MOST_ROUNDS and spent < seconds * len(calls)):
            for name in names if number % 2 == 0 else reversed(names):
                last[name] = None  # a result more would be memory that the call is given anew
                if before is not None:
                    before(name)
                device, host, last[name] = timer.round(calls[name], sizes[name], first=max(number, 0) * sizes[name])
                if number >= 0:
                    spent += host * sizes[name]
                    taken[name].append((device, host))
            number += 1
    return {
        name: Rounds(sizes[name], [pair[0] for pair in pairs], [pair[1] for pair in pairs], last[name])
        for name, pairs in taken.items()
    }
