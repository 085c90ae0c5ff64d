"""Specifications and the timer on the simulated device, in a process of its own: prints one JSON object."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure.benches import probe

from flagperf.measure.timer import Timer, in_turn
from flagperf.specifications import Bench
from flagperf.vendors.simchip import torch_device as simchip
from flagperf.vendors.simchip.settings import Fault

DEVICE = torch.device("simchip", 0)
SMALL = {"search": 0.1, "smallest": 64, "largest": 128, "sweep": {"dtype": ["fp32"]}}


def spec(case: str, **settings: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return probe(Path(folder), case, "simchip", **settings)


def known() -> dict[str, Any]:
    """A kernel of 5 ms by the device's clock, timed with waiting and without."""

    def occupy(number: int) -> None:
        simchip.occupy(5e-3)

    timer = Timer(DEVICE, lambda: torch.accelerator.synchronize(DEVICE))
    rounds = in_turn(timer, {"a": occupy}, warmup=1, rounds=5, seconds=0.0)["a"]
    careless = Timer(DEVICE, lambda: torch.accelerator.synchronize(DEVICE))
    careless.synchronize = lambda: None
    try:
        forgot = careless.round(occupy, 1).seconds
    except RuntimeError as error:
        forgot = str(error)
    torch.accelerator.synchronize(DEVICE)
    return {"clock": timer.clock, "seconds": rounds.seconds, "calls": rounds.calls, "forgot": forgot}


def throttled() -> dict[str, Any]:
    """The device gets slower when it has been kept busy for a while."""
    sustain = Bench.sustain

    def hot(self: Bench, load: Any, **fields: Any) -> Any:
        began = time.perf_counter()

        def call(number: int) -> None:
            simchip.configure(flops=1e8 if time.perf_counter() - began < 0.3 else 5e7)
            load.call(number)

        return sustain(self, load._replace(call=call), **fields)

    simchip.configure(flops=1e8)
    Bench.sustain = hot  # type: ignore[method-assign]
    try:
        return spec("spec/gemm", protocol={"seconds": 1.0}, **SMALL)[0]
    finally:
        Bench.sustain = sustain  # type: ignore[method-assign]
        simchip.configure(flops=0.0)


def full() -> dict[str, Any]:
    """The device has no memory left when the search begins."""
    simchip.configure(faults=[Fault(kind="out_of_memory", after=simchip.operators() + 60)])
    try:
        return spec("spec/gemm", **SMALL)[0]
    finally:
        simchip.configure(faults=[])


def copies() -> list[dict[str, Any]]:
    """Copies at 0.5 GB/s."""
    simchip.configure(bytes=5e8)
    try:
        return spec("spec/host-device", search=0.05, largest=2**20, protocol={"seconds": 0.05})
    finally:
        simchip.configure(bytes=0.0)


LOOKS: dict[str, Callable[[], Any]] = {
    "known": known,
    "throttled": throttled,
    "full": full,
    "copies": copies,
    "capacity": lambda: spec("spec/capacity"),
    "launch": lambda: spec("spec/launch"),
    "memory": lambda: spec("spec/memory", times=0.001),
    "power": lambda: spec("spec/power", shapes={"load": {"edge": 128}}, protocol={"seconds": 1.2}),
}

if __name__ == "__main__":
    json.dump({name: look() for name, look in LOOKS.items()}, sys.stdout)
