"""Runs of made-up sweeps, written by the real Journal class: for the tests of what readers see of points."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from collect import runs

from flagperf.journal import Journal
from flagperf.schema.event import Key
from flagperf.schema.layout import Layout
from flagperf.schema.sweep import Accuracy, At, Label, Roofs, Samples
from flagperf.schema.trial import Outcome, Run, Trial

AXES: dict[str, list[Label]] = {"dtype": ["fp32", "bf16"], "causal": [True, False], "seq": [128, 512, 2048]}
METRICS = ["flops_rate", "kernel_time", "kernel_memory", "error_absolute", "error_relative", "roofline_share"]
RIGHT = Accuracy(max_absolute=1e-6, max_relative=2e-6, absolute=1e-5, relative=1e-4, wrong=0, elements=64)
WRONG = msgspec.structs.replace(RIGHT, max_absolute=0.5, max_relative=1.0, wrong=3)
SPEEDS = {"naive": 1.0, "math": 1.01, "flash": 0.4}
"""Time of a call against the baseline's."""

Behaviour = Callable[[str, At, int], dict[str, Any]]
"""What is to change in the samples of a provider at a point in a trial."""


def attention(provider: str, at: At, trial: int) -> dict[str, Any]:
    """Times, FLOPs, bytes and memory as attention has them: a rate that grows with the sequence."""
    seq, size = int(at.get("seq", 128)), 2 if at.get("dtype") == "bf16" else 4
    flops, moved = 4.0 * 4 * 64 * seq * seq / (2 if at.get("causal") else 1), 4.0 * 4 * 64 * seq * size
    seconds = (20e-6 + flops / (6e10 * (2 if size == 2 else 1))) * SPEEDS.get(provider, 1.0)
    memory = int(4 * 64 * seq * size + (0 if provider == "flash" else 2 * 4 * seq * seq * size))
    noise = np.random.default_rng([trial, seq, size, *map(ord, provider)]).normal(0, 0.01, 12)
    return {"seconds": (seconds * np.exp(noise)).tolist(), "flops": flops, "bytes": moved, "memory": memory}


def trial(number: int = 0, providers: Sequence[str] = tuple(SPEEDS), **changes: Any) -> Trial:
    """A trial of a kernel case."""
    case = changes.get("case", "attention/forward")
    usual: dict[str, Any] = {
        "id": f"{number:03d}-{case.replace('/', '-')}",
        "case": case,
        "kind": "kernel",
        "engine": "+".join(providers),
        "ranks": 1,
        "layout": Layout(),
        "dtype": "fp32+bf16",
        "metrics": METRICS,
        "peak_flops": None,
        "protocol": runs.protocol(warmup=2, steps=10, seconds=0.1, region="Calls of one provider."),
    }
    return runs.trial(**(usual | changes))


def write(
    folder: Path,
    trials: Sequence[Trial] | None = None,
    axes: Mapping[str, Sequence[Label]] = AXES,
    behaviour: Behaviour = lambda provider, at, trial: {},
    *,
    base: Behaviour = attention,
    roofs: Roofs | None = Roofs(flops={"fp32": 7e10, "bf16": 1.4e11}, bandwidth=1e10),  # noqa: B008
    name: str = "swept",
    **changes: Any,
) -> Path:
    """Write a run of sweeps; `behaviour` changes what `base` measures, other axes than the usual ones likewise."""
    planned = list(trials or [trial()])
    plan: Run = runs.run(planned, name=name, baseline=planned[0].providers[0], **changes)
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(plan))
    points: list[At] = [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())]
    with Journal(folder / "harness.journal", {"role": "harness", "run": plan.id}) as harness:
        for each in planned:
            place = folder / "trials" / each.id
            place.mkdir(parents=True)
            (place / "trial.json").write_bytes(msgspec.json.encode(each))
            harness.write(Key.TRIAL_START, {"id": each.id})
            harness.write(Key.ENVIRONMENT, {"trial": each.id, "when": "before", **runs.environment()})
            with Journal(place / "telemetry.journal", {"role": "telemetry"}) as telemetry:
                telemetry.write(Key.TELEMETRY, {"tick": 1, "cpu_percent": 50.0})
            for rank in range(each.ranks):
                header = {"role": "rank", "trial": each.id, "rank": rank, "world_size": each.ranks}
                with Journal(place / f"rank{rank}.journal", header) as journal:
                    journal.write(Key.RUN_START)
                    journal.write(Key.SWEEP, {"points": len(points), "providers": each.providers})
                    if roofs is not None:
                        journal.write(Key.ROOFS, roofs)
                    for at, provider in itertools.product(points, each.providers):
                        usual = {"accuracy": RIGHT, "first": 0.5, "uncertainty": 1e-7, **base(provider, at, each.trial)}
                        told = usual | behaviour(provider, at, each.trial)
                        journal.write(Key.SAMPLES, Samples(**{"at": at, "provider": provider, **told}))
                    journal.write(Key.RUN_STOP, {"status": "success"})
            harness.write(Key.ENVIRONMENT, {"trial": each.id, "when": "after", **runs.environment()})
            ended = Outcome(status="finished", seconds=12.0)
            harness.write(Key.TRIAL_STOP, {"id": each.id, "outcome": msgspec.to_builtins(ended)})
    return folder


def troubled(provider: str, at: At, trial: int) -> dict[str, Any]:
    """Everything that a point can be but valid."""
    if provider == "flash" and at["dtype"] == "bf16" and at["seq"] == 2048:
        return {"accuracy": WRONG, "verdict": "wrong", "why": "3 of 64 elements are outside the tolerance"}
    if provider == "math" and at["seq"] == 2048:
        return {"seconds": [], "accuracy": None, "verdict": "too big", "why": "its scores need 9.1 GiB, there are 2"}
    if provider == "math" and at["dtype"] == "bf16":
        return {"seconds": [], "accuracy": None, "verdict": "unsupported", "why": "no bf16 on [this] device"}
    return {}
