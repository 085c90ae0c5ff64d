"""Run directories for the tests of reports, written with the real journal on a clock of their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from flagperf import journal
from flagperf.journal import Journal
from flagperf.measure.environment import Environment, Foreign, snapshot
from flagperf.schema.event import Key, Memory, Step
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.trial import Outcome, Purpose, RankExit, Run, Trial

METRICS = [
    *("tokens_per_second", "tokens_per_second_per_device", "step_time", "step_time_p90", "step_time_p99"),
    *("time_to_first_step", "data_wait", "mfu", "hfu", "p_whole", "p_train", "p_core", "memory_peak_allocated"),
    *("memory_peak_rss", "memory_pss", "loss_final", "loss_validation", "bits_per_byte", "telemetry_cost"),
    "machine_speed",
]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000

    def monotonic_ns(self) -> int:
        """Return the monotonic clock."""
        return self.ns

    def time_ns(self) -> int:
        """Return the wall clock."""
        return 1_790_000_000_000_000_000 + self.ns

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.ns += int(seconds * 1e9)


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine behaves in a made run."""

    name: str
    layout: Layout = Layout(micro=4)
    step: float = 0.4
    """Seconds a step."""
    allocated: float = 300.0
    """MiB at the peak."""
    loss_shift: float = 0.0
    """Relative."""
    held: Sequence[float] | None = None
    """MiB of weights, gradients, optimizer state on the device, and of all that is on the host."""
    communication: tuple[float, float] | None = None
    """Seconds a step of a 0.5 s one: all, and exposed."""
    error: tuple[str, str] | None = None
    """Kind and message of what ends it while it is built."""


def make_run(
    folder: Path,
    arms: Sequence[Arm] = (Arm(name="ddp"), Arm(name="fsdp", step=0.44, allocated=236.0)),
    *,
    trials: int = 3,
    steps: int = 20,
    ranks: int = 2,
    noise: float = 0.004,
    case: str = "aquila/pretrain",
    metrics: Sequence[str] = METRICS,
    fail: Sequence[str] = (),
    stop_before: str | None = None,
    telemetry: bool = True,
    hostile: str = "",
    baseline: str | None = None,
    run_id: str | None = None,
) -> Path:
    """Write a run directory. Trials named in `fail` lose rank 1 to signal 9; from `stop_before` on none is started."""
    protocol = Protocol(
        warmup=4, steps=steps, trials=trials, seed=1234, validation=32, global_batch=8, region="From step to step."
    )
    planned: list[Trial] = []
    for number in range(trials):
        for arm in arms if number % 2 == 0 else list(reversed(arms)):
            like = trial(len(planned), arm, protocol, number, case=case, ranks=ranks, metrics=metrics, note=hostile)
            planned.append(like)
    run = Run(
        id=run_id or f"20261121-220000-{case.replace('/', '-')}-tiny",
        created="2026-11-21T22:00:00+00:00",
        command=[
            "flagperf",
            "run",
            case,
            "--engine",
            ",".join(arm.name for arm in arms),
            *([hostile] if hostile else []),
        ],
        flagperf="1.0.0",
        commit="0123abc",
        launcher="local",
        trials=planned,
        baseline=baseline or arms[0].name,
    )
    carry_out(folder, run, arms, noise=noise, fail=fail, stop_before=stop_before, telemetry=telemetry, hostile=hostile)
    return folder


def trial(
    place: int,
    arm: Arm,
    protocol: Protocol,
    number: int,
    *,
    purpose: Purpose = "measure",
    case: str = "aquila/pretrain",
    ranks: int = 2,
    metrics: Sequence[str] = METRICS,
    note: str = "",
) -> Trial:
    """Return a planned trial, the one at this place of its run."""
    return Trial(
        id=f"{place:03d}-{_safe(arm.name)}",
        case=case,
        preset="tiny",
        vendor="cpu",
        engine=arm.name,
        ranks=ranks,
        layout=arm.layout,
        dtype="fp32",
        seed=1234 + number,
        trial=number,
        purpose=purpose,
        protocol=protocol,
        settings={"model": {"dim": 256}, "note": note},
        metrics=list(metrics),
        threads=1,
        peak_flops=6.1e10,
    )


