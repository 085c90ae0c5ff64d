"""Whether `spec/gemm` reaches what else multiplies matrices here: its best size ÷ the best of numpy, torch and oneDNN.

The case looks for its size as it does under `flagperf run`. Then the same product, on the same numbers, is done by it,
by numpy's BLAS (fp32 only: numpy has no bf16), by `torch.mm` and `torch.nn.functional.linear`, and by oneDNN's own
linear operator with the weight in oneDNN's layout. All take turns; the ratio is the case's speed ÷ the fastest other's.

    python benchmarks/spec_gemm.py --seconds 8
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

AIM = 0.97


def main() -> int:
    """Measure, print, and end with 1 where the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="a way to multiply, and of looking for the size")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)  # before they are loaded
    rows = [compared(dtype, options.seconds, options.threads) for dtype in ("fp32", "bf16")]
    if options.json:
        print(json.dumps(rows))
    for row in () if options.json else rows:
        others = ", ".join(f"{name} {rate:,.1f}" for name, rate in row["gflops"].items())
        print(f"{row['dtype']} at {row['size']}: GFLOP/s {others}")
        told = f"{row['ratio']:.3f} ({row['low']:.3f} … {row['high']:.3f}), {row['pairs']} pairs"
        print(f"{row['dtype']}: spec/gemm ÷ {row['fastest']}: {told}; the aim is {AIM}")
    return 0 if all(row["ratio"] >= AIM for row in rows) else 1


def compared(dtype: str, seconds: float, threads: int) -> dict[str, Any]:
    """Return the case's speed ÷ that of the fastest other way at the case's best size."""
    from flagperf.measure.timer import in_turn
    from flagperf.specifications import Bench
    from flagperf.statistics import compare_rounds

    found: dict[str, Any] = {}

    def sustain(bench: Bench, load: Any, **fields: Any) -> Any:
        size = load.facts["size"]
        calls = {"spec/gemm": load.call, **ways(bench, dtype, size["m"], size["n"], size["k"])}
        taken = in_turn(bench.timer, calls, warmup=2, rounds=20, seconds=seconds)
        medians = {name: median(rounds.seconds) for name, rounds in taken.items()}
        fastest = min((name for name in medians if name != "spec/gemm"), key=medians.__getitem__)
        ratio = compare_rounds(taken[fastest].seconds, taken["spec/gemm"].seconds, "higher", 0.03)
        found.update(
            {"dtype": dtype, "size": size, "fastest": fastest, "ratio": ratio.ratio, "low": ratio.low},
            high=ratio.high,
            pairs=ratio.pairs,
            gflops={name: load.flops / took / 1e9 for name, took in medians.items()},
        )
        return bench.samples(facts=load.facts)

    run_case("spec/gemm", threads, sustain, search=seconds, sweep={"dtype": [dtype]})
    return found


def ways(bench: Any, dtype: str, m: int, n: int, k: int) -> dict[str, Callable[[int], Any]]:
    """Return other ways to multiply the same matrices."""
    import torch

    left, right = bench.filled(dtype, m * k).view(m, k), bench.filled(dtype, n * k, 1).view(n, k)
    across, out = right.T.contiguous(), torch.empty(m, n, dtype=left.dtype)
    calls: dict[str, Callable[[int], Any]] = {
        "torch.mm": lambda number: torch.mm(left, across, out=out),
        "torch.nn.functional.linear": lambda number: torch.nn.functional.linear(left, right),
    }
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(right, m)
        linear = torch.ops.mkldnn._linear_pointwise
        calls["oneDNN"] = lambda number: linear(left, packed, None, "none", [], "")
    if dtype == "fp32":
        import numpy as np

        a, b, c = left.numpy(), across.numpy(), np.empty((m, n), np.float32)
        calls["numpy"] = lambda number: np.matmul(a, b, out=c)
    return calls


def run_case(case: str, threads: int, sustain: Callable[..., Any], **settings: Any) -> None:
    """Run a specification in this process with `sustain` in place of what keeps the load up."""
    from flagperf.context import RankContext
    from flagperf.journal import Journal, Reader
    from flagperf.plan import Options
    from flagperf.plan.sweeps import sweep_trial
    from flagperf.registry import Registries
    from flagperf.specifications import Bench

    registries = Registries()
    vendor = registries.vendors.adapter("cpu")
    options = Options(cases=[case], preset="standard", engines=[], settings=settings, ranks=1)
    trial = sweep_trial(case, options, vendor, registries)
    Bench.sustain = sustain  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder) / "rank0.journal", {"role": "rank"}) as journal:
            runtime = vendor.runtime(0, 1, threads)
            context = RankContext(
                trial=trial, rank=0, world_size=1, local_rank=0, local_ranks=1,
                runtime=runtime, journal=journal, registries=registries,
            )  # fmt: skip
            registries.cases.load(case)(trial).run(context)
        for event in Reader(Path(folder) / "rank0.journal"):
            if event.key == "samples" and event.value.get("verdict", "valid") != "valid":
                sys.exit(f"{case}: {event.value['verdict']}: {event.value['why']}")


if __name__ == "__main__":
    sys.exit(main())
