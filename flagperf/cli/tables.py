"""Tables on the terminal: what a run measured, engine by engine, and how the engines compare."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.markup import escape
from rich.table import Table

from flagperf.cli import common
from flagperf.metrics import metric
from flagperf.schema.result import SIMULATED, Comparison, ContestOutput, Result

COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "cannot tell": "yellow"}


_QUESTIONS = {
    "equal": "At the same batch",
    "best": "Each in its best layout",
    "overlap": "Communication overlapped, and not",
}


def number(value: float) -> str:
    """Return a value with four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def print_results(results: Sequence[Result]) -> None:
    """Print one column an engine and layout: each metric's median over the valid trials, and how many they are."""
    if not results:
        return
    arms: dict[tuple[str, str, str], list[Result]] = {}
    for result in (result for result in results if result.purpose == "measure" and not result.points):
        arms.setdefault((result.case, result.engine, result.layout), []).append(result)
    if not arms:
        return
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
    for said in dict.fromkeys(note.message for result in results for note in result.notes if note.code == SIMULATED):
        common.out().print(f"[bold yellow]{escape(said)}[/]", soft_wrap=True)


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print a table for each pair of arms: a metric's ratio with its interval, and the verdict."""
    comparisons = [row for row in comparisons if row.at is None]  # for points there is flagperf.cli.points
    pairs: dict[tuple[str | None, str, str, str], list[Comparison]] = {}
    for row in comparisons:
        pairs.setdefault((row.question, row.case, row.candidate, row.baseline), []).append(row)
    out = common.out()
    for (question, _, candidate, baseline), rows in pairs.items():
        asked = f"{_QUESTIONS[question]}: " if question else ""
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
