"""Inference: what a trial is loaded with, and what became of each query."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Scenario = Literal["", "singlestream", "multistream", "server", "offline", "concurrency"]
"""How load comes: the first four are MLPerf's, issued by LoadGen. `concurrency`: so many clients, each of which asks
again as soon as it has its answer, at several numbers of clients one after the other. Empty where a case has none."""

SCENARIOS: tuple[Scenario, ...] = ("singlestream", "multistream", "server", "offline", "concurrency")

Task = Literal["generate", "classify"]
"""`generate`: tokens after a prompt, one by one. `classify`: one forward pass an input, of fixed size."""

Fault = Literal["connection", "status", "stalled", "closed", "rubbish", "too_long", "too_many", "memory", "engine"]
"""Why a query has no answer that counts. `status`: the server answered with an error of its own (4xx, 5xx). `stalled`:
nothing came for too long. `closed`: the stream ended before the answer did. `rubbish`: what came can't be read.
`too_long`: the prompt doesn't fit. `too_many`: more tokens than were asked for. `memory`: there wasn't enough.
`engine`: an error of the engine's own."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Lengths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution of lengths in tokens: log-normal of this median and spread, cut off at both ends."""

    median: Positive
    least: Positive
    most: Positive
    spread: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """Standard deviation of the logarithm; with 0 all are alike."""


class LoadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What queries ask, and when."""

    prompts: str = ""
    """A JSON-lines file of objects with `prompt` (text) or `tokens` (ids), and `limit` where it isn't to be drawn;
    empty for passages of the case's own held-out text."""
    count: Positive = 64
    """Different prompts; queries take them in turn."""
    input: Lengths
    """Of prompts, where they are passages."""
    output: Lengths
    """Tokens asked for."""
    shared: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens that all passages begin with: what a prefix cache can know."""
    batch: Positive = 8
    """Queries an engine works on at once, at most; and samples of a MultiStream query."""
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Queries a second of the Server scenario; 0 looks for the highest that keeps the bounds."""
    clients: list[Positive] = msgspec.field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Of the scenario `concurrency`, one after the other."""
    ttft: Annotated[float, msgspec.Meta(gt=0)]
    """Seconds to the first token that a user waits: the bound of goodput, and of Server at its 99th percentile."""
    tpot: Annotated[float, msgspec.Meta(gt=0)]
    """Seconds a token after the first, likewise."""
    duration: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """Seconds that a scenario lasts at least, before `--scale`."""
    patience: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Seconds without a token after which a query counts as stalled."""


class Query(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One query and its answer, as the harness saw them. A line of the journal; nothing is left out or averaged."""

    number: int
    prompt: int
    """Which of the prompts it asked."""
    input: int
    """Tokens of the prompt."""
    asked: int
    """Tokens asked for; the answer is complete with fewer only if the model has ended it."""
    issued: int
    """When the load generator gave it out, on the host's monotonic clock, ns."""
    tokens: list[int] = []
    """How many tokens came, piece by piece …"""
    times: list[int] = []
    """… and when, µs after `issued`."""
    done: int | None = None
    """When the answer was complete, µs after `issued`; None where it never was."""
    fault: Fault | Literal[""] = ""
    why: str = ""
    clients: int = 0
    """Of the scenario `concurrency`: at how many clients."""


class Load(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a load generator says of a whole scenario."""

    scenario: Scenario
    seconds: float
    """From the first query's issue to the last one's end."""
    settings: dict[str, Any] = {}
    """What it was told: durations, counts, rates, bounds."""
    valid: bool = True
    """By LoadGen's own rules; what isn't LoadGen's is valid as it is."""
    reasons: list[str] = []
    """Why not, in LoadGen's words."""
    figures: dict[str, float] = {}
    """LoadGen's own results, by its names: a cross-check."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine's answers stand against the reference: the plain model in fp32, without a cache."""

    queries: int
    tokens: int
    """That were compared."""
    wrong: int
    """Tokens that the reference, given those before them, puts further below its best than `tolerance` allows."""
    worst: float
    """Largest such distance, in logits."""
    tolerance: float
    first: str = ""
    """The first wrong one, in words."""


class HeldByInference(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that an engine holds for serving; None where it can't tell."""

    weights: int | None = None
    cache: int | None = None
    """Keys and values, room for them included."""
