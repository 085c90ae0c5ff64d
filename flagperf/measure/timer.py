"""Timing calls that may take a microsecond: by the device's own events where there is a device, rounds in turn.

A round is as many calls as it takes to be long against the timer's own error. Providers take turns, A B C, C B A, …, so
that what slows the machine slows all, and the n-th rounds of two providers are a pair. Every round is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

Call = Callable[[int], Any]
"""A call to be timed. It is given its number, from 0, by which it can take other inputs than the call before."""

SHORTEST = 200e-6
"""Seconds a round lasts at least."""
PRECISION = 1e-3
"""Largest share of a round that the timer may be off by: the calls in a round grow until it's less."""
MOST_CALLS = 1 << 20


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
            took = self.round(call, calls).seconds * calls
            if took >= least:
                break
            calls = min(MOST_CALLS, max(2 * calls, math.ceil(0.8 * calls * least / max(took, 1e-9))))
        return calls

    def uncertainty(self, calls: int) -> float:
        """Return the seconds a call that a round of so many calls may be off by."""
        return self.error / calls + (self.overhead if self.clock == "host" else 0.0)

    def _error(self) -> float:
        """Return the longest of some empty rounds."""

        def nothing(number: int) -> None:
            return None

        self.error = self.overhead = 0.0
        return max(self.round(nothing, 1).seconds for _ in range(20))

    def _overhead(self) -> float:
        def nothing(number: int) -> None:
            return None

        calls = 2000
        return min(self.round(nothing, calls).host_seconds for _ in range(5))


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
    before: Callable[[str], None] | None = None,
) -> dict[str, Rounds]:
    """Measure calls in turn: at least `rounds` rounds of each, and more until each has had about `seconds`.

    `before` is told, off the clock, whose round comes next.
    """
    names = list(calls)
    sizes = {name: timer.calibrate(call) for name, call in calls.items()}
    taken: dict[str, list[Timing]] = {name: [] for name in calls}
    spent = 0.0
    number = -warmup
    while number < rounds or (number < 10_000 and spent < seconds * len(calls)):
        for name in names if number % 2 == 0 else reversed(names):
            if before is not None:
                before(name)
            timing = timer.round(calls[name], sizes[name], first=max(number, 0) * sizes[name])
            if number >= 0:
                spent += timing.host_seconds * sizes[name]
                taken[name].append(timing)
        number += 1
    return {
        name: Rounds(
            sizes[name],
            [each.seconds for each in timings],
            [each.host_seconds for each in timings],
            timings[-1].result,
        )
        for name, timings in taken.items()
    }
