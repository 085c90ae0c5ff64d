"""What a device can do at most, measured where it is needed: a kernel's share of it is its roofline share."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from flagperf.measure.inputs import DTYPES
from flagperf.measure.peak import measure
from flagperf.schema.sweep import Roofs

if TYPE_CHECKING:
    from flagperf.vendor import Runtime

_SECONDS = 0.4
_BYTES = 64 * 2**20
"""Of one of the stream's three arrays, at least: the three are larger than a last-level cache."""


def measured_roofs(runtime: Runtime, dtypes: Iterable[str]) -> Roofs:
    """Return the GEMM peak of each floating-point type among these, and the bandwidth of a stream."""
    flops = {}
    for dtype in dict.fromkeys(dtypes):
        if DTYPES[dtype].is_floating_point:
            kind = "fp32" if dtype == "tf32" else dtype
            flops[dtype] = measure(runtime.device, kind, runtime.synchronize, _SECONDS).flops_per_second
    return Roofs(flops=flops, bandwidth=stream_bandwidth(runtime, last_level_cache(runtime.device)))


def stream_bandwidth(runtime: Runtime, cache: int, seconds: float = _SECONDS) -> float:
    """Return the best bytes/s of `c = a + b` over arrays that are together twice as large as the cache, or more."""
    count = max(_BYTES, cache) // 4
    a, b, c = (torch.full((count,), value, device=runtime.device) for value in (1.0, 2.0, 3.0))
    best, until = 0.0, time.perf_counter() + seconds
    tries = 0
    while tries < 3 or time.perf_counter() < until:
        runtime.synchronize()
        began = time.perf_counter()
        torch.add(a, b, out=c)
        runtime.synchronize()
        best = max(best, 3 * c.nbytes / (time.perf_counter() - began))
        tries += 1
    return best


def last_level_cache(device: torch.device) -> int:
    """Return the bytes of the last cache before memory; a large guess for a device that doesn't say."""
    if device.type == "cpu":
        from flagperf.measure.host import read_host

        return max((cache.bytes for cache in read_host().caches), default=32 * 2**20)
    try:
        told = torch.get_device_module(device).get_device_properties(device)
    except (AttributeError, RuntimeError, AssertionError):
        told = None
    return int(getattr(told, "L2_cache_size", 0) or 256 * 2**20)
