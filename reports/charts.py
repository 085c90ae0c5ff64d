"""Charts as Vega-Lite specifications, made with Altair; the page's script adds data, words and colours.

A title that begins with `§` is the key of a text, which the script puts in; what follows `|` is a unit and stays.
Engines are told apart by colour and, on lines, by dashes; the scale's domain is the page's, so that both are the same
in every chart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from .data import Group, TrialView, loss_differences
from .numbers import Scale, exact, number, percent_above, scale
from .sampling import Floats, binned, compact, quantiles, share
from .texts import Both, sentences, text

MOST_TRIALS = 60
"""Trials drawn in one group; the tables have all."""
DASHES = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [5, 2], [1, 3], [12, 4], [4, 4, 1, 4]]
_PADDING = {"left": 2, "top": 2, "bottom": 2, "right": 9}
"""Pixels; a label below the last mark reaches beyond it."""
Columns = dict[str, list[Any]]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A chart with its words."""

    id: str
    title: Both
    note: Both
    alt: Both
    """What it shows, for those who don't see it."""
    spec: dict[str, Any]
    data: dict[str, Columns]


def charts(group: Group, arms: Sequence[str]) -> list[Chart]:
    """Return the charts of a group that there is data for; `arms` are all of the page, in the order of colours."""
    drawn = [view for view in group.trials if view.valid and view.steps is not None][:MOST_TRIALS]
    if group.sweep is not None:  # its trials have no arm of their own: each runs all providers
        alone = dataclasses.replace(group, trials=[dataclasses.replace(v, arm=v.trial.case) for v in group.trials])
        return telemetry_charts(alone, [group.first.case])
    made = [
        _ecdf(group, drawn, arms),
        _steps(group, drawn, arms),
        _loss(group, drawn, arms),
        _difference(group, arms),
        _memory(group, drawn, arms),
    ]
    return [chart for chart in made if chart is not None] + telemetry_charts(group, arms)


def colour(arms: Sequence[str]) -> Any:
    """Return the colour of a mark by its column `arm`."""
    import altair as alt

    return alt.Color("arm:N", scale=alt.Scale(domain=list(arms)), legend=None)


def dash(arms: Sequence[str]) -> Any:
    """Return the dashes of a line by its column `arm`."""
    import altair as alt

    dashes = [DASHES[index % len(DASHES)] for index in range(len(arms))]
    return alt.StrokeDash("arm:N", scale=alt.Scale(domain=list(arms), range=dashes), legend=None)


def tooltip(**titles: str) -> list[Any]:
    """Return what is told of a mark under the pointer: columns with their titles, the engine and the trial first."""
    import altair as alt

    kinds = {"arm": "N", "trial": "N", "kind": "N", "rank": "O"}
    named = {"arm": "§axis.engine", "trial": "§axis.trial", **titles}
    return [
        alt.Tooltip(f"{field}:{kinds[field]}", title=label)
        if field in kinds
        else alt.Tooltip(f"{field}:Q", title=label, format=".5~g")
        for field, label in named.items()
    ]


def finished(layers: Sequence[Any], height: int = 260) -> dict[str, Any]:
    """Return the specification of layers over each other, as wide as the page lets them be."""
    import altair as alt

    chart = alt.layer(*layers).properties(width="container", height=height, padding=_PADDING)
    with alt.data_transformers.disable_max_rows():
        return dict(chart.to_dict())


def _join(parts: Sequence[dict[str, list[Any]]]) -> Columns:
    return {name: [x for part in parts for x in part[name]] for name in parts[0]} if parts else {}


def _repeated(view: TrialView, length: int, device: int | None = None) -> dict[str, list[Any]]:
    """Return the columns that tell a line from others: a trial's devices have one each."""
    line = view.result.id if device is None else f"{view.result.id} {device}"
    return {"arm": [view.arm] * length, "trial": [line] * length}


def _step_scale(views: Sequence[TrialView]) -> Scale:
    return scale("s", [float(np.median(view.window.seconds)) for view in views if view.window is not None])


