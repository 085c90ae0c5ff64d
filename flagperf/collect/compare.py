"""Results → comparisons: arms side by side, pair by pair, accuracy before speed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from flagperf.errors import FlagPerfError, UnknownName, UsageError
from flagperf.metrics import catalogue, metric
from flagperf.schema.contest import Arm
from flagperf.schema.layout import Layout
from flagperf.schema.metric import Metric
from flagperf.schema.result import Comparison, Reason, Result
from flagperf.statistics import RatioEstimate, compare_groups, compare_pairs

Curves = Mapping[tuple[str, str], Mapping[int, float]]
"""Training loss by step, by run and trial id."""

ArmKey = tuple[str, str]
"""Engine and layout."""
Group = dict[ArmKey, list[Result]]


def compare(
    results: Sequence[Result],
    baseline: str,
    metrics: Sequence[str] | None = None,
    *,
    curves: Curves | None = None,
) -> list[Comparison]:
    """Compare every arm with the baseline, `ENGINE` or `ENGINE:LAYOUT`, in each case, preset, vendor, dtype and ranks.

    Trials of one run with the same number and seed are pairs. Invalid results never enter. Where losses differ by more
    than the case allows, nothing but accuracy is judged; `curves` lets every step be checked, not only the last.
    Raises UnknownName if no arm is called so, or for an unknown metric.
    """
    groups = _groups(results)
    chosen = {key: match for key, arms in groups.items() if (match := _match(baseline, arms)) is not None}
    if not chosen:
        raise UnknownName(
            "engine of these results", baseline, {name for arms in groups.values() for name in labels(arms)}
        )
    found: list[Comparison] = []
    for key, reference in chosen.items():
        names = dict(zip(groups[key], labels(groups[key]), strict=True))
        for arm, candidates in groups[key].items():
            if arm != reference:
                pair = _Arms(names[arm], candidates, names[reference], groups[key][reference], curves or {})
                found += pair.compare(metrics)
    return found


def compare_arms(
    results: Sequence[Result],
    candidate: Arm,
    baseline: Arm,
    metrics: Sequence[str] | None = None,
    *,
    curves: Curves | None = None,
) -> list[Comparison]:
    """Compare two arms of one run, which are found by engine and complete layout; nothing if one has no result."""
    found: list[Comparison] = []
    for arms in _groups(results).values():
        names = dict(zip(arms, labels(arms), strict=True))
        a, b = ((arm.engine, str(arm.layout)) for arm in (candidate, baseline))
        if a in arms and b in arms:
            found += _Arms(names[a], arms[a], names[b], arms[b], curves or {}).compare(metrics)
    return found


def compare_results(
    candidate: tuple[str, Sequence[Result]],
    baseline: tuple[str, Sequence[Result]],
    metrics: Sequence[str] | None = None,
    *,
    curves: Curves | None = None,
) -> list[Comparison]:
    """Compare two arms that the caller has put together, each with its name; their batches must be the same ones."""
    if not candidate[1] or not baseline[1]:
        return []
    return _Arms(candidate[0], list(candidate[1]), baseline[0], list(baseline[1]), curves or {}).compare(metrics)


def compare_runs(
    candidate: Sequence[Result],
    baseline: Sequence[Result],
    metrics: Sequence[str] | None = None,
    *,
    curves: Curves | None = None,
) -> list[Comparison]:
    """Compare one run's arms with the same arms of another run; raise UsageError if they have none in common."""
    ours, theirs = _groups(candidate), _groups(baseline)
    found: list[Comparison] = []
    for key in (key for key in ours if key in theirs):
        for arm, label in zip(ours[key], labels(ours[key]), strict=True):
            if arm in theirs[key]:
                a, b = ours[key][arm], theirs[key][arm]
                pair = _Arms(f"{label} in {a[0].run}", a, f"{label} in {b[0].run}", b, curves or {})
                found += pair.compare(metrics)
    if not found:
        raise UsageError(
            "The two runs have nothing in common to compare.",
            "They need the same case, preset, settings, vendor, dtype, ranks, engine and layout; or name an engine.",
        )
    return found


def labels(arms: Iterable[ArmKey]) -> list[str]:
    """Return what arms are called: the engine, with the layout where the engine stands there more than once."""
    listed = list(arms)
    engines = [engine for engine, _ in listed]
    return [engine if engines.count(engine) == 1 else f"{engine}:{layout}" for engine, layout in listed]


def _groups(results: Iterable[Result]) -> dict[tuple[Any, ...], Group]:
    """Return arms by what must be alike for a comparison, the settings changed with --set included."""
    groups: dict[tuple[Any, ...], Group] = {}
    for result in (result for result in results if result.purpose == "measure"):
        settings = result.facts.get("settings_digest")
        key = (result.case, result.preset, result.scenario, result.vendor, result.dtype, result.ranks, settings)
        groups.setdefault(key, {}).setdefault((result.engine, result.layout), []).append(result)
    return groups


