"""What a contest's trials say to its questions. Everything here follows from the plan and the results."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flagperf.collect import survey
from flagperf.collect.clients import compare_clients
from flagperf.collect.compare import Curves, compare, compare_arms
from flagperf.collect.search import fastest, outcome
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
        done.append(outcome(Arm(ladder.engine, layout), result, contest.memory_budget))
    return done


def best(contest: Contest, engine: str, results: Sequence[Result]) -> Arm | None:
    """Return the fastest layout of an engine among those that were tried and fit; None if none does."""
    ladders = [ladder for ladder in contest.ladders if ladder.engine == engine]
    return fastest([each for ladder in ladders for each in tried(contest, ladder, results)], contest.arms)


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
    """Return a run's comparisons: the answers to its contest or survey, else each arm against the baseline."""
    if run.contest is not None:
        return answers(run, results, run.contest, curves)
    if run.survey is not None:
        return survey.answers(run, results, curves)
    whole = [result for result in results if not result.swept]
    several = len({(result.engine, result.layout) for result in whole}) > 1
    found = compare(whole, run.baseline, curves=curves) if several else []
    return [*found, *compare_clients(whole, run.baseline), *compare_points(results)]


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