def carry_out(
    folder: Path,
    run: Run,
    arms: Sequence[Arm],
    *,
    noise: float = 0.004,
    fail: Sequence[str] = (),
    stop_before: str | None = None,
    telemetry: bool = True,
    hostile: str = "",
) -> None:
    """Write the directory of a run whose arms behave like these."""
    random = np.random.default_rng(7)
    clock = Clock()
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(run))
    behaviour = {(arm.name, str(arm.layout)): arm for arm in arms}
    with simulated(clock), Journal(folder / "harness.journal", {"role": "harness", "run": run.id}) as harness:
        for trial in run.trials:
            if trial.id == stop_before:
                harness.write(Key.INTERRUPTED)
                break
            arm = behaviour[trial.engine, str(trial.layout)]
            clock.pass_(1.5)
            harness.write(Key.TRIAL_START, {"id": trial.id})
            harness.write(Key.ENVIRONMENT, {"trial": trial.id, "when": "before", **environment(0.4, hostile)})
            began = clock.ns
            place = folder / "trials" / trial.id
            place.mkdir(parents=True)
            (place / "trial.json").write_bytes(msgspec.json.encode(trial))
            _ranks(place, trial, arm, clock, random, noise, killed=trial.id in fail, telemetry=telemetry)
            killed = [RankExit(rank=1, exit_code=-9)] if trial.id in fail else []
            if arm.error is not None:
                killed = [RankExit(rank=rank, exit_code=1) for rank in range(trial.ranks)]
            outcome = Outcome(status="failed" if killed else "finished", seconds=(clock.ns - began) / 1e9, exits=killed)
            harness.write(
                Key.ENVIRONMENT,
                {"trial": trial.id, "when": "after", **environment(1.9 if trial.trial == 1 else 1.2, hostile)},
            )
            harness.write(Key.TRIAL_STOP, {"id": trial.id, "outcome": msgspec.to_builtins(outcome)})


@contextmanager
def simulated(clock: Clock) -> Iterator[None]:
    """Let journals read this clock."""
    with mock.patch.object(journal, "time", clock):
        yield


@functools.cache
def _machine() -> Environment:
    return snapshot(Path.cwd(), window=0.01)


def environment(load: float, hostile: str = "") -> dict[str, Any]:
    """Return a snapshot of this machine, but for what other work on it would change."""
    busy = Foreign(pid=77, name=hostile or "updatedb", percent=34.0)
    seen = msgspec.structs.replace(
        _machine(),
        cores=2,
        packages={"torch": "2.13.0+cpu", "numpy": "2.4.0"},
        load=[load, 0.3, 0.2],
        foreign=[busy] if load > 1.8 else [],
        foreign_percent=34.0 if load > 1.8 else 0.5,
        steal_percent=0.1,
        throttled=None,
        memory_total=24 * 2**30,
        memory_available=20 * 2**30,
        swapped_pages=0,
    )
    found: dict[str, Any] = msgspec.to_builtins(seen)
    return found


