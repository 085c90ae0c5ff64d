"""Engines against each other at the same numbers of clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flagperf.collect.compare import compare_results
from flagperf.schema.inference import THROUGHPUTS
from flagperf.schema.result import Comparison, Result


def compare_clients(
    results: Sequence[Result], baseline: str | None = None, metrics: Sequence[str] | None = None
) -> list[Comparison]:
    """Compare engines under the scenario `concurrency`, number by number of clients, with the first or another engine.

    Trials of one run with the same number and seed are pairs. Compares throughput and the time a token, or an
    answer, unless others are asked for; a number of clients that one of the two failed at isn't compared.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Result]]] = {}
    for result in results:
        if result.scenario == "concurrency" and result.points and result.purpose == "measure":
            settings = result.facts.get("settings_digest")
            key = (result.case, result.preset, result.vendor, result.dtype, settings)
            groups.setdefault(key, {}).setdefault(result.engine, []).append(result)
    found: list[Comparison] = []
    for engines in groups.values():
        reference = next(iter(engines)) if baseline is None else baseline
        for engine in engines:
            if reference in engines and engine != reference:
                sides = (engine, engines[engine]), (reference, engines[reference])
                found += _at_each(*sides, metrics or usual(engines[reference]))
    return found


def usual(results: Sequence[Result]) -> list[str]:
    """Return what numbers of clients are compared by: throughput, then the time a token or an answer."""
    told = dict.fromkeys(name for result in results for point in result.points for name in point.metrics)
    found = [[name for name in names if name in told][:1] for names in (THROUGHPUTS, ("tpot_p50", "latency_p50"))]
    return [name for names in found for name in names]


def _at_each(
    candidate: tuple[str, list[Result]], baseline: tuple[str, list[Result]], metrics: Sequence[str]
) -> list[Comparison]:
    """Compare what trials had at each number of clients as if that were all they measured."""
    found: list[Comparison] = []
    for clients in dict.fromkeys(point.at["clients"] for result in baseline[1] for point in result.points):
        sides = [(name, [_only(result, clients) for result in results]) for name, results in (candidate, baseline)]
        told = compare_results(sides[0], sides[1], metrics)
        found += [msgspec.structs.replace(each, at={"clients": clients}) for each in told if each.ratio is not None]
    return found


def _only(result: Result, clients: object) -> Result:
    point = next((point for point in result.points if point.at["clients"] == clients), None)
    valid = point is not None and point.verdict == "valid"
    metrics = point.metrics if point is not None else {}
    return msgspec.structs.replace(result, metrics=metrics, verdict="valid" if valid else "invalid")
