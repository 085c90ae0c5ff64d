"""What the figures of a sweep are made of: panels, the axis they are drawn along, scales and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from flagperf.collect.points import Cell
from flagperf.collect.sweeps import shown
from flagperf.schema.sweep import At, Label

from .charts import Chart
from .points import SweepView, label
from .texts import Both

MOST_PANELS = 12
"""Panels of a figure; where there are more, the slowest axis gets a figure a value."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Panels that belong together."""

    id: str
    title: Both
    note: Both
    alt: Both
    """What it shows, for those who don't see it."""
    panels: list[Chart]


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep is drawn along."""

    name: str
    values: list[Label]
    numeric: bool

    def at(self, point: At) -> Any:
        """Return where a point lies on it."""
        found = point.get(self.name)
        return found if self.numeric else self.words(found)

    def words(self, value: Label | None) -> str:
        """Return a value as the axis shows it."""
        return label(self.name, value)

    def horizontal(self) -> Any:
        """Return the encoding along the page."""
        import altair as alt

        if not self.numeric:
            order = [self.words(value) for value in self.values]
            return alt.X("x:N", title=self.name, sort=order, axis=alt.Axis(labelAngle=0, labelOverlap="greedy"))
        numbers = sorted(float(value) for value in self.values)
        wide = numbers[0] > 0 and numbers[-1] / numbers[0] >= 8
        every = -(-len(numbers) // 6)
        kept = sorted({*numbers[::every], numbers[-1]} if len(numbers) > 6 else set(numbers))
        words = " : ".join(f"datum.value == {x!r} ? '{self.words(_plain(x))}'" for x in kept)
        axis = alt.Axis(values=kept, tickCount=len(kept), labelExpr=f"{words} : ''", labelOverlap="greedy")
        return alt.X("x:Q", title=self.name, axis=axis, scale=scale_of(wide, (numbers[0], numbers[-1]), base=2))


def axis_of(view: SweepView) -> Axis | None:
    """Return the axis to draw along: that with most numbers, the fastest of several; else that with most names."""
    axes = view.sweep.axes
    counts = {name: sum(map(_is_number, values)) for name, values in axes.items()}
    numeric = [name for name, count in counts.items() if count > 1]
    if numeric:
        name = max(reversed(numeric), key=lambda each: counts[each])
        return Axis(name=name, values=axes[name], numeric=all(map(_is_number, axes[name])))
    if not axes:
        return None
    name = max(axes, key=lambda each: len(axes[each]))
    return Axis(name=name, values=axes[name], numeric=False)


def _is_number(value: Label) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def split_up(cells: Iterable[Cell], facets: Sequence[str]) -> dict[str, dict[str, list[Cell]]]:
    """Return cells by figure and panel, each by its name: more than MOST_PANELS are split by the first axes."""
    cells = list(cells)
    for apart in range(len(facets) + 1):
        split: dict[str, dict[str, list[Cell]]] = {}
        for cell in cells:
            figure, panel = (
                shown({axis: cell.at[axis] for axis in some if axis in cell.at})
                for some in (facets[:apart], facets[apart:])
            )
            split.setdefault(figure, {}).setdefault(panel, []).append(cell)
        if max(map(len, split.values()), default=0) <= MOST_PANELS:
            break
    return split


def inside(level: float, values: Sequence[float], wide: bool) -> bool:
    """Whether a level may be drawn without making all else too small to see."""
    reach = 30.0 if wide else 2.0
    return min(values) / reach <= level <= max(values) * reach


def scale_of(wide: bool, ends: tuple[float, float], *, base: int = 10, zero: bool = False) -> Any:
    """Return a scale that holds these values with some room: logarithmic, or from zero where asked."""
    import altair as alt

    low, high = ends
    if wide:
        return alt.Scale(type="log", base=base, domain=list(_room(ends)), nice=False)
    if zero and low >= 0:
        return alt.Scale(domain=[0, float(f"{high * 1.06 or 1.0:.4g}")], nice=True)
    room = 0.06 * (high - low) or abs(high) * 0.06 or 1.0
    return alt.Scale(domain=[float(f"{low - room:.4g}"), float(f"{high + room:.4g}")], nice=False, zero=False)


def ticks(low: float, high: float) -> list[float]:
    """Return where a logarithmic scale has its marks: powers of ten, with 2 and 5 between them where they are few."""
    between = (1,) if high / low >= 1000 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{k}e{power}") for power in powers for k in between]
    kept = [tick for tick in found if low <= tick <= high]
    return kept[:: -(-len(kept) // 8)] if len(kept) > 8 else kept


def amounts(wide: bool, ends: tuple[float, float], **options: Any) -> Any:
    """Return an axis of numbers for `scale_of` the same ends."""
    import altair as alt

    marks = {"values": (values := ticks(*_room(ends))), "tickCount": len(values)} if wide else {"tickCount": 5}
    return alt.Axis(format=".6~g", labelOverlap="greedy", **marks, **options)


def _room(ends: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of a logarithmic scale that has these values on it."""
    low, high = ends
    room = max((high / low) ** 0.06, 1.1)
    return float(f"{low / room:.4g}"), float(f"{high * room:.4g}")


def _plain(value: float) -> Label:
    return int(value) if value == int(value) else value
