"""Holds what was planned and launched against the rules: what a submitter may choose, and what is as the case says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from flagperf.case import Case
from flagperf.errors import FlagPerfError
from flagperf.plan.trials import trial_id
from flagperf.registry import Registries
from flagperf.schema.contest import Arm
from flagperf.schema.inference import told
from flagperf.schema.layout import Layout
from flagperf.schema.manifest import CaseManifest
from flagperf.schema.submission import Bound, Division, DivisionName, KindRules, Rules
from flagperf.schema.trial import Run, Trial
from flagperf.settings import merged
from flagperf.submit import strict
from flagperf.submit.findings import Findings, shown

_FREE = {"id", "case", "preset", "vendor", "engine", "seed", "trial", "purpose", "peak_flops", "rated_flops", "plugins"}
"""Of a trial: what says which one it is, and what is held against something else than the case."""
_UNCHOSEN = {
    field.name: field.default
    for field in msgspec.structs.fields(Trial)
    if field.default is not msgspec.NODEFAULT and field.name not in _FREE
}
"""Of a trial: what is as it is unless somebody asks for something else, like a limit on memory."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run's plan, and the file that it was read from."""

    run: Run
    file: str
    lines: list[str]

    def line(self, *place: str | int) -> int | None:
        """Return the line of a part of the plan."""
        return strict.json_line_number(self.lines, place)


def check_run(source: Source, rules: Rules, division: DivisionName, registries: Registries, findings: Findings) -> None:
    """Hold every trial of a plan against the rules, and the plan as a whole."""
    if source.run.survey is not None:
        findings.refuse(
            "survey", "A survey's trials are of many sizes, most of them short: they show the way, and are no result.",
            file=source.file, line=source.line("survey"),
            hint="Measure what it found best by itself: flagperf run CASE --engine ENGINE:LAYOUT, and pack that run.",
        )  # fmt: skip
        return
    _numbering(source, findings)
    for index, trial in enumerate(source.run.trials):
        case, kind, own = _rules(source, index, trial, rules, division, registries, findings)
        if case is None or kind is None or own is None:
            continue
        change = {**rules.conditions[division].change, **own.change, **kind.cases.get(trial.case, {})}
        if trial.purpose == "measure":  # those that search are short by their nature, and enter no result
            _settings(source, index, trial, case, kind, change, registries, findings)
        if trial.preset in case.presets:
            _precision(source, index, trial, case, kind, change, findings)
    _repetitions(source, rules, division, registries, findings)


def _numbering(source: Source, findings: Findings) -> None:
    for place, trial in enumerate(source.run.trials):
        proper = trial_id(place, trial)
        if trial.id != proper:
            findings.refuse(
                "trial_gap", "Trials are numbered without gaps: one was left out, or renamed.", file=source.file,
                line=source.line("trials", place, "id"), expected=proper, found=trial.id,
            )  # fmt: skip


def _rules(
    source: Source,
    index: int,
    trial: Trial,
    rules: Rules,
    division: DivisionName,
    registries: Registries,
    findings: Findings,
) -> tuple[CaseManifest | None, KindRules | None, Division | None]:
    try:
        case = registries.cases.get(trial.case)
    except FlagPerfError as error:
        findings.refuse(
            "unknown_case", error.message, file=source.file, line=source.line("trials", index, "case"), hint=error.hint
        )
        return None, None, None
    kind = rules.of(case.kind)
    if kind is None or division not in kind.divisions:
        findings.refuse(
            "no_rules", f"Version {rules.version} of the rules has none for the kind {case.kind!r}.", file=source.file,
            line=source.line("trials", index, "case"), expected=", ".join(rules.kinds), found=case.kind,
        )  # fmt: skip
        return case, None, None
    return case, kind, kind.divisions[division]


