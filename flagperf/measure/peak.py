"""The GEMM peak: the most dense FLOP/s that torch gets out of this machine, measured rather than taken from a leaflet.

`python -m flagperf.measure.peak --dtype bf16 --threads 2 --json` measures. `measured_peak` runs that in a process of
its own, once a machine, and keeps the figure. `pulse` is a short one, to see how fast the machine is just now.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flagperf import paths
from flagperf.errors import FlagPerfError, UnknownName

if TYPE_CHECKING:
    import torch

    from flagperf.vendor import Vendor

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (1536, 1536, 1536), (4096, 1024, 1024), (2048, 4096, 1024))
"""(m, n, k) of `[m, k] @ [n, k]ᵀ` on a CPU, the small ones first: the layout of a linear layer."""
DEVICE_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 1280), (16384, 4096, 8192))
"""The same on an accelerator, which needs larger ones to be busy."""
SLOW = 5e-3
"""Seconds. An accelerator that a CPU's smallest shape keeps busy for longer, such as an emulator, is given a CPU's
shapes: the others would take minutes."""
DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

SECONDS = 1.5
"""How long the timings take, about; a slow machine is given one timing of the smallest shape at least."""
TIMEOUT = 300.0


class PeakKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a measured peak holds for."""

    machine: str
    cpu: str
    cores: list[int]
    device: str
    torch: str
    vendor: str
    dtype: str
    threads: int
    ranks: int


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """A measured peak of one process, and how it came about."""

    flops_per_second: float
    shape: tuple[int, int, int]
    """(m, n, k) that reached it."""
    timings: int
    seconds: float
    dtype: str
    threads: int
    measured: str
    """ISO 8601, UTC."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    key: PeakKey
    peak: Peak


def measure(device: torch.device, dtype: str, synchronize: Callable[[], None], seconds: float = SECONDS) -> Peak:
    """Return the best of repeated timings over several shapes; uses the threads torch is set to."""
    import torch

    began = time.perf_counter()
    best, best_shape, timings = 0.0, (0, 0, 0), 0
    shapes = _shapes(device, dtype, synchronize)
    share = seconds / len(shapes)
    for shape in shapes:
        work = 2.0 * shape[0] * shape[1] * shape[2]
        # Of what a slow machine can't finish in the time, the smallest shape must do.
        if best and work / best > seconds - (time.perf_counter() - began):
            continue
        multiply = _gemm(device, dtype, shape, synchronize)
        until = time.perf_counter() + share
        multiply()
        while True:
            took = multiply()
            timings += 1
            if work / took > best:
                best, best_shape = work / took, shape
            if time.perf_counter() >= until:
                break
    return Peak(
        flops_per_second=best,
        shape=best_shape,
        timings=timings,
        seconds=time.perf_counter() - began,
        dtype=dtype,
        threads=torch.get_num_threads(),
        measured=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def pulse(device: torch.device, dtype: str, seconds: float = 0.3) -> float:
    """Return how fast a GEMM is just now, FLOP/s: the median of timings repeated for `seconds`."""
    import statistics

    import torch

    def synchronize() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    shape = _shapes(device, dtype, synchronize)[0]
    multiply = _gemm(device, dtype, shape, synchronize)
    multiply()  # the first one chooses a kernel and makes room
    took: list[float] = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        took.append(multiply())
    return 2.0 * shape[0] * shape[1] * shape[2] / statistics.median(took)


def _shapes(device: torch.device, dtype: str, synchronize: Callable[[], None]) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes that keep a device busy, and not for too long."""
    if device.type == "cpu":
        return SHAPES
    multiply = _gemm(device, dtype, SHAPES[0], synchronize)
    multiply()
    return SHAPES if multiply() > SLOW else DEVICE_SHAPES


def _gemm(
    device: torch.device, dtype: str, shape: tuple[int, int, int], synchronize: Callable[[], None]
) -> Callable[[], float]:
    """Return what multiplies two matrices of this shape and says how many seconds it took."""
    import torch

    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    kind = getattr(torch, DTYPES[dtype])
    m, n, k = shape
    left = torch.randn(m, k, device=device).to(kind)
    right = torch.randn(n, k, device=device).to(kind)
    into = torch.empty(m, n, device=device, dtype=kind)

    def multiply() -> float:
        synchronize()
        began = time.perf_counter()
        torch.mm(left, right.T, out=into)
        synchronize()
        return time.perf_counter() - began

    return multiply


