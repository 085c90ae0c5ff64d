"""Figures of inference trials: throughput against waiting, both over clients, and how long answers take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flagperf.collect.inference import latencies, load_settings, percentile
from flagperf.collect.points import Cell
from flagperf.metrics import metric
from flagperf.schema.inference import TOLD

from .charts import Chart, Columns, colour, dash, finished
from .data import Group
from .numbers import scale
from .panels import Figure, amounts, scale_of
from .points import SweepView
from .sampling import Floats, compact, quantiles, share
from .texts import Both, same, sentences, text, title

_HEIGHT = 230
_WIDE = 12.0
"""Values that many times apart are drawn on a logarithmic axis."""
_LEVELS = (0.5, 0.9, 0.99)
_ACROSS = ("ttft_p50", "tpot_p50", "latency_p50")
_OVER = ("goodput", "ttft_p99", "tpot_p99")
_WAITS = {"ttft": "ttft_p50", "tpot": "tpot_p50", "latency": "latency_p50"}


def figures(group: Group, arms: Sequence[str]) -> list[Figure]:
    """Return the figures of an inference group; `arms` are all of the page, in the order of colours."""
    if group.clients is not None:
        return [*_frontier(group, group.clients, arms), *_over_clients(group, group.clients, arms)]
    return _curves(group, arms)


def _bounds(group: Group) -> dict[str, float]:
    """Return the bounds of goodput in seconds, by the beginning of the names of what they bound."""
    load = load_settings(group.first)
    counts = "goodput" in TOLD[group.first.scenario]
    return {"ttft": load.ttft, "tpot": load.tpot} if counts else {}


def _cells(view: SweepView, *names: str) -> list[Cell]:
    return [cell for cell in view.cells if all(cell.value(name) is not None for name in names)]


def _axis(values: Sequence[float], *, zero: bool = False) -> tuple[Any, Any]:
    """Return scale and axis for some values: logarithmic where they are far apart."""
    ends = min(values), max(values)
    wide = ends[0] > 0 and ends[1] / ends[0] >= _WIDE
    return scale_of(wide, ends, zero=zero), amounts(wide, ends)


def _frontier(group: Group, view: SweepView, arms: Sequence[str]) -> list[Figure]:
    """Draw tokens a second against each of the times that a user waits, a point a number of clients."""
    import altair as alt

    panels, rate = [], view.sweep.leading
    for name in _ACROSS:
        cells = _cells(view, rate, name)
        if not cells:
            continue
        unit = scale("s", [cell.value(name) for cell in cells])
        columns: Columns = {key: [] for key in ("arm", "clients", "x", "y")}
        for cell in cells:
            columns["arm"].append(cell.provider)
            columns["clients"].append(cell.at["clients"])
            columns["x"] += compact([(cell.value(name) or 0.0) / unit.factor])
            columns["y"] += compact([cell.value(rate) or 0.0])
        bound = _bounds(group).get(name.partition("_")[0])
        within = None if bound is None else bound / unit.factor
        reach = [*columns["x"], *([within] if within is not None and within < 4 * max(columns["x"]) else [])]
        own, axis = _axis(reach)
        heights, upright = _axis(columns["y"], zero=True)
        across, up = f"§metric.{name}|{unit.unit}", f"§metric.{rate}|{metric(rate).unit}"
        x, y = (
            alt.X("x:Q", title=across, scale=own, axis=axis),
            alt.Y("y:Q", title=up, scale=heights, axis=upright),
        )
        base = alt.Chart(alt.NamedData("points")).encode(x=x, y=y)
        hints = [
            alt.Tooltip("arm:N", title="§axis.engine"),
            alt.Tooltip("clients:Q", title="§axis.clients"),
            alt.Tooltip("x:Q", title=across, format=".4~g"),
            alt.Tooltip("y:Q", title=up, format=".4~g"),
        ]
        layers = [
            base.mark_line(strokeWidth=1.8).encode(color=colour(arms), strokeDash=dash(arms), order="clients:Q"),
            base.mark_point(filled=True, size=52, opacity=1).encode(color=colour(arms), tooltip=hints),
            base.mark_text(dy=-10, fontSize=10.5).encode(text="clients:Q", color=colour(arms)),
        ]
        data: dict[str, Columns] = {"points": columns}
        if within is not None and own.domain[0] < within:
            edge = compact([min(within, own.domain[1])])
            data["within"] = {"x": compact([own.domain[0]]), "x2": edge}
            region = alt.Chart(alt.NamedData("within")).mark_rect(opacity=0.1, color="#2e8b57", clip=True)
            layers.insert(0, region.encode(x=alt.X("x:Q", scale=own), x2="x2:Q"))
        panels.append(_panel(group, "frontier", name, finished(layers, _HEIGHT + 40), data, len(cells)))
    if not panels:
        return []
    load = load_settings(group.first)
    note = text("serving.frontier_note", ttft=_full(load.ttft), tpot=_full(load.tpot))
    return [_figure(group, "frontier", note, _said_of_clients(view), panels)]


def _over_clients(group: Group, view: SweepView, arms: Sequence[str]) -> list[Figure]:
    """Draw goodput and the slowest waits over numbers of clients."""
    import altair as alt

    panels = []
    for name in _OVER:
        cells = _cells(view, name)
        if not cells:
            continue
        unit = scale(metric(name).unit, [cell.value(name) for cell in cells])
        columns: Columns = {
            "arm": [cell.provider for cell in cells],
            "x": [cell.at["clients"] for cell in cells],
            "y": compact([(cell.value(name) or 0.0) / unit.factor for cell in cells]),
        }
        bound = _bounds(group).get(name.partition("_")[0])
        limit = [] if bound is None else [bound / unit.factor]
        own, axis = _axis([*columns["y"], *limit], zero=True)
        clients = sorted({float(x) for x in columns["x"]})
        across = alt.X(
            "x:Q",
            title="§axis.clients",
            axis=alt.Axis(values=clients, tickCount=len(clients), format="d", labelOverlap="greedy"),
            scale=scale_of(clients[-1] / clients[0] >= 8, (clients[0], clients[-1]), base=2),
        )
        told = f"§metric.{name}|{unit.unit}"
        base = alt.Chart(alt.NamedData("points")).encode(
            x=across, y=alt.Y("y:Q", title=told, scale=own, axis=axis), color=colour(arms)
        )
        hints = [
            alt.Tooltip("arm:N", title="§axis.engine"),
            alt.Tooltip("x:Q", title="§axis.clients"),
            alt.Tooltip("y:Q", title=told, format=".4~g"),
        ]
        layers = [
            base.mark_line(strokeWidth=1.8).encode(strokeDash=dash(arms)),
            base.mark_point(filled=True, size=46, opacity=1).encode(tooltip=hints),
        ]
        data: dict[str, Columns] = {"points": columns}
        if limit:
            data["bound"] = {"y": compact(limit)}
            rule = alt.Chart(alt.NamedData("bound")).mark_rule(strokeDash=[5, 4], color="#808080", clip=True)
            layers.append(rule.encode(y=alt.Y("y:Q", scale=own)))
        panels.append(_panel(group, "clients", name, finished(layers, _HEIGHT), data, len(cells)))
    if not panels:
        return []
    return [_figure(group, "clients", text("serving.clients_note"), text("serving.clients_alt"), panels)]


def _curves(group: Group, arms: Sequence[str]) -> list[Figure]:
    """Draw the distribution of each of the times that this scenario tells of, a line a trial."""
    import altair as alt

    views = [view for view in group.trials if view.valid and view.served is not None]
    told = {name for view in views for name in view.result.metrics}
    waits = [(view, latencies(view.trial, view.served.complete)) for view in views if view.served is not None]
    panels, said = [], []
    for kind, name in _WAITS.items():
        series = [(view, times[kind]) for view, times in waits if len(times[kind])]
        if name not in told or not series:
            continue
        every = np.concatenate([times for _, times in series])
        unit = scale("s", [float(np.median(every))])
        ends = [float(x) / unit.factor for x in (every.min(), every.max())]
        bound = _bounds(group).get(kind)
        limit = [] if bound is None else [bound / unit.factor]
        inside = [x for x in limit if ends[0] / 4 <= x <= ends[1] * 4]
        own, axis = _axis([*ends, *inside])
        lines: Columns = {key: [] for key in ("arm", "trial", "x", "y")}
        marks: Columns = {key: [] for key in ("arm", "trial", "x", "y")}
        for view, times in series:
            xs, ys = quantiles(times / unit.factor, share(len(series)))
            at = compact([percentile(times, q) / unit.factor for q in _LEVELS])
            for rows, values, shares in ((lines, xs, ys), (marks, at, list(_LEVELS))):
                rows["x"] += values
                rows["y"] += shares
                rows["arm"] += [view.arm] * len(values)
                rows["trial"] += [view.result.id] * len(values)
        across = f"§serving.axis_{kind}|{unit.unit}"
        x = alt.X("x:Q", title=across, scale=own, axis=axis)
        levels = [0, 0.25, 0.5, 0.75, 0.9, 0.99]
        y = alt.Y(
            "y:Q",
            title="§axis.answers",
            scale=alt.Scale(domain=[0, 1], nice=False),
            axis=alt.Axis(values=levels, tickCount=len(levels), format="~%", labelOverlap=False),
        )
        line = alt.Chart(alt.NamedData("lines")).mark_line(interpolate="step-after", strokeWidth=1.7, opacity=0.9)
        hints = [
            alt.Tooltip("arm:N", title="§axis.engine"),
            alt.Tooltip("trial:N", title="§axis.trial"),
            alt.Tooltip("y:Q", title="§axis.answers", format=".2~%"),
            alt.Tooltip("x:Q", title=across, format=".4~g"),
        ]
        layers = [
            line.encode(x=x, y=y, color=colour(arms), strokeDash=dash(arms), detail="trial:N"),
            alt.Chart(alt.NamedData("marks"))
            .mark_point(filled=True, size=46, opacity=1)
            .encode(x=x, y=y, color=colour(arms), tooltip=hints),
        ]
        data = {"lines": lines, "marks": marks}
        if inside:
            data["bound"] = {"x": compact(inside)}
            rule = alt.Chart(alt.NamedData("bound")).mark_rule(strokeDash=[5, 4], color="#808080")
            layers.append(rule.encode(x=alt.X("x:Q", scale=own)))
        panels.append(_panel(group, "waits", f"wait_{kind}", finished(layers, _HEIGHT + 40), data, len(series)))
        said += [_said(group, arm, kind, series) for arm in group.arms]
    if not panels:
        return []
    notes = [text("serving.curves_note"), *([text("serving.clients_note")] if _bounds(group) else [])]
    return [_figure(group, "waits", sentences(notes), sentences(said), panels)]


def _said(group: Group, arm: str, kind: str, series: Sequence[tuple[Any, Floats]]) -> Both:
    own = [times for view, times in series if view.arm == arm]
    if not own:
        return same("")
    joined = np.concatenate(own)
    unit = scale("s", [float(np.median(joined))])
    ends = {f"p{round(100 * q)}": unit.full(percentile(joined, q), 3) for q in _LEVELS}
    return text("serving.curve_alt", arm=arm, what=text(f"serving.axis_{kind}"), **ends)


def _said_of_clients(view: SweepView) -> Both:
    """Say in words what the frontier shows: each engine's most, and at how many clients."""
    said, rate = [], view.sweep.leading
    unit = scale(metric(rate).unit, [])
    for engine in view.sweep.providers:
        cells = [cell for cell in view.of(engine) if cell.value(rate) is not None]
        if cells:
            best = max(cells, key=lambda cell: cell.value(rate) or 0.0)
            least = min(cells, key=lambda cell: float(cell.at["clients"]))
            said.append(
                text(
                    "serving.frontier_alt",
                    arm=engine,
                    most=unit.full(best.value(rate), 3),
                    clients=best.at["clients"],
                    least=unit.full(least.value(rate), 3),
                    fewest=least.at["clients"],
                )
            )
    return sentences(said)


def _panel(group: Group, key: str, name: str, spec: dict[str, Any], data: dict[str, Columns], count: int) -> Chart:
    heading = text(f"serving.axis_{name.removeprefix('wait_')}") if name.startswith("wait_") else title(name)
    return Chart(
        id=f"{group.id}-{key}-{name}",
        title=heading,
        note=same(""),
        alt=text("sweep_chart.panel_alt", panel=heading, count=count),
        spec=spec,
        data=data,
    )


def _figure(group: Group, key: str, note: Both, alt: Both, panels: list[Chart]) -> Figure:
    return Figure(id=f"{group.id}-{key}", title=text(f"serving.{key}_figure"), note=note, alt=alt, panels=panels)


def _full(seconds: float) -> str:
    return scale("s", [seconds]).full(seconds, 3)
