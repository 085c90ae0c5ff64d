"""Sweeps over their trials: what each provider did at each point, as rows of a table, and against other runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from flagperf.collect.clients import compare_clients, usual
from flagperf.collect.compare import environments
from flagperf.collect.journals import read_rank
from flagperf.collect.runs import read_run
from flagperf.collect.sweeps import compare_points, shown, sweep_points
from flagperf.errors import UnknownName
from flagperf.metrics import catalogue, metric
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Comparison, Reason, Result
from flagperf.schema.sweep import At, Bound, Label, Point, PointVerdict, Rated
from flagperf.statistics import compare_groups, trial_interval

SPEED = "kernel_speed"
"""The metric under which a provider stands against the baseline."""
_OF_TRIAL = ("run", "id", "case", "preset", "scenario", "vendor", "ranks", "trial")
_SEVERITY: tuple[PointVerdict, ...] = ("valid", "unsupported", "too big", "failed", "wrong")
"""What one trial says of a point counts for all, the worst of them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One provider at one point, over the trials of a sweep."""

    at: At
    provider: str
    verdict: PointVerdict
    why: str
    metrics: dict[str, MetricValue]
    """Of a trial its own; over several the median, with the interval of their mean."""
    bound: Bound
    speedup: Comparison | None
    rated: Rated | None
    facts: dict[str, Any]

    @property
    def valid(self) -> bool:
        """Whether its numbers count."""
        return self.verdict == "valid"

    def value(self, name: str) -> float | None:
        """Return a metric's value, if it was measured and counts."""
        return self.metrics[name].value if self.valid and name in self.metrics else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A case's points over the trials of one run."""

    first: Result
    """What stands for all that its trials share."""
    trials: int
    providers: list[str]
    """The baseline first."""
    axes: dict[str, list[Label]]
    """Those that have several values, in the order they are measured."""
    fixed: At
    """Those that have one."""
    points: dict[str, At]
    """In the order they are measured, by name."""
    cells: dict[tuple[str, str], Cell]
    """By provider and point."""

    @property
    def baseline(self) -> str:
        """The provider that others are compared with."""
        return self.providers[0]

    @property
    def leading(self) -> str:
        """The metric that tells most: the case's first that any point has."""
        named = [*(self.first.facts.get("metrics") or []), *self.first.metrics, "kernel_time"]
        seen = dict.fromkeys(name for cell in self.cells.values() if cell.valid for name in cell.metrics)
        return next((name for name in named if name in seen), next(iter(seen), "kernel_time"))

    def label(self, at: At) -> str:
        """Return a point by what tells it from the others."""
        return shown({axis: value for axis, value in at.items() if axis in self.axes}) or shown(at) or "one point"

    def row(self, point: str) -> list[Cell]:
        """Return what is known of a point, in the order of providers."""
        return [self.cells[name, point] for name in self.providers if (name, point) in self.cells]


def sweeps(results: Iterable[Result]) -> list[Sweep]:
    """Return the sweeps that these results are trials of, each run's apart.

    Trials of engines under numbers of clients are one sweep, in which the engines are what sweeps call providers.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        if result.points:
            key = (result.run, *_alike(result), "" if result.scenario else result.engine)
            groups.setdefault(key, []).append(result)
    return [sweep_of(group) for group in groups.values()]


def _alike(result: Result) -> tuple[Any, ...]:
    settings = result.facts.get("settings_digest")
    return (result.case, result.preset, result.scenario, result.dtype, result.vendor, result.ranks, settings)


def sweep_of(results: Sequence[Result]) -> Sweep:
    """Return the sweep that these results are trials of; of trials without a point one without points."""
    found: dict[tuple[str, str], list[Point]] = {}
    points: dict[str, At] = {}
    for point in (point for result in results for point in result.points):
        name = shown(point.at)
        points.setdefault(name, point.at)
        found.setdefault((point.provider, name), []).append(point)
    told = compare_clients(results, metrics=usual(results)[:1]) if results[0].scenario else compare_points(results)
    speeds = {(c.candidate, shown(c.at)): c for c in told if c.at is not None}
    axes: dict[str, list[Label]] = {}
    for at in points.values():
        for axis, value in at.items():
            if value not in axes.setdefault(axis, []):
                axes[axis].append(value)
    common = {axis for axis in axes if all(axis in at for at in points.values())}
    fixed = {axis: values[0] for axis, values in axes.items() if len(values) == 1 and axis in common}
    return Sweep(
        first=results[0],
        trials=len(results),
        providers=list(dict.fromkeys([*results[0].engine.split("+"), *(name for name, _ in found)])),
        axes={axis: values for axis, values in axes.items() if axis not in fixed},
        fixed=fixed,
        points=points,
        cells={key: _cell(several, speeds.get(key)) for key, several in found.items()},
    )


def _cell(points: Sequence[Point], speedup: Comparison | None) -> Cell:
    worst = max(points, key=lambda point: _SEVERITY.index(point.verdict))
    same = [point for point in points if point.verdict == worst.verdict]
    names = dict.fromkeys(name for point in same for name in point.metrics)
    return Cell(
        at=worst.at,
        provider=worst.provider,
        verdict=worst.verdict,
        why=worst.why,
        metrics={name: _over_trials([p.metrics[name] for p in same if name in p.metrics]) for name in names},
        bound=worst.bound,
        speedup=speedup if worst.verdict == "valid" else None,
        rated=worst.rated,
        facts=worst.facts,
    )


def _over_trials(values: Sequence[MetricValue]) -> MetricValue:
    if len(values) == 1:
        return values[0]
    low, high = trial_interval([each.value for each in values]) or (None, None)
    middle = median(each.value for each in values)
    return msgspec.structs.replace(values[0], value=middle, n=len(values), low=low, high=high)


def by_reason(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return cells together that have the same reason for their verdict, the most frequent first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.why, []).append(cell)
    return sorted(groups.values(), key=len, reverse=True)


def point_rows(result: Result) -> list[dict[str, Any]]:
    """Return a trial's points as rows of the table `points`: one a metric, or one without where there is none."""
    rows = []
    for point in result.points:
        head = {
            **{name: getattr(result, name) for name in _OF_TRIAL},
            "point": msgspec.json.encode(point.at).decode(),
            **{name: getattr(point, name) for name in ("provider", "verdict", "why", "bound")},
        }
        values = dict(point.metrics)
        if point.speedup is not None and point.speedup.ratio is not None:
            told = point.speedup
            values[SPEED] = MetricValue(
                value=point.speedup.ratio,
                unit="ratio",
                direction="higher",
                n=told.pairs,
                low=told.low,
                high=told.high,
            )
        own = [
            {"metric": name, **{field: getattr(value, field) for field in MetricValue.__struct_fields__}}
            for name, value in values.items()
        ]
        rows += [head | each for each in own or [dict.fromkeys(("metric", *MetricValue.__struct_fields__))]]
    return rows


