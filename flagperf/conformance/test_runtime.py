"""The runtime: a rank's device, its clock, and whether waiting for it really waits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Absent, Problems, check

if TYPE_CHECKING:
    import torch

_TRIES = 5
_TORCH = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@check(
    "Ranks open their device by this, first of all.",
    "Mend the plug-in's import, `device_type`, or the adapter's `runtime`.",
    where="device",
)
def test_opens_a_device_of_its_type(bench: Bench) -> Problems:
    device = bench.runtime.device
    if device.type != bench.manifest.device_type:
        yield f"it opened {device}, the manifest says {bench.manifest.device_type}"


@check(
    "What the harness makes without saying where must not land on another rank's device.",
    "Set torch's current device in the runtime.",
    where="device",
)
def test_its_device_is_the_current_one(bench: Bench) -> Problems:
    import torch

    _accelerated(bench)
    current = torch.accelerator.current_device_index()
    if current != (bench.runtime.device.index or 0):
        yield f"the current device is {current}, the rank's {bench.runtime.device}"


@check(
    "Torch refuses a backend that isn't there only when ranks meet, a minute into a run.",
    "Name the backend that the plug-in registers.",
    where="device",
)
def test_its_backend_is_there(bench: Bench) -> Problems:
    import torch.distributed as dist

    backend = bench.runtime.backend
    _ = bench.runtime.device
    for name in (part.rpartition(":")[2] for part in backend.split(",")):
        if not dist.is_backend_available(name):
            yield f"torch.distributed has no {name}"


@check(
    "What a rank says of its device goes into its journal.",
    "Return plain JSON from the runtime's `facts`.",
    where="device",
)
def test_facts_are_json(bench: Bench) -> Problems:
    json.dumps(bench.runtime.facts(), allow_nan=False)
    yield from ()


@check(
    "Every number of a run goes to the device and back at some time.",
    "Mend the device's copies; nothing may be rounded on the way.",
    where="device",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"])
def test_copies_are_exact(bench: Bench, dtype: str) -> Problems:
    import torch

    short = {long: name for name, long in _TORCH.items()}.get(dtype)
    if short in bench.manifest.limits:
        raise Absent(f"{short}, which the manifest rules out")
    data = torch.randint(0, 2**31 - 1, (1021,), generator=torch.Generator().manual_seed(1))
    host = (data % 251 - (0 if dtype in ("uint8", "bool") else 125)).to(getattr(torch, dtype))
    there = host.to(bench.runtime.device)
    for what, back in (
        ("back", there.cpu()),
        ("within the device", there.clone().cpu()),
        ("a slice", there[::3].cpu()),
    ):
        if not torch.equal(back, host[::3] if what == "a slice" else host):
            yield f"{dtype}: a copy ({what}) differs"


@check(
    "A run must be repeatable: the same seed, the same numbers.",
    "Have the device's generator follow `torch.manual_seed`.",
    where="device",
)
def test_seeds_repeat(bench: Bench) -> Problems:
    import torch

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.randn(1000, device=bench.runtime.device).cpu()

    if not torch.equal(drawn(7), drawn(7)):
        yield "the same seed gave other numbers"
    if torch.equal(drawn(7), drawn(8)):
        yield "another seed gave the same numbers"


@check(
    "The clock is stopped after this call. If it doesn't wait, every step looks faster than it is.",
    "Leave `synchronize` to torch.accelerator, or call what waits for all streams of the device.",
    where="device",
)
def test_synchronize_waits(bench: Bench) -> Problems:
    import torch

    _accelerated(bench)
    work = _work(bench)
    unfinished = 0
    for _ in range(_TRIES):
        event = torch.Event(bench.runtime.device)
        work(8)
        event.record()
        bench.runtime.synchronize()
        unfinished += not event.query()
    if unfinished:
        yield f"{unfinished} of {_TRIES} times work was still going on after it returned"


@check(
    "Communication and copies run in streams of their own; a step has ended when they have, too.",
    "Wait for the whole device, not for one stream.",
    where="device",
)
def test_synchronize_waits_for_every_stream(bench: Bench) -> Problems:
    import torch

    _accelerated(bench)
    work = _work(bench)
    stream, event = torch.Stream(bench.runtime.device), torch.Event(bench.runtime.device)
    with stream:
        work(8)
        event.record(stream)
    bench.runtime.synchronize()
    if not event.query():
        yield "work in another stream was still going on after it returned"


@check(
    "Twice the work takes twice the time, or the clock is stopped before the work is.",
    "Mend `synchronize`.",
    where="device",
)
def test_time_follows_work(bench: Bench) -> Problems:
    work = _work(bench)
    few, many = 4, 16
    # The best of each, in turn: whatever else the machine does only makes one longer.
    best = dict.fromkeys((few, many), math.inf)
    for _ in range(3 * _TRIES):
        best = {count: min(seconds, _timed(bench, work, count)) for count, seconds in best.items()}
    told = best[many] / best[few]
    if not 1.5 <= told <= 12:
        yield f"{many // few} times the work took {told:.1f} times as long"


@check(
    "Engines time their phases with the device's events.",
    "Have `torch.Event(enable_timing=True)` measure in ms what the device's clock says.",
    where="device",
)
def test_events_measure_a_known_delay(bench: Bench) -> Problems:
    import torch

    _accelerated(bench)
    work, device = _work(bench), bench.runtime.device
    seen = []
    for _ in range(_TRIES):
        first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
        bench.runtime.synchronize()
        began = time.perf_counter()
        first.record()
        work(16)
        last.record()
        bench.runtime.synchronize()
        wall, told = (time.perf_counter() - began) * 1e3, first.elapsed_time(last)
        if 0.5 * wall - 2 <= told <= 1.05 * wall + 2:
            return
        seen.append(f"{told:.2f} ms where the host's clock saw {wall:.2f}")
    yield "; ".join(seen)


@check(
    "Events say whether something has happened; in the wrong order they mean nothing.",
    "Have events of one stream measure from the earlier to the later, and never less than nothing.",
    where="device",
)
def test_events_are_in_order(bench: Bench) -> Problems:
    import torch

    _accelerated(bench)
    work, device = _work(bench), bench.runtime.device
    events = [torch.Event(device, enable_timing=True) for _ in range(3)]
    for event in events:
        event.record()
        work(4)
    bench.runtime.synchronize()
    parts = [events[i].elapsed_time(events[i + 1]) for i in range(2)]
    whole = events[0].elapsed_time(events[2])
    if min(parts) < 0 or abs(sum(parts) - whole) > 0.05 * whole + 0.05:
        yield f"{parts[0]:.3f} + {parts[1]:.3f} ms aren't {whole:.3f} ms"


@check(
    "A data type that isn't among the limits will be used; one that is there is refused to everyone.",
    "Put what the device can't compute in into [limits] with the reason, and take out what it can.",
    where="device",
)
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_limits_are_true(bench: Bench, dtype: str) -> Problems:
    import torch

    kind, device = getattr(torch, _TORCH[dtype]), bench.runtime.device
    try:
        ones = torch.ones(64, 32, dtype=kind, device=device, requires_grad=True)
        product = ones @ ones.t()
        product.sum().backward()  # type: ignore[no-untyped-call]
        can = bool((product.detach().cpu().double() == 32).all()) and ones.grad is not None
        why = "its product is wrong"
    except (RuntimeError, TypeError) as error:
        can, why = False, str(error).partition("\n")[0][:200]
    if dtype in bench.manifest.limits and can:
        yield f"{dtype} is among the limits, but works"
    if dtype not in bench.manifest.limits and not can:
        yield f"{dtype} doesn't work: {why}"


def _accelerated(bench: Bench) -> None:
    if bench.runtime.device.type == "cpu":
        raise Absent("a device that works by itself; on a CPU an operation has finished when its call returns")


def _work(bench: Bench) -> Callable[[int], None]:
    """Return what gives the device matrix products: as large as keep it busy for about 2 ms each."""
    import torch

    size = 256
    while True:
        left, right = (torch.ones(size, size, device=bench.runtime.device) for _ in range(2))
        target = torch.empty_like(left)

        def work(count: int) -> None:
            for _ in range(count):
                torch.mm(left, right, out=target)  # noqa: B023  called before the next size, or returned

        work(2)
        if size >= 8192 or min(_timed(bench, work, 4) for _ in range(3)) > 8e-3:
            return work
        size *= 2


def _timed(bench: Bench, work: Callable[[int], None], count: int) -> float:
    bench.runtime.synchronize()
    began = time.perf_counter()
    work(count)
    bench.runtime.synchronize()
    return time.perf_counter() - began
