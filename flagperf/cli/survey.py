"""Tables of a survey: scaling, what a step is made of, and what became of each layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from flagperf.cli import common
from flagperf.cli.tables import number
from flagperf.schema.result import Scaled, Split, SurveyOutput
from flagperf.schema.survey import Survey

_COLOURS = {"fits": "green", "too big": "yellow", "failed": "red"}
_MOST = 6
"""Layouts of one fate that are named on the terminal; `--json` has them all."""


def print_survey(told: SurveyOutput, run: str) -> None:
    """Print how throughput scales, what was tried, and what wasn't."""
    out = common.out()
    _scaling(told.scaling)
    if told.layouts:
        _layouts(told)
        found = f"[bold]{escape(str(told.best))}[/]" if told.best else "none"
        out.print(f"Best layout: {found}. The search took {told.spent:,.0f} s of {told.budget:,.0f} s.", soft_wrap=True)
    for engine, why in told.left_out.items():
        out.print(f"  {escape(engine)} wasn't searched: {escape(why)}", soft_wrap=True)
    for note in told.notes:
        out.print(f"  {escape(note.message)} [dim]{escape(note.hint)}[/]", soft_wrap=True)
    if any(each.split for each in told.scaling) or any(each.split for each in told.layouts):
        out.print(f"Traces of a step, for ui.perfetto.dev: {run}/trials/*/output/rank0.trace.json.gz", soft_wrap=True)


def print_plan(survey: Survey) -> None:
    """Print what will follow from the first trial."""
    from flagperf.collect.survey import fates

    out = common.out()
    scales = ", ".join(f"{each.kind} {each.ranks} × batch {each.global_batch}" for each in survey.scales)
    out.print(f"Measured, {survey.protocol.trials} trials each, interleaved: {scales}.", soft_wrap=True)
    if survey.candidates:
        counts = Counter(row.fate for row in fates(survey, []))
        out.print(
            f"Before that {survey.budget:,.0f} s are given to a search of {len(survey.candidates)} layouts, of which "
            f"{counts['pruned']} need too much memory by formula and {counts['refused']} can't be. Each trial is "
            "chosen by the results of those before it; the fastest layout is then measured, too.",
            soft_wrap=True,
        )


def _scaling(points: Sequence[Scaled]) -> None:
    table = Table(title="Scaling: throughput a rank, related to the base", title_justify="left")
    table.add_column("")
    for column in ("ranks", "threads", "batch", "tokens/s", "efficiency", "95 % interval", "MiB a rank"):
        table.add_column(column, justify="right")
    table.add_column("compute / exposed / idle", justify="right")
    for each in points:
        interval = "–" if each.low is None or each.high is None else f"{each.low:.3f} … {each.high:.3f}"
        table.add_row(
            f"{each.kind}\n[dim]{escape(str(each.arm))}[/]",
            *(str(each.ranks), str(each.threads), str(each.global_batch), _or_dash(each.tokens_per_second)),
            "–" if each.efficiency is None else f"{each.efficiency:.3f}",
            *(interval, _or_dash(each.memory_mib), _shares(each.split)),
        )
    common.out().print(table)
    for text in dict.fromkeys(note.message for each in points for note in each.notes):
        common.out().print(f"  {escape(text)}", soft_wrap=True)


def _layouts(told: SurveyOutput) -> None:
    tried = [row for row in told.layouts if row.tried is not None]
    tried.sort(key=lambda row: -(row.tried.tokens_per_second or 0.0) if row.tried else 0.0)
    table = Table(title="Layouts that were tried, in short trials", title_justify="left")
    table.add_column("layout", overflow="fold")
    for column in ("tokens/s", "MiB a rank", "by formula"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("compute / exposed / idle", justify="right")
    table.add_column("")
    for row in tried:
        assert row.tried is not None
        table.add_row(
            escape(str(row.arm)),
            *map(_or_dash, (row.tried.tokens_per_second, row.tried.memory_mib, row.predicted_mib)),
            _shares(row.split),
            f"[{_COLOURS[row.fate]}]{row.fate}[/] {escape(row.why)}".strip(),
        )
    common.out().print(table)
    groups: dict[tuple[str, str], list[str]] = {}
    for row in told.layouts:
        if row.tried is None:
            groups.setdefault((row.fate, row.why), []).append(str(row.arm))
    for (fate, why), arms in groups.items():
        some = " ".join(arms[:_MOST]) + (f" and {len(arms) - _MOST} more" if len(arms) > _MOST else "")
        common.out().print(f"  [bold]{fate}[/], {escape(why)}: {escape(some)}", soft_wrap=True)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def _shares(split: Split | None) -> str:
    if split is None or split.seconds <= 0:
        return "–"
    return " / ".join(f"{part / split.seconds:.0%}" for part in (split.compute, split.exposed, split.idle))
