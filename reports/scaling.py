"""What a page says of a survey: how throughput scales, what a step is made of, and what became of each layout."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flagperf.metrics import metric
from flagperf.schema.result import LayoutFate, Reason, Scaled, Split, SurveyOutput
from flagperf.schema.survey import Survey

from .data import RunView
from .numbers import THIN, Scale, number, percent, scale, seconds
from .texts import Both, same, sentences, text

_NAMED = 12
"""Layouts of one fate that the page names."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the scaling table."""

    kind: Both
    arm: str
    ranks: int
    threads: int
    batch: int
    speed: str
    efficiency: str
    interval: str
    bar: float
    """Efficiency in per cent of the track; it ends at 100."""
    memory: str
    trials: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of a step."""

    title: Both
    value: str
    width: float
    """Per cent of the longest step."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a step was made of, under the profiler."""

    name: Both
    total: str
    parts: list[Part]
    hidden: Both
    trace: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A layout that was tried."""

    engine: str
    layout: str
    speed: str
    memory: str
    predicted: str
    shares: str
    kind: str
    """`fits`, `too_big` or `failed`."""
    why: str
    chosen: bool


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """Layouts that weren't tried, for one reason."""

    title: Both
    why: str
    count: int
    named: list[str]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """All that a survey's section shows."""

    title: Both
    said: list[Both]
    points: list[Point]
    speed_unit: str
    memory_unit: str
    steps: list[Step]
    tried: list[Row]
    rest: list[Rest]
    left_out: dict[str, str]
    notes: list[Reason]


def shown(run: RunView) -> Shown | None:
    """Return what a run's survey shows; None if it is none."""
    survey, told = run.run.survey, run.survey
    if survey is None or told is None:
        return None
    rates = [p.tokens_per_second for p in told.scaling] + [
        row.tried.tokens_per_second for row in told.layouts if row.tried
    ]
    sizes = [p.memory_mib for p in told.scaling] + [row.predicted_mib for row in told.layouts]
    speed, memory = scale(metric("tokens_per_second").unit, rates), scale("MiB", sizes)
    return Shown(
        title=Both(survey.title, survey.title_zh),
        said=_said(survey, told),
        points=[_point(each, speed, memory) for each in told.scaling],
        speed_unit=speed.unit,
        memory_unit=memory.unit,
        steps=_steps(told),
        tried=_tried(told, speed, memory),
        rest=_rest(told.layouts),
        left_out=told.left_out,
        notes=list(dict.fromkeys([*told.notes, *(note for each in told.scaling for note in each.notes)])),
    )


def _said(survey: Survey, told: SurveyOutput) -> list[Both]:
    said = []
    for kind in ("strong", "weak"):
        known = [each for each in told.scaling if each.kind == kind and each.efficiency is not None]
        if known:
            last = known[-1]
            base = told.scaling[0]
            said.append(
                text(
                    f"scaling.said_{kind}",
                    ranks=last.ranks,
                    fewest=base.ranks,
                    efficiency=percent(last.efficiency or 0.0),
                    interval=_interval(last) or same("–"),
                )
            )
    if told.layouts:
        tried = sum(row.tried is not None for row in told.layouts)
        counts = {"tried": tried, "count": len(told.layouts), "spent": seconds(told.spent)}
        ends = text(f"scaling.ended_{told.ended}", budget=seconds(told.budget))
        found = text("scaling.best_none")
        if told.best is not None:
            key = "best_named" if told.best == survey.arm else "best_other"
            found = text(f"scaling.{key}", arm=f"`{told.best}`")
        said.append(sentences([found, text("scaling.searched", **counts), ends]))
    return said


def _interval(point: Scaled) -> Both:
    if point.low is None or point.high is None:
        return same("")
    return same(f"{percent(point.low)} … {percent(point.high)}")


def _point(each: Scaled, speed: Scale, memory: Scale) -> Point:
    return Point(
        kind=text(f"scaling.{each.kind}"),
        arm=str(each.arm),
        ranks=each.ranks,
        threads=each.threads,
        batch=each.global_batch,
        speed=speed.show(each.tokens_per_second),
        efficiency="–" if each.efficiency is None else percent(each.efficiency, 3),
        interval=_interval(each).en,
        bar=round(100 * min(1.0, max(0.0, each.efficiency or 0.0)), 2),
        memory=memory.show(each.memory_mib),
        trials=f"{each.valid}/{len(each.trials)}",
    )


def _steps(told: SurveyOutput) -> list[Step]:
    """Return the steps of the scaling's points, then of the layouts that were tried, the fastest first."""
    named = [
        (text("scaling.step_of", kind=text(f"scaling.{each.kind}"), ranks=each.ranks, arm=f"`{each.arm}`"), each.split)
        for each in told.scaling
    ]
    named += [(same(f"`{row.arm}`"), row.split) for row in _fastest(told.layouts)]
    known = [(name, split) for name, split in named if split is not None and split.seconds > 0]
    longest = max((split.seconds for _, split in known), default=1.0)
    unit = scale("s", [split.seconds for _, split in known])
    return [_step(name, split, longest, unit) for name, split in known]


def _step(name: Both, split: Split, longest: float, unit: Scale) -> Step:
    parts = [("compute", split.compute), ("exposed", split.exposed), ("idle", split.idle)]
    return Step(
        name=name,
        total=unit.full(split.seconds),
        parts=[
            Part(
                title=text(f"scaling.{key}"),
                value=f"{unit.show(value)}{THIN}({percent(value / split.seconds)})",
                width=round(100 * max(0.0, value) / longest, 2),
            )
            for key, value in parts
        ],
        hidden=text("scaling.hidden", amount=unit.full(split.hidden)),
        trace=split.trace,
    )


def _fastest(rows: Sequence[LayoutFate]) -> list[LayoutFate]:
    tried = [row for row in rows if row.tried is not None]
    return sorted(tried, key=lambda row: -((row.tried.tokens_per_second or 0.0) if row.tried else 0.0))


def _tried(told: SurveyOutput, speed: Scale, memory: Scale) -> list[Row]:
    rows = []
    for each in _fastest(told.layouts):
        tried, split = each.tried, each.split
        assert tried is not None, "only those are here"
        shares = "–"
        if split is not None and split.seconds > 0:
            parts = (split.compute, split.exposed, split.idle)
            shares = " / ".join(number(100 * part / split.seconds, 2) for part in parts)
        rows.append(
            Row(
                engine=each.arm.engine,
                layout=str(each.arm.layout),
                speed=speed.show(tried.tokens_per_second),
                memory=memory.show(tried.memory_mib),
                predicted=memory.show(each.predicted_mib),
                shares=shares,
                kind=each.fate.replace(" ", "_"),
                why=each.why,
                chosen=each.arm == told.best,
            )
        )
    return rows


def _rest(rows: Sequence[LayoutFate]) -> list[Rest]:
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.tried is None:
            groups.setdefault((row.fate, row.why), []).append(str(row.arm))
    return [
        Rest(title=text(f"scaling.{fate.replace(' ', '_')}"), why=why, count=len(arms), named=arms[:_NAMED])
        for (fate, why), arms in groups.items()
    ]
