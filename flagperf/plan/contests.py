"""Contests: two engines compared at the same batch and each at its best, which is found by trying.

A run of a contest begins with short trials of layouts. `further` looks at their results and says which trials come
next: leaner layouts where one didn't fit, and in the end the measured ones. It depends on nothing but the plan and the
results, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import msgspec

from flagperf.collect.contest import best, tried
from flagperf.errors import UsageError
from flagperf.plan.arms import parse_arms
from flagperf.plan.options import Options
from flagperf.plan.trials import Size, interleaved, rank_count, sized, template, trial_id
from flagperf.registry import Registries
from flagperf.schema.contest import Arm, Contest, Ladder
from flagperf.schema.layout import Layout
from flagperf.schema.manifest import CaseManifest, ContestManifest
from flagperf.schema.result import Result
from flagperf.schema.trial import Run, Trial
from flagperf.vendor import Vendor

_WARMUP, _STEPS = 2, 9
"""Of a trial that is only to show whether a layout fits and roughly how fast it is. Nine steps are the fewest whose
interval leaves out the slowest and the fastest, so that one disturbed step decides nothing."""
Completed = Callable[[Arm], Trial]
_LARGEST = 4
"""The search begins with micro-batches of at most this many times the preset's."""


def named_contest(options: Options, registries: Registries) -> tuple[CaseManifest, ContestManifest] | None:
    """Return the contest that the options name in place of a case, and its case."""
    for case in registries.cases.all():
        for name in options.cases:
            if name in case.contests:
                if len(options.cases) > 1 or options.engines or options.compare:
                    raise UsageError(
                        f"{name} is a contest, which says by itself what is compared.",
                        "Run it alone, without --engine and --compare; or name the case instead: " + case.name,
                    )
                return case, case.contests[name]
    return None


def contest_trials(options: Options, vendor: Vendor, registries: Registries) -> tuple[Contest, list[Trial]]:
    """Return the contest that the options ask for and the first trials of its run."""
    named = named_contest(options, registries)
    if named is not None:
        case, manifest = named[0].name, named[1]
        sides, protocol = (manifest.candidate, manifest.baseline), manifest.protocol
    else:
        if options.engines or len(options.cases) != 1 or options.compare is None:
            raise UsageError(
                "--compare takes one case and two engines, candidate and baseline.",
                "For example flagperf run aquila/pretrain --compare fsdp:zero=3 ddp",
            )
        case, manifest, sides, protocol = options.cases[0], None, options.compare, {}
    if options.baseline:
        raise UsageError("The baseline of a contest is its second engine; --baseline can't name another.")
    size = sized(case, options, registries, protocol, vendor)
    asked = [_one(side, options.layout) for side in sides]
    ranks = rank_count(asked, vendor, options, registries)

    def completed(arm: Arm) -> Trial:
        return template(arm, size, vendor, ranks, options, registries)

    candidate, baseline = map(completed, asked)
    if candidate.arm == baseline.arm:
        raise UsageError(f"Both sides are {candidate.arm}.", "Name two engines, or two layouts of one.")
    without = None
    if candidate.layout.overlap and 0 in _values(candidate.engine, "overlap", registries):
        without = Arm(candidate.engine, msgspec.structs.replace(candidate.layout, overlap=False))
    ladders: list[Ladder] = []
    if options.search and candidate.engine != baseline.engine:
        if options.nodes.count > 1:
            raise UsageError(
                "The best layouts can't be looked for over several nodes yet.", "Compare those you name: --no-search"
            )
        for arm in asked:
            ladders += _ladders(arm, size, completed, registries)
    contest = Contest(
        name=options.cases[0] if manifest else "",
        title=manifest.title if manifest else "",
        title_zh=manifest.title_zh if manifest else "",
        candidate=Arm(candidate.engine, candidate.layout),
        baseline=Arm(baseline.engine, baseline.layout),
        without_overlap=without,
        protocol=size.protocol,
        ladders=ladders,
        memory_budget=options.memory_budget,
        claims=[
            c for c in size.case.claims if (c.candidate, c.baseline) in _matches(candidate.engine, baseline.engine)
        ],
    )
    if not ladders:
        return contest, _rounds(contest, contest.arms, candidate, first=0)
    return contest, [_probe(candidate, ladder, 0, place) for place, ladder in enumerate(ladders)]


