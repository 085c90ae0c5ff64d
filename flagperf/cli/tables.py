"""Tables on the terminal: what a run measured, engine by engine, and how the engines compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from rich.markup import escape
from rich.table import Table

from flagperf.cli import common
from flagperf.metrics import metric
from flagperf.schema.inference import Scenario
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import SCALED, SIMULATED, Comparison, ContestOutput, Result

COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "cannot tell": "yellow"}


_QUESTIONS = {
    "equal": "At the same batch",
    "best": "Each in its best layout",
    "overlap": "Communication overlapped, and not",
}


_SMALLER = {
    "GB/s": [(1.0, "GB/s"), (1e-3, "MB/s"), (1e-6, "kB/s")],
    "ratio": [(0.01, "%")],
    "TFLOP/s": [(1.0, "TFLOP/s"), (1e-3, "GFLOP/s"), (1e-6, "MFLOP/s")],
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")],
}
"""Units in which a table's numbers are easier to read, by that of the metric."""
_SEEN = {SIMULATED, SCALED}
"""Codes of notes that stand under a table of results."""


def scale(unit: str, values: Iterable[float]) -> tuple[float, str]:
    """Return the unit in which the middle one of some values is easy to read: divide by the factor."""
    ordered = sorted(filter(None, values))
    middle = ordered[len(ordered) // 2] if ordered else 1.0
    steps = _SMALLER.get(unit, [(1.0, unit)])
    return next((step for step in steps if middle >= step[0]), steps[-1])


def arrow(name: str) -> str:
    """Return which direction of a metric is better."""
    return {"higher": " ↑", "lower": " ↓", "none": ""}[metric(name).direction]


def shown(measured: MetricValue) -> str:
    """Return a value in an easy unit, with it."""
    factor, unit = scale(measured.unit, [measured.value])
    return f"{number(measured.value / factor)} {unit}"


def number(value: float) -> str:
    """Return a value with four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def print_results(results: Sequence[Result]) -> None:
    """Print one column an engine and layout: each metric's median over the valid trials, and how many they are.

    What was measured under different scenarios isn't the same: each has a table of its own.
    """
    scenarios: dict[Scenario, list[Result]] = {}
    for result in results:
        if result.purpose == "measure" and (result.scenario or not result.points):
            scenarios.setdefault(result.scenario, []).append(result)
    for scenario, some in scenarios.items():
        _print_results(scenario, some)


def _print_results(scenario: Scenario, results: Sequence[Result]) -> None:
    arms: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        arms.setdefault((result.case, result.engine, result.layout), []).append(result)
    where = f"{escape(scenario)}: " if scenario else ""
    table = Table(title=f"{where}median over valid trials".capitalize(), title_justify="left")
    table.add_column("")
    for case, engine, layout in arms:
        of = f"{case}\n" if len({key[0] for key in arms}) > 1 else ""
        below = f"\n[dim]{escape(layout)}[/]" if layout else ""
        table.add_column(f"{escape(of)}{escape(engine)}{below}", justify="right")
    valid = [[result for result in group if result.verdict == "valid"] for group in arms.values()]
    table.add_row(
        "valid trials", *(f"{len(good)} of {len(group)}" for good, group in zip(valid, arms.values(), strict=True))
    )
    names = list(dict.fromkeys(name for group in valid for result in group for name in result.metrics))
    for name in names:
        columns = [[result.metrics[name].value for result in group if name in result.metrics] for group in valid]
        middles = [median(values) if values else None for values in columns]
        declared = metric(name)
        factor, unit = scale(declared.unit, (value for value in middles if value is not None))
        cells = ["–" if value is None else number(value / factor) for value in middles]
        table.add_row(f"{escape(declared.title)} [dim]{escape(unit)}{arrow(name)}[/]", *cells)
    common.out().print(table)
    for said in dict.fromkeys(note.message for result in results for note in result.notes if note.code in _SEEN):
        common.out().print(f"[bold yellow]{escape(said)}[/]", soft_wrap=True)


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print a table for each pair of arms: a metric's ratio with its interval, and the verdict."""
    comparisons = [row for row in comparisons if row.at is None]  # for points there is flagperf.cli.points
    pairs: dict[tuple[str | None, str, str, str, str], list[Comparison]] = {}
    for row in comparisons:
        pairs.setdefault((row.question, row.case, row.scenario, row.candidate, row.baseline), []).append(row)
    out, several = common.out(), len({row.case for row in comparisons}) > 1
    for (question, case, scenario, candidate, baseline), rows in pairs.items():
        of = [_QUESTIONS[question] if question else scenario.capitalize(), *([case] if several else [])]
        asked = "".join(f"{each}: " for each in of if each)
        table = Table(title=f"{asked}{escape(candidate)} ÷ {escape(baseline)}, 95 % interval", title_justify="left")
        table.add_column("metric")
        for column in ("ratio", "interval", "pairs"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in rows:
            verdict = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
            if row.verdict == "cannot tell" and row.more_trials is not None:
                more = "1 more trial" if row.more_trials == 1 else f"{row.more_trials} more trials"
                verdict += f" [dim](about {more} would tell)[/]"
            interval = "–" if row.low is None or row.high is None else f"{row.low:.3f} … {row.high:.3f}"
            ratio = "–" if row.ratio is None else f"{row.ratio:.3f}"
            table.add_row(escape(metric(row.metric).title), ratio, interval, str(row.pairs), verdict)
        out.print(table)
        for note in dict.fromkeys(note.message for row in rows for note in row.notes):
            out.print(f"  {escape(note)}", soft_wrap=True)


def print_contest(contest: ContestOutput) -> None:
    """Print what was tried to find the best layouts, and published claims beside what was measured."""
    out = common.out()
    if contest.tried:
        table = Table(title="Layouts that were tried, in short trials", title_justify="left")
        table.add_column("layout", overflow="fold")
        for column in ("tokens/s", "allocator MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        for each in contest.tried:
            speed, memory = ("–" if x is None else number(x) for x in (each.tokens_per_second, each.memory_mib))
            table.add_row(escape(str(each.arm)), speed, memory, escape(f"{each.verdict} {each.why}".strip()))
        out.print(table)
    if contest.claims:
        table = Table(title="Published claims, and what was measured here", title_justify="left")
        for column in ("claim", "published", "measured", "95 % interval", "source"):
            table.add_column(column, overflow="fold")
        for row in contest.claims:
            claim, found = row.claim, row.measured
            published = f"{claim.low:g}" if claim.high is None else f"{claim.low:g} … {claim.high:g}"
            ratio = "–" if found is None or found.ratio is None else f"{found.ratio:.3f}"
            interval = (
                "–"
                if found is None or found.low is None or found.high is None
                else f"{found.low:.3f} … {found.high:.3f}"
            )
            table.add_row(escape(claim.title), published, ratio, interval, escape(claim.source))
        out.print(table)
