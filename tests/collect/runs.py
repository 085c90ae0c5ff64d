"""Runs written by the real Journal class, for the collector's tests: what a rank, the harness and telemetry write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flagperf.journal import Journal
from flagperf.schema.event import Key, Memory, Step
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.trial import Outcome, Run, Trial

METRICS = [
    *("tokens_per_second", "tokens_per_second_per_device", "step_time", "step_time_p90", "step_time_p99"),
    *("time_to_first_step", "data_wait", "mfu", "mfu_rated", "hfu", "p_whole", "p_train", "p_core"),
    *("memory_peak_allocated", "memory_peak_rss", "memory_pss", "loss_final", "loss_validation", "bits_per_byte"),
    *("steps_skipped", "energy", "energy_host", "tokens_per_joule", "telemetry_cost", "machine_speed"),
]


def protocol(**changes: Any) -> Protocol:
    """A protocol of 2 warm-up and 10 measured steps."""
    usual = {"warmup": 2, "steps": 10, "trials": 3, "seed": 100, "validation": 8, "global_batch": 4}
    return Protocol(**(usual | changes))


def trial(number: int = 0, **changes: Any) -> Trial:
    """A trial of two ranks."""
    engine = changes.get("engine", "ddp")
    usual: dict[str, Any] = {
        "id": f"{number:03d}-{engine}",
        "case": "aquila/pretrain",
        "preset": "tiny",
        "vendor": "cpu",
        "engine": engine,
        "ranks": 2,
        "layout": Layout(micro=2),
        "dtype": "fp32",
        "seed": 100,
        "trial": 0,
        "protocol": protocol(),
        "settings": {},
        "metrics": METRICS,
        "threads": 1,
        "peak_flops": 5e9,
    }
    return Trial(**(usual | changes))


def run(trials: Sequence[Trial], name: str = "run", **changes: Any) -> Run:
    """A run of these trials."""
    usual: dict[str, Any] = {
        "id": name,
        "created": "2026-01-01T00:00:00+00:00",
        "command": ["flagperf", "run"],
        "flagperf": "1.0",
        "commit": None,
        "launcher": "local",
        "trials": list(trials),
        "baseline": "ddp",
    }
    return Run(**(usual | changes))


def environment(**changes: Any) -> dict[str, Any]:
    """A snapshot of a quiet machine."""
    usual: dict[str, Any] = {
        "time": "2026-01-01T00:00:00.000+00:00",
        "cpu": "A CPU",
        "python": "3.11.7",
        "flagperf": "1.0",
        "commit": None,
        "dirty": None,
        "packages": {"torch": "2.9.0"},
        "kernel": "Linux 6.1",
        "cores": 2,
        "load": [0.1, 0.1, 0.1],
        "foreign": [],
        "foreign_percent": 0.0,
        "steal_percent": 0.0,
        "window": 0.5,
        "limits": {},
        "variables": {},
    }
    absent = (
        *("governor", "clock_source", "frequency", "temperature", "throttled", "memory_total", "memory_available"),
        *("swap_used", "swapped_pages", "disk_free"),
    )
    return dict.fromkeys(absent) | usual | changes


def step_seconds(trial: Trial, rank: int, step: int) -> float:
    """Step times with a little spread, the same whenever they are asked for."""
    random = np.random.default_rng([trial.seed, rank, step])
    return float(0.1 * np.exp(random.normal(0, 0.02)))


def loss_of(trial: Trial, step: int) -> float:
    """A falling loss that depends on the seed alone."""
    return 9.0 - 0.1 * step + 0.001 * (trial.seed % 7)


def write_rank(
    folder: Path,
    trial: Trial,
    rank: int,
    *,
    seconds: Callable[[Trial, int, int], float] = step_seconds,
    loss: Callable[[Trial, int], float] = loss_of,
    pulses: tuple[float, float] = (4e9, 4e9),
    stop: bool = True,
    steps: int | None = None,
    leader: bool = True,
    skipped: Callable[[int], bool] = lambda step: False,
    fingerprint: int = 7,
) -> Path:
    """Write one rank's journal as a worker does."""
    path = folder / "trials" / trial.id / f"rank{rank}.journal"
    header = {"role": "rank", "trial": trial.id, "rank": rank, "world_size": trial.ranks}
    planned = trial.protocol.warmup + trial.protocol.steps
    with Journal(path, header) as journal:
        journal.write(Key.INIT_START)
        journal.write("seed", trial.seed)
        journal.write(
            Key.BUILD,
            {"seconds": 1.5, "flops_per_token": 5e5, "hfu_factor": 4 / 3, "layout": str(trial.layout), "facts": {}},
        )
        journal.write(Key.INIT_STOP)
        journal.write(Key.PULSE, {"flops_per_second": pulses[0], "when": "before"})
        journal.write(Key.RUN_START)
        for step in range(planned if steps is None else steps):
            journal.write(
                Key.STEP,
                Step(
                    step=step,
                    measured=step >= trial.protocol.warmup,
                    seconds=seconds(trial, rank, step),
                    data_seconds=0.001,
                    tokens=512,
                    loss=loss(trial, step),
                    gradient_norm=1.0,
                    learning_rate=1e-3,
                    skipped=skipped(step),
                    leader=leader,
                ),
            )
            if step == 0:
                journal.write(Key.FIRST_STEP, {"seconds": 3.0 + rank})
        journal.write(Key.MEMORY, Memory(peak_allocated=(100 + rank) * 2**20, peak_rss=300 * 2**20, pss=200 * 2**20))
        if stop:
            final = loss(trial, planned)
            journal.write(
                Key.EVAL,
                {"loss": final, "tokens": 1024, "bytes": 4096, "seconds": 0.2, "step": planned, "leader": leader},
            )
            journal.write(Key.PULSE, {"flops_per_second": pulses[1], "when": "after"})
            journal.write(Key.TOKENS, {"fingerprint": f"{fingerprint:032x}", "samples": 24})
            journal.write(Key.RUN_STOP, {"status": "success"})
    return path


