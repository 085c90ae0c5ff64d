"""Bus bandwidth of all-reduce: as `parallel/collectives` measures it, against a bare loop of torch.distributed.

    python benchmarks/collectives.py [--rounds 400] [--sizes 1024 65536 1048576 16777216] [--json]

Two ranks over gloo on the CPU. In each round the case's own round (memory of its own for every call, filled before and
checked after) and a plain loop of as many calls take turns, A B C, C B A, …, between the same processes; so does a loop
over a single tensor, which stays in the caches. The time of a round is the slower rank's. The ratio of bandwidths is
the median of the rounds' ratios with its 95 % interval; `equivalent` means that the interval lies within 5 %. Loopback
is noisy: 400 rounds, about two minutes, tell 5 % on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.statistics import compare_rounds

if TYPE_CHECKING:
    import torch


LIMIT = 0.05


def main() -> int:
    """Start the ranks, or be one of them."""
    options = _options()
    if "RANK" in os.environ:
        measure(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        sizes = map(str, options.sizes)
        own = [__file__, "--rounds", str(options.rounds), "--sizes", *sizes, "--told", str(told)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, *own], check=True, env=environment, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = json.loads(told.read_text("utf-8"))
    if options.json:
        print(json.dumps({"ranks": 2, "backend": "gloo", "sizes": rows}, indent=1))
        return 0
    for row in rows:
        told = [f"{row['bytes']:>12,} B  case {row['speed']['case'] / 1e9:8.4f} GB/s"]
        for name, title in (("bare", "÷ bare loop"), ("hot", "÷ bare loop over one tensor")):
            each = row[name]
            told.append(f"{title} {each['ratio']:.3f} [{each['low']:.3f}, {each['high']:.3f}] {each['verdict']}")
        print("  ".join(told))
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure both on one rank; the first writes what came out."""
    import torch

    from flagperf.cases.parallel.measuring import Bench, Run
    from flagperf.cases.parallel.operations import message
    from flagperf.journal import Journal
    from flagperf.worker import rank_context

    asked = Options(
        cases=["parallel/collectives"], vendor="cpu", ranks=2, oversubscribe=True, settings={"sweep": {"size": [8]}}
    )
    registries = Registries()
    (trial,) = plan(asked, registries).trials
    case = registries.cases.load(trial.case)(trial)
    rows = []
    with Journal(options.told.with_name(f"rank{os.environ['RANK']}.journal"), {}) as journal:
        context = rank_context(trial, journal)
        with context.connected(case.patience, host=True):
            bench = Bench(context, case)

            for size in options.sizes:
                about = message("all_reduce", "in", 2, size, 4)
                runs: dict[str, Run] = {}
                outcome, why = bench.attempt("torch", about, "fp32", runs)
                assert outcome == "valid", why
                run = runs["torch"]
                calls, _ = bench.calibrated(run)
                tensors = list(torch.ones(calls, about.length))
                ways: dict[str, Callable[[], float]] = {
                    "case": partial(bench.round, run, calls),
                    "bare": partial(bare, tensors),
                    "hot": partial(bare, tensors[:1] * calls),
                }
                speeds: dict[str, list[float]] = {name: [] for name in ways}
                for number in range(-2, options.rounds):
                    for name in ways if number % 2 else reversed(ways):
                        seconds = bench.ranks.most(ways[name]())
                        if number >= 0:
                            speeds[name].append(about.bus_bytes / seconds)
                assert run.judge(calls).wrong == 0
                row: dict[str, Any] = {"bytes": about.bytes, "calls": calls}
                for name in ("bare", "hot"):
                    found = compare_rounds(speeds["case"], speeds[name], "higher", LIMIT)
                    row[name] = {key: getattr(found, key) for key in ("ratio", "low", "high", "verdict")}
                rows.append({**row, "speed": {name: median(each) for name, each in speeds.items()}})
    if context.rank == 0:
        options.told.write_text(json.dumps(rows), "utf-8")


def bare(tensors: list[torch.Tensor]) -> float:
    """Return the seconds a call of a loop as anyone would write it."""
    import torch.distributed as dist

    for tensor in tensors:
        tensor.fill_(1.0)
    dist.barrier()
    began = time.perf_counter()
    for tensor in tensors:
        dist.all_reduce(tensor)
    return (time.perf_counter() - began) / len(tensors)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 65536, 2**20, 2**24], help="bytes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
