"""The section of a survey: both languages, every layout with its fate, and nothing that a label could break."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flagperf.collect.journals import HarnessJournal
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.reports import page
from flagperf.reports.data import RunView
from flagperf.reports.scaling import shown
from flagperf.schema.contest import Arm
from flagperf.schema.layout import Layout
from flagperf.schema.result import LayoutFate, Reason, Scaled, Split, SurveyOutput, Tried

SPLIT = Split(seconds=2.0, compute=1.0, exposed=0.6, hidden=0.1, idle=0.4, trace="trials/001-ddp/output/t.json.gz")
FAST, BIG, LATE, ODD = (Arm("ddp", Layout(zero=0, micro=micro)) for micro in (4, 8, 2, 1))


@pytest.fixture(scope="module")
def view() -> RunView:
    run = plan(Options(cases=["parallel/throughput"], engines=["ddp"], ranks=2, search=False), Registries())
    assert run.survey is not None
    points = [
        Scaled(
            kind=scale.kind,
            arm=scale.arm,
            ranks=scale.ranks,
            threads=1,
            global_batch=scale.global_batch,
            trials=["a", "b"],
            valid=2,
            tokens_per_second=1000.0 * scale.ranks,
            efficiency=1.0 if scale.kind == "base" else 0.875,
            low=None if scale.kind == "base" else 0.8,
            high=None if scale.kind == "base" else 0.95,
            memory_mib=100.0,
            split=SPLIT,
        )
        for scale in run.survey.scales
    ]
    layouts = [
        LayoutFate(
            arm=FAST,
            fate="fits",
            predicted_mib=90.0,
            tried=Tried(arm=FAST, trial="000-ddp", verdict="fits", tokens_per_second=2000.0, memory_mib=100.0),
            split=SPLIT,
        ),
        LayoutFate(arm=BIG, fate="pruned", why="by formula it needs too much", predicted_mib=900.0),
        LayoutFate(arm=LATE, fate="not tried", why="the budget is spent"),
        LayoutFate(arm=ODD, fate="refused", why="<script>alert(1)</script>"),
    ]
    told = SurveyOutput(
        scaling=points,
        layouts=layouts,
        left_out={"megatron": "megatron-core isn't installed"},
        best=FAST,
        budget=60.0,
        spent=55.0,
        ended="budget",
        notes=[Reason("budget_over", "1 layouts weren't tried", "Give it more")],
    )
    return RunView(folder=Path("run"), run=run, groups=[], harness=HarnessJournal(), survey=told)


def test_the_section_says_what_scales_how_and_what_was_found(view: RunView) -> None:
    found = shown(view)
    assert found is not None
    strong, weak, search = found.said
    assert "2 ranks do the same batch with an efficiency of 88" in strong.en and "80" in strong.en
    assert "批次不变" in strong.zh and weak.zh and "isn't" not in search.zh
    assert "1 of 4 layouts were tried" in search.en and "budget" in search.en and "预算" in search.zh
    assert [(point.ranks, point.bar) for point in found.points] == [(1, 100.0), (2, 87.5), (2, 87.5)]
    assert [part.width for part in found.steps[0].parts] == [50.0, 30.0, 20.0]
    assert [(rest.title.en, rest.count) for rest in found.rest] == [("Pruned", 1), ("Not tried", 1), ("Refused", 1)]
    assert [(row.layout, row.chosen, row.shares) for row in found.tried] == [("zero=0,micro=4", True, "50 / 30 / 20")]


def test_the_page_has_it_in_both_languages_and_bears_hostile_text(view: RunView) -> None:
    html = page.render([view])
    for words in ("Training throughput over ranks and layouts", "训练吞吐随 rank 数与布局的变化", "zero=0,micro=8"):
        assert words in html
    assert "<script>alert(1)</script>" not in html and "&lt;script&gt;alert(1)" in html
    assert "megatron-core isn" in html and "1 layouts weren" in html


@pytest.mark.parametrize("ended", ["complete", "budget", "unfinished"])
def test_nothing_measured_yet_is_no_error(view: RunView, ended: Any) -> None:
    assert view.survey is not None
    bare = [
        msgspec.structs.replace(p, efficiency=None, low=None, high=None, tokens_per_second=None, split=None, valid=0)
        for p in view.survey.scaling
    ]
    empty = msgspec.structs.replace(
        view.survey, scaling=bare, layouts=view.survey.layouts[1:], best=None, ended=ended, spent=0.0
    )
    found = shown(dataclasses.replace(view, survey=empty))
    assert found is not None and not found.steps and not found.tried and found.points[1].efficiency == "–"
    assert "Training throughput" in page.render([dataclasses.replace(view, survey=empty)])
    assert shown(dataclasses.replace(view, survey=None)) is None
