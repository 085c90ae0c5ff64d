"""What comes out: results of trials, comparisons of engines, and the object `flagperf run --json` prints."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flagperf.schema.contest import Arm, Claim, Question
from flagperf.schema.inference import Scenario
from flagperf.schema.metric import MetricValue
from flagperf.schema.survey import ScaleKind
from flagperf.schema.sweep import At, Point
from flagperf.schema.trial import Purpose

Verdict = Literal["valid", "invalid"]
ComparisonVerdict = Literal["better", "worse", "equivalent", "cannot tell"]


SIMULATED = "simulated"
"""Code of the note on a result whose devices don't exist."""
SCALED = "scaled"
"""Code of the note on a result of shortened scenarios."""
LINK_SHAPED = "link_shaped"
"""Code of the note on a result whose ranks had links of a chosen bandwidth and delay."""


class Reason(msgspec.Struct, frozen=True):
    """Why a result is invalid, or what a reader must know of a valid one."""

    code: str
    message: str
    hint: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A trial's metrics with its verdict."""

    case: str
    preset: str
    vendor: str
    engine: str
    ranks: int
    layout: str
    dtype: str
    seed: int
    trial: int
    """Which repetition of its engine and layout this is, from 0."""
    scenario: Scenario = ""
    """Of an inference trial."""
    purpose: Purpose = "measure"
    verdict: Verdict
    reasons: list[Reason]
    metrics: dict[str, MetricValue]
    points: list[Point] = []
    """Of a sweep, in the order they were measured."""
    run: str = ""
    id: str = ""
    """The trial's folder in the run."""
    notes: list[Reason] = []
    """What doesn't make it invalid but must be seen: a noisy machine, a torn journal line."""
    facts: dict[str, Any] = {}
    """What was run, beyond the options: tokens' fingerprint, peak used, package versions, a digest of the settings."""

    @property
    def swept(self) -> bool:
        """Whether its points are of providers side by side; an engine under numbers of clients has points too."""
        return bool(self.points) and not self.scenario


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate against a baseline in one metric: the ratio candidate ÷ baseline with its 95 % interval."""

    metric: str
    candidate: str
    baseline: str
    ratio: float | None
    low: float | None
    high: float | None
    verdict: ComparisonVerdict
    case: str = ""
    preset: str = ""
    scenario: Scenario = ""
    pairs: int = 0
    """Pairs of trials that were compared."""
    more_trials: int | None = None
    """When it can't be told: about how many more pairs would settle it; None if none seen would."""
    at: At | None = None
    """Which point of a sweep it is about; the arms are providers then."""
    question: Question | None = None
    """Which of a contest's questions it answers."""
    minimum_effect: float = 0.03
    candidate_value: float | None = None
    baseline_value: float | None = None
    unit: str = ""
    direction: str = "none"
    notes: list[Reason] = []


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One layout that was tried when the best was looked for."""

    arm: Arm
    trial: str
    """Its id in the run."""
    verdict: Literal["fits", "too big", "failed"]
    tokens_per_second: float | None = None
    low: float | None = None
    """With `high` the 95 % interval of the speed over the trial's steps; None where they are too few for one."""
    high: float | None = None
    memory_mib: float | None = None
    """Allocator peak of a rank."""
    why: str = ""
    """Of a failure that isn't for want of memory."""


class ClaimShown(msgspec.Struct, frozen=True, kw_only=True):
    """A published claim beside what was measured in its place."""

    claim: Claim
    measured: Comparison | None


class ContestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a contest has to tell beyond comparisons."""

    tried: list[Tried]
    """In the order it was tried."""
    claims: list[ClaimShown]


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a step under the profiler: seconds, the mean over ranks. compute + exposed + idle = seconds."""

    seconds: float
    compute: float
    """In which the rank computed."""
    exposed: float
    """In which it communicated and computed nothing."""
    hidden: float
    """In which it communicated while it computed; part of `compute`."""
    idle: float
    """In which it did neither."""
    trace: str
    """Rank 0's trace for Perfetto, in the run's folder."""


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a scaling curve, as it was measured: medians over valid trials."""

    kind: ScaleKind
    arm: Arm
    ranks: int
    threads: int
    """Compute threads a rank."""
    global_batch: int
    trials: list[str]
    """Ids of all its trials."""
    valid: int
    """How many of them count."""
    tokens_per_second: float | None = None
    efficiency: float | None = None
    """Throughput a rank over that of the base; 1 is perfect. None where it can't be told."""
    low: float | None = None
    """With `high` the 95 % interval, over pairs of trials."""
    high: float | None = None
    pairs: int = 0
    memory_mib: float | None = None
    """Allocator peak of a rank."""
    split: Split | None = None
    notes: list[Reason] = []


Fate = Literal["fits", "too big", "failed", "pruned", "refused", "not tried"]
"""The first three of what was tried. `pruned`: it can't be the best, or can't fit, by what is known without trying it.
`refused`: the engine or the case can't do it. `not tried`: there was no time left."""


class LayoutFate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one layout of the space that was searched."""

    arm: Arm
    fate: Fate
    why: str = ""
    """Of all fates but `fits`."""
    predicted_mib: float | None = None
    """Memory a rank by formula."""
    tried: Tried | None = None
    split: Split | None = None


class SurveyOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a survey has to tell."""

    scaling: list[Scaled]
    """The base first."""
    layouts: list[LayoutFate]
    """Every layout of the space once, in the order of planning."""
    left_out: dict[str, str]
    """Engines that weren't searched, each with the reason."""
    best: Arm | None
    """The fastest that fits; None where nothing was searched, or nothing fits."""
    budget: float
    """Seconds."""
    spent: float
    """Seconds that the search took."""
    ended: Literal["complete", "budget", "unfinished"]
    """`complete`: nothing was left to try."""
    notes: list[Reason] = []


class RunOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What `flagperf run --json` prints."""

    run: str
    results: list[Result]
    comparisons: list[Comparison]
    contest: ContestOutput | None = None
    survey: SurveyOutput | None = None