def _settings(
    source: Source,
    index: int,
    trial: Trial,
    case: CaseManifest,
    kind: KindRules,
    change: Mapping[str, Bound],
    registries: Registries,
    findings: Findings,
) -> None:
    """Refuse every value that isn't the case's and that the rules don't leave to the submitter."""
    if trial.preset not in case.presets:
        findings.refuse(
            "unknown_preset", f"The case {case.name} has no such preset.", file=source.file,
            line=source.line("trials", index, "preset"), expected=", ".join(case.presets), found=trial.preset,
        )  # fmt: skip
        return
    try:
        proper = flat(_proper(source.run, trial, case, registries))
    except FlagPerfError as error:
        findings.refuse("unknown_case", f"The case {case.name} can't be read here: {error.message}", hint=error.hint)
        return
    whole = {**msgspec.to_builtins(trial), "layout": _whole(trial.layout)}
    there = flat({name: value for name, value in whole.items() if name not in _FREE})
    for place in sorted(proper.keys() | there.keys()):
        base, value = proper.get(place), there.get(place)
        if place == "dtype" or (place in proper and place in there and base == value and type(base) is type(value)):
            continue
        bound = bound_of(place, change)
        why = _FIXED if bound is None else outside(bound, value, base)
        if why:
            findings.refuse(
                "rule", f"{place} of trial {trial.id}: {why}.", file=source.file,
                line=source.line("trials", index, *place.split(".")),
                expected=limits(bound, base) if bound else proper.get(place, "not there"), found=value,
                hint="The open division takes other sizes, lengths and types: --division open"
                if bound is None and place.split(".")[0] in ("settings", "protocol") else "",
            )  # fmt: skip


_FIXED = "this is the case's to say, not the submitter's"


def _proper(run: Run, trial: Trial, case: CaseManifest, registries: Registries) -> dict[str, Any]:
    """Return a trial as the case says it is, where nothing is chosen."""
    preset = case.presets[trial.preset]
    name = run.contest.name if run.contest else ""
    contest = case.contests[name].protocol if name in case.contests else {}
    checker: type[Case] = registries.cases.load(case.name)
    return {
        **_UNCHOSEN,
        "layout": _whole(Layout()),
        "protocol": {**msgspec.to_builtins(case.protocol), **preset.protocol, **contest},
        "settings": checker.check(merged(case.settings, preset.settings)),
        "metrics": told(trial.scenario, case.metrics),
        "kind": case.kind,
        "scenario": trial.scenario if trial.scenario in case.scenarios else next(iter(case.scenarios), ""),
    }


def _whole(layout: Layout) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in layout.__struct_fields__}


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested objects by their dotted paths; a list is a leaf."""
    leaves: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            leaves |= flat(inner, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = inner
    return leaves


def bound_of(place: str, change: Mapping[str, Bound]) -> Bound | None:
    """Return what the rules say of a path: by its name, else by the first pattern that fits."""
    if place in change:
        return change[place]
    return next((bound for pattern, bound in change.items() if fnmatchcase(place, pattern)), None)


def outside(bound: Bound, value: Any, base: Any = None) -> str:
    """Say why a value is out of bounds; empty if it isn't."""
    why = f": {bound.why}" if bound.why else ""
    if bound.values is not None:
        return "" if value in bound.values else f"it isn't one of those that the rules allow{why}"
    if bound.least is None and bound.most is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "it isn't a number"
    low, high = _range(bound, base)
    return "" if low <= value <= high else f"it is out of the rules' bounds{why}"


def _range(bound: Bound, base: Any) -> tuple[float, float]:
    factor = base if bound.times and isinstance(base, (int, float)) else 1
    low = -float("inf") if bound.least is None else bound.least * factor
    high = float("inf") if bound.most is None else bound.most * factor
    return low, high


def limits(bound: Bound, base: Any = None) -> str:
    """Say what a bound allows."""
    if bound.values is not None:
        return " or ".join(shown(value) for value in bound.values)
    low, high = _range(bound, base)
    if bound.least is None or bound.most is None:
        return f"at most {high:g}" if bound.least is None else f"at least {low:g}"
    return f"{low:g} to {high:g}"