def write_run(folder: Path, plan: Run, skip: Sequence[str] = (), **options: Any) -> Path:
    """Write a whole run; `options` go to every rank's journal, trials in `skip` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(plan))
    with Journal(folder / "harness.journal", {"role": "harness", "run": plan.id, "node": 0}) as harness:
        for each in plan.trials:
            if each.id in skip:
                continue
            write_trial(folder, each, harness, **options)
    return folder


def write_trial(folder: Path, each: Trial, harness: Journal, outcome: Outcome | None = None, **options: Any) -> None:
    """Write what one trial leaves behind."""
    place = folder / "trials" / each.id
    place.mkdir(parents=True)
    (place / "trial.json").write_bytes(msgspec.json.encode(each))
    harness.write(Key.TRIAL_START, {"id": each.id, "prepared": {"tokens": 1000}})
    harness.write(Key.ENVIRONMENT, {"trial": each.id, "when": "before", **environment()})
    with Journal(place / "telemetry.journal", {"role": "telemetry"}) as telemetry:
        telemetry.write(Key.TELEMETRY, {"tick": 1, "cpu_percent": 50.0, "energy_joules": {"package-0": 0.0}})
        for rank in range(each.ranks):
            write_rank(folder, each, rank, **options)
        telemetry.write(Key.TELEMETRY, {"tick": 2, "cpu_percent": 60.0, "energy_joules": {"package-0": 12.0}})
        cost = {"cpu_seconds": 0.02, "wall_seconds": 10.0, "samples": 2, "missed": 0, "failed": 0}
        telemetry.write(Key.TELEMETRY_COST, cost)
    harness.write(Key.ENVIRONMENT, {"trial": each.id, "when": "after", **environment()})
    ended = outcome or Outcome(status="finished", seconds=12.0)
    harness.write(Key.TRIAL_STOP, {"id": each.id, "outcome": msgspec.to_builtins(ended)})
