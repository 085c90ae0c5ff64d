"""Figures of a sweep: small multiples with the same axes, a panel for each value of what isn't drawn along an axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from flagperf.collect.points import SPEED, Cell
from flagperf.collect.sweeps import shown
from flagperf.schema.metric import MetricValue

from .charts import Chart, Columns, colour, dash, finished
from .data import Group
from .numbers import Scale, scale
from .numbers import number as figure
from .panels import MOST_PANELS, Figure, amounts, axis_of, inside, scale_of, split_up
from .points import SweepView
from .sampling import binned, compact, share
from .texts import Both, same, sentences, text, title

MOST_FIGURES = 4
"""Figures of one kind; the tables have all."""
_WIDE = 30.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""
_PANEL = 200
"""Height of a panel, pixels."""


def figures(group: Group, view: SweepView, arms: Sequence[str]) -> list[Figure]:
    """Return the figures of a sweep that there is data for; `arms` are all of the page, in the order of colours."""
    drawing = _Drawing(group, view, arms)
    made = drawing.roofline()
    for name in drawing.drawn():
        made += drawing.metric(name)
    made += drawing.errors()
    made += drawing.curves()
    return made


class _Drawing:
    """What all figures of a sweep share."""

    def __init__(self, group: Group, view: SweepView, arms: Sequence[str]) -> None:
        self.group, self.view, self.arms = group, view, arms
        self.cells = view.cells
        self.axis = axis_of(view)
        self.lines = self.axis is not None and (self.axis.numeric or any(isinstance(x, int) for x in self.axis.values))

    def drawn(self) -> list[str]:
        """Return the metrics that get a figure, the most telling first."""
        wanted = [self.view.sweep.leading]
        wanted += ["kernel_time"] if self.view.trial.kind == "collective" else []
        wanted += [SPEED, "kernel_memory", "sustained_share"]
        return [name for name in dict.fromkeys(wanted) if any(_value(cell, name) is not None for cell in self.cells)]

    def metric(self, name: str) -> list[Figure]:
        """Draw a metric against the sweep's axis, with its interval."""
        import altair as alt

        cells = [cell for cell in self.cells if _value(cell, name) is not None]
        unit = scale(_unit(cells, name), [v.value for cell in cells if (v := _value(cell, name)) is not None])
        rules = self._rules(name, unit)
        values = [x for cell in cells for x in _reach(cell, name, unit)]
        values += [x for cell in cells if (x := _rated(cell, name, unit)) is not None]
        values += [1.0] if name == SPEED else []
        wide = min(values) > 0 and max(values) / min(values) >= _WIDE
        own = scale_of(wide, (min(values), max(values)), zero=name != SPEED)

        def columns(some: Sequence[Cell]) -> dict[str, Columns]:
            rows: Columns = {key: [] for key in ("x", "arm", "value", "low", "high", "rated")}
            for cell in some:
                found = _value(cell, name)
                assert found is not None
                rows["x"].append(self._x(cell))
                rows["arm"].append(cell.provider)
                ends = (found.value if end is None else end for end in (found.low, found.high))
                for key, amount in zip(("value", "low", "high"), (found.value, *ends), strict=True):
                    rows[key] += compact([amount / unit.factor])
                rows["rated"].append(_rated(cell, name, unit))
            return {"points": rows, "rules": {"y": [y for y in rules if inside(y, values, wide)]}}

        told = f"§metric.{name}|{unit.unit}" if unit.unit else f"§metric.{name}"
        base = alt.Chart(alt.NamedData("points")).encode(color=colour(self.arms))
        along, value, low, high = self._channels(own, told, wide, (min(values), max(values)))
        hints = self._hints(value=told)
        layers = [
            base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(**along, **low, **high),
            base.mark_point(filled=True, size=42, opacity=1).encode(**along, **value, tooltip=hints),
        ]
        if self.lines:
            layers.insert(0, base.mark_line(strokeWidth=1.6).encode(**along, **value, strokeDash=dash(self.arms)))
        if any(_rated(cell, name, unit) is not None for cell in cells):
            mark = alt.Chart(alt.NamedData("points")).transform_filter("isValid(datum.rated)")
            rated = {channel: encoding.copy() for channel, encoding in value.items()}
            for encoding in rated.values():
                encoding.shorthand = "rated:Q"
            layers.append(
                mark.mark_tick(thickness=2, size=16, color="#808080", orient=self._orient()).encode(**along, **rated)
            )
        if rules:
            rule = alt.Chart(alt.NamedData("rules")).mark_rule(strokeDash=[5, 4], color="#808080")
            layers.append(rule.encode(**{next(iter(value)): alt.Y("y:Q") if "y" in value else alt.X("y:Q")}))
        spread = any(found.low is not None for cell in cells if (found := _value(cell, name)) is not None)
        notes = [text("sweep_chart.interval" if spread else "sweep_chart.medians")]
        notes += [text("sweep_chart.roof")] if rules and name != SPEED else []
        notes += [text("sweep_chart.rated")] if any(_rated(cell, name, unit) is not None for cell in cells) else []
        notes += [text("sweep_chart.latency")] if name == "kernel_time" else []
        notes += [text("sweep_chart.speed", baseline=self.view.sweep.baseline)] if name == SPEED else []
        return self._figures(name, title(name), notes, cells, layers, columns, name, unit)

    def roofline(self) -> list[Figure]:
        """Draw FLOP/s against FLOPs a byte under the two measured roofs, a panel a data type."""
        import altair as alt

        roofs = self.view.roofs
        placed = [
            (cell, flops / moved, flops * 1e12)
            for cell in self.cells
            if (flops := cell.value("flops_rate")) and (moved := (cell.value("bandwidth") or 0.0) / 1e3)
        ]
        if roofs is None or not placed:
            return []
        unit = scale("FLOP/s", [rate for _, _, rate in placed])
        ridge = [flops / roofs.bandwidth for flops in roofs.flops.values() if flops]
        across = [intensity for _, intensity, _ in placed] + ridge
        left, right = min(across) / 2, max(across) * 2
        tops = [*roofs.flops.values(), *(rate for _, _, rate in placed)]
        bottom = min(roofs.bandwidth * left, *(rate for _, _, rate in placed))
        wide, high = (left, right), (bottom / unit.factor, max(tops) / unit.factor)
        speed = f"§axis.flops|{unit.unit}"
        x = alt.X("x:Q", title="§axis.intensity", scale=scale_of(True, wide), axis=amounts(True, wide))
        y = alt.Y("y:Q", title=speed, scale=scale_of(True, high), axis=amounts(True, high))
        roof = alt.Chart(alt.NamedData("roof")).mark_line(color="#808080", strokeWidth=2, clip=True).encode(x=x, y=y)
        points = (
            alt.Chart(alt.NamedData("points"))
            .mark_point(filled=True, size=46, opacity=0.8)
            .encode(
                x=x,
                y=y,
                color=colour(self.arms),
                tooltip=[
                    alt.Tooltip("arm:N", title="§axis.provider"),
                    alt.Tooltip("where:N", title="§axis.point"),
                    alt.Tooltip("x:Q", title="§axis.intensity", format=".4~g"),
                    alt.Tooltip("y:Q", title=speed, format=".4~g"),
                ],
            )
        )
        panels, alts = [], []
        for number, dtype in enumerate(dict.fromkeys(str(cell.at.get("dtype", "")) for cell, _, _ in placed)):
            own = [each for each in placed if str(each[0].at.get("dtype", "")) == dtype]
            flops = roofs.flops.get(dtype) or (next(iter(roofs.flops.values()), None) if not dtype else None)
            corners = (
                [left, right] if not flops else sorted({left, min(max(flops / roofs.bandwidth, left), right), right})
            )
            heights = [min(roofs.bandwidth * corner, flops or math.inf) / unit.factor for corner in corners]
            columns: Columns = {
                "arm": [cell.provider for cell, _, _ in own],
                "where": [self.view.label(cell.at) for cell, _, _ in own],
                "x": compact([intensity for _, intensity, _ in own]),
                "y": compact([rate / unit.factor for _, _, rate in own]),
            }
            panels.append(
                Chart(
                    id=f"{self.group.id}-roofline-{number}",
                    title=same(dtype or self.group.first.case),
                    note=same(""),
                    alt=text("sweep_chart.panel_alt", panel=dtype or "–", count=len(own)),
                    spec=finished([roof, points], 280),
                    data={"roof": {"x": compact(corners), "y": compact(heights)}, "points": columns},
                )
            )
            best = max(own, key=lambda each: each[2])
            told = unit.full(best[2], 3), figure(best[1], 3)
            alts.append(text("sweep_chart.roofline_alt", dtype=dtype or "–", best=told[0], intensity=told[1]))
        stream = scale("GB/s", [roofs.bandwidth / 1e9]).full(roofs.bandwidth / 1e9)
        return [
            Figure(
                id=f"{self.group.id}-roofline",
                title=text("sweep_chart.roofline"),
                note=text("sweep_chart.roofline_note", bandwidth=stream),
                alt=sentences(alts),
                panels=panels,
            )
        ]

    def errors(self) -> list[Figure]:
        """Draw the largest error against the tolerance, wrong points too."""
        import altair as alt

        allowed: dict[int, tuple[float, float]] = {}
        cells = []
        for cell in self.cells:
            told = self.view.samples(cell)
            error = cell.metrics.get("error_absolute")
            if told is None or told.accuracy is None or error is None or not error.value > 0:
                continue
            a = told.accuracy
            largest = a.max_absolute / a.max_relative if a.max_absolute and a.max_relative else 0.0
            if a.absolute + a.relative * largest > 0 and math.isfinite(largest):
                allowed[id(cell)] = max(a.absolute, 1e-300), a.absolute + a.relative * largest
                cells.append(cell)
        if not cells:
            return []
        values = [cell.metrics["error_absolute"].value for cell in cells]
        values += [end for ends in allowed.values() for end in ends if end > 1e-290]
        own = scale_of(True, (min(values), max(values)))

        def columns(some: Sequence[Cell]) -> dict[str, Columns]:
            return {
                "points": {
                    "x": [self._x(cell) for cell in some],
                    "arm": [cell.provider for cell in some],
                    "value": compact([cell.metrics["error_absolute"].value for cell in some]),
                    "low": compact([max(allowed[id(cell)][0], min(values)) for cell in some]),
                    "high": compact([allowed[id(cell)][1] for cell in some]),
                    "state": ["valid" if cell.valid else "wrong" for cell in some],
                }
            }

        base = alt.Chart(alt.NamedData("points"))
        along, value, low, high = self._channels(own, "§metric.error_absolute", True, (min(values), max(values)))
        band = base.mark_rule(strokeWidth=9, opacity=0.22, color="#808080", strokeCap="butt")
        shape = alt.Shape("state:N", scale=alt.Scale(domain=["valid", "wrong"], range=["circle", "cross"]), legend=None)
        marks = base.mark_point(filled=True, size=60, opacity=0.85)
        edge = {channel: encoding.copy() for channel, encoding in value.items()}
        for encoding in edge.values():
            encoding.shorthand = "high:Q"
        layers = [
            band.encode(**along, **low, **high),
            base.mark_tick(thickness=2, size=14, color="#808080", orient=self._orient()).encode(**along, **edge),
            marks.encode(
                **along,
                **value,
                color=colour(self.arms),
                shape=shape,
                tooltip=self._hints(value="§metric.error_absolute"),
            ),
        ]
        unit = Scale(1.0, "")
        notes = [text("sweep_chart.errors_note")]
        return self._figures(
            "errors",
            text("sweep_chart.errors"),
            notes,
            cells,
            layers,
            columns,
            "error_absolute",
            unit,
        )

    def curves(self) -> list[Figure]:
        """Draw each round of a specification's points: what a device keeps up over the time that it is watched."""
        import altair as alt

        if self.view.trial.kind != "specification":
            return []
        last = {axis: values[-1] for axis, values in self.view.sweep.axes.items() if self._along(axis)}
        rounds: dict[int, tuple[list[float], list[float]]] = {}
        cells = []
        for cell in self.cells:
            told = self.view.samples(cell)
            work = cell.value(self.view.sweep.leading)
            time = cell.value("kernel_time")
            if (
                told is None
                or len(told.seconds) < 8
                or not work
                or not time
                or any(cell.at.get(a) != v for a, v in last.items())
            ):
                continue
            seconds = np.asarray(told.seconds, np.float64)
            rising = self.view.sweep.leading == "kernel_time"
            rates = seconds if rising else work * time / seconds
            rounds[id(cell)] = np.cumsum(seconds * told.calls).tolist(), rates.tolist()
            cells.append(cell)
        if not cells:
            return []
        name = self.view.sweep.leading
        unit = scale(_unit(cells, name), [rate for _, rates in rounds.values() for rate in rates])
        told_title = f"§metric.{name}|{unit.unit}"
        limit = share(len(cells))

        def columns(some: Sequence[Cell]) -> dict[str, Columns]:
            rows: Columns = {key: [] for key in ("x", "low", "middle", "high", "arm")}
            for cell in some:
                elapsed, rates = (np.asarray(each) for each in rounds[id(cell)])
                part = binned(elapsed, rates / unit.factor, limit)
                for key, column in part.items():
                    rows[key] += column
                rows["arm"] += [cell.provider] * len(part["x"])
            return {"curve": rows}

        base = alt.Chart(alt.NamedData("curve")).encode(
            x=alt.X("x:Q", title="§axis.elapsed|s", scale=alt.Scale(zero=True, nice=False)), color=colour(self.arms)
        )
        y = alt.Scale(zero=True, nice=True)
        layers = [
            base.mark_area(opacity=0.2, strokeWidth=0).encode(y=alt.Y("low:Q", title=told_title, scale=y), y2="high:Q"),
            base.mark_line(strokeWidth=1.6).encode(
                y=alt.Y("middle:Q", title=told_title, scale=y), strokeDash=dash(self.arms)
            ),
        ]
        return self._figures(
            "curve",
            text("sweep_chart.curve"),
            [text("sweep_chart.curve_note")],
            cells,
            layers,
            columns,
            name,
            unit,
            every=True,
        )

    def _along(self, axis: str) -> bool:
        return self.axis is not None and self.lines and axis == self.axis.name

    def _x(self, cell: Cell) -> Any:
        return self.view.label(cell.at) if self.axis is None else self.axis.at(cell.at)

    def _channels(self, own: Any, told: str, wide: bool, ends: tuple[float, float]) -> tuple[dict[str, Any], ...]:
        """Return the encodings along the axis, and of value, low and high: upright, or lying where there are names."""
        import altair as alt

        if self.lines and self.axis is not None:
            axis = amounts(wide, ends)
            upright = {name: alt.Y(f"{name}:Q", title=told, scale=own, axis=axis) for name in ("value", "low")}
            return (
                {"x": self.axis.horizontal()},
                {"y": upright["value"]},
                {"y": upright["low"]},
                {"y2": alt.Y2("high:Q")},
            )
        order = [self.axis.words(value) for value in self.axis.values] if self.axis else "x"
        names = alt.Y("x:N", title=None, sort=order, axis=alt.Axis(labelLimit=130, grid=True, domain=False))
        axis = amounts(wide, ends, grid=True)
        lying = {name: alt.X(f"{name}:Q", title=told, scale=own, axis=axis) for name in ("value", "low")}
        return {"y": names}, {"x": lying["value"]}, {"x": lying["low"]}, {"x2": alt.X2("high:Q")}

    def _orient(self) -> Literal["horizontal", "vertical"]:
        """Return how a mark lies that stands across the amounts."""
        return "horizontal" if self.lines else "vertical"

    def _hints(self, **titles: str) -> list[Any]:
        import altair as alt

        where = self.axis.name if self.axis else "§axis.point"
        figures = [alt.Tooltip(f"{name}:Q", title=words, format=".4~g") for name, words in titles.items()]
        return [alt.Tooltip("arm:N", title="§axis.provider"), alt.Tooltip("x:N", title=where), *figures]

    def _rules(self, name: str, unit: Scale) -> list[float]:
        """Return the levels that are drawn across every panel: no change of speed, the measured stream."""
        if name == SPEED:
            return [1.0]
        if name == "bandwidth" and self.view.roofs is not None:
            return [self.view.roofs.bandwidth / 1e9 / unit.factor]
        return []

    def _figures(
        self,
        key: str,
        heading: Both,
        notes: Sequence[Both],
        cells: Sequence[Cell],
        layers: Sequence[Any],
        columns: Callable[[Sequence[Cell]], dict[str, Columns]],
        name: str,
        unit: Scale,
        *,
        every: bool = False,
    ) -> list[Figure]:
        """Return one figure, or one a value of the slowest axis; `every` gives each point a panel of its own."""
        sweep = self.view.sweep
        facets = [axis for axis in sweep.axes if every or self.axis is None or axis != self.axis.name]
        facets = facets if self.axis is not None or every else []
        split = split_up(cells, facets)
        spec = functools.cache(lambda height: finished(layers, height))
        made = []
        for number, (group, panels) in enumerate(list(split.items())[:MOST_FIGURES]):
            charts = []
            for place, (words, some) in enumerate(list(panels.items())[:MOST_PANELS]):
                rows = len({self._x(cell) for cell in some})
                height = _PANEL if self.lines or every else min(20 * rows + 14, 2400)
                charts.append(
                    Chart(
                        id=f"{self.group.id}-{key}-{number}-{place}",
                        title=same(words or shown(sweep.fixed) or self.group.first.case),
                        note=same(""),
                        alt=text("sweep_chart.panel_alt", panel=words or self.group.first.case, count=len(some)),
                        spec=spec(height),
                        data=columns(some),
                    )
                )
            rest = len(panels) - len(charts)
            if number + 1 == MOST_FIGURES:
                rest += sum(map(len, list(split.values())[MOST_FIGURES:]))
            more = [text("sweep_chart.left_out", count=rest)] if rest else []
            made.append(
                Figure(
                    id=f"{self.group.id}-{key}-{number}",
                    title=heading + (f" · {group}" if group else ""),
                    note=sentences([*notes, *more]),
                    alt=self._told(name, [cell for some in panels.values() for cell in some], unit),
                    panels=charts,
                )
            )
        return made

    def _told(self, name: str, cells: Sequence[Cell], unit: Scale) -> Both:
        """Say in words what a figure shows: each provider's range."""
        said = []
        for provider in dict.fromkeys(cell.provider for cell in cells):
            values = [
                value.value
                for cell in cells
                if cell.provider == provider and (value := _value(cell, name) or cell.metrics.get(name)) is not None
            ]
            if values:
                low, high = unit.show(min(values), 3), unit.full(max(values), 3)
                said.append(text("sweep_chart.alt", arm=provider, low=low, high=high, count=len(values)))
        return sentences(said)


def _value(cell: Cell, name: str) -> MetricValue | None:
    """Return what is drawn of a point; nothing of one that doesn't count."""
    if name == SPEED:
        c = cell.speedup
        if c is None or c.ratio is None:
            return None
        return MetricValue(value=c.ratio, unit="×", direction="higher", n=c.pairs, low=c.low, high=c.high)
    return cell.metrics.get(name) if cell.valid else None


def _unit(cells: Iterable[Cell], name: str) -> str:
    return next((found.unit for cell in cells if (found := _value(cell, name)) is not None), "")


def _reach(cell: Cell, name: str, unit: Scale) -> list[float]:
    found = _value(cell, name)
    ends = [] if found is None else [found.value, found.low, found.high]
    return [end / unit.factor for end in ends if end is not None and math.isfinite(end)]


def _rated(cell: Cell, name: str, unit: Scale) -> float | None:
    """Return what the maker rates the device at, where a metric is of a specification."""
    if cell.rated is None or cell.rated.metric != name:
        return None
    return float(f"{cell.rated.value / unit.factor:.6g}")
