"""What a page says of inference trials: the scenario and its rules, what memory is split into, and every query."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from flagperf.collect.inference import load_settings
from flagperf.collect.loads import scaled_rules
from flagperf.schema.inference import THROUGHPUTS, Load
from flagperf.schema.trial import Trial

from .data import Group, TrialView
from .numbers import THIN, Scale, exact, scale
from .rules import Rule
from .texts import Both, listed, same, sentences, text, title

MOST_ROWS = 100
"""Queries of the table, the slowest ones."""
MOST_QUERIES = 20_000
"""Queries that can be had from the page; a run's journals have all."""
_WAITS = ("ttft", "tpot", "latency")
_OF_TOKENS = {"serving.prompts", "serving.bounds", "serving.right"}
"""Rules that say nothing of a case whose answers aren't made of tokens."""
_COLUMNS = ("trial", "engine", "query", "clients", "input", "asked", "tokens", "issued", "ttft", "tpot", "latency")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of an engine's memory."""

    title: Both
    value: str
    width: float
    """Per cent of the largest engine's whole."""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's memory is made of."""

    arm: str
    total: Both
    parts: list[Part]


class QueryTable(msgspec.Struct, frozen=True, kw_only=True):
    """The slowest queries, and a link that has them all."""

    rows: list[tuple[str, str, list[str]]]
    """Trial, engine, figures."""
    heads: list[tuple[Both, str]]
    count: int
    kept: int
    """Queries behind the link."""
    link: str


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """All that an inference group shows besides what every group does."""

    what: Both
    bars: list[Bar]
    table: QueryTable | None


def shown(group: Group) -> Shown | None:
    """Return what is to be shown of an inference group; None of any other."""
    trial = group.first
    if not trial.scenario:
        return None
    return Shown(
        what=text(f"scenario.{trial.scenario}_what", batch=load_settings(trial).batch),
        bars=_bars(group),
        table=_table(group),
    )


def details(group: Group, arm: str) -> list[Both]:
    """Return what a card says of an engine beyond its leading metric: how long its users wait, and its accuracy."""
    views, said = group.of(arm), []
    answers = sum(len(view.served.complete) for view in views if view.served is not None)
    waits = []
    for name in _WAITS:
        ends = [_middle(views, f"{name}_{level}") for level in ("p50", "p99")]
        if ends[0] is not None and ends[1] is not None:
            unit = scale("s", [ends[0]])
            waits.append(text(f"serving.wait_{name}", median=unit.full(ends[0], 3), p99=unit.full(ends[1], 3)))
    if waits and answers:
        said.append(text("serving.waits", arm=arm, waits=listed(waits), count=f"{answers:,}".replace(",", THIN)))
    agreement = _middle(views, "token_agreement")
    if agreement is not None and agreement < 1:
        said.append(text("serving.agreement", arm=arm, share=exact(agreement)))
    loads = [(view.trial, view.served.load) for view in views if view.served is not None]
    said += [same(words) for trial, load in loads if load is not None and (words := _of_try_out(trial, load))]
    return said


def _of_try_out(trial: Trial, load: Load) -> str:
    return "" if trial.scale == 1.0 else scaled_rules(trial, load, load_settings(trial))


def _middle(views: Sequence[TrialView], name: str) -> float | None:
    values = [view.result.metrics[name].value for view in views if name in view.result.metrics]
    return float(np.median(values)) if values else None


def _bars(group: Group) -> list[Bar]:
    """Split each engine's peak into weights, cache and the rest: the allocator's, or the process' where that is all."""
    told = {}
    for arm in group.arms:
        views = group.of(arm)
        for name in ("memory_peak_allocated", "memory_peak_rss"):
            peak, weights, cache = (_middle(views, each) for each in (name, "memory_weights", "memory_cache"))
            if peak is not None and weights is not None and cache is not None and peak >= weights + cache > 0:
                told[arm] = name, {"weights": weights, "cache": cache, "rest": peak - weights - cache}
                break
    unit = scale("MiB", [sum(parts.values()) for _, parts in told.values()])
    largest = max((sum(parts.values()) for _, parts in told.values()), default=1.0)
    return [
        Bar(
            arm=arm,
            total=title(name) + f": {unit.full(sum(parts.values()))}",
            parts=[
                Part(
                    title=text(f"serving.{key}"),
                    value=unit.full(amount, 3),
                    width=round(100 * amount / largest, 2),
                )
                for key, amount in parts.items()
            ],
        )
        for arm, (name, parts) in told.items()
    ]


