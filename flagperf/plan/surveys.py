"""Surveys: a case's throughput over rank counts, and over layouts within a time budget.

A run of a survey begins with the search: short trials, one after the other, of which `further` chooses each by the
results of those before it. Then come the measured trials, of all rank counts and of the layout that was found to be
best, interleaved. Like a contest it depends on nothing but the plan and the results.

The search is plain: the space has tens of layouts, whose memory is known by formula and whose speed mostly falls or
rises along each axis. A sampler (Optuna's TPE begins with ten random trials) would spend the budget on learning that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from flagperf.case import Case
from flagperf.collect.survey import SAVINGS, best, following
from flagperf.errors import UsageError
from flagperf.plan.arms import parse_arms
from flagperf.plan.options import Options
from flagperf.plan.trials import Size, check_ranks, interleaved, sized, template, trial_id
from flagperf.registry import Registries, availability
from flagperf.schema.contest import Arm
from flagperf.schema.layout import Layout
from flagperf.schema.manifest import CaseManifest, SurveyManifest
from flagperf.schema.result import Result
from flagperf.schema.survey import Candidate, Scale, ScaleKind, Survey
from flagperf.schema.trial import Run, Trial
from flagperf.vendor import Vendor

_AXES = ("tp", "pp", "zero", *SAVINGS)
"""Layout keys that are searched besides the micro-batch, where the user doesn't say what they are."""
_SHORT = {"warmup": 2, "steps": 9, "trials": 1}
"""Nine steps are the fewest whose interval leaves out the slowest and the fastest."""
_LEAST = 300.0
"""Seconds after which a trial of the search may be taken for hung at the earliest, however little budget is left."""


def named_survey(options: Options, registries: Registries) -> tuple[CaseManifest, SurveyManifest] | None:
    """Return the survey that the options name in place of a case, and its case."""
    for case in registries.cases.all():
        for name in options.cases:
            if name in case.surveys:
                if len(options.cases) > 1 or options.compare or options.baseline:
                    raise UsageError(
                        f"{name} is a survey, which compares the best layout with the first engine's.",
                        "Run it alone, without --compare and --baseline; --engine says what is surveyed.",
                    )
                return case, case.surveys[name]
    return None


def survey_trials(options: Options, vendor: Vendor, registries: Registries) -> tuple[Survey, list[Trial]]:
    """Return the survey that the options ask for and the first trials of its run."""
    named = named_survey(options, registries)
    assert named is not None, "the caller has looked"
    case, manifest = named
    size = sized(case.name, options, registries, manifest.protocol, vendor)
    counts = _counts(options, vendor)
    most = counts[-1]
    arms = parse_arms(options.engines or manifest.engines, options.layout)
    left_out = {} if options.engines else _unavailable(arms, registries)
    arms = [arm for arm in arms if arm.engine not in left_out]
    first = template(arms[0], size, vendor, most, options, registries)
    arm = Arm(first.engine, first.layout)
    scales = list(_scales(arms[0], manifest, size, counts, vendor, options, registries))
    survey = Survey(
        name=options.cases[0],
        title=manifest.title,
        title_zh=manifest.title_zh,
        arm=arm,
        ranks=most,
        scales=scales,
        left_out=left_out,
        budget=manifest.budget if options.budget is None else options.budget,
        memory_budget=options.memory_budget,
        room=_room(options, vendor, most),
        protocol=size.protocol,
    )
    if not options.search:
        return survey, _measured(survey, survey.arm, first, nodes=options.nodes.count)
    if options.nodes.count > 1:
        raise UsageError(
            "The best layout can't be looked for over several nodes yet.", "Measure the scaling alone: --no-search"
        )
    space = [list(_space(each, size, vendor, most, options, registries)) for each in arms]
    survey = msgspec.structs.replace(survey, candidates=_ordered(arm, space))
    return survey, _next(survey, [], first, 0)


def further(run: Run, results: Sequence[Result]) -> list[Trial]:
    """Return the trials that follow from the results of those planned so far; none when the run is complete."""
    survey = run.survey
    if survey is None or any(trial.purpose == "measure" for trial in run.trials):
        return []
    return _next(survey, [result for result in results if result.run == run.id], run.trials[0], len(run.trials))


