"""What LoadGen finds wrong, in plain words."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from collect.runs import trial

from flagperf.collect.loads import load_reasons, scaled_rules
from flagperf.schema.inference import Lengths, Load, LoadSettings, Rule, Scenario
from flagperf.schema.trial import Trial

LENGTHS = Lengths(median=8, least=4, most=16)


def settings(**options: Any) -> LoadSettings:
    """Return a load's settings."""
    return LoadSettings(input=LENGTHS, output=LENGTHS, ttft=0.2, tpot=0.05, **options)


def said(rule: Rule, scenario: Scenario = "server", **options: Any) -> Load:
    """Return a load of which LoadGen says that it breaks a rule."""
    figures = {"query_count": 100.0, "first_token_99.00_percentile_latency_ns": 0.31e9}
    told = {"server_target_qps": 5.2, "min_duration_ms": 3000, "min_query_count": 662}
    return Load(
        scenario=scenario,
        seconds=3.0,
        settings=told,
        valid=False,
        broken=[rule],
        figures=figures,
        wanting=359,
        **options,
    )


def judged(scale: float, scenario: Scenario = "server") -> Trial:
    """Return an inference trial."""
    return msgspec.structs.replace(trial(), kind="inference", scenario=scenario, scale=scale)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_bounds_that_do_not_hold_always_count(scale: float) -> None:
    (reason,) = load_reasons(judged(scale), said("latency"), settings(rate=5.2))
    assert reason.code == "loadgen_latency"
    assert reason.message == (
        "At 5.2 queries/s, at the 99th percentile: the first token took 0.31 s, 0.2 s are allowed."
    )
    assert "--set load.rate=4.7" in reason.hint
    (reason,) = load_reasons(judged(scale), said("latency"), settings())
    assert "load.rate=" not in reason.hint


@pytest.mark.parametrize(
    ("rule", "scenario", "message", "hint"),
    [
        ("early_stopping", "server", "100 queries are too few .* 99th percentile: 359 queries more", "load.duration="),
        ("early_stopping", "singlestream", "of the 90th percentile", "load.duration="),
        ("duration", "offline", "over before the 3 s", "--warmup"),
        ("queries", "server", "Only 100 queries were asked; LoadGen wants 662", "log"),
    ],
)
def test_rules_count_unless_it_is_a_try_out(rule: Rule, scenario: Scenario, message: str, hint: str) -> None:
    load = said(rule, scenario)
    (reason,) = load_reasons(judged(1.0, scenario), load, settings())
    assert reason.code == f"loadgen_{rule}"
    assert re.search(message, reason.message), reason.message
    assert hint in reason.hint
    assert list(load_reasons(judged(0.01, scenario), load, settings())) == []
    assert scaled_rules(judged(0.01, scenario), load, settings()) == reason.message


def test_what_has_no_rule_of_ours_is_passed_on() -> None:
    load = Load(scenario="server", seconds=1.0, valid=False, reasons=["something new"])
    (reason,) = load_reasons(judged(1.0), load, settings())
    assert reason.message == "LoadGen says INVALID: something new"
    assert list(load_reasons(judged(1.0), Load(scenario="server", seconds=1.0), settings())) == []
