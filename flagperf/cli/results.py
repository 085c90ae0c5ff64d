"""`flagperf results`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from rich.console import Console

    from flagperf.cli.rows import Row
    from flagperf.collect.store import Store
    from flagperf.schema.inference import Scenario
    from flagperf.schema.metric import MetricValue
    from flagperf.schema.result import Result

_SHOWN = ("tokens_per_second", "step_time", "mfu", "memory_peak_rss", "loss_final", "loss_validation")
"""Metrics of the table unless others are asked for."""
_OF_SCENARIO = 4
"""Metrics of queries that are shown of a scenario, the one that it is judged by first."""


class Format(StrEnum):
    """How results are written."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def results(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]…", help="Runs, or folders of runs.", show_default="./runs"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="engine=ddp, scenario=offline, ranks>=2, mfu>0.3, layout~zero; = != < > >= <= ~ (contains). Several "
            "must all hold. provider=flash, or an axis as in seq>=512, chooses points.",
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column or metric; with - before it the largest first.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metrics to show; may be repeated.", show_default="the main ones"),
    ] = None,
    points: Annotated[
        bool, typer.Option("--points", help="A row a point of sweeps and provider instead of a row a trial.")
    ] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="csv and parquet have a row a metric, of each trial or point.")
    ] = Format.table,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there and not to stdout.")
    ] = None,
    json: common.JSON = False,
) -> None:
    """Show what trials measured, each with its unit, number of samples and interval; exit status 1 if any is invalid.

    Example: flagperf results runs --where engine=ddp --where ranks=2 --sort -tokens_per_second
    """
    from flagperf.cli import rows
    from flagperf.collect.runs import find_runs
    from flagperf.collect.store import Store
    from flagperf.errors import UsageError
    from flagperf.metrics import metric as declared

    chosen_format = Format.json if json else format_
    if chosen_format is Format.parquet and output is None:
        raise UsageError("Parquet isn't for a terminal.", "Say where it goes: --format parquet -o results.parquet")
    names = [declared(name).name for name in metric or []]
    asked = [rows.parse(text) for text in where or []]
    store = Store(find_runs(runs or []), _progress)
    everything = store.results()
    found, pointwise = rows.choose(everything, asked, sort, pointwise=points)
    _write(found, pointwise, chosen_format, names, output)
    _tell_broken(store)
    chosen = {id(row.result): row.result for row in found}.values()
    if store.broken or any(result.verdict == "invalid" and result.purpose == "measure" for result in chosen):
        raise typer.Exit(1)


def _progress(stage: str, share: float | None) -> None:
    """Say on a terminal what takes long."""
    import sys

    if sys.stderr.isatty():
        done = share == 1.0
        sys.stderr.write("\r\x1b[K" + ("" if done else f"{stage} ({share or 0:.0%})"))
        sys.stderr.flush()


def _tell_broken(store: Store) -> None:
    for folder, error in store.broken.items():
        common.err().print(f"{folder} is left out: {error}", markup=False, soft_wrap=True)


def _write(found: Sequence[Row], pointwise: bool, form: Format, names: Sequence[str], output: Path | None) -> None:
    from flagperf.errors import FlagPerfError

    try:
        if form is Format.parquet:
            from flagperf.collect.store import write_table

            assert output is not None
            write_table(*_long(found, pointwise, names), output)
        elif output is None:
            _print(found, pointwise, form, names)
        else:
            with output.open("w", encoding="utf-8", newline="") as file:
                _print(found, pointwise, form, names, file)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or output is None:
            raise
        raise FlagPerfError(
            f"Can't write {output}: {error.strerror or error}.", "Choose another file with -o."
        ) from error


def _print(found: Sequence[Row], pointwise: bool, form: Format, names: Sequence[str], file: Any = None) -> None:
    import sys

    from flagperf.cli.rows import joined

    stream = file or sys.stdout
    if form is Format.json:
        import msgspec

        body = msgspec.json.encode({"results": joined(found, names)})
        stream.write(msgspec.json.format(body, indent=2).decode() + "\n")
    elif form is Format.csv:
        import csv

        from flagperf.collect.store import TABLES

        name, lines = _long(found, pointwise, names)
        table = csv.DictWriter(stream, list(TABLES[name]))
        table.writeheader()
        table.writerows(lines)
    else:
        from rich.console import Console

        console = Console(file=file, highlight=False) if file else common.out()
        if pointwise:
            from flagperf.cli.points import print_points

            print_points(found, names, console)
        else:
            _table([row.result for row in found], names, console)