def _match(name: str, arms: Iterable[ArmKey]) -> ArmKey | None:
    """Return the arm that goes by this name, if one does.

    A layout may be given as it was asked for: `fsdp:zero=2` finds the arm whose layout became `zero=2,micro=4`. The
    first such is taken, as trials are planned in the order that arms were asked for; so is `fsdp:default`.
    """
    listed = list(arms)
    engine, _, layout = name.partition(":")
    same = [arm for arm in listed if arm[0] == engine]
    if not layout or layout == "default":
        return same[0] if same else None
    try:
        asked = _parts(layout)
    except FlagPerfError:
        return None
    exact = [arm for arm in same if _parts(arm[1]) == asked]
    return next(iter(exact or [arm for arm in same if asked <= _parts(arm[1])]), None)


def _parts(layout: str) -> set[str]:
    return set(filter(None, str(Layout.parse(layout)).split(",")))


class _Arms:
    """A candidate and a baseline, and all that is said of them."""

    def __init__(
        self, candidate: str, candidates: list[Result], baseline: str, baselines: list[Result], curves: Curves
    ) -> None:
        self.names = candidate, baseline
        self.everything = candidates, baselines
        self.valid = [[result for result in arm if result.verdict == "valid"] for arm in (candidates, baselines)]
        self.pairs = pairs(*self.valid)
        self.curves = curves
        self.notes = [*self._left_out(), *self._apart(), *environments(*self.valid)]
        self.gate = self._gate()

    def compare(self, metrics: Sequence[str] | None) -> list[Comparison]:
        """Return one comparison a metric: those asked for, or those the catalogue shows by default."""
        if metrics:
            chosen = [metric(name) for name in metrics]
        else:
            told = dict.fromkeys(name for arm in self.valid for result in arm for name in result.metrics)
            scenario = self.everything[1][0].scenario
            order = [*(told if scenario else ()), *catalogue()]  # a scenario's results begin with what it is judged by
            known = [metric(name) for name in dict.fromkeys(order) if name in told and name in catalogue()]
            chosen = [declared for declared in known if declared.compared]
        return [self._metric(declared) for declared in chosen]

    def _metric(self, declared: Metric) -> Comparison:
        reference = self.everything[1][0]
        # A loss is the same if it is within the band in which engines count as one.
        limit = "loss_band" if declared.group == "accuracy" else "minimum_effect"
        effect = _fact(reference, limit, 0.01 if limit == "loss_band" else 0.03)
        pairs = [pair for pair in self.pairs if all(declared.name in result.metrics for result in pair)]
        if pairs:
            values = [[result.metrics[declared.name].value for result in side] for side in zip(*pairs, strict=True)]
            estimate = compare_pairs(values[0], values[1], declared.direction, effect)
        else:
            values = [[r.metrics[declared.name].value for r in arm if declared.name in r.metrics] for arm in self.valid]
            estimate = compare_groups(values[0], values[1], declared.direction, effect)
        notes = [*self.notes]
        if self.gate and declared.group != "accuracy":
            estimate = msgspec.structs.replace(estimate, verdict="cannot tell", more_trials=None, why="")
        notes = [*self.gate, *notes, *_why(estimate)]
        return Comparison(
            metric=declared.name,
            candidate=self.names[0],
            baseline=self.names[1],
            ratio=estimate.ratio,
            low=estimate.low,
            high=estimate.high,
            verdict=estimate.verdict,
            case=reference.case,
            preset=reference.preset,
            scenario=reference.scenario,
            pairs=estimate.pairs,
            more_trials=estimate.more_trials,
            minimum_effect=effect,
            candidate_value=median(values[0]) if values[0] else None,
            baseline_value=median(values[1]) if values[1] else None,
            unit=declared.unit,
            direction=declared.direction,
            notes=notes,
        )

    def _left_out(self) -> list[Reason]:
        notes = []
        for name, arm, valid in zip(self.names, self.everything, self.valid, strict=True):
            if lost := len(arm) - len(valid):
                what = f"{lost} of {len(arm)} trials of {name} {'is' if lost == 1 else 'are'} invalid and left out."
                notes.append(Reason("invalid_left_out", what, "`flagperf results` says why."))
        return notes

    def _apart(self) -> list[Reason]:
        if self.pairs or not all(self.valid):
            single = [len(self.pairs) < len(arm) for arm in self.valid]
            if self.pairs and any(single):
                what = f"Only {len(self.pairs)} pairs: trials whose partner is missing or invalid aren't used."
                return [Reason("unpaired_left_out", what)]
            return []
        return [
            Reason(
                "not_interleaved",
                "The trials weren't interleaved in one run: a drift of the machine counts as a difference.",
                "Measure both in one run: flagperf run --engine A,B --trials 3",
            )
        ]

    def _gate(self) -> list[Reason]:
        """Return why these arms didn't do the same work, or nothing if they did."""
        twins = _twins(*self.valid)
        worst: tuple[float, str, int] | None = None
        tokens: list[int] = []
        for candidate, baseline in twins:
            prints = [result.facts.get("tokens_fingerprint") for result in (candidate, baseline)]
            if all(prints) and prints[0] != prints[1]:
                tokens.append(baseline.seed)
            for where, difference in self._losses(candidate, baseline):
                if difference > _fact(baseline, "loss_band", 0.01) and (worst is None or difference > worst[0]):
                    worst = difference, where, baseline.seed
        notes = []
        if tokens:
            what = f"The arms read different tokens for the same seed ({', '.join(map(str, sorted(set(tokens))))})."
            notes.append(Reason("tokens_differ", what, "Their batches must be the same before speeds are compared."))
        if worst is not None:
            difference, where, seed = worst
            band = _fact(self.everything[1][0], "loss_band", 0.01)
            amount = f"by {difference:.2%}" if math.isfinite(difference) else "beyond measure"
            notes.append(
                Reason(
                    "losses_differ",
                    f"losses differ {amount} {where} for seed {seed}; the case allows {band:.2%}.",
                    "The arms don't train the same model, so their speeds aren't compared: accuracy before speed.",
                )
            )
        if all(self.valid) and not twins:
            what = "No two valid trials have the same seed, so their losses weren't checked against each other."
            self.notes.append(Reason("losses_unchecked", what))
        return notes

    def _losses(self, candidate: Result, baseline: Result) -> Iterable[tuple[str, float]]:
        """Yield where two trials' losses were compared, and their relative difference there."""
        for name, where in (("loss_final", "at the last step"), ("loss_validation", "in validation")):
            if name in candidate.metrics and name in baseline.metrics:
                yield where, _relative(candidate.metrics[name].value, baseline.metrics[name].value)
        a, b = (self.curves.get((result.run, result.id), {}) for result in (candidate, baseline))
        for step in sorted(a.keys() & b.keys()):
            yield f"at step {step}", _relative(a[step], b[step])


