"""Sweeps on the terminal: a table a case, providers side by side; a summary where there are hundreds of points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from flagperf.cli import common
from flagperf.cli.rows import Row, value
from flagperf.cli.tables import COLOURS, arrow, number, scale
from flagperf.collect.points import SPEED, Cell, Sweep, by_reason, sweeps
from flagperf.collect.sweeps import shown
from flagperf.metrics import metric
from flagperf.schema.result import Comparison, Result
from flagperf.schema.sweep import At

if TYPE_CHECKING:
    from rich.console import Console

MOST = 40
"""Points of a table; more than that are summed up."""
MOST_REASONS = 3
"""Reasons of a provider and verdict that are told under a table; each point has its own."""
MOST_METRICS = 4
"""Metrics of a table about one provider."""


def print_sweeps(results: Sequence[Result], run: str = "") -> None:
    """Print every sweep among these results; `run` is the folder in which more is to be found."""
    for sweep in sweeps(results):
        declared = metric(sweep.leading)
        title = f"{escape(sweep.first.case)} {escape(sweep.first.preset)}  [dim]{escape(shown(sweep.fixed))}[/]"
        factor, unit = _scale(sweep, sweep.leading)
        if sweep.first.scenario:
            _print_clients(sweep)
            continue
        alone = len(sweep.providers) == 1 and len(sweep.points) <= MOST
        what = escape(sweep.baseline) if alone else f"{escape(declared.title)}, {escape(unit)}{arrow(sweep.leading)}"
        table = Table(title=f"{title}\n{what}", title_justify="left")
        if alone:
            _metrics(sweep, table)
        else:
            (_points if len(sweep.points) <= MOST else _summary)(sweep, table, factor)
        common.out().print(table)
        for line in _told(sweep):
            common.out().print(f"  {line}", soft_wrap=True)
        if len(sweep.points) > MOST:
            where = f" {escape(run)}" if run else ""
            common.out().print(f"  All {len(sweep.points)} points: flagperf results{where} --points", soft_wrap=True)


def _print_clients(sweep: Sweep) -> None:
    """Print a row a number of clients and engine: what they had, and how long they waited for it."""
    names = [
        name for name in sweep.first.facts.get("metrics") or [] if any(c.value(name) for c in sweep.cells.values())
    ]
    scales = {name: _scale(sweep, name) for name in names[:MOST_METRICS]}
    first = sweep.first
    table = Table(title=f"{escape(first.scenario.capitalize())}: by number of clients", title_justify="left")
    for axis in ["clients", *(["engine"] if sweep.providers[1:] else [])]:
        table.add_column(axis, justify="right" if axis == "clients" else "left", no_wrap=True)
    for name, (_, unit) in scales.items():
        table.add_column(f"{escape(metric(name).title)}\n[dim]{escape(unit)}{arrow(name)}[/]", justify="right")
    for point, at in sweep.points.items():
        for place, engine in enumerate(sweep.providers):
            cell = sweep.cells.get((engine, point))
            cells = [_cell(cell, name, scales[name][0], speed=name == sweep.leading) for name in scales]
            if cell is None or not cell.valid:
                cells[1:] = ["–"] * (len(cells) - 1)
            label = "" if place else str(at["clients"])
            table.add_row(label, *([escape(engine)] if sweep.providers[1:] else []), *cells)
    common.out().print(table)
    for line in _told(sweep):
        common.out().print(f"  {line}", soft_wrap=True)


def _scale(sweep: Sweep, name: str) -> tuple[float, str]:
    """Return the unit for a sweep's values of a metric: divide by the factor."""
    return scale(metric(name).unit, (found for cell in sweep.cells.values() if (found := cell.value(name))))


def _metrics(sweep: Sweep, table: Table) -> None:
    """A row a point, a column a metric of the only provider: the leading one and those the case names next."""
    seen = {name for cell in sweep.cells.values() for name in cell.metrics}
    named = [name for name in sweep.first.facts.get("metrics") or [] if name in seen]
    names = list(dict.fromkeys([sweep.leading, *named]))[:MOST_METRICS]
    _axes(sweep, table)
    scales = {name: _scale(sweep, name) for name in names}
    for name in names:
        table.add_column(
            f"{escape(metric(name).title)}\n[dim]{escape(scales[name][1])}{arrow(name)}[/]", justify="right"
        )
    for point, at in sweep.points.items():
        cell = sweep.cells.get((sweep.baseline, point))
        first, *others = (_cell(cell, name, scales[name][0], interval=name == names[0]) for name in names)
        counts = cell is not None and cell.valid
        table.add_row(*_labels(sweep, at), first, *(others if counts else ["–"] * len(others)))


