"""Operations that do nothing but move memory, and whether they moved it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from flagperf.specification import Load

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench

_STEP = 16
"""Values that a window is further on than the one before: a line of the cache."""
_LONG = 4 * 2**20
"""Values that a call reads at least, so that starting it doesn't show."""


def moving(operation: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Load:
    """Return an operation on whole arrays: b = a, c = a + 3 b, a read, or c written."""
    if operation == "triad":
        return Load(lambda number: torch.add(a, b, alpha=3.0, out=c), bytes=3.0 * a.nbytes)
    if operation == "copy":
        return Load(lambda number: b.copy_(a), bytes=2.0 * a.nbytes)
    if operation == "write":
        return Load(lambda number: c.fill_(number + 1.0), bytes=1.0 * a.nbytes)
    return Load(lambda number: a.sum(), bytes=1.0 * a.nbytes)


def stream(bench: Bench, operation: str, count: int, cached: bool) -> Samples:
    """Measure an operation over arrays of `count` values of fp32; raise MemoryError where they don't fit."""
    a = bench.filled("fp32", count)
    b = torch.zeros_like(a) if operation in ("copy", "triad") else a
    c = torch.zeros_like(a) if operation in ("triad", "write") else a
    times = 1
    if operation == "triad":
        b.copy_(a.flip(0))
    load = moving(operation, a, b, c)
    if operation == "read" and cached and (times := _LONG // count) > 1:
        # The same values many times in a call: windows that overlap in all but a line, summed each for itself.
        a = bench.filled("fp32", count + _STEP * times)
        windows = a.as_strided((times, count), (_STEP, 1))
        load = Load(lambda number: windows.sum(1), bytes=4.0 * times * count)
    samples = bench.sustain(load._replace(facts={"array_bytes": 4 * count, "times_a_call": max(times, 1)}))
    part = slice(None, None, max(1, count // 100_003))
    result = load.call(0)
    if operation == "read":
        right = abs(float(result.flatten()[0]) - float(a[:count].cpu().double().sum())) < 1e-2 * count**0.5
    else:
        wanted = {"copy": a[part], "triad": a[part] + 3.0 * b[part], "write": torch.ones_like(a[part])}[operation]
        right = torch.allclose((b if operation == "copy" else c)[part].cpu(), wanted.cpu(), rtol=1e-6, atol=1e-6)
    why = "" if right else f"{operation} left other values than it should"
    return msgspec.structs.replace(samples, verdict="valid" if right else "wrong", why=why)