def _ecdf(group: Group, views: Sequence[TrialView], arms: Sequence[str]) -> Chart | None:
    import altair as alt

    unit = _step_scale(views)
    parts: list[dict[str, list[Any]]] = []
    samples: dict[str, list[Floats]] = {arm: [] for arm in group.arms}
    for view in views:
        if view.window is None:
            continue
        values, shares = quantiles(view.window.seconds / unit.factor, share(len(views)))
        parts.append({"value": values, "share": shares, **_repeated(view, len(values))})
        samples[view.arm].append(view.window.seconds)
    if not parts:
        return None
    line = (
        alt.Chart(alt.NamedData("ecdf"))
        .mark_line(interpolate="step-after", strokeWidth=1.8, opacity=0.9)
        .encode(
            x=alt.X("value:Q", title=f"§axis.step_time|{unit.unit}", scale=alt.Scale(zero=False, nice=True)),
            y=alt.Y("share:Q", title="§axis.share", axis=alt.Axis(format="%")),
            color=colour(arms),
            strokeDash=dash(arms),
            detail="trial:N",
            tooltip=tooltip(value=f"§axis.step_time|{unit.unit}", share="§axis.share"),
        )
    )
    alt_text = [
        text(
            "chart.ecdf_alt",
            arm=arm,
            median=unit.full(float(np.median(joined)), 3),
            p90=unit.full(float(np.quantile(joined, 0.9)), 3),
        )
        for arm, several in samples.items()
        if several and len(joined := np.concatenate(several))
    ]
    return Chart(
        id=f"{group.id}-ecdf",
        title=text("chart.ecdf"),
        note=text("chart.ecdf_note"),
        alt=sentences(alt_text),
        spec=finished([line]),
        data={"ecdf": _join(parts)},
    )


def _series(
    name: str, arms: Sequence[str], x: str, y: str, *, top: float | None = None, zero: bool = False
) -> list[Any]:
    """Return the band and the line of a long series by columns x, low, middle and high."""
    import altair as alt

    domain: dict[str, Any] = {"domain": [0, top], "nice": False} if top is not None else {"zero": zero, "nice": True}
    base = alt.Chart(alt.NamedData(name)).encode(
        x=alt.X("x:Q", title=x, axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False, zero=False)),
        color=colour(arms),
        detail="trial:N",
    )
    vertical = alt.Scale(**domain)
    return [
        base.mark_area(opacity=0.18, clip=True, strokeWidth=0).encode(
            y=alt.Y("low:Q", title=y, scale=vertical), y2="high:Q"
        ),
        base.mark_line(strokeWidth=1.6, opacity=0.9, clip=True).encode(
            y=alt.Y("middle:Q", title=y, scale=vertical),
            strokeDash=dash(arms),
            tooltip=tooltip(x=x, middle=y),
        ),
    ]


def _steps(group: Group, views: Sequence[TrialView], arms: Sequence[str]) -> Chart | None:
    import altair as alt

    unit, limit = _step_scale(views), share(len(views))
    parts, tops = [], []
    for view in views:
        if view.steps is None or view.window is None:
            continue
        part = binned(view.steps.step, view.steps.seconds / unit.factor, limit)
        parts.append({**part, **_repeated(view, len(part["x"]))})
        tops.append(float(np.max(view.window.seconds)) / unit.factor)
    if not parts:
        return None
    start = alt.Chart(alt.NamedData("start")).mark_rule(strokeDash=[4, 4], opacity=0.7).encode(x="x:Q")
    layers = _series("steps", arms, "§axis.step", f"§axis.step_time|{unit.unit}", top=float(f"{max(tops) * 1.08:.3g}"))
    long = any(view.steps is not None and len(view.steps.step) > limit for view in views)
    return Chart(
        id=f"{group.id}-steps",
        title=text("chart.steps"),
        note=sentences([text("chart.steps_note"), *([text("chart.steps_binned")] if long else [])]),
        alt=text("chart.steps_note"),
        spec=finished([*layers, start]),
        data={"steps": _join(parts), "start": {"x": [group.first.protocol.warmup]}},
    )


def _loss(group: Group, views: Sequence[TrialView], arms: Sequence[str]) -> Chart | None:
    limit = share(len(views))
    parts: list[dict[str, list[Any]]] = []
    ends: dict[str, tuple[float, float]] = {}
    for view in views:
        if view.steps is None or not np.isfinite(view.steps.loss).any():
            continue
        part = binned(view.steps.step, view.steps.loss, limit)
        parts.append({**part, **_repeated(view, len(part["x"]))})
        ends.setdefault(view.arm, (float(view.steps.loss[0]), float(view.steps.loss[-1])))
    if not parts:
        return None
    alt_text = [
        text("chart.loss_alt", arm=arm, first=number(first), last=number(last)) for arm, (first, last) in ends.items()
    ]
    return Chart(
        id=f"{group.id}-loss",
        title=text("chart.loss"),
        note=text("chart.loss_note"),
        alt=sentences(alt_text),
        spec=finished(_series("loss", arms, "§axis.step", "§axis.loss")),
        data={"loss": _join(parts)},
    )