def further(run: Run, results: Sequence[Result]) -> list[Trial]:
    """Return the trials that follow from the results of those planned so far; none when the run is complete."""
    contest = run.contest
    if contest is None or any(trial.purpose == "measure" for trial in run.trials):
        return []
    first = len(run.trials)
    probes: list[Trial] = []
    for ladder in contest.ladders:
        done = tried(contest, ladder, results)
        if done and done[-1].verdict == "too big" and len(done) < len(ladder.rungs):
            probes.append(_probe(run.trials[0], ladder, len(done), first + len(probes)))
    if probes:
        return probes
    found = [best(contest, engine, results) for engine in (contest.baseline.engine, contest.candidate.engine)]
    arms = dict.fromkeys([*contest.arms, *(arm for arm in found if arm is not None)])
    return _rounds(contest, list(arms), run.trials[0], first)


def _rounds(contest: Contest, arms: Sequence[Arm], like: Trial, first: int) -> list[Trial]:
    protocol = contest.protocol
    replace = msgspec.structs.replace
    templates = [
        replace(like, engine=arm.engine, layout=arm.layout, protocol=protocol, seed=protocol.seed) for arm in arms
    ]
    return interleaved(templates, first)


def _probe(like: Trial, ladder: Ladder, rung: int, place: int) -> Trial:
    """Return the short trial of one rung of a ladder."""
    short = {"warmup": _WARMUP, "steps": _STEPS, "trials": 1, "profile": 0}
    # As many validation sequences as ranks can be divided over any number of data-parallel groups.
    protocol = msgspec.structs.replace(like.protocol, validation=like.ranks, **short)
    trial = msgspec.structs.replace(
        like, engine=ladder.engine, layout=ladder.rungs[rung], purpose="search", protocol=protocol, trial=0
    )
    return msgspec.structs.replace(trial, id=trial_id(place, trial))


def _ladders(arm: Arm, size: Size, completed: Completed, registries: Registries) -> list[Ladder]:
    """Return a ladder for each layout that the engine has to offer: micro-batches from large to small, then the same
    with recomputation, then with the optimizer offloaded too."""
    axes = registries.engines.get(arm.engine).search
    ladders: list[Ladder] = []
    for values in itertools.product(*axes.values()):
        chosen = ",".join(f"{key}={value}" for key, value in zip(axes, values, strict=True))
        layout = msgspec.structs.replace(Layout.parse(chosen), **_kept(arm.layout, {"micro", *axes}))
        try:
            whole = completed(Arm(arm.engine, layout))
        except UsageError:  # not with this many ranks, or not for this model
            continue
        rungs = list(_rungs(whole, size, registries))
        if rungs not in [ladder.rungs for ladder in ladders]:
            ladders.append(Ladder(engine=arm.engine, rungs=rungs))
    return ladders


def _rungs(whole: Trial, size: Size, registries: Registries) -> Iterator[Layout]:
    share = whole.protocol.global_batch // (whole.ranks // whole.layout.model_parallel)
    largest = min(share, _LARGEST * size.preset.micro)
    micros = [micro for micro in range(largest, 0, -1) if share % micro == 0]
    savings: list[dict[str, bool]] = [{}]
    for key in ("recompute", "offload"):
        if not getattr(whole.layout, key) and 1 in _values(whole.engine, key, registries):
            savings.append({**savings[-1], key: True})
    for saving, micro in itertools.product(savings, micros):
        yield msgspec.structs.replace(whole.layout, micro=micro, **saving)


def _values(engine: str, key: str, registries: Registries) -> list[int]:
    rule = registries.engines.get(engine).layout.get(key)
    return rule.values if rule else []


def _kept(layout: Layout, changed: set[str]) -> dict[str, int | bool | None]:
    return {key: getattr(layout, key) for key in layout.__struct_fields__ if key not in changed}


def _one(text: str, layout: str) -> Arm:
    arms = parse_arms([text], layout)
    if len(arms) != 1:
        raise UsageError(f"{text!r} names {len(arms)} engines where one is meant.", "For example bmtrain:zero=3")
    return arms[0]


def _matches(candidate: str, baseline: str) -> set[tuple[str, str]]:
    """Return the pairs of engines whose published ratios belong to a contest."""
    return {(candidate, baseline), (candidate, candidate)}