def _ranks(
    place: Path,
    trial: Trial,
    arm: Arm,
    clock: Clock,
    random: np.random.Generator,
    noise: float,
    *,
    killed: bool,
    telemetry: bool,
) -> None:
    journals = [
        Journal(
            place / f"rank{rank}.journal",
            {"role": "rank", "trial": trial.id, "rank": rank, "world_size": trial.ranks},
        )
        for rank in range(trial.ranks)
    ]
    watch = Journal(place / "telemetry.journal", {"role": "telemetry"}) if telemetry else None
    protocol = trial.protocol
    share = protocol.global_batch // trial.ranks * 256
    pace = arm.step * (1 + noise * float(random.standard_normal()))
    noises = np.random.default_rng(trial.seed)
    clock.pass_(2.0)
    for log in journals:
        log.write(Key.INIT_START)
        if arm.error is not None:
            kind, message = arm.error
            log.write(Key.ERROR, {"kind": kind, "message": message, "traceback": ""})
            log.close()
            continue
        log.write(Key.BUILD, {"seconds": 0.4, "flops_per_token": 9.6e6, "hfu_factor": 1.0, "facts": {}})
        log.write(Key.PULSE, {"flops_per_second": 6.0e10, "when": "before"})
        log.write(Key.RUN_START, {})
    if arm.error is not None:
        if watch is not None:
            watch.close()
        return
    for step in range(protocol.warmup + protocol.steps):
        seconds = pace * (1 + abs(float(random.normal(0, 0.015)))) * (2.4 if step == 0 else 1.0)
        if random.random() < 0.04:
            seconds *= 1.25
        clock.pass_(seconds)
        loss = (3.2 + 5.8 * math.exp(-step / 9)) * (1 + 0.004 * float(noises.standard_normal())) * (1 + arm.loss_shift)
        for rank, log in enumerate(journals):
            if killed and rank == 1 and step == protocol.warmup + 7:
                log.close()
                for other in (*journals[:1], *journals[2:]):
                    other.close()
                if watch is not None:
                    watch.close()
                return
            log.write(
                Key.STEP,
                Step(
                    step=step,
                    measured=step >= protocol.warmup,
                    seconds=seconds,
                    data_seconds=0.002,
                    tokens=share,
                    loss=loss * (1 + 1e-5 * float(random.standard_normal())),
                    gradient_norm=1.0,
                    learning_rate=6e-4,
                ),
            )
            if step == 0:
                log.write(Key.FIRST_STEP, {"seconds": 3.1})
        if watch is not None and (step % 2 or seconds > 1) and step < 5000:
            busy = 92 + 6 * float(random.random())
            watch.write(
                Key.TELEMETRY,
                {
                    "tick": step,
                    "cpu_percent": busy,
                    "load": 1.6 + 0.02 * step,
                    "memory_used": (6 + 0.01 * step) * 2**30,
                },
            )
    for rank, log in enumerate(journals):
        peak = int((arm.allocated + rank) * 2**20)
        log.write(
            Key.MEMORY,
            Memory(peak_allocated=peak, peak_rss=peak + 420 * 2**20, pss=peak + 200 * 2**20, allocated_source="replay"),
        )
        if arm.held is not None:
            names = ("weights", "gradients", "optimizer", "host")
            state = {name: int(amount * 2**20) for name, amount in zip(names, arm.held, strict=True)}
            log.write(Key.HELD, {**state, "allocated": sum(state.values()) - state["host"]})
        if arm.communication is not None:
            whole, exposed = arm.communication
            log.write(
                Key.COMMUNICATION,
                {"steps": 2, "seconds": 0.5, "communication": whole, "exposed": exposed * (1 + 0.01 * trial.trial)},
            )
        log.write(
            Key.EVAL,
            {"loss": 3.31 * (1 + arm.loss_shift), "tokens": 4096, "bytes": 15_000, "seconds": 0.6, "step": 24},
        )
        log.write(Key.PULSE, {"flops_per_second": 5.9e10, "when": "after"})
        log.write(Key.TOKENS, {"fingerprint": f"{trial.seed + rank:032x}", "samples": 96})
        log.write(Key.RUN_STOP, {"status": "success"})
        log.close()
    if watch is not None:
        watch.write(
            Key.TELEMETRY_COST, {"cpu_seconds": 0.11, "wall_seconds": 12.0, "samples": 12, "missed": 0, "failed": 0}
        )
        watch.close()


def _safe(name: str) -> str:
    return "".join(letter for letter in name if letter.isalnum()) or "x"
