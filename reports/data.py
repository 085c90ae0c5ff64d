"""What a page is about: runs as they were read, reduced to what is shown. Only this file reads run directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flagperf.collect import survey
from flagperf.collect.compare import compare, labels
from flagperf.collect.contest import answers, sides, told
from flagperf.collect.devices import trial_devices
from flagperf.collect.inference import Served
from flagperf.collect.journals import HarnessJournal, RankJournal, Telemetry, read_harness
from flagperf.collect.resources import Span
from flagperf.collect.runs import read_run
from flagperf.collect.sweeps import compare_points
from flagperf.collect.training import Window, window
from flagperf.collect.trials import TrialRecord, read_trial
from flagperf.errors import UnknownName
from flagperf.metrics import catalogue
from flagperf.schema.contest import Arm, Contest, Question
from flagperf.schema.event import Key
from flagperf.schema.layout import Layout
from flagperf.schema.result import Comparison, ContestOutput, Result, SurveyOutput
from flagperf.schema.trial import Outcome, Run, Trial

from .points import Heard, SweepView, hear, view_of

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
    devices: list[int]
    """Indices of the devices that the ranks ran on, as telemetry counts them."""
    outcome: Outcome | None
    environment: dict[str, dict[str, Any]]
    heard: Heard | None = None
    """Of a sweep, what its ranks told."""
    served: Served | None = None
    """Of an inference trial, its queries."""

    @property
    def valid(self) -> bool:
        """Whether it counts."""
        return self.result.verdict == "valid"

    @property
    def span(self) -> Window | Span | None:
        """What was on the clock."""
        return self.window if self.served is None else self.served.span


@dataclass(frozen=True, kw_only=True)
class ContestView:
    """What a contest's group has beyond its trials."""

    contest: Contest
    sides: dict[Question, tuple[Arm | None, Arm | None]]
    """Candidate and baseline of each question."""
    names: dict[Arm, str]
    """What the page calls those that were planned to be measured."""
    searched: list[TrialView]
    """The short trials that looked for the best layouts."""
    answers: list[Comparison]
    """As `flagperf run --json` has them; the group's comparisons are these under the page's names."""
    output: ContestOutput

    def answer(self, question: Question, comparisons: list[Comparison]) -> dict[str, Comparison]:
        """Return what answers a question, by metric."""
        return {c.metric: c for c in comparisons if c.question == question}

    def pair(self, question: Question) -> tuple[str, str] | None:
        """Return the page's names of a question's sides, if both are measured."""
        candidate, baseline = self.sides.get(question, (None, None))
        if candidate is None or baseline is None or not {candidate, baseline} <= self.names.keys():
            return None
        return self.names[candidate], self.names[baseline]


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
    contest: ContestView | None = None
    sweep: SweepView | None = None
    """Of a sweep its points; the arms are its providers then, and its trials have none."""
    clients: SweepView | None = None
    """Of the scenario `concurrency` its numbers of clients as points, the engines being what sweeps call providers."""

    @property
    def first(self) -> Trial:
        """The trial that stands for what all share."""
        if self.trials or self.contest is None:
            return self.trials[0].trial
        # Nothing but the search has been planned yet; its protocol is shorter than the one that counts.
        return msgspec.structs.replace(self.contest.searched[0].trial, protocol=self.contest.contest.protocol)

    def of(self, arm: str, *, valid: bool = True) -> list[TrialView]:
        """Return an arm's trials, by default those that count."""
        return [view for view in self.trials if view.arm == arm and (view.valid or not valid)]

    def compared(self, candidate: str) -> dict[str, Comparison]:
        """Return a candidate's comparisons with the baseline, by metric."""
        return {c.metric: c for c in self.comparisons if (c.candidate, c.baseline) == (candidate, self.baseline)}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run with its groups."""

    folder: Path
    run: Run
    groups: list[Group]
    harness: HarnessJournal
    carried_out: int = field(default=0)
    """Trials that were started."""
    survey: SurveyOutput | None = None


def load(folder: Path, index: int = 0, progress: Progress | None = None) -> RunView:
    """Read a run; raise FlagPerfError for a folder that is none."""
    run = read_run(folder)
    harness = read_harness(folder)
    views: list[TrialView] = []
    for number, trial in enumerate(run.trials):
        if progress is not None:
            progress(f"reading {run.id}", number / len(run.trials))
        views.append(_view(read_trial(folder, run, trial, harness), harness))
    # A survey's search is told of apart; its measured trials differ in ranks and batches.
    shown = [view for view in views if run.survey is None or view.trial.purpose == "measure"]
    keys = [_alike(view.trial) for view in shown]
    groups = [
        _group(f"r{index}g{number}", run, [view for view, own in zip(shown, keys, strict=True) if own == key])
        for number, key in enumerate(dict.fromkeys(keys))
    ]
    started = sum(1 for view in views if view.trial.id in harness.started or view.memory or view.steps is not None)
    told_of = survey.told(run, [view.result for view in views], _curves(views))
    return RunView(folder=folder, run=run, groups=groups, harness=harness, carried_out=started, survey=told_of)


def _alike(trial: Trial) -> tuple[object, ...]:
    """Return what trials of a group have in common."""
    return (
        *(trial.case, trial.preset, trial.scenario, trial.scale, trial.dtype, trial.ranks, trial.vendor),
        trial.protocol.global_batch,
    )


def _curves(views: list[TrialView]) -> dict[tuple[str, str], dict[int, float]]:
    """Return the measured trials' training losses by step."""
    return {
        (view.result.run, view.result.id): dict(
            zip(map(int, view.steps.step), map(float, view.steps.loss), strict=True)
        )
        for view in views
        if view.steps is not None and view.trial.purpose == "measure"
    }