def _precision(
    source: Source,
    index: int,
    trial: Trial,
    case: CaseManifest,
    kind: KindRules,
    change: Mapping[str, Bound],
    findings: Findings,
) -> None:
    bound, proper = bound_of("dtype", change), case.presets[trial.preset].dtype
    if not kind.precision:
        axes = trial.settings.get("sweep")
        own = axes.get("dtype") if isinstance(axes, dict) else None
        bound, proper = None, "+".join(map(str, own)) if isinstance(own, list) else ""
    fitting = next((group for group in kind.precision if proper in group), [proper])
    allowed = bound.values or [] if bound else fitting
    if trial.dtype not in allowed:
        findings.refuse(
            "precision", f"Trial {trial.id} computes in another class of precision than its case.", file=source.file,
            line=source.line("trials", index, "dtype"), expected=" or ".join(map(str, allowed)), found=trial.dtype,
        )  # fmt: skip


def _repetitions(
    source: Source, rules: Rules, division: DivisionName, registries: Registries, findings: Findings
) -> None:
    """Hold the number of trials, their seeds and their order against the protocol."""
    measured = [(place, trial) for place, trial in enumerate(source.run.trials) if trial.purpose == "measure"]
    arms: dict[tuple[str, ...], list[tuple[int, Trial]]] = {}
    for place, trial in measured:
        arms.setdefault((*_group(trial), trial.arm), []).append((place, trial))
    if not arms:
        findings.refuse("no_trials", "The run has no measured trial.", file=source.file)
    for (case, preset, scenario, arm), trials in arms.items():
        place, first = trials[0]
        named = " ".join(filter(None, (arm, "of", case, preset, scenario)))
        numbers = sorted(trial.trial for _, trial in trials)
        if len(numbers) != first.protocol.trials or numbers != list(range(len(numbers))):
            findings.refuse(
                "trials_missing", f"{named} wasn't run as often as its protocol says.", file=source.file,
                line=source.line("trials", place, "trial"), found=numbers,
                expected=f"{first.protocol.trials} trials, from 0 on",
            )  # fmt: skip
        least = _least(case, rules, division, registries)
        if len(trials) < least:
            findings.refuse(
                "too_few_trials", f"{named} has too few trials for this division.", file=source.file,
                line=source.line("trials", place, "protocol", "trials"), expected=f"at least {least}",
                found=len(trials),
            )  # fmt: skip
        for index, trial in trials:
            if trial.seed != trial.protocol.seed + trial.trial:
                findings.refuse(
                    "seed", f"Trial {trial.id} has another seed than the protocol gives it.", file=source.file,
                    line=source.line("trials", index, "seed"), expected=trial.protocol.seed + trial.trial,
                    found=trial.seed,
                )  # fmt: skip
    if source.run.contest is None:
        for group in dict.fromkeys(_group(trial) for _, trial in measured):
            _order(source, [each for each in measured if _group(each[1]) == group], findings)


def _group(trial: Trial) -> tuple[str, str, str]:
    """Return what is measured together, arms in turn."""
    return trial.case, trial.preset, trial.scenario


def _least(name: str, rules: Rules, division: DivisionName, registries: Registries) -> int:
    if name not in registries.cases.names():
        return 0  # that is told elsewhere
    kind = rules.kinds.get(registries.cases.get(name).kind)
    return max((own.trials for each, own in kind.divisions.items() if each == division), default=0) if kind else 0


def _order(source: Source, measured: Sequence[tuple[int, Trial]], findings: Findings) -> None:
    """Arms take turns, A B B A: an order that favours one is a choice of the submitter's."""
    arms = list(dict.fromkeys(Arm(trial.engine, trial.layout) for _, trial in measured))
    proper = _interleaved(arms, -(-len(measured) // len(arms)) if arms else 0)
    there = [(Arm(trial.engine, trial.layout), trial.trial) for _, trial in measured]
    for (place, trial), planned, found in zip(measured, proper, there, strict=False):
        if planned != found:
            findings.refuse(
                "trial_order", f"Trial {trial.id} isn't where it belongs in the order A B B A.", file=source.file,
                line=source.line("trials", place), expected=f"{planned[0]}, trial {planned[1]}",
                found=f"{found[0]}, trial {found[1]}",
            )  # fmt: skip
            return


def _interleaved(arms: Sequence[Arm], rounds: int) -> Iterator[tuple[Arm, int]]:
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            yield arm, number
