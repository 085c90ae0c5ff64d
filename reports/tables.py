"""Rows of the tables: each number with its unit, interval, count and direction, and a dot for every trial."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from flagperf.metrics import catalogue
from flagperf.schema.result import Comparison
from flagperf.statistics import trial_interval

from .data import Group, TrialView
from .numbers import Scale, change, median, scale
from .points import shown_metrics
from .texts import Both, same, text, title

_ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
_MOST_FIGURES = 6
"""Columns of figures in the table of trials, where the case doesn't choose."""
_GROUPS = ("speed", "memory", "accuracy", "energy", "harness")


class Dot(msgspec.Struct, frozen=True):
    """One trial's value on its row's scale."""

    place: float
    """Per cent from the left."""
    label: str


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's value of one metric."""

    value: str
    interval: str = ""
    n: int = 0
    dots: list[Dot] = []
    versus: str = ""
    verdict: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One metric over all engines."""

    name: str
    title: Both
    unit: str
    arrow: str
    direction: str
    cells: list[Cell]


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one kind."""

    title: Both
    rows: list[Row]


def blocks(group: Group) -> list[Block]:
    """Return the metrics of a group's valid trials, kind by kind."""
    if group.sweep is not None:
        return []  # its trials measure many sizes, of which there is no one number
    known = catalogue()
    measured = [name for view in group.trials if view.valid for name in view.result.metrics]
    names = list(dict.fromkeys(measured))
    first = group.first.metrics if group.first.scenario else []  # they begin with what a scenario is judged by
    order = {name: number for number, name in enumerate(dict.fromkeys([*first, *known]))}
    names.sort(key=lambda name: order.get(name, len(order)))
    found = []
    for kind in _GROUPS:
        rows = [row(group, name) for name in names if (known[name].group if name in known else "speed") == kind]
        if rows:
            found.append(Block(title=text(f"table.{kind}"), rows=rows))
    return found


def row(group: Group, name: str) -> Row:
    """Return one metric's row."""
    views = {arm: [view for view in group.of(arm) if name in view.result.metrics] for arm in group.arms}
    everything = [view.result.metrics[name].value for each in views.values() for view in each]
    sample = next(view.result.metrics[name] for each in views.values() for view in each)
    unit = scale(sample.unit, everything)
    low, high = min(everything), max(everything)
    cells = []
    for arm in group.arms:
        comparison = group.compared(arm).get(name)
        cells.append(_cell(views[arm], name, unit, low, high, comparison))
    return Row(
        name=name,
        title=title(name),
        unit=unit.unit,
        arrow=_ARROWS[sample.direction],
        direction=sample.direction,
        cells=cells,
    )