def compare_providers(runs: Mapping[Path, Sequence[Result]], baseline: str | None = None) -> list[Comparison]:
    """Compare the providers of each run's sweeps with the first of them, or with another.

    Raises UnknownName for a baseline that no sweep has, where there is nothing but sweeps.
    """
    everything = [result for results in runs.values() for result in results]
    if baseline is None:
        return compare_points(everything)
    found = [result for folder, results in runs.items() for result in _turned(folder, results, baseline)]
    if not found and everything and all(result.swept for result in everything):
        named = {name for result in everything for name in result.engine.split("+")}
        raise UnknownName("provider of these results", baseline, named)
    return compare_points(found)


def _turned(folder: Path, results: Sequence[Result], baseline: str) -> list[Result]:
    """Return a run's sweeps with another provider as the baseline, from their journals; those that have it."""
    found = []
    trials = {trial.id: trial for trial in read_run(folder).trials if trial.swept and baseline in trial.providers}
    for result in results:
        trial = trials.get(result.id)
        if trial is None:
            continue
        engine = "+".join([baseline, *(name for name in trial.providers if name != baseline)])
        trial = msgspec.structs.replace(trial, engine=engine)
        place = folder / "trials" / trial.id
        ranks = [read_rank(place / f"rank{rank}.journal", rank) for rank in range(trial.ranks)]
        found.append(msgspec.structs.replace(result, engine=engine, points=sweep_points(trial, ranks)))
    return found


def compare_sweeps(
    candidate: Sequence[Result], baseline: Sequence[Result], metrics: Sequence[str] | None = None
) -> list[Comparison]:
    """Compare one run's points with the same points of another, provider by provider, a value a trial.

    Runs aren't interleaved, so their trials are groups, not pairs; with one trial there is a ratio and no interval.
    Compares the case's leading metric unless others are asked for.
    """
    theirs = _by_case(baseline)
    found: list[Comparison] = []
    for key, ours in _by_case(candidate).items():
        if key in theirs:
            found += _points_of_both(ours, theirs[key], metrics)
    return found


def _by_case(results: Sequence[Result]) -> dict[tuple[Any, ...], list[Result]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        if result.points:
            groups.setdefault(_alike(result), []).append(result)
    return groups


def _points_of_both(
    ours: Sequence[Result], theirs: Sequence[Result], metrics: Sequence[str] | None
) -> Iterable[Comparison]:
    first = sweep_of(theirs)
    names = [metric(name).name for name in metrics] if metrics else [first.leading]
    notes = [
        Reason("not_interleaved", "Runs weren't interleaved: a drift of the machine counts as a difference."),
        *environments(ours, theirs),
    ]
    effect = float(theirs[0].facts.get("minimum_effect") or 0.03)
    mine, its = _values(ours), _values(theirs)
    for provider, point in (key for key in mine if key in its):
        for name in names:
            a, b = ([values[name] for values in side[provider, point] if name in values] for side in (mine, its))
            if not a or not b:
                continue
            declared = catalogue()[name]
            estimate = compare_groups(a, b, declared.direction, effect)
            yield Comparison(
                metric=name,
                candidate=f"{provider} in {ours[0].run}",
                baseline=f"{provider} in {theirs[0].run}",
                ratio=estimate.ratio,
                low=estimate.low,
                high=estimate.high,
                verdict=estimate.verdict,
                case=theirs[0].case,
                preset=theirs[0].preset,
                scenario=theirs[0].scenario,
                pairs=estimate.pairs,
                more_trials=estimate.more_trials,
                at=first.points[point],
                minimum_effect=effect,
                candidate_value=median(a),
                baseline_value=median(b),
                unit=declared.unit,
                direction=declared.direction,
                notes=notes,
            )


def _values(results: Sequence[Result]) -> dict[tuple[str, str], list[Mapping[str, float]]]:
    found: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for point in (point for result in results for point in result.points if point.verdict == "valid"):
        values = {name: each.value for name, each in point.metrics.items()}
        found.setdefault((point.provider, shown(point.at)), []).append(values)
    return found
