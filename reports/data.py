"""What a page is about: runs as they were read, reduced to what is shown. Only this file reads run directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flagperf.collect.compare import compare, labels
from flagperf.collect.journals import HarnessJournal, RankJournal, Telemetry, read_harness
from flagperf.collect.runs import read_run
from flagperf.collect.training import Window, window
from flagperf.collect.trials import TrialRecord, read_trial
from flagperf.errors import UnknownName
from flagperf.metrics import catalogue
from flagperf.schema.event import Key
from flagperf.schema.result import Comparison, Result
from flagperf.schema.trial import Outcome, Run, Trial

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class TrialView:
    """A trial as the page shows it."""

    trial: Trial
    result: Result
    arm: str = ""
    """What it is called among the trials it is compared with."""
    steps: Window | None
    """All steps the ranks have in common, warm-up included."""
    window: Window | None
    """The measured ones."""
    memory: list[dict[str, Any]]
    """What each rank told of its memory."""
    telemetry: Telemetry
    outcome: Outcome | None
    environment: dict[str, dict[str, Any]]

    @property
    def valid(self) -> bool:
        """Whether it counts."""
        return self.result.verdict == "valid"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials of one run that may be compared: same case, preset, data type, ranks and vendor."""

    id: str
    run: Run
    trials: list[TrialView]
    arms: list[str]
    """The baseline first, if it is here, then in the order of the plan."""
    baseline: str | None
    comparisons: list[Comparison]

    @property
    def first(self) -> Trial:
        """The trial that stands for what all share."""
        return self.trials[0].trial

    def of(self, arm: str, *, valid: bool = True) -> list[TrialView]:
        """Return an arm's trials, by default those that count."""
        return [view for view in self.trials if view.arm == arm and (view.valid or not valid)]

    def compared(self, candidate: str) -> dict[str, Comparison]:
        """Return a candidate's comparisons by metric."""
        return {c.metric: c for c in self.comparisons if c.candidate == candidate}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run with its groups."""

    folder: Path
    run: Run
    groups: list[Group]
    harness: HarnessJournal
    carried_out: int = field(default=0)
    """Trials that were started."""


def load(folder: Path, index: int = 0, progress: Progress | None = None) -> RunView:
    """Read a run; raise FlagPerfError for a folder that is none."""
    run = read_run(folder)
    harness = read_harness(folder)
    views: list[TrialView] = []
    for number, trial in enumerate(run.trials):
        if progress is not None:
            progress(f"reading {run.id}", number / len(run.trials))
        views.append(_view(read_trial(folder, run, trial, harness), harness))
    keys = [(v.trial.case, v.trial.preset, v.trial.dtype, v.trial.ranks, v.trial.vendor) for v in views]
    groups = [
        _group(f"r{index}g{number}", run, [view for view, own in zip(views, keys, strict=True) if own == key])
        for number, key in enumerate(dict.fromkeys(keys))
    ]
    started = sum(1 for view in views if view.trial.id in harness.started or view.memory or view.steps is not None)
    return RunView(folder=folder, run=run, groups=groups, harness=harness, carried_out=started)


def _view(record: TrialRecord, harness: HarnessJournal) -> TrialView:
    every = [_all_measured(rank) for rank in record.ranks]
    return TrialView(
        trial=record.trial,
        result=record.result,
        steps=window(every),
        window=window(record.ranks),
        memory=[memory for rank in record.ranks if (memory := rank.last(Key.MEMORY))],
        telemetry=record.telemetry,
        outcome=harness.outcomes.get(record.trial.id),
        environment=harness.environments.get(record.trial.id, {}),
    )


def _all_measured(rank: RankJournal) -> RankJournal:
    """Return the rank with warm-up taken for measured, so that it is reduced over ranks in the same way."""
    steps = dataclasses.replace(rank.steps, measured=np.ones(len(rank.steps), np.bool_))
    return dataclasses.replace(rank, steps=steps)


def _group(name: str, run: Run, trials: list[TrialView]) -> Group:
    keys = [(view.result.engine, view.result.layout) for view in trials]
    distinct = list(dict.fromkeys(keys))
    names = dict(zip(distinct, labels(distinct), strict=True))
    trials = [dataclasses.replace(view, arm=names[key]) for view, key in zip(trials, keys, strict=True)]
    group = Group(id=name, run=run, trials=trials, arms=list(names.values()), baseline=None, comparisons=[])
    if len(distinct) < 2:
        return group
    results = [view.result for view in trials]
    try:
        baseline = compare(results, run.baseline, metrics=["step_time"])[0].baseline
    except UnknownName:  # the run's baseline isn't among these: the first takes its place
        baseline = group.arms[0]
    group = dataclasses.replace(group, baseline=baseline, arms=sorted(group.arms, key=lambda arm: arm != baseline))
    return dataclasses.replace(group, comparisons=compare(results, baseline, curves=_worst_steps(group)))


def _worst_steps(group: Group) -> dict[tuple[str, str], dict[int, float]]:
    """Return the losses of the steps at which pairs differ most: all that the comparison needs of their curves."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for difference in loss_differences(group):
        worst = difference.step[int(np.argmax(np.abs(difference.relative)))]
        for view in difference.pair:
            if view.steps is not None:
                loss = float(view.steps.loss[np.searchsorted(view.steps.step, worst)])
                curves.setdefault((view.result.run, view.result.id), {})[int(worst)] = loss
    return curves


def leading_metric(group: Group) -> str | None:
    """Return the metric that tells the verdict: the first of the case's that is compared."""
    measured = {name for view in group.trials if view.valid for name in view.result.metrics}
    known = catalogue()
    names = [name for name in group.first.metrics or sorted(measured) if name in measured]
    return next((n for n in names if n in known and known[n].compared), names[0] if names else None)


@dataclass(frozen=True, kw_only=True)
class LossDifference:
    """How far a candidate's losses are from the baseline's, for one pair of trials with the same seed."""

    arm: str
    trial: int
    pair: tuple[TrialView, TrialView]
    """The candidate's trial and the baseline's."""
    step: Floats
    relative: Floats
    """(candidate − baseline) ÷ baseline."""

    @property
    def largest(self) -> float:
        """The largest relative difference of a step."""
        return float(np.max(np.abs(self.relative))) if len(self.relative) else 0.0


def loss_differences(group: Group) -> list[LossDifference]:
    """Return the differences of all valid pairs."""
    if group.baseline is None:
        return []
    base = {(v.trial.trial, v.trial.seed): v for v in group.of(group.baseline) if v.steps is not None}
    found = []
    for arm in group.arms:
        for view in group.of(arm):
            other = base.get((view.trial.trial, view.trial.seed))
            if arm == group.baseline or other is None or view.steps is None or other.steps is None:
                continue
            step, mine, its = np.intersect1d(view.steps.step, other.steps.step, return_indices=True)
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = view.steps.loss[mine] / other.steps.loss[its] - 1
            kept = np.isfinite(relative)
            if kept.any():
                found.append(
                    LossDifference(
                        arm=arm,
                        trial=view.trial.trial,
                        pair=(view, other),
                        step=step[kept],
                        relative=relative[kept],
                    )
                )
    return found
