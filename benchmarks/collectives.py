"""Bus bandwidth of all-reduce: as `parallel/collectives` measures it, against a bare loop of torch.distributed.

    python benchmarks/collectives.py [--rounds 30] [--sizes 1024 65536 1048576 16777216] [--json]

Two ranks over gloo on the CPU. In each round the case's own round (memory of its own for every call, filled before and
checked after) and a plain loop of as many calls on one tensor take turns, A B, B A, …, between the same processes. The
time of a round is the slower rank's. The ratio of bandwidths is the median of the rounds' ratios with its 95 %
interval; `equivalent` means that the interval lies within 5 %. About a minute on an idle machine.
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
from typing import TYPE_CHECKING, Any

from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.statistics import compare_rounds

if TYPE_CHECKING:
    from flagperf.cases.parallel.operations import Message

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
        print(
            f"{row['bytes']:>12,} B  case {row['case'] / 1e9:8.4f} GB/s  bare loop {row['bare'] / 1e9:8.4f} GB/s  "
            f"ratio {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] {row['verdict']}"
        )
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure both on one rank; the first writes what came out."""
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
                ways: list[Callable[[], float]] = [partial(bench.round, run, calls), partial(bare, about, calls)]
                taken: list[list[float]] = [[], []]
                for number in range(-2, options.rounds):
                    for way in (0, 1) if number % 2 else (1, 0):
                        seconds = bench.ranks.most(ways[way]())
                        if number >= 0:
                            taken[way].append(seconds)
                assert run.judge(calls).wrong == 0
                speeds = [[about.bus_bytes / seconds for seconds in each] for each in taken]
                found = compare_rounds(*speeds, "higher", LIMIT)
                middle = [sorted(each)[len(each) // 2] for each in speeds]
                ratio = {"ratio": found.ratio, "low": found.low, "high": found.high, "verdict": found.verdict}
                rows.append({"bytes": about.bytes, "calls": calls, "case": middle[0], "bare": middle[1], **ratio})
    if context.rank == 0:
        options.told.write_text(json.dumps(rows), "utf-8")


def bare(about: Message, calls: int) -> float:
    """Return the seconds a call of a loop as anyone would write it."""
    import torch
    import torch.distributed as dist

    tensor = torch.ones(about.length)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor)
    return (time.perf_counter() - began) / calls


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 65536, 2**20, 2**24], help="bytes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
