"""What a survey's search has come to: each layout's fate, and which one is tried next.

Everything follows from the plan and the results. What prunes a layout, as it is tried:

- by formula it needs more memory than a rank can have, by more than the formula is known to be off;
- a smaller micro-batch of the same layout was too big already, or died of something else than memory;
- speed falls towards it: of two micro-batches on its side of it, the nearer one was surely slower than the farther;
- without recomputation, or without offloading, the same layout fits, or is pruned for its speed: with it there is but
  more work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

import msgspec

from flagperf.collect.compare import Curves, compare_arms
from flagperf.collect.scaling import scaling, split
from flagperf.collect.search import fastest, outcome, surely_faster
from flagperf.schema.contest import Arm
from flagperf.schema.layout import Layout
from flagperf.schema.result import Comparison, Fate, LayoutFate, Reason, Result, SurveyOutput, Tried
from flagperf.schema.survey import Candidate, Survey
from flagperf.schema.trial import Run

SLACK = 0.15
"""How far a prediction of memory may be off: within this the formula decides nothing."""
SAVINGS = ("recompute", "offload")
"""Layout keys that trade time for memory and do nothing else."""
_MIB = 2**20


class Choice(NamedTuple):
    """The layout that is tried next, and the seconds that are left for it."""

    candidate: Candidate
    left: float


def fates(survey: Survey, results: Sequence[Result]) -> list[LayoutFate]:
    """Return the fate of every layout of the space, once, in the order of planning."""
    return _Search(survey, results).rows


def following(survey: Survey, results: Sequence[Result]) -> Choice | None:
    """Return the layout that is tried next; None when nothing is left to try, or no time to try it in.

    Every layout without its micro-batch has its turn before any has a second one; then the fastest goes first. A trial
    is begun if as much time is left as one has taken in the median; the first is begun in any case.
    """
    search = _Search(survey, results)
    open_ones = search.eligible()
    if not open_ones or (search.took and search.spent + median(search.took) > survey.budget):
        return None
    speeds: dict[Arm, float] = {}
    for tried in search.tried.values():
        family = _family(tried.arm)
        speeds[family] = max(speeds.get(family, 0.0), tried.tokens_per_second or 0.0)
    chosen = min(open_ones, key=lambda each: (_family(each.arm) in speeds, -speeds.get(_family(each.arm), 0.0)))
    return Choice(chosen, survey.budget - search.spent)


def best(survey: Survey, results: Sequence[Result]) -> Arm | None:
    """Return the fastest layout that fits, the one that was named unless another is surely faster."""
    return fastest(list(_Search(survey, results).tried.values()), [survey.arm])


def answers(
    run: Run, results: Sequence[Result], curves: Curves | None, metrics: Sequence[str] | None = None
) -> list[Comparison]:
    """Return the best layout against the one that was named, by the measured trials; nothing if they are the same."""
    own = [result for result in results if result.run == run.id]
    if run.survey is None or (found := best(run.survey, own)) is None or found == run.survey.arm:
        return []
    return compare_arms(own, found, run.survey.arm, metrics, curves=curves)


def told(run: Run, results: Sequence[Result], curves: Curves | None = None) -> SurveyOutput | None:
    """Return all that a survey has to tell; None if the run is none."""
    survey = run.survey
    if survey is None:
        return None
    own = [result for result in results if result.run == run.id]
    search = _Search(survey, own)
    rows = search.rows
    ended: Literal["complete", "budget", "unfinished"] = "complete"
    notes = []
    if search.eligible():
        over = following(survey, own) is None
        ended = "budget" if over else "unfinished"
        why = _over(survey, search) if over else "the search isn't over"
        rows = [msgspec.structs.replace(row, why=row.why or why) if row.fate == "not tried" else row for row in rows]
        if over:
            count = sum(row.fate == "not tried" for row in rows)
            notes.append(Reason("budget_over", f"{count} layouts weren't tried: {why}.", "Give it more: --budget"))
    if search.spent > survey.budget and len(search.took) == 1:
        said = f"The first trial alone took {search.spent:,.0f} s, the budget is {survey.budget:,.0f} s."
        notes.append(
            Reason("budget_too_small", said, "Nothing was compared: give it several times that, with --budget.")
        )
    if rows and not any(row.fate == "fits" for row in rows) and ended != "unfinished":
        notes.append(Reason("nothing_fits", "No layout that was tried ran.", "Give more memory, ranks or time."))
    return SurveyOutput(
        scaling=scaling(run, own, curves),
        layouts=rows,
        left_out=survey.left_out,
        best=fastest(list(search.tried.values()), [survey.arm]),
        budget=survey.budget,
        spent=search.spent,
        ended=ended,
        notes=notes,
    )


class _Search:
    """The space with what is known of it."""

    def __init__(self, survey: Survey, results: Sequence[Result]) -> None:
        self.survey = survey
        by_arm = {(each.arm.engine, str(each.arm.layout)): each.arm for each in survey.candidates}
        done = {
            arm: result
            for result in results
            if result.purpose == "search"
            and (arm := by_arm.get((result.engine, result.layout))) is not None
            and result.facts.get("seconds") is not None
        }
        self.tried = {arm: outcome(arm, result, survey.memory_budget) for arm, result in done.items()}
        self.took = [float(result.facts["seconds"]) for result in done.values()]
        self.spent = math.fsum(self.took)
        self.families: dict[Arm, list[Tried]] = {}
        for tried in self.tried.values():
            self.families.setdefault(_family(tried.arm), []).append(tried)
        self._slow: set[Arm] = set()
        self._known: dict[Arm, LayoutFate] = {}
        space = {each.arm: each for each in survey.candidates}
        # What saves nothing first: the fates of the others rest on it.
        for arm in sorted(space, key=lambda arm: sum(getattr(arm.layout, key) for key in SAVINGS)):
            self._known[arm] = self._fate(space[arm], done.get(arm))
        self.rows = [self._known[arm] for arm in space]

    def eligible(self) -> list[Candidate]:
        """Return what may be tried now: not what waits for the same layout without a saving."""
        return [
            each
            for each in self.survey.candidates
            if self._known[each.arm].fate == "not tried"
            and not any(self._known[other].fate == "not tried" for other in self._roomier(each.arm))
        ]

    def _fate(self, candidate: Candidate, result: Result | None) -> LayoutFate:
        fate: Fate = "not tried"
        why = ""
        tried = self.tried.get(candidate.arm)
        if tried is not None:
            fate, why = tried.verdict, tried.why or _too_big(self.survey, tried)
        elif candidate.refused:
            fate, why = "refused", candidate.refused
        elif why := self._pruned(candidate):
            fate = "pruned"
        return LayoutFate(
            arm=candidate.arm,
            fate=fate,
            why=why,
            predicted_mib=None if candidate.predicted is None else candidate.predicted / _MIB,
            tried=tried,
            split=split([result]) if result is not None else None,
        )

    def _pruned(self, candidate: Candidate) -> str:
        """Return why a layout needn't be tried, or nothing."""
        arm, room = candidate.arm, self.survey.room
        if room is not None and candidate.predicted is not None and candidate.predicted > (1 + SLACK) * room:
            return f"by formula it needs {candidate.predicted / _MIB:,.0f} MiB; a rank has {room / _MIB:,.0f} at most"
        micro = arm.layout.micro or 0
        siblings = sorted(self.families.get(_family(arm), []), key=lambda each: each.arm.layout.micro or 0)
        for each in siblings:
            if each.verdict == "failed":
                return f"micro={each.arm.layout.micro} of it failed"
            if each.verdict == "too big" and (each.arm.layout.micro or 0) < micro:
                return f"micro={each.arm.layout.micro} was too big already"
        fitting = [each for each in siblings if each.verdict == "fits"]
        below = [each for each in fitting if (each.arm.layout.micro or 0) < micro]
        above = [each for each in fitting if (each.arm.layout.micro or 0) > micro]
        for near, *others in filter(None, (below[::-1], above)):
            if slower_than := [far for far in others if surely_faster(far, near)]:
                self._slow.add(arm)
                return f"micro={near.arm.layout.micro} was surely slower than micro={slower_than[0].arm.layout.micro}"
        for other in self._roomier(arm):
            key = next(key for key in SAVINGS if getattr(arm.layout, key) != getattr(other.layout, key))
            if self._known[other].fate == "fits":
                return f"it fits without {key}, which only adds work"
            if other in self._slow:
                self._slow.add(arm)
                return f"without {key} it is pruned for its speed, and {key} only adds work"
        return ""

    def _roomier(self, arm: Arm) -> list[Arm]:
        """Return the same layout without one of its savings, where that is in the space too."""
        others = [
            Arm(arm.engine, msgspec.structs.replace(arm.layout, **{key: False}))
            for key in SAVINGS
            if getattr(arm.layout, key)
        ]
        return [other for other in others if other in self._known]


def _family(arm: Arm) -> Arm:
    """Return what a layout has in common with the same one at other micro-batches."""
    layout: Layout = msgspec.structs.replace(arm.layout, micro=None)
    return Arm(arm.engine, layout)


def _too_big(survey: Survey, tried: Tried) -> str:
    if tried.verdict != "too big":
        return ""
    if survey.memory_budget is None or tried.memory_mib is None:
        return "it ran out of memory"
    return f"it took {tried.memory_mib:,.0f} MiB of the {survey.memory_budget / _MIB:,.0f} that a rank may have"


def _over(survey: Survey, search: _Search) -> str:
    took = f", and a trial takes about {median(search.took):,.0f} s" if search.took else ""
    return f"{search.spent:,.0f} s of the budget of {survey.budget:,.0f} s are spent{took}"
