"""What a device draws while something runs on it: read by the vendor's adapter, or from the host's energy counters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from flagperf.measure.sensors import Energy

Read = Callable[[], float | None]
"""Returns watts, or None where nothing is known yet."""
INTERVAL = 0.25
"""Seconds between readings, what a reading takes not counted."""


def device_watts(sample: Callable[[], list[dict[str, Any]]], place: int) -> Read:
    """Return what reads the device at this place among those that ranks see, through an adapter's `sample`."""

    def read() -> float | None:
        own = [device for device in sample() if device.get("visible", device.get("index")) == place]
        watts = own[0].get("power_w") if own else None
        return None if watts is None else float(watts)

    return read


def host_watts(counter: Callable[[], dict[str, Any]] | None = None) -> Read:
    """Return what reads the host's CPUs and memory by RAPL: the mean since the reading before; raises Absent."""
    counter = counter or Energy()
    before: tuple[float, float] | None = None

    def read() -> float | None:
        nonlocal before
        now, joules = time.monotonic(), sum(counter()["energy_joules"].values())
        last, before = before, (now, joules)
        return None if last is None or now <= last[0] else (joules - last[1]) / (now - last[0])

    return read


def watts_during(read: Read, work: Callable[[], object], seconds: float, interval: float = INTERVAL) -> list[float]:
    """Do `work` again and again for so long and return what was read meanwhile; at least two readings are asked for.

    Raises what reading raised: OSError where the vendor's tool doesn't answer.
    """
    found: list[float] = []
    problems: list[Exception] = []
    done = threading.Event()

    def watch() -> None:
        try:
            while len(found) < 2 or not done.is_set():
                if (watts := read()) is not None:
                    found.append(watts)
                elif done.is_set():
                    break
                done.wait(interval)
        except Exception as problem:  # an adapter may raise anything; it is told where it was asked
            problems.append(problem)

    reader = threading.Thread(target=watch, name="watts", daemon=True)
    until = time.monotonic() + seconds
    reader.start()
    while time.monotonic() < until and not problems:
        work()
    done.set()
    reader.join()
    if problems:
        raise problems[0]
    return found
