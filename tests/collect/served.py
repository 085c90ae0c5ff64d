"""Runs of made-up inference trials, written by the real Journal class: for the tests of what readers see of queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from collect import runs

from flagperf.journal import Journal
from flagperf.schema.event import Key
from flagperf.schema.inference import Agreement, HeldByInference, Load, Query, Rule, Scenario, told
from flagperf.schema.layout import Layout
from flagperf.schema.trial import Outcome, Trial

METRICS = [
    *("output_tokens_per_second", "queries_per_second", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p90"),
    *("tpot_p99", "itl_p99", "latency_p50", "latency_p90", "latency_p99", "goodput", "server_rate"),
    *("memory_peak_rss", "memory_weights", "memory_cache", "token_agreement", "next_token_accuracy"),
    *("queries_failed", "energy_host", "tokens_per_joule", "build_time", "telemetry_cost"),
]
LOAD = {
    "input": {"median": 48, "least": 8, "most": 160},
    "output": {"median": 8, "least": 4, "most": 16},
    "batch": 4,
    "clients": [1, 2, 4, 8],
    "ttft": 0.2,
    "tpot": 0.05,
}
AGREED = Agreement(queries=8, tokens=200, wrong=0, worst=1e-6, tolerance=1e-4)
ORIGIN = 1_000_000_000_000
"""Of made-up journals' queries, ns."""

Change = Callable[[Trial, Query], Query | None]
"""What becomes of a query that would be written; None leaves it out."""


def query(number: int, issued: float, first: float, gap: float, count: int, **changes: Any) -> Query:
    """A query issued at a second, whose tokens come one by one: the first after `first` seconds, then every `gap`."""
    times = [round((first + place * gap) * 1e6) for place in range(count)]
    usual: dict[str, Any] = {
        "number": number,
        "prompt": number % 64,
        "input": 40,
        "asked": count,
        "issued": ORIGIN + round(issued * 1e9),
        "tokens": [1] * count,
        "times": times,
        "done": times[-1],
    }
    return Query(**(usual | changes))


def queries(trial: Trial, pace: float) -> list[Query]:
    """What a trial's scenario asks of an engine that takes `pace` times 10 ms a token, and longer with more at once."""
    random = np.random.default_rng([trial.trial, len(trial.engine), len(trial.scenario)])
    numbers = itertools.count()

    def noisy(seconds: float) -> float:
        return float(seconds * pace * np.exp(random.normal(0, 0.05)))

    def together(size: int, at: float, clients: int = 0) -> list[Query]:
        step = 0.01 * (0.7 + 0.3 * size)
        lengths = random.integers(6, 12, size).tolist()
        return [
            query(next(numbers), at, noisy(0.02 * size), noisy(step), length, clients=clients) for length in lengths
        ]

    made: list[Query] = []

    def rounds(count: int, size: int, clients: int = 0) -> None:
        for _ in range(count):
            at = 0.0 if not made else max(each.issued / 1e9 + (each.done or 0) / 1e6 for each in made) - ORIGIN / 1e9
            made.extend(together(size, at, clients))

    if trial.scenario == "concurrency":
        for clients in trial.settings["load"]["clients"]:
            rounds(6, clients, clients)
    elif trial.scenario == "offline":
        rounds(1, 24)
    else:
        rounds(12, {"multistream": 4, "server": 2}.get(trial.scenario, 1))
    return made


def trials(
    engines: Mapping[str, float] | None = None,
    scenarios: Sequence[Scenario] = ("singlestream", "offline", "concurrency"),
    count: int = 1,
    **changes: Any,
) -> list[Trial]:
    """Trials of each scenario and engine, taking turns."""
    planned: list[Trial] = []
    for scenario, number, engine in itertools.product(scenarios, range(count), engines or {"eager": 1.0}):
        usual: dict[str, Any] = {
            "id": f"{len(planned):03d}-{engine}-{scenario}",
            "case": "aquila/generate",
            "kind": "inference",
            "engine": engine,
            "scenario": scenario,
            "scale": 0.01,
            "trial": number,
            "seed": 1234 + number,
            "ranks": 1,
            "layout": Layout(),
            "settings": {"load": LOAD},
            "metrics": told(scenario, METRICS),
            "peak_flops": None,
            "protocol": runs.protocol(warmup=2, steps=1, region="From issue to the last token."),
        }
        planned.append(runs.trial(**(usual | changes)))
    return planned


def write(
    folder: Path,
    planned: Sequence[Trial] | None = None,
    engines: Mapping[str, float] | None = None,
    change: Change = lambda trial, query: query,
    *,
    asked: Sequence[Query] | None = None,
    agreed: Agreement = AGREED,
    broken: Sequence[Rule] = ("queries",),
    name: str = "served",
    **changes: Any,
) -> Path:
    """Write a run; `engines` gives each one's time against the usual one's. `broken` are LoadGen's rules that are.

    `asked` goes before what the scenarios would ask.
    """
    planned = list(planned or trials(engines))
    plan = runs.run(planned, name=name, baseline=planned[0].engine, **changes)
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(plan))
    with Journal(folder / "harness.journal", {"role": "harness", "run": plan.id}) as harness:
        for each in planned:
            place = folder / "trials" / each.id
            place.mkdir(parents=True)
            (place / "trial.json").write_bytes(msgspec.json.encode(each))
            harness.write(Key.TRIAL_START, {"id": each.id})
            harness.write(Key.ENVIRONMENT, {"trial": each.id, "when": "before", **runs.environment()})
            with Journal(place / "telemetry.journal", {"role": "telemetry"}) as telemetry:
                telemetry.write(Key.TELEMETRY, {"tick": 1, "cpu_percent": 50.0})
            usual = queries(each, (engines or {}).get(each.engine, 1.0)) if asked is None else asked
            kept = [found for one in usual if (found := change(each, one)) is not None]
            by_loadgen = each.scenario != "concurrency"
            load = Load(
                scenario=each.scenario,
                seconds=1.0,
                settings={"server_target_qps": 7.5} if each.scenario == "server" else {},
                valid=not (by_loadgen and broken),
                broken=list(broken) if by_loadgen else [],
                figures={"query_count": float(len(kept))} if by_loadgen else {},
            )
            rank(place / "rank0.journal", each, kept, load, agreed)
            harness.write(Key.ENVIRONMENT, {"trial": each.id, "when": "after", **runs.environment()})
            ended = Outcome(status="finished", seconds=12.0)
            harness.write(Key.TRIAL_STOP, {"id": each.id, "outcome": msgspec.to_builtins(ended)})
    return folder


def rank(
    path: Path, trial: Trial, told_of: Iterable[Query], load: Load | None = None, agreed: Agreement = AGREED
) -> Path:
    """Write a rank's journal."""
    with Journal(path, {"role": "rank", "trial": trial.id, "rank": 0, "world_size": 1}) as journal:
        journal.write(Key.BUILD, {"seconds": 2.5, "facts": {}})
        journal.write(Key.AGREEMENT, agreed)
        journal.write(Key.EVAL, {"next_token_accuracy": 0.25, "count": 64})
        journal.write(Key.RUN_START)
        for each in told_of:
            journal.write(Key.QUERY, each)
        if load is not None:
            journal.write(Key.LOAD, load)
        journal.write(Key.MEMORY, {"peak_rss": 500 * 2**20, "allocated_source": "none"})
        journal.write(Key.HELD, HeldByInference(weights=29 * 2**20, cache=16 * 2**20))
        journal.write(Key.RUN_STOP, {"status": "success"})
    return path
