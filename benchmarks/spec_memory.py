"""Whether `spec/memory` reaches what C does: its triad ÷ a loop as STREAM has it, on the same arrays, in turns.

The loop is compiled here with `-O3 -march=native -fopenmp` and works on the very same memory. Both
count 3 arrays of bytes a call. Beside it stand the case's copy and a C loop that copies.

    python benchmarks/spec_memory.py --seconds 8
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

AIM = 0.97
SOURCE = """
void triad(float *restrict c, const float *restrict a, const float *restrict b, float s, long n) {
  #pragma omp parallel for schedule(static)
  for (long i = 0; i < n; i++) c[i] = a[i] + s * b[i];
}
void copy(float *restrict b, const float *restrict a, long n) {
  #pragma omp parallel for schedule(static)
  for (long i = 0; i < n; i++) b[i] = a[i];
}
"""


def main() -> int:
    """Measure, print, and end with 1 where the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="a side")
    parser.add_argument("--times", type=float, default=4.0, help="an array's bytes ÷ those of the last cache")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if (compiler := shutil.which(os.environ.get("CC", "cc"))) is None:
        sys.exit("There is no C compiler: install one, or name it by CC=…")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch and the loop's own library are loaded
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "stream.c", Path(folder) / "stream.so"
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
        for operation in ("triad", "copy"):
            rows.append(compared(operation, ctypes.CDLL(str(library)), options))
    if options.json:
        print(json.dumps(rows))
    for row in () if options.json else rows:
        told = f"{row['ratio']:.3f} ({row['low']:.3f} … {row['high']:.3f}), {row['pairs']} pairs"
        speeds = f"{row['case']:.2f} and {row['loop']:.2f} GB/s on arrays of {row['mib']:,.0f} MiB"
        print(f"{row['operation']}: spec/memory ÷ C loop {told}; {speeds}; the aim is {AIM}")
    return 0 if rows[0]["ratio"] >= AIM else 1


def compared(operation: str, library: ctypes.CDLL, options: argparse.Namespace) -> dict[str, Any]:
    """Return the case's bandwidth ÷ the loop's."""
    import torch

    from flagperf.cases.spec.streams import moving
    from flagperf.measure.roofs import last_level_cache
    from flagperf.measure.timer import Timer, in_turn
    from flagperf.statistics import compare_rounds

    torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    count = int(options.times * last_level_cache(cpu)) // 4
    a, b, c = torch.rand(count), torch.rand(count), torch.zeros(count)
    load = moving(operation, a, b, c)
    n, at = ctypes.c_long(count), [ctypes.c_void_p(each.data_ptr()) for each in (a, b, c)]

    def loop(number: int) -> None:
        if operation == "triad":
            library.triad(at[2], at[0], at[1], ctypes.c_float(3.0), n)
        else:
            library.copy(at[1], at[0], n)

    calls = {"case": load.call, "loop": loop}
    taken = in_turn(Timer(cpu, lambda: None), calls, warmup=2, rounds=20, seconds=options.seconds)
    ratio = compare_rounds(taken["loop"].seconds, taken["case"].seconds, "higher", 0.03)
    return {
        "operation": operation,
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
        "pairs": ratio.pairs,
        "mib": a.nbytes / 2**20,
        **{name: load.bytes / median(rounds.seconds) / 1e9 for name, rounds in taken.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
