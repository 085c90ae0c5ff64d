"""What a contest's trials say to its questions. Everything here follows from the plan and the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from flagperf.collect.compare import Curves, compare, compare_arms
from flagperf.collect.sweeps import compare_points
from flagperf.metrics import metric
from flagperf.schema.contest import Arm, Contest, Ladder, Question
from flagperf.schema.result import ClaimShown, Comparison, ContestOutput, Reason, Result, Tried
from flagperf.schema.trial import Run

_LEADING = "tokens_per_second"
_MIB = 2**20


def tried(contest: Contest, ladder: Ladder, results: Sequence[Result]) -> list[Tried]:
    """Return what became of a ladder's rungs, in their order, as far as they have been tried."""
    found = {(r.engine, r.layout): r for r in results if r.purpose == "search"}
    done = []
    for layout in ladder.rungs:
        result = found.get((ladder.engine, str(layout)))
        if result is None:
            break
        done.append(_tried(contest, Arm(ladder.engine, layout), result))
    return done


def _tried(contest: Contest, arm: Arm, result: Result) -> Tried:
    leading, allocated = (result.metrics.get(name) for name in (_LEADING, "memory_peak_allocated"))
    speed = leading.value if leading else None
    memory = allocated.value if allocated else None
    verdict: Literal["fits", "too big", "failed"] = "fits"
    why = ""
    if any(reason.code == "out_of_memory" for reason in result.reasons):
        verdict = "too big"
    elif result.verdict == "invalid" or speed is None:
        verdict, why = "failed", result.reasons[0].message if result.reasons else "no speed was measured"
    elif contest.memory_budget is not None:
        if memory is None:
            verdict, why = "failed", "its memory couldn't be measured, so it isn't known whether it fits"
        elif memory * _MIB > contest.memory_budget:
            verdict = "too big"
    return Tried(
        arm=arm,
        trial=result.id,
        verdict=verdict,
        tokens_per_second=speed,
        low=leading.low if leading else None,
        high=leading.high if leading else None,
        memory_mib=memory,
        why=why,
    )


def best(contest: Contest, engine: str, results: Sequence[Result]) -> Arm | None:
    """Return the fastest layout of an engine among those that were tried and fit; None if none does.

    The layout that was named gives way only to one that is surely faster, by the intervals over their steps: else
    noise would choose, and what it chose would cost another arm of trials to measure.
    """
    fitting = [
        each
        for ladder in contest.ladders
        if ladder.engine == engine
        for each in tried(contest, ladder, results)
        if each.verdict == "fits"
    ]
    if not fitting:
        return None
    fastest = max(fitting, key=lambda each: each.tokens_per_second or 0.0)
    for each in fitting:
        if each.arm in contest.arms and not _surely_faster(fastest, each):
            return each.arm
    return fastest.arm


def _surely_faster(one: Tried, other: Tried) -> bool:
    return one.low is not None and other.high is not None and one.low > other.high


def sides(contest: Contest, results: Sequence[Result]) -> dict[Question, tuple[Arm | None, Arm | None]]:
    """Return candidate and baseline of each question that is asked; None for a best layout that wasn't found."""
    asked: dict[Question, tuple[Arm | None, Arm | None]] = {"equal": (contest.candidate, contest.baseline)}
    if contest.ladders:
        found = [best(contest, arm.engine, results) for arm in (contest.candidate, contest.baseline)]
        asked["best"] = found[0], found[1]
    if contest.without_overlap is not None:
        asked["overlap"] = (contest.candidate, contest.without_overlap)
    return asked


def answers(
    run: Run,
    results: Sequence[Result],
    contest: Contest,
    curves: Curves | None,
    metrics: Sequence[str] | None = None,
) -> list[Comparison]:
    """Return the comparisons that answer a run's contest, question by question; the main metrics unless said."""
    own = [result for result in results if result.run == run.id]
    found: list[Comparison] = []
    for question, (candidate, baseline) in sides(contest, own).items():
        if candidate is None or baseline is None:
            found.append(_nothing_fits(contest, question, candidate, baseline))
            continue
        compared = compare_arms(own, candidate, baseline, metrics, curves=curves)
        found += [msgspec.structs.replace(each, question=question) for each in compared]
    return found


def _nothing_fits(contest: Contest, question: Question, candidate: Arm | None, baseline: Arm | None) -> Comparison:
    sides = ((contest.candidate, candidate), (contest.baseline, baseline))
    lacking = " and ".join(named.engine for named, found in sides if found is None)
    limit = "" if contest.memory_budget is None else f" in {contest.memory_budget / _MIB:,.0f} MiB a rank"
    declared = metric(_LEADING)
    return Comparison(
        metric=_LEADING,
        candidate=str(candidate or contest.candidate),
        baseline=str(baseline or contest.baseline),
        ratio=None,
        low=None,
        high=None,
        verdict="cannot tell",
        question=question,
        unit=declared.unit,
        direction=declared.direction,
        notes=[
            Reason("nothing_fits", f"No layout of {lacking} that was tried ran{limit}.", "Give more memory or ranks.")
        ],
    )


def compared(run: Run, results: Sequence[Result], curves: Curves | None = None) -> list[Comparison]:
    """Return a run's comparisons: the answers to its contest, else each arm against the baseline."""
    if run.contest is not None:
        return answers(run, results, run.contest, curves)
    swept = compare_points(results)
    several = len({(result.engine, result.layout) for result in results if not result.points}) > 1
    training = [result for result in results if not result.points]
    return [*(compare(training, run.baseline, curves=curves) if several else []), *swept]


def claims(contest: Contest, comparisons: Sequence[Comparison]) -> list[ClaimShown]:
    """Return every claim on these engines with the comparison of throughput that answers the same question."""
    speed = {each.question: each for each in comparisons if each.metric == _LEADING}
    return [ClaimShown(claim=claim, measured=speed.get(claim.question)) for claim in contest.claims]


def told(run: Run, results: Sequence[Result], comparisons: Sequence[Comparison]) -> ContestOutput | None:
    """Return what a run's contest has to tell beyond comparisons; None if it is no contest."""
    if run.contest is None:
        return None
    own = [result for result in results if result.run == run.id]
    return ContestOutput(
        tried=[each for ladder in run.contest.ladders for each in tried(run.contest, ladder, own)],
        claims=claims(run.contest, comparisons),
    )