def pairs(candidates: Sequence[Result], baselines: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Return the trials that were run as pairs: of one run, with the same number and seed."""
    partner: dict[tuple[str, int, int], Result] = {}
    for result in baselines:
        partner.setdefault((result.run, result.trial, result.seed), result)
    keyed = [((result.run, result.trial, result.seed), result) for result in candidates]
    return [(result, partner.pop(key)) for key, result in keyed if key in partner]


def _twins(candidates: Sequence[Result], baselines: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Return trials that must have the same losses: those with the same seed, of one run where they can be."""
    twins = []
    for result in candidates:
        same = [other for other in baselines if other.seed == result.seed]
        if same:
            twins.append((result, next((other for other in same if other.run == result.run), same[0])))
    return twins


def _relative(a: float, b: float) -> float:
    if a == b:
        return 0.0
    difference = abs(a - b) / abs(b) if b else math.inf
    return difference if math.isfinite(difference) else math.inf


def _fact(result: Result, name: str, default: float) -> float:
    value = result.facts.get(name)
    return float(value) if isinstance(value, (int, float)) else default


def _why(estimate: RatioEstimate) -> list[Reason]:
    return [Reason("undecidable", f"It can't be told: {estimate.why}.")] if estimate.why else []


def environments(candidates: Sequence[Result], baselines: Sequence[Result]) -> list[Reason]:
    """Say in what the conditions of the two arms differed."""
    seen = [[_flat(result.facts.get("environment")) for result in arm] for arm in (candidates, baselines)]
    differences = []
    for name in sorted({name for arm in seen for facts in arm for name in facts}):
        sides = [sorted({facts.get(name, "unknown") for facts in arm}) for arm in seen]
        if all(sides) and sides[0] != sides[1]:
            differences.append(f"{name} {' and '.join(sides[0])} against {' and '.join(sides[1])}")
    repeated = sum(_fact(result, "attempts", 1) > 1 for arm in (candidates, baselines) for result in arm)
    if repeated:
        what = f"{repeated} trials were run again later, by --resume, so they weren't measured beside their pair."
        hint = "Drift of the machine may not cancel; a run that wasn't interrupted is surer."
        return [Reason("resumed", what, hint), *_differing(differences)]
    return _differing(differences)


def _differing(differences: Sequence[str]) -> list[Reason]:
    if not differences:
        return []
    what = f"The environments differ: {'; '.join(differences)}."
    return [Reason("environments_differ", what, "The difference may be theirs, not the engines'.")]


def _flat(environment: Any) -> dict[str, str]:
    if not isinstance(environment, dict):
        return {}
    packages = environment.get("packages")
    flat = {name: str(value) for name, value in environment.items() if name != "packages"}
    if "commit" in flat:  # as git shortens it
        flat["commit"] = re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", flat["commit"])
    return flat | ({str(k): str(v) for k, v in packages.items()} if isinstance(packages, dict) else {})
