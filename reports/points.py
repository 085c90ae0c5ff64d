"""A sweep as the page shows it: its points over trials, what the ranks told beyond them, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from flagperf.collect.points import SPEED, Cell, Sweep, sweep_of
from flagperf.collect.sweeps import shown, told_roofs, told_samples
from flagperf.collect.trials import TrialRecord
from flagperf.metrics import catalogue
from flagperf.schema.result import Comparison, Result
from flagperf.schema.sweep import At, Label, Roofs, Samples
from flagperf.schema.trial import Trial

from .numbers import THIN, Scale, number, scale
from .texts import Both, text, title

MOST_ROWS = 400
"""Rows of a table of points; `flagperf results --points` has all."""
_BYTES = {"size": 1, "bytes": 1, "kib": 1024}
"""Axes that are amounts of memory, and of how many bytes."""
_AMOUNTS = [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")]
_RATES = {"flops_rate": ("flops", 1e12), "bandwidth": ("bytes", 1e9), "bus_bandwidth": ("bus_bytes", 1e9)}
"""What these metrics are made of besides a time, and their unit."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What the first rank of a trial told of its sweep."""

    samples: dict[tuple[str, str], Samples]
    """By provider and point."""
    roofs: Roofs | None


def hear(record: TrialRecord) -> Heard | None:
    """Return what a sweep's trial told; None of any other trial."""
    if not record.trial.swept:
        return None
    return Heard(samples=told_samples(record.ranks[0]), roofs=told_roofs(record.ranks[0]))


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep with what its ranks told beyond its results."""

    trial: Trial
    """What stands for all that its trials share."""
    sweep: Sweep
    heard: list[Heard]
    """A trial each."""

    @property
    def roofs(self) -> Roofs | None:
        """What the device can do, by the trial that saw it do most."""
        found = [each.roofs for each in self.heard if each.roofs is not None]
        if not found:
            return None
        dtypes = sorted({dtype for each in found for dtype in each.flops})
        return Roofs(
            flops={dtype: max(each.flops.get(dtype, 0.0) for each in found) for dtype in dtypes},
            bandwidth=max(each.bandwidth for each in found),
        )

    @property
    def cells(self) -> list[Cell]:
        """Everything that is known, point by point."""
        return [cell for point in self.sweep.points for cell in self.sweep.row(point)]

    def of(self, provider: str) -> list[Cell]:
        """Return everything that is known of a provider."""
        return [cell for cell in self.cells if cell.provider == provider]

    def label(self, at: At) -> str:
        """Return a point by what tells it from the others."""
        told = {axis: label(axis, value) for axis, value in at.items() if axis in self.sweep.axes}
        return " ".join(f"{axis}={value}" for axis, value in told.items()) or self.sweep.label(at)

    def samples(self, cell: Cell) -> Samples | None:
        """Return what the first trial that has any measured there."""
        key = (cell.provider, shown(cell.at))
        return next((found for each in self.heard if (found := each.samples.get(key)) is not None), None)

    def metrics(self) -> list[str]:
        """Return the metrics that points have: the case's in its order, then others."""
        seen = dict.fromkeys(name for cell in self.cells for name in cell.metrics)
        first = [name for name in self.trial.metrics if name in seen]
        return [*first, *(name for name in seen if name not in first)]

    def unit(self, name: str) -> Scale:
        """Return the scale in which all values of a metric are shown."""
        unit = next((c.metrics[name].unit for c in self.cells if name in c.metrics), "")
        return scale(unit, [c.metrics[name].value for c in self.cells if name in c.metrics])

    def struck(self, cell: Cell) -> float | None:
        """Return what the leading metric of a wrong point would be: shown struck out, never ranked."""
        told = self.samples(cell)
        if cell.verdict != "wrong" or told is None or not told.seconds:
            return None
        time = median(told.seconds)
        field, unit = _RATES.get(self.sweep.leading, ("", 1.0))
        if field:
            return float(getattr(told, field)) / unit / time
        return time if self.sweep.leading == "kernel_time" else None


def view_of(trial: Trial, results: Sequence[Result], heard: Sequence[Heard | None]) -> SweepView:
    """Return the view of one sweep's trials."""
    return SweepView(trial=trial, sweep=sweep_of(results), heard=[each for each in heard if each is not None])


class PointCell(msgspec.Struct, frozen=True, kw_only=True):
    """One provider's figures at one point."""

    state: str = "valid"
    """As the point's verdict, or `missing`."""
    value: str = "–"
    interval: str = ""
    n: int = 0
    versus: str = ""
    versus_interval: str = ""
    verdict: str = ""
    why: str = ""