def _counts(options: Options, vendor: Vendor) -> list[int]:
    """Return the rank counts, rising: those asked for, or halves of the most down to one."""
    most = options.ranks or (max(options.rank_counts) if options.rank_counts else vendor.default_ranks())
    if options.rank_counts:
        counts = sorted({*options.rank_counts, most})
        if counts[-1] > most:
            raise UsageError(f"--rank-counts has {counts[-1]} ranks, more than --ranks {most}.", "Leave --ranks out.")
    else:
        counts = [most]
        while counts[0] % 2 == 0 and (counts[0] // 2) % options.nodes.count == 0:
            counts.insert(0, counts[0] // 2)
        if counts[0] != 1 and options.nodes.count == 1:
            counts.insert(0, 1)
    for count in counts:
        check_ranks(count, vendor, options)
    return counts


def _unavailable(arms: Sequence[Arm], registries: Registries) -> dict[str, str]:
    """Return the engines of the case's own choice that aren't installed here, each with the way to get it."""
    states = {arm.engine: availability(registries.engines.get(arm.engine)) for arm in arms}
    return {name: f"{state.reason}; {state.remedy}" for name, state in states.items() if not state.available}


def _scales(
    arm: Arm,
    manifest: SurveyManifest,
    size: Size,
    counts: Sequence[int],
    vendor: Vendor,
    options: Options,
    registries: Registries,
) -> Iterator[Scale]:
    """Yield the points of the scaling curves; raise UsageError for one that can't be."""
    fewest, batch = counts[0], size.protocol.global_batch

    def scale(kind: ScaleKind, ranks: int, sequences: int, arm: Arm) -> Scale:
        whole = size._replace(protocol=msgspec.structs.replace(size.protocol, global_batch=sequences))
        trial = template(arm, whole, vendor, ranks, options, registries)
        return Scale(kind=kind, ranks=ranks, global_batch=sequences, arm=Arm(trial.engine, trial.layout))

    alone = arm
    if fewest == 1 and len(counts) > 1 and manifest.base:
        kept = {key: getattr(arm.layout, key) for key in ("micro", "recompute", "compile")}
        alone = Arm(manifest.base, Layout(**kept))
    yield scale("base", fewest, batch, alone)
    for ranks in counts[1:]:
        yield scale("strong", ranks, batch, arm)
    for ranks in counts[1:]:
        if (batch * ranks) % fewest:
            raise UsageError(f"A global batch of {batch} for {fewest} ranks can't grow to {ranks} ranks evenly.")
        yield scale("weak", ranks, batch * ranks // fewest, arm)


def _space(
    asked: Arm, size: Size, vendor: Vendor, ranks: int, options: Options, registries: Registries
) -> Iterator[Candidate]:
    """Yield an engine's layouts: every value that it takes on each axis, every micro-batch from large to small."""
    rules, default = registries.engines.get(asked.engine).layout, Layout()
    axes: dict[str, list[int]] = {}
    for key in _AXES:
        if key in rules and getattr(asked.layout, key) == getattr(default, key):
            axes[key] = [value for value in rules[key].values if key not in ("tp", "pp") or ranks % value == 0]
    case, ledger = registries.cases.load(size.case.name), registries.ledger(asked.engine)
    for values in itertools.product(*axes.values()):
        chosen = {key: bool(v) if key in SAVINGS else v for key, v in zip(axes, values, strict=True)}
        layout = msgspec.structs.replace(asked.layout, **chosen)
        if ranks % layout.model_parallel:
            continue  # there are no such layouts with so many ranks
        try:
            whole = template(Arm(asked.engine, layout), size, vendor, ranks, options, registries)
        except UsageError as error:
            yield Candidate(arm=Arm(asked.engine, layout), refused=error.message.rstrip("."))
            continue
        share = size.protocol.global_batch // (ranks // layout.model_parallel)
        for micro in [layout.micro] if layout.micro else range(share, 0, -1):
            if share % micro == 0:
                trial = msgspec.structs.replace(whole, layout=msgspec.structs.replace(whole.layout, micro=micro))
                planned: Case = case(trial)
                estimate = planned.estimate(ledger)
                predicted = None if estimate is None else estimate.total
                yield Candidate(arm=Arm(asked.engine, trial.layout), predicted=predicted)


def _ordered(named: Arm, space: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Return all layouts, each once: the named one, then engine by engine in turn, those that save nothing first."""

    def savings(each: Candidate) -> int:
        return sum(bool(getattr(each.arm.layout, key)) for key in SAVINGS)

    rows: list[tuple[int, int, int, Candidate]] = []
    for engine, candidates in enumerate(space):
        families: dict[int, dict[str, int]] = {}
        for each in candidates:
            alike = families.setdefault(savings(each), {})
            family = str(msgspec.structs.replace(each.arm.layout, micro=None))
            rows.append((savings(each), alike.setdefault(family, len(alike)), engine, each))
    ordered = [each for *_, each in sorted(rows, key=lambda row: (row[3].arm != named, *row[:3]))]
    return list({each.arm: each for each in ordered}.values())


def _room(options: Options, vendor: Vendor, ranks: int) -> int | None:
    """Return how many bytes a rank can have at most, by what the user says and by what the devices hold."""
    devices = [device.memory_total_mib for device in vendor.devices() if device.memory_total_mib]
    sharing = max(1, -(-ranks // options.nodes.count // max(1, len(devices))))
    limits = [options.memory_budget, options.memory_limit, int(min(devices) * 2**20) // sharing if devices else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _next(survey: Survey, results: Sequence[Result], like: Trial, place: int) -> list[Trial]:
    """Return the short trial of the layout that is to be tried next; the measured trials when the search is over."""
    choice = following(survey, results)
    if choice is None:
        return _measured(survey, best(survey, results) or survey.arm, like, place)
    arm = choice.candidate.arm
    # As many validation sequences as ranks can be divided over any number of data-parallel groups.
    short = {**_SHORT, "validation": survey.ranks, "timeout": min(survey.protocol.timeout, max(choice.left, _LEAST))}
    protocol = msgspec.structs.replace(survey.protocol, **short)
    trial = msgspec.structs.replace(
        like, engine=arm.engine, layout=arm.layout, purpose="search", protocol=protocol, seed=protocol.seed, trial=0
    )
    return [msgspec.structs.replace(trial, id=trial_id(place, trial))]


def _measured(survey: Survey, best: Arm, like: Trial, first: int = 0, nodes: int = 1) -> list[Trial]:
    """Return the measured trials: all points of the scaling curves, and the named and the best layout, interleaved."""
    full = survey.protocol.global_batch
    wanted = [(each.ranks, each.global_batch, each.arm) for each in survey.scales]
    wanted += [(survey.ranks, full, survey.arm), (survey.ranks, full, best)]
    templates = []
    for ranks, batch, arm in dict.fromkeys(wanted):
        protocol = msgspec.structs.replace(survey.protocol, global_batch=batch)
        slots = survey.ranks // nodes if ranks < survey.ranks else 0
        templates.append(
            msgspec.structs.replace(
                like, engine=arm.engine, layout=arm.layout, ranks=ranks, slots=slots, protocol=protocol
            )
        )
    return interleaved(templates, first)