def _difference(group: Group, arms: Sequence[str]) -> Chart | None:
    import altair as alt

    differences = loss_differences(group)[:MOST_TRIALS]
    if not differences:
        return None
    limit, band = share(len(differences)), group.first.protocol.loss_band
    parts = []
    for each in differences:
        part = binned(each.step, 100 * each.relative, limit)
        parts.append({**part, **_repeated(each.pair[0], len(part["x"]))})
    largest = {arm: max(d.largest for d in differences if d.arm == arm) for arm in {d.arm: None for d in differences}}
    reach = float(f"{100 * 1.15 * max(band, *largest.values()):.3g}")
    vertical = alt.Y("low:Q", title="§axis.difference|%", scale=alt.Scale(domain=[-reach, reach], nice=False))
    shade = alt.Chart(alt.NamedData("band")).mark_rect(opacity=0.14, color="#808080").encode(y=vertical, y2="high:Q")
    base = alt.Chart(alt.NamedData("difference")).encode(
        x=alt.X("x:Q", title="§axis.step", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False, zero=False)),
        color=colour(arms),
        detail="trial:N",
    )
    area = base.mark_area(opacity=0.18, strokeWidth=0).encode(y=vertical, y2="high:Q")
    line = base.mark_line(strokeWidth=1.6).encode(
        y=alt.Y("middle:Q", title="§axis.difference|%"),
        strokeDash=dash(arms),
        tooltip=tooltip(x="§axis.step", middle="§axis.difference|%"),
    )
    return Chart(
        id=f"{group.id}-difference",
        title=text("chart.difference", baseline=group.baseline),
        note=text("chart.difference_note", band=exact(band)),
        alt=sentences(
            [text("chart.difference_alt", arm=arm, largest=percent_above(value)) for arm, value in largest.items()]
        ),
        spec=finished([shade, area, line]),
        data={"difference": _join(parts), "band": {"low": [-100 * band], "high": [100 * band]}},
    )


def _memory(group: Group, views: Sequence[TrialView], arms: Sequence[str]) -> Chart | None:
    import altair as alt

    rows: dict[str, list[Any]] = {name: [] for name in ("arm", "trial", "rank", "kind", "bytes")}
    for view in views:
        for rank, told in enumerate(view.memory):
            for kind in ("peak_allocated", "peak_rss"):
                amount = told.get(kind)
                if isinstance(amount, (int, float)) and not isinstance(amount, bool):
                    values = (view.arm, view.result.id, rank, kind, float(amount) / 2**20)
                    for name, value in zip(rows, values, strict=True):
                        rows[name].append(value)
    if not rows["bytes"]:
        return None
    unit = scale("MiB", rows["bytes"])
    data = {**{name: rows[name] for name in ("arm", "trial", "rank", "kind")}}
    data["amount"] = compact([value / unit.factor for value in rows["bytes"]])
    few = max(rows["rank"]) < 16
    horizontal = alt.X("rank:O" if few else "rank:Q", title="§axis.rank", axis=alt.Axis(labelAngle=0))
    points = (
        alt.Chart(alt.NamedData("memory"))
        .mark_point(filled=True, size=70, opacity=0.75)
        .encode(
            x=horizontal,
            y=alt.Y("amount:Q", title=f"§axis.memory|{unit.unit}", scale=alt.Scale(zero=True)),
            color=colour(arms),
            shape=alt.Shape(
                "kind:N",
                scale=alt.Scale(domain=["peak_allocated", "peak_rss"], range=["circle", "square"]),
                legend=None,
            ),
            tooltip=tooltip(rank="§axis.rank", kind="§axis.kind", amount=f"§axis.memory|{unit.unit}"),
        )
    )
    if few:
        points = points.encode(xOffset=alt.XOffset("arm:N", scale=alt.Scale(domain=group.arms)))
    alt_text = []
    for arm in group.arms:
        largest = {
            kind: max(
                (b for a, k, b in zip(rows["arm"], rows["kind"], rows["bytes"], strict=True) if (a, k) == (arm, kind)),
                default=None,
            )
            for kind in ("peak_allocated", "peak_rss")
        }
        if any(value is not None for value in largest.values()):
            shown = {kind: unit.full(value, 3) for kind, value in largest.items()}
            alt_text.append(text("chart.memory_alt", arm=arm, allocated=shown["peak_allocated"], rss=shown["peak_rss"]))
    return Chart(
        id=f"{group.id}-memory",
        title=text("chart.memory"),
        note=text("chart.memory_note"),
        alt=sentences(alt_text),
        spec=finished([points], 220),
        data={"memory": data},
    )


