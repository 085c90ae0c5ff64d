"""The metrics of an inference trial: percentiles over queries, rates over the scenario, and whether they can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from flagperf.collect.journals import Floats, RankJournal, Telemetry, number
from flagperf.collect.loads import late_note, load_reasons, scaled_rules
from flagperf.collect.queries import Queries
from flagperf.collect.reduce import QUANTILES
from flagperf.collect.resources import Span, put, put_energy, put_memory, put_telemetry_cost
from flagperf.errors import FlagPerfError
from flagperf.schema.event import Key
from flagperf.schema.inference import THROUGHPUTS, Agreement, Load, LoadSettings, Probe
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import SCALED, Reason
from flagperf.schema.sweep import At, Point
from flagperf.schema.trial import Trial
from flagperf.statistics import independent, mean_interval, quantile_interval

T = TypeVar("T")

MOST_BURSTS = 0.01
"""Share of the answers that may come in a burst before latencies aren't worth telling."""
WINDOWS = 20
"""Equal parts of a scenario whose rates its throughput's interval is from."""
LEAST_ANSWERS = 100
"""With fewer, a 99th percentile is hardly more than the slowest."""
_LEVELS = {"p50": "median", "p90": "p90", "p99": "p99"}


class Served:
    """What a trial's journal tells of its queries; what can't be read is counted as the journal's flaw."""

    def __init__(self, rank: RankJournal) -> None:
        self.probes = _events(rank, Key.PROBE, Probe)
        asked = rank.queries.number
        probed = np.zeros(len(asked), np.bool_)
        for probe in self.probes:
            probed |= (asked >= probe.first) & (asked < probe.first + probe.count)
        self.queries = rank.queries.take(~probed) if probed.any() else rank.queries
        self.lost = int(asked.max()) + 1 - len(asked) if len(asked) else 0
        """Queries that the journal doesn't have though it has later ones."""
        loads = _events(rank, Key.LOAD, Load)
        self.load = loads[-1] if loads else None
        agreements = _events(rank, Key.AGREEMENT, Agreement)
        self.agreement = agreements[-1] if agreements else None

    @property
    def complete(self) -> Queries:
        """Queries with a whole answer."""
        return self.queries.complete

    @property
    def span(self) -> Span | None:
        """From the first query's issue to the last one's end."""
        return whole(self.queries)


def _events(rank: RankJournal, key: str, kind: type[T]) -> list[T]:
    found = []
    for event in rank.events.get(key, []):
        try:
            found.append(msgspec.convert(event.value, kind))
        except msgspec.ValidationError:
            rank.flaws[f"{key} that can't be read"] += 1
    return found


def whole(queries: Queries) -> Span | None:
    """Return the time from the first issue to the last end; None where nothing was answered."""
    if not len(queries.complete):
        return None
    return Span(int(queries.issued.min()), float(queries.complete.ends.max()))


def steady(queries: Queries) -> Span | None:
    """Return the time in which all clients had a query going: from the first issue to the last one."""
    span = whole(queries)
    last = int(queries.issued.max()) if len(queries) else 0
    return Span(span.start_ns, last) if span is not None and last > span.start_ns else span