def _table(group: Group) -> QueryTable | None:
    rows = [row for view in group.trials for row in _queries(view)]
    if not rows:
        return None
    slow = sorted(rows, key=lambda row: -(row["latency"] if row["latency"] is not None else np.inf))[:MOST_ROWS]
    names = [name for name in _COLUMNS[2:] if any(row[name] is not None for row in rows)]
    scales = {name: scale("s" if name in (*_WAITS, "issued") else "", [row[name] for row in slow]) for name in names}
    return QueryTable(
        rows=[(row["trial"], row["engine"], [_figure(scales[n], n, row) for n in names]) for row in slow],
        heads=[(text(f"serving.of_{name}"), scales[name].unit) for name in names],
        count=len(rows),
        kept=min(len(rows), MOST_QUERIES),
        link=_csv(rows[:MOST_QUERIES]),
    )


def _figure(unit: Scale, name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if value is None:
        return row["fault"] or "–" if name == "latency" else "–"
    return unit.show(value, 4) if name in (*_WAITS, "issued") else f"{value}"


def _queries(view: TrialView) -> Iterator[dict[str, Any]]:
    if view.served is None or not len(view.served.queries):
        return
    told = view.served.queries
    columns = {
        "query": told.number.tolist(),
        "clients": [count or None for count in told.clients.tolist()],
        "input": told.input.tolist(),
        "asked": told.asked.tolist(),
        "tokens": told.tokens.tolist(),
        "issued": ((told.issued - told.issued.min()) / 1e9).tolist(),
        **{name: [None if np.isnan(x) else x for x in getattr(told, name).tolist()] for name in _WAITS},
        "fault": told.fault,
    }
    for values in zip(*columns.values(), strict=True):
        yield {"trial": view.result.id, "engine": view.arm, **dict(zip(columns, values, strict=True))}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return a link with the queries in it, times in seconds."""
    written = io.StringIO()
    table = csv.DictWriter(written, [*_COLUMNS, "fault"], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: f"{x:.6f}" if isinstance(x, float) else x for key, x in row.items()})
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(written.getvalue().encode()).decode()


def rules(group: Group, *, first: bool = True) -> list[Rule]:
    """Return name and wording of every rule of an inference group; after the first of a run what is its own alone."""
    trial, load = group.first, load_settings(group.first)
    protocol = trial.protocol
    seeds = ", ".join(str(seed) for seed in sorted({view.trial.seed for view in group.trials}))
    lengths = {
        name: {"median": each.median, "least": each.least, "most": each.most}
        for name, each in (("input", load.input), ("output", load.output))
    }
    source = (
        text("serving.prompts_file", file=load.prompts)
        if load.prompts
        else text("serving.prompts_value", count=load.count, shared=load.shared, **lengths["input"])
    )
    ways = {"batch": load.batch, "clients": ", ".join(map(str, load.clients))}
    fields: list[tuple[str, Both]] = [
        ("rules.region", Both(protocol.region or "–", protocol.region_zh or protocol.region or "–")),
        ("serving.scenario", sentences([text(f"scenario.{trial.scenario}_what", **ways)])),
        ("serving.duration", text("serving.duration_value", seconds=f"{load.duration * trial.scale:g}")),
        ("serving.prompts", sentences([source, text("serving.answers_value", **lengths["output"])])),
        ("serving.batch", text("serving.batch_value", batch=load.batch)),
        ("serving.bounds", text("serving.bounds_value", ttft=_bound(load.ttft), tpot=_bound(load.tpot))),
        ("rules.trials", text("rules.trials_value", trials=len({view.trial.trial for view in group.trials}))),
        ("rules.seeds", text("rules.seeds_value", seeds=seeds)),
        ("rules.dtype", same(trial.dtype)),
        ("serving.right", text("serving.right_value")),
        ("serving.percentiles", text("serving.percentiles_value")),
        ("rules.effect", text("rules.effect_value", effect=exact(protocol.minimum_effect))),
        ("rules.order", text("rules.order_value")),
    ]
    own = {"serving.scenario", "serving.duration"}
    left_out = set() if THROUGHPUTS[0] in trial.metrics else _OF_TOKENS
    return [(text(key), value) for key, value in fields if (first or key in own) and key not in left_out]


def _bound(seconds: float) -> str:
    return scale("s", [seconds]).full(seconds, 3)
