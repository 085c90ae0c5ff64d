"""How long `flagperf results` takes over many runs: the whole process, cold (journals read) and warm (files there).

Example: python benchmarks/store_speed.py --runs 200 --trials 3 --json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from flagperf.journal import Journal
from flagperf.schema.event import Key, Memory, Step
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.trial import Outcome, Run, Trial

METRICS = ["tokens_per_second", "step_time", "mfu", "memory_peak_rss", "loss_final", "loss_validation"]


def main() -> None:
    """Make the runs, then time the command in fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_runs(home, options.runs, options.trials)
        stages = {"cold, table": seconds(home, "table")}
        for form in ("table", "json", "csv", "--help"):
            taken = [seconds(home, form) for _ in range(options.repeats)]
            stages[f"warm, {form}"] = {clock: statistics.median(each[clock] for each in taken) for clock in taken[0]}
    figures = {"runs": options.runs, "trials": options.trials, "unit": "s", "stages": stages}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{options.runs} runs of {options.trials} trials, the whole process, median of {options.repeats}; cold once")
    for stage, clocks in stages.items():
        print(f"{stage:<14} {clocks['wall']:8.3f} s, of a CPU {clocks['cpu']:8.3f} s")


def seconds(home: Path, form: str) -> dict[str, float]:
    """Return wall-clock and CPU seconds of one command, start of Python included."""
    arguments = ["--help"] if form == "--help" else [str(home), "--format", form]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flagperf", "results", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "200"},
        check=True,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def make_runs(home: Path, runs: int, trials: int) -> None:
    """Write one run with the real journal, and copies of it under other names."""
    protocol = Protocol(warmup=4, steps=20, trials=trials, seed=1, validation=8, global_batch=8)
    planned = [
        Trial(
            id=f"{number:03d}-ddp",
            case="aquila/pretrain",
            preset="tiny",
            vendor="cpu",
            engine="ddp",
            ranks=2,
            layout=Layout(micro=2),
            dtype="fp32",
            seed=1 + number,
            trial=number,
            protocol=protocol,
            settings={},
            metrics=METRICS,
            threads=1,
            peak_flops=1e11,
        )
        for number in range(trials)
    ]
    first = home / "run000"
    with Journal(first / "harness.journal", {}) as harness:
        for trial in planned:
            harness.write(Key.TRIAL_START, {"id": trial.id})
            for rank in range(trial.ranks):
                write_rank(first / "trials" / trial.id, trial, rank)
            (first / "trials" / trial.id / "trial.json").write_bytes(msgspec.json.encode(trial))
            outcome = Outcome(status="finished", seconds=9.0)
            harness.write(Key.TRIAL_STOP, {"id": trial.id, "outcome": msgspec.to_builtins(outcome)})
    for number in range(runs):
        folder = home / f"run{number:03d}"
        if number:
            shutil.copytree(first, folder)
        run = Run(
            id=folder.name,
            created="2026-01-01T00:00:00+00:00",
            command=[],
            flagperf="",
            commit=None,
            launcher="local",
            trials=planned,
            baseline="ddp",
        )
        (folder / "run.json").write_bytes(msgspec.json.encode(run))


def write_rank(place: Path, trial: Trial, rank: int) -> None:
    """Write a rank's journal as a worker does."""
    with Journal(place / f"rank{rank}.journal", {"trial": trial.id, "rank": rank, "world_size": 2}) as journal:
        journal.write(Key.BUILD, {"seconds": 1.0, "flops_per_token": 5e6, "hfu_factor": 1.0})
        for step in range(trial.protocol.warmup + trial.protocol.steps):
            journal.write(
                Key.STEP,
                Step(
                    step=step,
                    measured=step >= trial.protocol.warmup,
                    seconds=0.2 + step % 5 / 1000,
                    data_seconds=1e-3,
                    tokens=1024,
                    loss=9.0 - step / 10,
                    gradient_norm=1.0,
                    learning_rate=1e-3,
                ),
            )
        journal.write(Key.MEMORY, Memory(peak_allocated=2**28, peak_rss=2**29))
        journal.write(Key.EVAL, {"loss": 6.5, "tokens": 1024, "bytes": 4096, "seconds": 0.2, "step": 24})
        journal.write(Key.RUN_STOP, {"status": "success"})


if __name__ == "__main__":
    main()