def _view(record: TrialRecord, harness: HarnessJournal) -> TrialView:
    every = [_all_measured(rank) for rank in record.ranks]
    return TrialView(
        trial=record.trial,
        result=record.result,
        steps=window(every),
        window=window(record.ranks),
        memory=[memory for rank in record.ranks if (memory := rank.last(Key.MEMORY))],
        telemetry=record.telemetry,
        devices=trial_devices(record.ranks, record.telemetry),
        outcome=harness.outcomes.get(record.trial.id),
        environment=harness.environments.get(record.trial.id, {}),
        heard=hear(record),
        served=record.served,
    )


def _all_measured(rank: RankJournal) -> RankJournal:
    """Return the rank with warm-up taken for measured, so that it is reduced over ranks in the same way."""
    steps = dataclasses.replace(rank.steps, measured=np.ones(len(rank.steps), np.bool_))
    return dataclasses.replace(rank, steps=steps)


def _group(name: str, run: Run, every: list[TrialView]) -> Group:
    trials = [view for view in every if view.trial.purpose == "measure"]
    arms = list(dict.fromkeys((view.result.engine, view.result.layout) for view in trials))
    called = dict(zip(arms, labels(arms), strict=True))
    if run.contest is not None:
        return _contested(name, run, run.contest, every, called)
    if trials and trials[0].trial.swept:
        return _swept(name, run, trials)
    group, results = _named(name, run, trials, called), [view.result for view in trials]
    if trials and trials[0].trial.scenario == "concurrency":
        group = dataclasses.replace(group, clients=view_of(trials[0].trial, results, []))
    if len(arms) < 2:
        return group
    try:
        baseline = compare(results, run.baseline, metrics=["step_time"])[0].baseline
    except UnknownName:  # the run's baseline isn't among these: the first takes its place
        baseline = group.arms[0]
    group = dataclasses.replace(group, baseline=baseline, arms=sorted(group.arms, key=lambda arm: arm != baseline))
    return dataclasses.replace(group, comparisons=compare(results, baseline, curves=_worst_steps(group, [baseline])))


def _swept(name: str, run: Run, trials: list[TrialView]) -> Group:
    """Return the group of one sweep's trials: what is compared in it are its providers."""
    sweep = view_of(trials[0].trial, [view.result for view in trials], [view.heard for view in trials])
    results = [view.result for view in trials]
    arms, found = sweep.sweep.providers, compare_points(results)
    return Group(id=name, run=run, trials=trials, arms=arms, baseline=arms[0], comparisons=found, sweep=sweep)


