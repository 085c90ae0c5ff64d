"""The metrics of an inference trial: percentiles over queries, rates over the scenario, and whether they can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from flagperf.collect.journals import Floats, RankJournal, Telemetry, number
from flagperf.collect.reduce import QUANTILES
from flagperf.collect.resources import Span, put, put_energy, put_memory, put_telemetry_cost
from flagperf.schema.event import Key
from flagperf.schema.inference import Agreement, Load, LoadSettings, Query
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Reason
from flagperf.schema.sweep import Point
from flagperf.schema.trial import Trial
from flagperf.statistics import quantile_interval

T = TypeVar("T")

TOGETHER_US = 100
"""Tokens that came within so many µs of each other came together: no engine makes them one by one that fast."""
BURST_TOKENS = 4
"""An answer of fewer tokens can't show whether it came in a burst."""
MOST_BURSTS = 0.01
"""Share of the answers that may come in a burst before latencies aren't worth telling."""
_TIMES = {"ttft": "ttft_{}", "tpot": "tpot_{}", "itl": "itl_{}", "latency": "latency_{}"}
_LEVELS = {"p50": "median", "p90": "p90", "p99": "p99"}


class Served:
    """What a trial's journal tells of its queries; what can't be read is counted as the journal's flaw."""

    def __init__(self, rank: RankJournal) -> None:
        self.queries = sorted(_events(rank, Key.QUERY, Query), key=lambda query: query.number)
        loads = _events(rank, Key.LOAD, Load)
        self.load = loads[-1] if loads else None
        agreements = _events(rank, Key.AGREEMENT, Agreement)
        self.agreement = agreements[-1] if agreements else None

    @property
    def complete(self) -> list[Query]:
        """Queries with a whole answer."""
        return [query for query in self.queries if query.done is not None and not query.fault]

    @property
    def span(self) -> Span | None:
        """From the first query's issue to the last one's end."""
        if not self.complete:
            return None
        ends = [query.issued + (query.done or 0) * 1000 for query in self.complete]
        return Span(min(query.issued for query in self.queries), max(ends))


def _events(rank: RankJournal, key: str, kind: type[T]) -> list[T]:
    found = []
    for event in rank.events.get(key, []):
        try:
            found.append(msgspec.convert(event.value, kind))
        except msgspec.ValidationError:
            rank.flaws[f"{key} that can't be read"] += 1
    return found


def bursty(query: Query) -> bool:
    """Whether most tokens of an answer came at once: then nothing is known of when each of them was made."""
    total = sum(query.tokens)
    if total < BURST_TOKENS:
        return False
    largest = current = 0
    before: int | None = None
    for count, time in zip(query.tokens, query.times, strict=False):
        current = current + count if before is not None and time - before < TOGETHER_US else count
        largest, before = max(largest, current), time
    return 2 * largest > total


def times(queries: Sequence[Query]) -> dict[str, Floats]:
    """Return, in seconds: to the first token, a token after it, between pieces of an answer, and whole answers.

    A query of one token has no time a token, and one that came in a burst has neither that nor a first token's.
    """
    apart = [query for query in queries if query.times and not bursty(query)]
    several = [query for query in apart if sum(query.tokens) > query.tokens[0]]
    gaps = [np.diff(query.times) for query in several]
    seconds = {
        "ttft": [query.times[0] for query in apart],
        "tpot": [(q.times[-1] - q.times[0]) / (sum(q.tokens) - q.tokens[0]) for q in several],
        "itl": np.concatenate(gaps) if gaps else [],
        "latency": [query.done or 0 for query in queries],
    }
    return {name: np.asarray(values, np.float64) / 1e6 for name, values in seconds.items()}


def within(queries: Sequence[Query], load: LoadSettings) -> int:
    """Return how many queries kept both bounds."""
    kept = 0
    for query in queries:
        seen = times([query])
        kept += all((seen[name] <= bound).all() for name, bound in (("ttft", load.ttft), ("tpot", load.tpot))) and (
            len(seen["ttft"]) == 1
        )
    return kept