_SENSORS = {
    "device_power": ("devices.*.power_w", 1.0, "W"),
    "device_temperature": ("devices.*.temperature_c", 1.0, "°C"),
    "device_utilisation": ("devices.*.utilisation_pct", 1.0, "%"),
    "device_memory": ("devices.*.memory_used_mib", 1024.0, "GiB"),
    "device_clock": ("devices.*.clock_mhz", 1.0, "MHz"),
    "cpu": ("cpu_percent", 1.0, "%"),
    "used": ("memory_used", 2.0**30, "GiB"),
    "load": ("load", 1.0, ""),
}
"""What is drawn of telemetry: the text's key, the sensor, and the unit it is shown in; a `*` is each of the devices."""


_OF_HOST = ("used", "load")


def telemetry_charts(group: Group, arms: Sequence[str]) -> list[Chart]:
    """Return one chart a sensor: all trials one after another, measured steps shaded."""
    views = [view for view in group.trials if len(view.telemetry.ns)][:MOST_TRIALS]
    if not views:
        return []
    origin = min(int(view.telemetry.ns.min()) for view in views)
    end = max(int(view.telemetry.ns.max()) for view in views)
    unit = Scale(60.0, "min") if end - origin > 600e9 else Scale(1.0, "s")
    shaded: Columns = {"start": [], "stop": [], "arm": [], "trial": []}
    for view in views:
        if (span := view.span) is not None:
            edges = ((span.start_ns, "start"), (span.stop_ns, "stop"))
            for edge, name in edges:
                shaded[name] += compact([(edge - origin) / 1e9 / unit.factor])
            shaded["arm"].append(view.arm)
            shaded["trial"].append(view.result.id)
    made = []
    left_out = _OF_HOST if group.first.scenario else ()  # of several scenarios a page would be full of them
    for key, (sensor, factor, shown) in _SENSORS.items():
        if key in left_out:
            continue
        chart = _sensor(group, views, arms, key, sensor, factor, shown, origin, unit, shaded)
        if chart is not None:
            made.append(chart)
    return made


def _sensor(
    group: Group,
    views: Sequence[TrialView],
    arms: Sequence[str],
    key: str,
    sensor: str,
    factor: float,
    shown: str,
    origin: int,
    unit: Scale,
    shaded: Columns,
) -> Chart | None:
    import altair as alt

    parts, during = [], []
    for view in views:
        of_devices = "*" in sensor
        for device in view.devices if of_devices else [None]:
            times, values = view.telemetry.series(sensor.replace("*", str(device)))
            if not len(times):
                continue
            since = (times - origin) / 1e9 / unit.factor
            part = binned(since, values / factor, share(len(views) * max(1, len(view.devices) * of_devices)))
            parts.append({**part, **_repeated(view, len(part["x"]), device)})
            if (span := view.span) is not None:
                inside = (times >= span.start_ns) & (times <= span.stop_ns)
                during += (values[inside] / factor).tolist()
    if not parts:
        return None
    title = f"§axis.{key}|{shown}" if shown else f"§axis.{key}"
    shade = (
        alt.Chart(alt.NamedData("measured"))
        .mark_rect(opacity=0.14)
        .encode(x=alt.X("start:Q"), x2="stop:Q", color=colour(arms))
    )
    layers = _series("telemetry", arms, f"§axis.seconds|{unit.unit}", title, zero=key != "used")
    alt_text = text("chart.telemetry_note" if shaded["start"] else "chart.telemetry_plain")
    if during:
        alt_text = text(
            "chart.telemetry_alt",
            sensor=text(f"axis.{key}"),
            low=f"{number(min(during), 3)} {shown}".strip(),
            high=f"{number(max(during), 3)} {shown}".strip(),
        )
    return Chart(
        id=f"{group.id}-{key}",
        title=text(f"axis.{key}"),
        note=text("chart.telemetry_note" if shaded["start"] else "chart.telemetry_plain"),
        alt=alt_text,
        spec=finished([shade, *layers] if shaded["start"] else layers, 160),
        data={"telemetry": _join(parts), "measured": shaded},
    )