def _named(name: str, run: Run, trials: list[TrialView], names: dict[tuple[str, str], str]) -> Group:
    """Return a group of trials under their arms' names, with nothing compared yet."""
    views = [dataclasses.replace(v, arm=names[v.result.engine, v.result.layout]) for v in trials]
    return Group(id=name, run=run, trials=views, arms=list(names.values()), baseline=None, comparisons=[])


def _contested(
    name: str, run: Run, contest: Contest, every: list[TrialView], called: dict[tuple[str, str], str]
) -> Group:
    """Return the group with what answers its contest's questions; `called` has the collector's names of arms."""
    trials = [view for view in every if view.trial.purpose == "measure"]
    names = _readable(contest, list(dict.fromkeys(Arm(v.trial.engine, v.trial.layout) for v in trials)))
    group = _named(name, run, trials, {(arm.engine, str(arm.layout)): own for arm, own in names.items()})
    baseline = names.get(contest.baseline)
    group = dataclasses.replace(group, baseline=baseline, arms=sorted(group.arms, key=lambda arm: arm != baseline))
    results = [view.result for view in every]
    found = answers(run, results, contest, _worst_steps(group, group.arms))
    output = told(run, results, found)
    assert output is not None, "the run has a contest"
    view = ContestView(
        contest=contest,
        sides=sides(contest, results),
        names=names,
        searched=[view for view in every if view.trial.purpose == "search"],
        answers=found,
        output=output,
    )
    own = {called[arm.engine, str(arm.layout)]: name for arm, name in names.items()}
    renamed = [
        msgspec.structs.replace(
            each, candidate=own.get(each.candidate, each.candidate), baseline=own.get(each.baseline, each.baseline)
        )
        for each in found
    ]
    return dataclasses.replace(group, comparisons=renamed, contest=view)


def _readable(contest: Contest, arms: list[Arm]) -> dict[Arm, str]:
    """Return short names: an engine's own where the contest named it once, with what is different for its others."""
    named = {contest.candidate, contest.baseline}
    names: dict[Arm, str] = {}
    for arm in arms:
        own = [other for other in arms if other.engine == arm.engine]
        standards = [other for other in named if other.engine == arm.engine]
        others = standards if len(standards) == 1 else own
        differing = [
            key
            for key in Layout.__struct_fields__
            if any(getattr(arm.layout, key) != getattr(other.layout, key) for other in others)
        ]
        values = {key: getattr(arm.layout, key) for key in differing}
        shown = ",".join(f"{key}={'auto' if value is None else int(value)}" for key, value in values.items())
        names[arm] = f"{arm.engine}:{shown}" if shown else arm.engine
    return names


def _worst_steps(group: Group, baselines: list[str]) -> dict[tuple[str, str], dict[int, float]]:
    """Return the losses of the steps at which pairs differ most: all that the comparison needs of their curves."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for difference in (each for baseline in baselines for each in loss_differences(group, baseline)):
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
    baseline: str
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


def loss_differences(group: Group, baseline: str | None = None) -> list[LossDifference]:
    """Return the differences of all valid pairs from the group's baseline, or another arm."""
    baseline = baseline or group.baseline
    if baseline is None:
        return []
    base = {(v.trial.trial, v.trial.seed): v for v in group.of(baseline) if v.steps is not None}
    found = []
    for arm in group.arms:
        for view in group.of(arm):
            other = base.get((view.trial.trial, view.trial.seed))
            if arm == baseline or other is None or view.steps is None or other.steps is None:
                continue
            step, mine, its = np.intersect1d(view.steps.step, other.steps.step, return_indices=True)
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = view.steps.loss[mine] / other.steps.loss[its] - 1
            kept = np.isfinite(relative)
            if kept.any():
                found.append(
                    LossDifference(
                        arm=arm,
                        baseline=baseline,
                        trial=view.trial.trial,
                        pair=(view, other),
                        step=step[kept],
                        relative=relative[kept],
                    )
                )
    return found
