"""Runs of contests for the tests of reports: what is tried is decided by the planner's own rules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from flagperf.schema.contest import Arm, Claim, Contest, Ladder
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.trial import Run

NAMED = "bmtrain", "megatron-deepspeed"
METRICS = [
    *("tokens_per_second", "step_time", "communication_time", "communication_exposed", "communication_exposed_share"),
    *("memory_peak_allocated", "memory_weights", "memory_gradients", "memory_optimizer", "memory_activations"),
    *("memory_offloaded", "loss_final", "loss_validation"),
]
OUT_OF_MEMORY = "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"


def _runs() -> ModuleType:
    """Load the module beside this one, as conftest.py does."""
    if "reports_runs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("reports_runs", Path(__file__).with_name("runs.py"))
        assert spec is not None and spec.loader is not None
        sys.modules["reports_runs"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["reports_runs"])
    return sys.modules["reports_runs"]


CANDIDATE = Layout(zero=3, micro=4)
BASELINE = Layout(zero=2, micro=4)
WITHOUT = msgspec.structs.replace(CANDIDATE, overlap=False)
BIGGER = msgspec.structs.replace(CANDIDATE, micro=8)
LEANER = msgspec.structs.replace(BASELINE, micro=2)


def claim(**changes: Any) -> Claim:
    """Return a published claim."""
    fields: dict[str, Any] = {
        "title": "Eight times the efficiency",
        "title_zh": "效率的 8 倍",
        "question": "best",
        "candidate": NAMED[0],
        "baseline": NAMED[1],
        "low": 8.0,
        "source": "Slides, page 9",
        "note": "No set-up is stated.",
        "note_zh": "未说明测试环境。",
    }
    return Claim(**{**fields, **changes})


CLAIMS = (
    claim(),
    claim(title="The same batch", title_zh="相同批次", question="equal", low=1.06, high=1.62),
    claim(title="Overlap", title_zh="重叠", question="overlap", baseline=NAMED[0], low=1.1, note="", note_zh=""),
)


def arm(name: str, layout: Layout, step: float, **more: Any) -> Any:
    """Return how a layout behaves, with memory that is split and communication."""
    given = {"allocated": 300.0, "held": (60.0, 60.0, 120.0, 0.0), "communication": (0.2, 0.1), **more}
    return _runs().Arm(name=name, layout=layout, step=step, **given)


def usual(candidate: float = 0.4, baseline: float = 0.6, **more: Any) -> list[Any]:
    """Return arms of which the candidate is so fast, and larger micro-batches and overlap make it faster."""
    lean = {"allocated": 200.0, "held": (20.0, 20.0, 40.0, 12.0)}
    return [
        arm(NAMED[0], CANDIDATE, candidate, **{**lean, **more}),
        arm(NAMED[0], WITHOUT, candidate * 1.12, communication=(0.2, 0.2), **{**lean, **more}),
        arm(NAMED[0], BIGGER, candidate * 0.9, **{**lean, **more, "allocated": 260.0}),
        arm(NAMED[1], BASELINE, baseline),
        arm(NAMED[1], LEANER, baseline * 1.2, allocated=280.0),
    ]


def make_contest(
    folder: Path,
    arms: Sequence[Any] | None = None,
    *,
    ladders: Sequence[tuple[str, Sequence[Layout]]] = (
        (NAMED[0], (BIGGER,)),
        (NAMED[0], (CANDIDATE,)),
        (NAMED[1], (BASELINE, LEANER)),
    ),
    without: Layout | None = WITHOUT,
    claims: Sequence[Claim] = CLAIMS,
    budget: int | None = None,
    trials: int = 3,
    noise: float = 0.004,
    title: str = "BMTrain against Megatron + DeepSpeed",
    measured: bool = True,
    **more: Any,
) -> Path:
    """Write a contest's run. Its search is planned by the rules of flagperf.plan.contests, from what arms do."""
    from flagperf.collect.contest import tried
    from flagperf.collect.trials import read_trial
    from flagperf.plan.contests import further

    runs = _runs()
    every = usual() if arms is None else list(arms)
    known = {(each.name, str(each.layout)): each for each in every}
    protocol = Protocol(warmup=4, steps=20, trials=trials, seed=1234, validation=32, global_batch=8)
    short = msgspec.structs.replace(protocol, warmup=2, steps=9, trials=1)
    contest = Contest(
        name="aquila/bmtrain-vs-megatron" if title else "",
        title=title,
        title_zh="BMTrain 对比 Megatron" if title else "",
        candidate=Arm(NAMED[0], CANDIDATE),
        baseline=Arm(NAMED[1], BASELINE),
        without_overlap=None if without is None else Arm(NAMED[0], without),
        protocol=protocol,
        ladders=[Ladder(engine=engine, rungs=list(rungs)) for engine, rungs in ladders],
        memory_budget=budget,
        claims=list(claims),
    )
    note = str(more.get("hostile", ""))

    def planned(place: int, own: Arm, number: int, purpose: Any) -> Any:
        behaviour = known[own.engine, str(own.layout)]
        rules = short if purpose == "search" else protocol
        return runs.trial(place, behaviour, rules, number, purpose=purpose, metrics=METRICS, note=note)

    first = [Arm(ladder.engine, ladder.rungs[0]) for ladder in contest.ladders]
    trials_ = [planned(place, own, 0, "search") for place, own in enumerate(first)]
    run = Run(
        id="20261121-220000-contest",
        created="2026-11-21T22:00:00+00:00",
        command=["flagperf", "run", "aquila/bmtrain-vs-megatron"],
        flagperf="1.0.0",
        commit="0123abc",
        launcher="local",
        trials=trials_,
        baseline=str(contest.baseline),
        contest=contest,
    )
    if not contest.ladders:
        arms_ = contest.arms
        rounds = [planned(n * len(arms_) + i, own, n, "measure") for n in range(trials) for i, own in enumerate(arms_)]
        run = msgspec.structs.replace(run, trials=rounds)
    # Carried out again and again, until nothing follows from what was found.
    for attempt in range(20):
        place = folder if attempt == 0 else folder.with_name(f"{folder.name}-{attempt}")
        runs.carry_out(place, run, every, noise=noise, **more)
        results = [read_trial(place, run, trial).result for trial in run.trials]
        following = further(run, results)
        if not following or (not measured and any(trial.purpose == "measure" for trial in following)):
            return place
        run = msgspec.structs.replace(run, trials=[*run.trials, *following])
    raise AssertionError(f"The search doesn't end: {[tried(contest, ladder, results) for ladder in contest.ladders]}")