def inference_metrics(
    trial: Trial, ranks: Sequence[RankJournal], served: Served, points: Sequence[Point], telemetry: Telemetry
) -> dict[str, MetricValue]:
    """Return every metric that the journals have the data for."""
    values: dict[str, MetricValue] = {}
    if trial.scenario == "concurrency":
        best = [point for point in points if "output_tokens_per_second" in point.metrics]
        if best:
            name = "output_tokens_per_second"
            values[name] = max((point.metrics[name] for point in best), key=lambda value: value.value)
    elif served.complete and served.load is not None and served.load.seconds > 0:
        values |= query_metrics(served.complete, served.load.seconds, _load(trial))
        rate = number(served.load.settings.get("server_target_qps"))
        if rate is not None and served.load.valid:
            put(values, "server_rate", rate)
    if served.queries:
        put(values, "queries_failed", float(len(served.queries) - len(served.complete)), n=len(served.queries))
    put_memory(values, ranks)
    if served.agreement is not None and served.agreement.tokens:
        right = served.agreement.tokens - served.agreement.wrong
        put(values, "token_agreement", right / served.agreement.tokens, n=served.agreement.tokens)
    accuracy = [x for rank in ranks for x in rank.numbers(Key.EVAL, "next_token_accuracy")]
    if accuracy:
        put(values, "next_token_accuracy", accuracy[-1], n=int(number(ranks[0].last(Key.EVAL).get("count")) or 1))
    if (build := number(ranks[0].last(Key.BUILD).get("seconds"))) is not None:
        put(values, "build_time", build)
    if served.span is not None:
        tokens = sum(sum(query.tokens) for query in served.complete)
        put_energy(values, ranks, served.span, telemetry, float(tokens))
    put_telemetry_cost(values, telemetry)
    return values


def query_metrics(queries: Sequence[Query], seconds: float, load: LoadSettings) -> dict[str, MetricValue]:
    """Return the metrics of some queries that were answered within so many seconds."""
    values: dict[str, MetricValue] = {}
    put(values, "output_tokens_per_second", sum(sum(query.tokens) for query in queries) / seconds, n=len(queries))
    put(values, "queries_per_second", len(queries) / seconds, n=len(queries))
    put(values, "goodput", within(queries, load) / seconds, n=len(queries))
    for kind, series in times(queries).items():
        for level, how in _LEVELS.items():
            if len(series):
                q = QUANTILES[how]
                interval = quantile_interval(series, q)
                put(values, _TIMES[kind].format(level), float(np.quantile(series, q)), len(series), interval)
    return values


def inference_points(trial: Trial, served: Served) -> list[Point]:
    """Return a point a number of clients, of the scenario `concurrency`."""
    if trial.scenario != "concurrency":
        return []
    load, points = _load(trial), []
    for clients in load.clients:
        asked = [query for query in served.queries if query.clients == clients]
        done = [query for query in asked if query.done is not None and not query.fault]
        if not done:
            why = asked[0].why if asked else "nothing was asked"
            points.append(Point(at={"clients": clients}, provider=trial.engine, verdict="failed", why=why))
            continue
        seconds = max(q.issued / 1e9 + (q.done or 0) / 1e6 for q in done) - min(q.issued for q in asked) / 1e9
        metrics = query_metrics(done, seconds, load)
        points.append(Point(at={"clients": clients}, provider=trial.engine, verdict="valid", metrics=metrics))
    return points


def inference_reasons(trial: Trial, served: Served) -> Iterator[Reason]:
    """Return why an inference trial is no valid measurement."""
    if served.agreement is not None and served.agreement.wrong and not trial.settings.get("quantized"):
        told = served.agreement
        yield Reason(
            "tokens_differ",
            f"{told.wrong} of {told.tokens} tokens aren't the reference's: {told.first}. The worst lies "
            f"{told.worst:.2g} standard deviations of the logits below its best; {told.tolerance:g} are allowed.",
            "The engine computes something else: its weights, its positions, its cache, or its data type.",
        )
    failed = [query for query in served.queries if query.fault]
    if failed:
        kinds = ", ".join(f"{name} {count}" for name, count in Counter(query.fault for query in failed).items())
        yield Reason(
            "queries_failed",
            f"{len(failed)} of {len(served.queries)} queries have no answer: {kinds}. The first: {failed[0].why}.",
            "A rate over answered queries alone would make failing pay; mend what fails.",
        )
    if served.load is None:
        yield Reason("no_load", "The scenario didn't come to its end.", "See the other reasons.")
    elif not served.complete:
        yield Reason("nothing_measured", "No query was answered.", "See the other reasons.")
    else:
        bursts = sum(map(bursty, served.complete))
        if bursts > MOST_BURSTS * len(served.complete):
            yield Reason(
                "bursts",
                f"{bursts} of {len(served.complete)} answers came in a burst, most tokens at once: when each token was "
                "made isn't known.",
                "Have the server send each token as it's made; one that is starved of CPU time sends them late.",
            )
    if served.load is not None and not served.load.valid and trial.scale == 1.0:
        yield Reason("loadgen_invalid", f"LoadGen says INVALID: {'; '.join(served.load.reasons)}", "")


def inference_notes(trial: Trial, served: Served) -> Iterator[Reason]:
    """Tell what a reader must know of a valid trial."""
    if trial.scale != 1.0:
        said = "" if served.load is None or served.load.valid else f" LoadGen says: {'; '.join(served.load.reasons)}"
        yield Reason(
            "scaled",
            f"A try-out: durations and counts were multiplied by {trial.scale:g}.{said}",
            "Leave --scale out for a result that others can rely on.",
        )


def _load(trial: Trial) -> LoadSettings:
    known: Any = trial.settings.get("load")
    return msgspec.convert(known, LoadSettings)