def measured_peak(
    vendor_name: str,
    dtype: str,
    threads: int,
    ranks: int,
    progress: Callable[[str, float | None], None],
    folders: Sequence[Path] = (),
) -> float:
    """Return the GEMM peak that one of `ranks` ranks computes with, dense FLOP/s; measured once a machine and kept.

    On a CPU all ranks share the machine, so that all their cores are measured at once, in one process with `threads` ×
    `ranks` threads (no more than there are cores), and the figure is divided by `ranks`. An accelerator is a rank's
    own: one of them is measured. `folders` are searched for plug-ins. Raises FlagPerfError if the measurement fails.
    """
    path, key = _place(vendor_name, dtype, threads, ranks, folders)
    peak = _kept(path, key)
    if peak is None:
        progress(f"measuring the {dtype} GEMM peak of {vendor_name}", None)
        together = min(threads * key.ranks, max(threads, len(key.cores)))  # ranks that share cores add nothing
        peak = _measured(vendor_name, dtype, together, folders)
        _keep(path, _Kept(key=key, peak=peak))
    return peak.flops_per_second / key.ranks


def known_peak(vendor_name: str, dtype: str, threads: int, ranks: int, folders: Sequence[Path] = ()) -> float | None:
    """Return what `measured_peak` would without measuring: None if it hasn't been measured on this machine."""
    path, key = _place(vendor_name, dtype, threads, ranks, folders)
    peak = _kept(path, key)
    return None if peak is None else peak.flops_per_second / key.ranks


def _place(vendor_name: str, dtype: str, threads: int, ranks: int, folders: Sequence[Path]) -> tuple[Path, PeakKey]:
    """Return where the peak of such ranks is kept, and under which key."""
    from flagperf.registry import Registries

    vendors = Registries(folders).vendors
    vendor: Vendor = vendors.adapter(vendor_name)
    shared = vendor.manifest.device_type == "cpu"
    key = _key(vendor, dtype, threads, ranks if shared else 1)
    digest = hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]
    return paths.cache() / "peaks" / f"{vendor_name}-{dtype}-{digest}.json", key


def _key(vendor: Vendor, dtype: str, threads: int, ranks: int) -> PeakKey:
    from flagperf.measure.host import allowed_cores, cpu_model

    devices = vendor.devices()
    return PeakKey(
        machine=_machine(),
        cpu=cpu_model(),
        cores=allowed_cores(),
        device=devices[0].name if devices else "",
        torch=importlib.metadata.version("torch"),
        vendor=vendor.name,
        dtype=dtype,
        threads=threads,
        ranks=ranks,
    )


def _machine() -> str:
    """Return a name of this machine that survives a restart, without giving away its machine id."""
    from flagperf.measure.host import read_text

    name = read_text(Path("/etc/machine-id")) or os.uname().nodename
    return hashlib.sha256(f"flagperf:{name}".encode()).hexdigest()[:16]


def _kept(path: Path, key: PeakKey) -> Peak | None:
    """Return a peak kept earlier for exactly this key; a file that can't be used is as good as none."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return kept.peak if kept.key == key and kept.peak.flops_per_second > 0 else None


def _keep(path: Path, kept: _Kept) -> None:
    """Write a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        Path(temporary).replace(path)
    except OSError as error:
        # The figure itself is good; only the next run has to measure again.
        print(f"flagperf: the measured peak can't be kept in {path.parent}: {error.strerror}", file=sys.stderr)


def _measured(vendor: str, dtype: str, threads: int, folders: Sequence[Path]) -> Peak:
    command = [sys.executable, "-m", "flagperf.measure.peak", "--vendor", vendor, "--dtype", dtype]
    command += ["--threads", str(threads), "--json"]
    for folder in folders:
        command += ["--plugins", str(folder)]
    # Set before torch is loaded: OpenMP reads it once.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL, env=environment
        )
    except subprocess.TimeoutExpired:
        raise FlagPerfError(
            f"Measuring the {dtype} GEMM peak of {vendor} took more than {TIMEOUT:.0f} s.",
            f"Try it by hand: {' '.join(command[1:])}",
        ) from None
    try:
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout, type=Peak)
        why = f"exit status {done.returncode}"
    except msgspec.DecodeError as error:
        why = str(error)
    tail = "\n".join(done.stderr.strip().splitlines()[-5:])
    raise FlagPerfError(f"The {dtype} GEMM peak of {vendor} couldn't be measured: {why}", tail)


def main(arguments: list[str] | None = None) -> int:
    """Measure the peak of one process and print it."""
    parser = argparse.ArgumentParser(prog="python -m flagperf.measure.peak", description=__doc__)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="compute threads on the host")
    parser.add_argument("--vendor", default="cpu", help="whose device")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long the timings take, about")
    parser.add_argument("--plugins", type=Path, action="append", default=[], help="folder with plug-ins")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.seconds <= 0:
        parser.error("--threads and --seconds must be positive")

    from flagperf.registry import Registries

    try:
        vendors = Registries(options.plugins).vendors
        vendor: Vendor = vendors.adapter(options.vendor)
        runtime = vendor.runtime(0, 1, options.threads)
    except FlagPerfError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    peak = measure(runtime.device, options.dtype, runtime.synchronize, options.seconds)
    if options.json:
        print(msgspec.json.encode(peak).decode())
    else:
        shape = " × ".join(map(str, peak.shape))
        print(f"{peak.flops_per_second / 1e9:,.1f} GFLOP/s in {peak.dtype} with {peak.threads} threads, {shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