def _cell(
    views: Sequence[TrialView], name: str, unit: Scale, low: float, high: float, comparison: Comparison | None
) -> Cell:
    if not views:
        return Cell(value="–")
    values = [view.result.metrics[name].value for view in views]
    digits = 5 if name.startswith("loss") else 4
    if len(values) > 1:
        interval = trial_interval(values)
    else:
        only = views[0].result.metrics[name]
        interval = (only.low, only.high) if only.low is not None and only.high is not None else None
    width = high - low
    dots = [
        Dot(
            50.0 if width <= abs(high) * 1e-9 else round(4 + 92 * (value - low) / width, 2),
            f"{view.result.id}: {unit.full(value, digits)}",
        )
        for view, value in zip(views, values, strict=True)
    ]
    return Cell(
        value=unit.show(median(values), digits),
        interval=f"{unit.show(interval[0], digits)} … {unit.show(interval[1], digits)}" if interval else "",
        n=len(values),
        dots=dots,
        versus=change(comparison.ratio) if comparison is not None and comparison.ratio is not None else "",
        verdict=comparison.verdict.replace(" ", "_") if comparison is not None else "",
    )


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the interval plot; places in per cent of its width."""

    title: Both
    better: Both
    kind: str
    change: str
    interval: str
    point: float
    low: float | None
    high: float | None
    cut_low: bool
    """Whether the interval goes on beyond the plot's edge."""
    cut_high: bool
    band_low: float
    band_high: float


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Differences of a candidate from the baseline, each with its interval."""

    marks: list[Mark]
    ticks: list[Dot]
    zero: float


_WIDEST = 3.0
"""The plot reaches at most this many times the farthest point or band; longer intervals are cut at its edges."""


def plot(comparisons: Sequence[Comparison]) -> Plot | None:
    """Lay out the interval plot of one candidate."""
    drawn = [c for c in comparisons if c.ratio is not None and c.ratio > 0]
    if not drawn:
        return None
    points = [abs(c.ratio - 1) for c in drawn if c.ratio is not None]
    ends = [abs(end - 1) for c in drawn for end in (c.low, c.high) if end is not None]
    least = max([*points, *(2 * c.minimum_effect for c in drawn)])
    reach = min(max([least, *ends]), max(_WIDEST * least, 0.2)) * 1.08

    def place(fraction: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, fraction / reach)), 2)

    marks = []
    for c in drawn:
        ratio = c.ratio or 1.0
        interval = c.low is not None and c.high is not None
        marks.append(
            Mark(
                title=title(c.metric),
                better=text(
                    {"higher": "verdict.better_right", "lower": "verdict.better_left"}.get(
                        c.direction, "verdict.better_none"
                    )
                ),
                kind=c.verdict.replace(" ", "_"),
                change=change(ratio),
                interval=f"{change(c.low)} … {change(c.high)}" if interval else "",
                point=place(ratio - 1),
                low=place(c.low - 1) if c.low is not None else None,
                high=place(c.high - 1) if c.high is not None else None,
                cut_low=c.low is not None and c.low - 1 < -reach,
                cut_high=c.high is not None and c.high - 1 > reach,
                band_low=place(1 / (1 + c.minimum_effect) - 1),
                band_high=place(c.minimum_effect),
            )
        )
    step = _tick(reach)
    count = int(reach / step)
    ticks = [Dot(place(k * step), change(1 + k * step, 1) if k else "0") for k in range(-count, count + 1)]
    return Plot(marks=marks, ticks=ticks, zero=50.0)


def _tick(reach: float) -> float:
    """Return a round step that gives one to three ticks on each side of zero, fewer where their labels are longer."""
    power, most = 10.0 ** math.floor(math.log10(reach / 2)), 3 if reach < 0.3 else 2
    return next(power * k for k in (1, 2, 5, 10) if int(reach / (power * k)) <= most)


class TrialRow(msgspec.Struct, frozen=True, kw_only=True):
    """One trial of the table of all trials."""

    id: str
    arm: str
    seed: int
    number: int
    valid: bool
    took: str
    figures: list[str]


def trial_table(group: Group) -> tuple[list[tuple[Both, str]], list[TrialRow]]:
    """Return the headings of the figures, and every trial in the order of the plan, invalid ones too."""
    from .numbers import seconds

    known = catalogue()
    present = {name for view in group.trials for name in view.result.metrics}
    names = [name for name, declared in known.items() if declared.compared and name in present]
    if group.first.scenario:
        names = [name for name in group.first.metrics if name in names][:_MOST_FIGURES]
    names = names or sorted(present)[:_MOST_FIGURES]
    scales = {
        name: scale(
            next(v.result.metrics[name].unit for v in group.trials if name in v.result.metrics),
            [v.result.metrics[name].value for v in group.trials if name in v.result.metrics],
        )
        for name in names
    }
    rows = []
    for view in group.trials:
        measured = view.result.metrics
        rows.append(
            TrialRow(
                id=view.result.id,
                arm=view.arm,
                seed=view.result.seed,
                number=view.result.trial,
                valid=view.valid,
                took=seconds(view.outcome.seconds) if view.outcome is not None else "–",
                figures=[scales[n].show(measured[n].value if n in measured else None) for n in names],
            )
        )
    return [(title(name), scales[name].unit) for name in names], rows


class Remark(msgspec.Struct, frozen=True):
    """A reason or a note, and the trials it was made of."""

    trials: list[str]
    message: str
    hint: str


def remarks(group: Group) -> tuple[list[Remark], list[Remark]]:
    """Return the reasons for which trials are invalid, and the notes on trials; what several share is there once."""
    found: tuple[dict[tuple[str, str], list[str]], dict[tuple[str, str], list[str]]] = ({}, {})
    for view in group.trials:
        for place, several in zip(found, (view.result.reasons, view.result.notes), strict=True):
            for each in several:
                place.setdefault((each.message, each.hint), []).append(view.result.id)
    reasons, notes = ([Remark(trials, *said) for said, trials in place.items()] for place in found)
    return reasons, notes


def glossary(group: Group) -> list[tuple[Both, Both]]:
    """Return title and meaning of every metric that is shown."""
    shown = {name for view in group.trials for name in view.result.metrics}
    if group.sweep is not None:
        shown |= shown_metrics(group.sweep)
    found = []
    for name, declared in catalogue().items():
        if name in shown:
            found.append((title(name), Both(declared.meaning, declared.meaning_zh)))
    found += [(same(name), same("")) for name in sorted(shown - catalogue().keys())]
    return found