def _axes(sweep: Sweep, table: Table) -> None:
    for axis in sweep.axes or ["point"]:
        table.add_column(escape(axis), no_wrap=True)


def _labels(sweep: Sweep, at: At) -> list[str]:
    return [escape(_label(at.get(axis, "–"))) for axis in sweep.axes] or [escape(sweep.label(at))]


def _points(sweep: Sweep, table: Table, factor: float) -> None:
    """A row a point, a column a provider."""
    _axes(sweep, table)
    for name in sweep.providers:
        other = sweep.providers[1:] and name != sweep.baseline
        head = f"\n[dim]and × {escape(sweep.baseline)}, 95 %[/]" if other else ""
        table.add_column(f"{escape(name)}{head}", justify="right")
    for point, at in sweep.points.items():
        cells = [sweep.cells.get((name, point)) for name in sweep.providers]
        table.add_row(*_labels(sweep, at), *(_cell(cell, sweep.leading, factor) for cell in cells))


def _label(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _cell(cell: Cell | None, name: str, factor: float, *, interval: bool = False, speed: bool = True) -> str:
    """Return a metric's value, with its interval if asked for, and the speed against the baseline if there is one."""
    if cell is None:
        return "–"
    if not cell.valid:
        style = "bold red strike" if cell.verdict == "wrong" else "red" if cell.verdict == "failed" else "dim"
        return f"[{style}]{cell.verdict}[/]"
    found = cell.metrics.get(name)
    text = "–" if found is None else number(found.value / factor)
    if interval and found is not None and found.low is not None and found.high is not None:
        text += f"  [dim]{number(found.low / factor)}…{number(found.high / factor)}[/]"
    return f"{text}  {_speedup(cell.speedup)}" if cell.speedup is not None and speed else text


def _speedup(c: Comparison) -> str:
    if c.ratio is None:
        return "–"
    interval = "" if c.low is None or c.high is None else f" {_times(c.low)}…{_times(c.high)}"
    return f"[{COLOURS[c.verdict]}]{_times(c.ratio)}×{interval}[/]"


def _times(ratio: float) -> str:
    return f"{ratio:#.3g}" if ratio < 1000 else f"{ratio:,.0f}"


def _summary(sweep: Sweep, table: Table, factor: float) -> None:
    """A row a provider: its best, and its most and least speed against the baseline."""
    table.add_column("provider", overflow="fold")
    table.add_column("valid", justify="right", no_wrap=True)
    table.add_column("best, and where")
    if sweep.providers[1:]:
        table.add_column(f"× {escape(sweep.baseline)}: median", justify="right")
        table.add_column("least, and where")
        table.add_column("most, and where")
    lower = metric(sweep.leading).direction == "lower"
    for name in sweep.providers:
        cells = [cell for (provider, _), cell in sweep.cells.items() if provider == name]
        measured = [(found, cell) for cell in cells if (found := cell.value(sweep.leading)) is not None]
        cells_of_row = [escape(name), f"{sum(cell.valid for cell in cells)} of {len(sweep.points)}"]
        if measured:
            best, where = (min if lower else max)(measured, key=lambda pair: pair[0])
            cells_of_row.append(f"{number(best / factor)}\n[dim]{escape(sweep.label(where.at))}[/]")
        else:
            cells_of_row.append("–")
        if sweep.providers[1:]:
            cells_of_row += _extremes(sweep, cells)
        table.add_row(*cells_of_row)


def _extremes(sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
    ratios = [(cell.speedup.ratio, cell) for cell in cells if cell.speedup is not None and cell.speedup.ratio]
    if not ratios:
        return ["–"] * 3
    ordered = sorted(ratios, key=lambda pair: pair[0])
    ends = [
        f"{_speedup(cell.speedup)}\n[dim]{escape(sweep.label(cell.at))}[/]"
        for _, cell in (ordered[0], ordered[-1])
        if cell.speedup is not None
    ]
    return [f"{_times(median(ratio for ratio, _ in ratios))}×", *ends]


def _told(sweep: Sweep) -> list[str]:
    """Return how often each provider was better, and why there are points without a number."""
    said = []
    for name in sweep.providers:
        cells = [cell for (provider, _), cell in sweep.cells.items() if provider == name]
        verdicts = Counter(cell.speedup.verdict for cell in cells if cell.speedup is not None)
        if verdicts:
            counts = ", ".join(f"[{COLOURS[v]}]{v}[/] at {n}" for v, n in verdicts.most_common())
            said.append(f"{escape(name)} against {escape(sweep.baseline)}: {counts}")
        for verdict in ("wrong", "failed", "too big", "unsupported"):
            style = "bold red" if verdict in ("wrong", "failed") else "dim"
            for bad in by_reason(cell for cell in cells if cell.verdict == verdict)[:MOST_REASONS]:
                why = f"{sweep.label(bad[0].at)}: {bad[0].why}"
                said.append(f"[{style}]{escape(name)} {verdict} at {len(bad)}[/]: {escape(why)}")
    return said


def print_points(rows: Sequence[Row], names: Sequence[str], console: Console) -> None:
    """Print a line a point and provider, as `flagperf results --points` shows them."""
    from flagperf.cli.results import figure, lines

    if not rows:
        console.print("No points.")
        return
    shown_metrics = list(names) or _usual(rows)
    axes = list(dict.fromkeys(axis for row in rows if row.point for axis in row.point.at))
    heads = [name for name in ("run", "case", "ranks", "trial") if len({value(row, name) for row in rows}) > 1]
    heads += [*axes, "provider", "verdict"]
    units = [f"{name} {metric(name).unit}" for name in shown_metrics]
    units += ["speed ×"] if any(row.point and row.point.speedup for row in rows) and not names else []
    told = []
    for row in rows:
        point = row.point
        assert point is not None
        cells = [_label("–" if (found := value(row, name)) is None else found) for name in heads]
        cells += [figure(point.metrics.get(name)) for name in shown_metrics]
        if len(units) > len(shown_metrics):
            ratio = point.speedup
            interval = "" if ratio is None or ratio.low is None else f" [{ratio.low:.3g}, {ratio.high:.3g}]"
            cells.append("–" if ratio is None or ratio.ratio is None else f"{ratio.ratio:.3g}{interval}")
        told.append((point.verdict != "wrong", cells))
    console.out("Value, number of rounds, [95 % interval]", style="italic", highlight=False)
    lines(heads, units, told, console)
    whys: dict[str, int] = Counter(
        f"{row.point.verdict}: {row.point.provider}: {row.point.why}" for row in rows if row.point and row.point.why
    )
    for why, count in whys.items():
        console.out(f"{why} ({count} points)" if count > 1 else why, highlight=False)


def _usual(rows: Sequence[Row]) -> list[str]:
    """Return each sweep's leading metric, and time and memory where there are any."""
    results = list({id(row.result): row.result for row in rows}.values())
    leading = [sweep.leading for sweep in sweeps(results)]
    seen = {name for row in rows if row.point for name in row.point.metrics}
    return [
        name for name in dict.fromkeys([*leading, "kernel_time", "kernel_memory", "error_relative"]) if name in seen
    ]


def print_compared(comparisons: Sequence[Comparison]) -> None:
    """Print points of sweeps against a baseline: a table a pair of providers, a row a point and metric."""
    pairs: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for row in comparisons:
        if row.at is not None:
            pairs.setdefault((row.case, row.scenario, row.candidate, row.baseline), []).append(row)
    for (_, scenario, candidate, baseline), rows in pairs.items():
        speed = {row.metric for row in rows} == {SPEED}
        what = "speed" if speed else "ratio"
        table = Table(
            title=f"{escape(scenario.capitalize())}{': ' if scenario else ''}{escape(candidate)} ÷ {escape(baseline)}, "
            f"{what} with its 95 % interval",
            title_justify="left",
        )
        table.add_column("point", overflow="fold")
        if not speed:
            table.add_column("metric")
        for column in ("ratio", "interval", "pairs" if speed else "trials"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in rows:
            interval = "–" if row.low is None or row.high is None else f"{row.low:.3f} … {row.high:.3f}"
            table.add_row(
                escape(shown(row.at or {})),
                *([] if speed else [escape(metric(row.metric).title)]),
                "–" if row.ratio is None else f"{row.ratio:.3f}",
                interval,
                str(row.pairs),
                f"[{COLOURS[row.verdict]}]{row.verdict}[/]",
            )
        common.out().print(table)
        counts = ", ".join(f"{verdict} at {count}" for verdict, count in Counter(r.verdict for r in rows).items())
        common.out().print(f"  {len(rows)} points: {counts}", soft_wrap=True)
        for note in dict.fromkeys(note.message for row in rows for note in row.notes):
            common.out().print(f"  {escape(note)}", soft_wrap=True)