def latencies(trial: Trial, queries: Queries) -> dict[str, Floats]:
    """Return, in seconds: to the first token, a token after it, between pieces of an answer, and whole answers.

    A MultiStream query is its samples together: it is answered when the last of them is.
    """
    whole_answers = queries.latency
    if trial.scenario == "multistream":
        size = load_settings(trial).batch
        together, first = np.unique(queries.number // size, return_index=True)
        counts = np.diff(np.append(first, len(queries)))
        if len(together):
            ends, issues = np.maximum.reduceat(queries.ends, first), np.minimum.reduceat(queries.issued, first)
            whole_answers = ((ends - issues) / 1e9)[counts == size]
    found = {"ttft": queries.ttft, "tpot": queries.tpot, "itl": queries.gaps, "latency": whole_answers}
    return {name: series[np.isfinite(series)] for name, series in found.items()}


def inference_metrics(
    trial: Trial, ranks: Sequence[RankJournal], served: Served, points: Sequence[Point], telemetry: Telemetry
) -> dict[str, MetricValue]:
    """Return every metric that the journals have the data for."""
    values: dict[str, MetricValue] = {}
    complete, span = served.complete, served.span
    if trial.scenario == "concurrency":
        name = next((name for name in THROUGHPUTS if any(name in point.metrics for point in points)), "")
        best = [point.metrics[name] for point in points if name in point.metrics]
        if best:
            values[name] = max(best, key=lambda value: value.value)
    elif span is not None and served.load is not None:
        values |= query_metrics(trial, complete, span)
        rate = number(served.load.settings.get("server_target_qps"))
        if rate is not None and "latency" not in served.load.broken:
            put(values, "server_rate", rate)
    if len(served.queries):
        put(values, "queries_failed", float(len(served.queries.failed)), n=len(served.queries))
    put_memory(values, ranks)
    if served.agreement is not None and served.agreement.tokens:
        right = served.agreement.tokens - served.agreement.wrong
        put(values, "token_agreement", right / served.agreement.tokens, n=served.agreement.tokens)
    accuracy = [x for rank in ranks for x in rank.numbers(Key.EVAL, "next_token_accuracy")]
    if accuracy:
        put(values, "next_token_accuracy", accuracy[-1], n=int(number(ranks[0].last(Key.EVAL).get("count")) or 1))
    if (build := number(ranks[0].last(Key.BUILD).get("seconds"))) is not None:
        put(values, "build_time", build)
    _classified(values, ranks[0])
    if span is not None:
        put_energy(values, ranks, span, telemetry, float(complete.tokens.sum()))
    put_telemetry_cost(values, telemetry)
    return values


def _classified(values: dict[str, MetricValue], rank: RankJournal) -> None:
    """Put the rate of whole queries beside that of the model alone, of engines whose passes are timed."""
    answered, seconds = (rank.numbers(Key.SERVED, name) for name in ("answered", "core_seconds"))
    if len(answered) == len(seconds) == 2 and seconds[1] > seconds[0] and "queries_per_second" in values:
        put(values, "p_whole", values["queries_per_second"].value, n=values["queries_per_second"].n)
        count = answered[1] - answered[0]
        put(values, "p_core", count / (seconds[1] - seconds[0]), n=int(count))


def query_metrics(trial: Trial, queries: Queries, span: Span) -> dict[str, MetricValue]:
    """Return the metrics of complete answers: rates of what came within the span, and percentiles over all of them."""
    values: dict[str, MetricValue] = {}
    seconds = (span.stop_ns - span.start_ns) / 1e9
    if not seconds > 0:
        return values
    inside = queries.came <= span.stop_ns
    rate, interval = _rate(queries.came[inside], queries.counts[inside].astype(np.float64), span)
    load = load_settings(trial)
    ended = queries.take(queries.ends <= span.stop_ns)
    put(values, "output_tokens_per_second", rate, len(queries), interval)
    put(values, "queries_per_second", len(ended) / seconds, n=len(queries))
    put(values, "goodput", float(ended.within(load.ttft, load.tpot).sum()) / seconds, n=len(queries))
    for kind, series in latencies(trial, queries).items():
        for level, how in _LEVELS.items():
            if len(series):
                q = QUANTILES[how]
                interval = quantile_interval(series, q)
                put(values, f"{kind}_{level}", percentile(series, q), len(series), interval)
    return values


def percentile(series: Floats, q: float) -> float:
    """Return the least value that a share `q` of the values doesn't exceed, as LoadGen counts it."""
    return float(np.quantile(series, q, method="inverted_cdf"))


def _rate(came: Floats, counts: Floats, span: Span) -> tuple[float, tuple[float, float] | None]:
    """Return tokens a second, and the interval of that from windows of the span, as far as these are independent."""
    length = (span.stop_ns - span.start_ns) / 1e9
    since = np.clip((came - span.start_ns) / 1e9, 0.0, length)
    rates = np.histogram(since, WINDOWS, (0.0, length), weights=counts)[0] / (length / WINDOWS)
    interval = mean_interval(rates, independent(rates))
    return float(counts.sum() / length), (max(0.0, interval[0]), interval[1]) if interval else None


def inference_points(trial: Trial, served: Served) -> list[Point]:
    """Return a point a number of clients, of the scenario `concurrency`."""
    if trial.scenario != "concurrency":
        return []
    points = []
    for clients in load_settings(trial).clients:
        at: At = {"clients": clients}
        asked = served.queries.take(served.queries.clients == clients)
        span = steady(asked)
        if span is None or len(asked.failed):
            lost = f"{len(asked.failed)} of {len(asked)} queries have no answer: {_kinds(asked.failed)}"
            why = lost if len(asked) else "nothing was asked"
            points.append(Point(at=at, provider=trial.engine, verdict="failed", why=why))
        else:
            found = query_metrics(trial, asked, span)
            metrics = {name: found[name] for name in trial.metrics or found if name in found}
            points.append(Point(at=at, provider=trial.engine, verdict="valid", metrics=metrics))
    return points


def inference_reasons(trial: Trial, served: Served) -> Iterator[Reason]:
    """Return why an inference trial is no valid measurement."""
    if served.agreement is not None and served.agreement.wrong and served.agreement.judged:
        told = served.agreement
        yield Reason(
            "tokens_differ",
            f"{told.wrong} of {told.tokens} tokens aren't the reference's: {told.first}. The worst lies "
            f"{told.worst:.2g} standard deviations of the logits below its best; {told.tolerance:g} are allowed.",
            "The engine computes something else: its weights, its positions, its cache, or its data type.",
        )
    failed, complete = served.queries.failed, served.complete
    if len(failed):
        why = next((f" The first: {why}." for why in failed.why if why), "")
        yield Reason(
            "queries_failed",
            f"{len(failed)} of {len(served.queries)} queries have no answer: {_kinds(failed)}.{why}",
            "A rate over answered queries alone would make failing pay; mend what fails.",
        )
    if served.load is None:
        yield Reason("no_load", "The scenario didn't come to its end.", "See the other reasons.")
        return
    if not len(complete):
        yield Reason("nothing_measured", "No query was answered.", "See the other reasons.")
    elif served.lost:
        yield Reason(
            "queries_missing",
            f"The journal lacks {served.lost} of the queries that were asked.",
            "It was damaged, or the disk was full; run the trial again.",
        )
    if (bursts := int(complete.bursty.sum())) > MOST_BURSTS * len(complete):
        yield Reason(
            "bursts",
            f"{bursts} of {len(complete)} answers came in a burst, most tokens at once: when each token was made isn't "
            "known.",
            "Have the server send each token as it's made; one that is starved of CPU time sends them late.",
        )
    yield from load_reasons(trial, served.load, load_settings(trial))


def inference_notes(trial: Trial, served: Served) -> Iterator[Reason]:
    """Tell what a reader must know of a valid trial."""
    if trial.scale != 1.0:
        said = "" if served.load is None else scaled_rules(trial, served.load, load_settings(trial))
        yield Reason(
            SCALED,
            f"A try-out: durations and counts were multiplied by {trial.scale:g}. {said}".rstrip(),
            "Leave --scale out for a result that others can rely on.",
        )
    if served.load is not None:
        yield from late_note(served.load, served.complete)
    if served.load is not None and served.agreement is None:
        yield Reason(
            "unchecked",
            "Answers weren't checked: the server's model isn't known to be the case's.",
            "If it has these very weights: --set same_weights=true",
        )
    sizes = [len(served.complete)]
    if trial.scenario == "concurrency":
        sizes = np.unique(served.complete.clients, return_counts=True)[1].tolist()
    if trial.scale == 1.0 and sizes and 0 < min(sizes) < LEAST_ANSWERS:
        yield Reason(
            "few_answers",
            f"A 99th percentile is from {min(sizes)} answers: hardly more than the slowest of them.",
            f"It takes at least {LEAST_ANSWERS}: a longer load.duration.",
        )


def load_settings(trial: Trial) -> LoadSettings:
    """Return what an inference trial's queries ask, and when; raise FlagPerfError if its plan doesn't say."""
    try:
        return msgspec.convert(trial.settings.get("load"), LoadSettings)
    except msgspec.ValidationError as error:
        raise FlagPerfError(f"The load of trial {trial.id} can't be read: {error}.", "Its plan is damaged.") from None


def _kinds(failed: Queries) -> str:
    return ", ".join(f"{name or 'cut off'} {count}" for name, count in Counter(failed.fault).items())
