"""Tables on the terminal: what a run measured, engine by engine, and how the engines compare."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.markup import escape
from rich.table import Table

from flagperf.cli import common
from flagperf.metrics import metric
from flagperf.schema.result import Comparison, Result

_COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "cannot tell": "yellow"}


def number(value: float) -> str:
    """Return a value with four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def print_results(results: Sequence[Result]) -> None:
    """Print one column an engine and layout: each metric's median over the valid trials, and how many they are."""
    if not results:
        return
    arms: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        arms.setdefault((result.case, result.engine, result.layout), []).append(result)
    table = Table(title="Median over valid trials", title_justify="left")
    table.add_column("")
    for case, engine, layout in arms:
        where = f"{case}\n" if len({key[0] for key in arms}) > 1 else ""
        table.add_column(f"{escape(where)}{escape(engine)}\n[dim]{escape(layout)}[/]", justify="right")
    valid = [[result for result in group if result.verdict == "valid"] for group in arms.values()]
    table.add_row(
        "valid trials", *(f"{len(good)} of {len(group)}" for good, group in zip(valid, arms.values(), strict=True))
    )
    names = list(dict.fromkeys(name for group in valid for result in group for name in result.metrics))
    for name in names:
        cells = []
        for group in valid:
            values = [result.metrics[name].value for result in group if name in result.metrics]
            cells.append(number(median(values)) if values else "–")
        declared = metric(name)
        arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[declared.direction]
        table.add_row(f"{escape(declared.title)} [dim]{escape(declared.unit)}{arrow}[/]", *cells)
    common.out().print(table)


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print a table for each pair of arms: a metric's ratio with its interval, and the verdict."""
    pairs: dict[tuple[str, str, str], list[Comparison]] = {}
    for row in comparisons:
        pairs.setdefault((row.case, row.candidate, row.baseline), []).append(row)
    out = common.out()
    for (_, candidate, baseline), rows in pairs.items():
        table = Table(title=f"{escape(candidate)} ÷ {escape(baseline)}, 95 % interval", title_justify="left")
        table.add_column("metric")
        for column in ("ratio", "interval", "pairs"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in rows:
            verdict = f"[{_COLOURS[row.verdict]}]{row.verdict}[/]"
            if row.verdict == "cannot tell" and row.more_trials is not None:
                more = "1 more trial" if row.more_trials == 1 else f"{row.more_trials} more trials"
                verdict += f" [dim](about {more} would tell)[/]"
            interval = "–" if row.low is None or row.high is None else f"{row.low:.3f} … {row.high:.3f}"
            ratio = "–" if row.ratio is None else f"{row.ratio:.3f}"
            table.add_row(escape(metric(row.metric).title), ratio, interval, str(row.pairs), verdict)
        out.print(table)
        for note in dict.fromkeys(note.message for row in rows for note in row.notes):
            out.print(f"  {escape(note)}", soft_wrap=True)
