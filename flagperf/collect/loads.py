"""What a load generator says of a scenario, in plain words: which rule is broken, what that means, what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from flagperf.collect.queries import Queries
from flagperf.schema.inference import Load, LoadSettings, Rule
from flagperf.schema.result import Reason
from flagperf.schema.trial import Trial

PERCENTILES = {"singlestream": 90, "multistream": 99, "server": 99}
"""That LoadGen judges a scenario by."""
LATE = 0.02
"""By how much a 99th percentile of LoadGen, which counts from when a query was due, may be above our own …"""
LATE_SECONDS = 0.001
"""… and by how many seconds, before it's told."""
_MEASURES = {"ttft": ("first_token", "the first token took"), "tpot": ("output_token", "a token after the first took")}


def load_reasons(trial: Trial, load: Load, settings: LoadSettings) -> Iterator[Reason]:
    """Return which of LoadGen's rules make a result invalid: all of them, of a try-out its latency bounds only."""
    for rule in load.broken:
        if rule == "latency" or trial.scale == 1:
            yield Reason(f"loadgen_{rule}", *_told(rule, trial, load, settings))
    if not load.valid and not load.broken:
        yield Reason("loadgen_invalid", f"LoadGen says INVALID: {'; '.join(load.reasons)}", "")


def scaled_rules(trial: Trial, load: Load, settings: LoadSettings) -> str:
    """Return what LoadGen would find wrong with a try-out if it were none, in sentences; empty if nothing."""
    return " ".join(_told(rule, trial, load, settings)[0] for rule in load.broken if rule != "latency")


def late_note(load: Load, queries: Queries) -> Iterator[Reason]:
    """Tell when queries were given out noticeably later than they were due."""
    ours = queries.ttft[np.isfinite(queries.ttft)]
    theirs = _at_99(load, "first_token")
    if load.scenario != "server" or not len(ours) or math.isnan(theirs):
        return
    late = theirs - float(np.quantile(ours, 0.99, method="higher"))
    if late > max(LATE_SECONDS, LATE * theirs):
        yield Reason(
            "issued_late",
            f"Queries were given out late: at the 99th percentile LoadGen saw the first token {late * 1000:.1f} ms "
            "later after it was due than after it was asked for.",
            "The engine and the load generator share this process's cores; LoadGen's figure is what was judged.",
        )


def _told(rule: Rule, trial: Trial, load: Load, settings: LoadSettings) -> tuple[str, str]:
    """Return what a broken rule means, and what to change."""
    count = int(load.figures.get("query_count", 0))
    seconds = float(load.settings.get("min_duration_ms", 0)) / 1000
    if rule == "latency":
        rate = float(load.settings.get("server_target_qps", math.nan))
        over = []
        for name, bound in (("ttft", settings.ttft), ("tpot", settings.tpot)):
            key, words = _MEASURES[name]
            if (found := _at_99(load, key)) > bound:
                over.append(f"{words} {found:.3g} s, {bound:g} s are allowed")
        what = "; ".join(over) or "answers came too late"
        way = (
            f"Ask for less, --set load.rate={0.9 * rate:.2g}, or leave it out and the highest that keeps them is found."
            if settings.rate
            else "It was the lowest of the rates that were tried for as long as this. Allow more with --set "
            "load.ttft=SECONDS or load.tpot=SECONDS, or measure for longer."
        )
        return f"At {rate:.3g} queries/s, at the 99th percentile: {what}.", way
    if rule == "early_stopping":
        percentile = PERCENTILES.get(load.scenario, 99)
        more = f"{load.wanting} queries more" if load.wanting else "more queries"
        return (
            f"{count} queries are too few to be 99 % sure of the {percentile}th percentile: {more} would have been "
            f"wanted{', all within the bounds' if load.scenario == 'server' else ''} (LoadGen's early stopping).",
            _longer(trial, settings, (count + load.wanting) / count if count else 2)
            + (" A lower --set load.rate leaves fewer late ones." if load.scenario == "server" else ""),
        )
    if rule == "queries":
        least = load.settings.get("min_query_count", "more")
        return f"Only {count} queries were asked; LoadGen wants {least}.", "See LoadGen's log in the trial's output."
    return (
        f"It was over before the {seconds:g} s that LoadGen wants: the engine was faster than in its warm-up, by which "
        "queries were made beforehand.",
        "A longer warm-up tells its speed better, for example --warmup 8; or ask on an idle machine.",
    )


def _longer(trial: Trial, settings: LoadSettings, times: float) -> str:
    if trial.scale < 1:
        return "Leave --scale out."
    return f"Measure longer, for example --set load.duration={math.ceil(1.2 * times * settings.duration)}."


def _at_99(load: Load, what: str) -> float:
    """Return LoadGen's 99th percentile in seconds; NaN where it has none."""
    found = (value for name, value in load.figures.items() if f"{what}_99.00_percentile" in name)
    return next(found, math.nan) / 1e9
