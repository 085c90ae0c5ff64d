"""Inference: what a trial is loaded with, and what became of each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

Scenario = Literal["", "singlestream", "multistream", "server", "offline", "concurrency"]
"""How load comes: the first four are MLPerf's, issued by LoadGen. `concurrency`: so many clients, each of which asks
again as soon as it has its answer, at several numbers of clients one after the other. Empty where a case has none."""

SCENARIOS: tuple[Scenario, ...] = ("singlestream", "multistream", "server", "offline", "concurrency")

TOLD: dict[Scenario, tuple[str, ...]] = {
    "singlestream": (
        *("latency_p90", "latency_p50", "latency_p99", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p90"),
        *("tpot_p99", "itl_p99", "output_tokens_per_second", "queries_per_second"),
    ),
    "multistream": (
        *("latency_p99", "latency_p50", "latency_p90", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p90"),
        *("tpot_p99", "itl_p99", "output_tokens_per_second", "queries_per_second"),
    ),
    "server": (
        *("server_rate", "goodput", "ttft_p99", "ttft_p50", "ttft_p90", "tpot_p99", "tpot_p50", "tpot_p90", "itl_p99"),
        *("latency_p50", "latency_p90", "latency_p99", "output_tokens_per_second", "queries_per_second"),
    ),
    "offline": ("output_tokens_per_second", "queries_per_second", "tpot_p50", "tpot_p90", "tpot_p99"),
    "concurrency": (
        *("output_tokens_per_second", "ttft_p50", "tpot_p50", "goodput", "ttft_p99", "tpot_p99", "itl_p99"),
        *("queries_per_second", "latency_p50", "latency_p99"),
    ),
}
"""Metrics of queries that say something of a scenario, the one that it is judged by first. Offline's first tokens, say,
wait for all that was asked before them: their times tell how much was asked at once."""

THROUGHPUTS = ("output_tokens_per_second", "queries_per_second")
"""What numbers of clients are judged by: the first that a case has."""

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


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is asked by URL: what a case takes that can be measured with the engine `endpoint`."""

    url: str = ""
    """Of an OpenAI-compatible server: http://host:port/v1"""
    served: str = ""
    """What the server calls the model; empty takes the only one it has."""
    same_weights: bool = False
    """Whether it has the case's own weights: only then can its answers be checked."""
    chat: bool = False
    """Whether prompts are sent as a user's message in a chat; else as token ids, or as text where it takes no ids."""
    key: str = ""
    """Name of the environment variable that has the key to it, where it wants one."""


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


Rule = Literal["latency", "duration", "queries", "early_stopping"]
"""LoadGen's rules. `latency`: Server's bounds at the 99th percentile. `duration`, `queries`: so long and so many at
least. `early_stopping`: enough queries to be 99 % sure of the percentile."""


class LoadStart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is going to be asked: both `seconds` and `queries` at least."""

    scenario: Scenario
    seconds: float
    queries: int
    rate: float | None = None
    """Queries a second, of Server."""
    clients: int | None = None
    probe: bool = False
    """Whether it's only to find out what rate can be held."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A rate of the Server scenario that was tried on the way to the highest that keeps the bounds."""

    rate: float
    """Queries a second."""
    first: int
    """Number of its first query …"""
    count: int
    """… and how many it had: they are no part of the result."""
    seconds: float
    ttft: float
    """Seconds at the 99th percentile, by LoadGen, which counts from when a query was due; `tpot` likewise."""
    tpot: float
    failed: int
    held: bool
    """Whether all were answered within the bounds at that percentile."""


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
    broken: list[Rule] = []
    """Which of its rules."""
    wanting: int = 0
    """How many queries more early stopping would have wanted."""
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
    judged: bool = True
    """Whether wrong tokens make the trial invalid; those of quantized weights are its accuracy."""
    first: str = ""
    """The first wrong one, in words."""


class HeldByInference(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that an engine holds for serving; None where it can't tell."""

    weights: int | None = None
    cache: int | None = None
    """Keys and values, room for them included."""


def told(scenario: Scenario, metrics: Sequence[str]) -> list[str]:
    """Return those of a case's metrics that say something of a scenario, the one that it is judged by first."""
    of_queries = {name for names in TOLD.values() for name in names}
    first = [name for name in TOLD.get(scenario, ()) if name in metrics]
    return [*first, *(name for name in metrics if name not in of_queries)] if first else list(metrics)