class PointRow(msgspec.Struct, frozen=True, kw_only=True):
    """One point over all providers."""

    labels: list[str]
    cells: list[PointCell]


class PointTable(msgspec.Struct, frozen=True, kw_only=True):
    """The leading metric at every point, providers side by side."""

    metric: Both
    unit: str
    arrow: str
    axes: list[str]
    fixed: str
    """The axes that have one value, with it."""
    rows: list[PointRow]
    left_out: int
    """Points beyond the last row."""


def table(view: SweepView) -> PointTable:
    """Return the table of points."""
    sweep, name = view.sweep, view.sweep.leading
    unit, declared = view.unit(name), catalogue().get(name)
    rows = []
    for point, at in list(sweep.points.items())[:MOST_ROWS]:
        labels = [label(axis, at.get(axis)) for axis in sweep.axes] or [text("sweep.one_point").en]
        found = [sweep.cells.get((provider, point)) for provider in sweep.providers]
        rows.append(PointRow(labels=labels, cells=[_cell(view, cell, unit) for cell in found]))
    return PointTable(
        metric=title(name),
        unit=unit.unit,
        arrow={"higher": "↑", "lower": "↓"}.get(declared.direction if declared else "", ""),
        axes=list(sweep.axes) or ["–"],
        fixed=shown(sweep.fixed),
        rows=rows,
        left_out=max(0, len(sweep.points) - MOST_ROWS),
    )


def _cell(view: SweepView, cell: Cell | None, unit: Scale) -> PointCell:
    if cell is None:
        return PointCell(state="missing")
    if not cell.valid:
        struck = view.struck(cell)
        value = "" if struck is None else unit.show(struck, 3)
        return PointCell(state=cell.verdict.replace(" ", "_"), value=value, why=cell.why)
    measured = cell.metrics.get(view.sweep.leading)
    c = cell.speedup
    return PointCell(
        value=unit.show(measured.value if measured else None),
        interval=span(unit, measured.low, measured.high) if measured else "",
        n=measured.n if measured else 0,
        versus=times(c.ratio) if c is not None else "",
        versus_interval=times_interval(c) if c is not None else "",
        verdict=c.verdict.replace(" ", "_") if c is not None else "",
    )


class Everything(msgspec.Struct, frozen=True, kw_only=True):
    """All metrics of all points: a row a point and provider."""

    axes: list[str]
    heads: list[tuple[Both, str]]
    """Titles and units."""
    rows: list[tuple[list[str], str, str, list[str], str]]
    """Labels, provider, verdict, figures, and which roof is met first."""
    left_out: int


def everything(view: SweepView) -> Everything:
    """Return the table that leaves nothing out."""
    names = view.metrics()
    units = {name: view.unit(name) for name in names}
    rows: list[tuple[list[str], str, str, list[str], str]] = [
        (
            [label(axis, cell.at.get(axis)) for axis in view.sweep.axes],
            cell.provider,
            cell.verdict.replace(" ", "_"),
            [units[n].show(cell.metrics[n].value if n in cell.metrics else None, 4) for n in names],
            cell.bound,
        )
        for cell in view.cells
    ]
    return Everything(
        axes=list(view.sweep.axes),
        heads=[(title(name), units[name].unit) for name in names],
        rows=rows[: 3 * MOST_ROWS],
        left_out=max(0, len(rows) - 3 * MOST_ROWS),
    )


def label(axis: str, value: Label | None) -> str:
    """Return an axis' value as a person reads it: amounts of memory in a fitting unit."""
    if value is None:
        return "–"
    if axis in _BYTES and isinstance(value, (int, float)) and not isinstance(value, bool):
        count = value * _BYTES[axis]
        factor, unit = next((step for step in _AMOUNTS if count >= step[0]), (1, "B"))
        return f"{count / factor:.4g} {unit}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def span(unit: Scale, low: float | None, high: float | None) -> str:
    """Return an interval without its unit; empty where there is none."""
    return "" if low is None or high is None else f"{unit.show(low, 3)} … {unit.show(high, 3)}"


def times(ratio: float | None) -> str:
    """Return a ratio as a multiple."""
    return "–" if ratio is None else f"{number(ratio, 3)}{THIN}×"


def times_interval(c: Comparison) -> str:
    """Return the interval of a ratio; empty where there is none."""
    return "" if c.low is None or c.high is None else f"{number(c.low, 3)} … {number(c.high, 3)}"


def shown_metrics(view: SweepView) -> set[str]:
    """Return the names of all metrics that the tables of a sweep show."""
    speeds = {SPEED} if any(cell.speedup is not None for cell in view.cells) else set()
    return {*view.metrics(), *speeds}