def _long(found: Sequence[Row], pointwise: bool, names: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return the table of the store that has these rows, and them."""
    from flagperf.cli.rows import joined, only
    from flagperf.collect.points import point_rows
    from flagperf.collect.store import long_rows

    if pointwise:  # one by one, so that they stay in the order asked for
        return "points", [line for row in found for one in joined([row], names) for line in point_rows(one)]
    return "results", [line for row in found for line in long_rows(only(row.result, names))]


def _table(found: Sequence[Result], names: Sequence[str], console: Console) -> None:
    """Print a line a trial; under them, why trials are invalid and what must be known of the others.

    The lines are laid out here: a rich table of 600 trials takes seconds, and folds cells so that no line can be found.
    """
    if not found:
        console.print("No results.")
        return
    several = len({result.run for result in found}) > 1
    console.out("Value, number of samples, [95 % interval]", style="italic", highlight=False)
    scenarios: dict[Scenario, list[Result]] = {}
    for result in found:
        scenarios.setdefault(result.scenario, []).append(result)
    for scenario, some in scenarios.items():
        _lines(scenario, some, names, several, console)
    _reasons(found, several, console)
    if swept := sum(bool(result.points) for result in found):
        what = "1 trial has" if swept == 1 else f"{swept} trials have"
        console.out(f"{what} points: --points shows them.", highlight=False)


def _lines(scenario: Scenario, found: Sequence[Result], names: Sequence[str], several: bool, console: Console) -> None:
    from flagperf.metrics import metric as declared
    from flagperf.schema.inference import TOLD

    told = {name: None for result in found for name in result.metrics}
    usual = [*(name for name in TOLD[scenario] if name in told)][:_OF_SCENARIO] if scenario else []
    shown = list(names) or [*usual, *(name for name in _SHOWN if name in told)]
    own = ["scenario", "engine"] if scenario else ["engine", "layout"]
    left = ["case", "preset", *own, "dtype", "ranks", "verdict"]
    heads = [*(["run"] if several else []), "trial", *left]
    units = [f"{name} {declared(name).unit}" for name in shown]
    rows = [
        [
            *([result.run] if several else []),
            result.id,
            *(str(getattr(result, name)) for name in left),
            *(figure(result.metrics.get(name)) for name in shown),
        ]
        for result in found
    ]
    lines(heads, units, [(result.verdict == "valid", row) for result, row in zip(found, rows, strict=True)], console)


def lines(
    heads: Sequence[str], figures: Sequence[str], rows: Sequence[tuple[bool, Sequence[str]]], console: Console
) -> None:
    """Print lines in columns, figures to the right; those that don't count struck out."""
    widths = [max(map(len, column)) for column in zip([*heads, *figures], *(row for _, row in rows), strict=True)]

    def line(cells: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[: len(heads)], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(cells[len(heads) :], widths[len(heads) :], strict=True)]
        return "  ".join([*left, *right]).rstrip()

    console.out(line([*heads, *figures]), style="bold", highlight=False)
    told = [(counts, line(row)) for counts, row in rows]
    for counts, group in itertools.groupby(told, key=lambda pair: pair[0]):
        text = "\n".join(text for _, text in group)
        console.out(text, style=None if counts else "red strike", highlight=False)


def figure(measured: MetricValue | None) -> str:
    """Return a value with its count and interval."""
    from flagperf.cli.tables import number

    if measured is None:
        return "–"
    text = f"{number(measured.value)} n={measured.n}"
    if measured.low is None or measured.high is None:
        return text
    return f"{text} [{number(measured.low)}, {number(measured.high)}]"


def _reasons(found: Sequence[Result], several: bool, console: Console) -> None:
    """Print each reason and note once, with the trials it is of."""
    told: dict[tuple[str, str], list[str]] = {}
    for result in found:
        where = f"{result.run}/{result.id}" if several else result.id
        for kind, reasons in (("invalid", result.reasons), ("note", result.notes)):
            for reason in reasons:
                text = f"{reason.message} {reason.hint}" if kind == "invalid" and reason.hint else reason.message
                told.setdefault((kind, text), []).append(where)
    for (kind, text), places in sorted(told.items(), key=lambda item: item[0][0]):
        some = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        console.out(f"{kind}: {some}: {text}", style="red" if kind == "invalid" else None, highlight=False)
