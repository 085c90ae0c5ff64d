"""`flagperf results`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from rich.console import Console

    from flagperf.collect.store import Store
    from flagperf.schema.result import Result

COLUMNS = (
    "run",
    "id",
    "case",
    "preset",
    "vendor",
    "engine",
    "ranks",
    "layout",
    "dtype",
    "seed",
    "trial",
    "purpose",
    "verdict",
)
"""What results can be chosen and sorted by, besides metrics."""
_WHOLE = {"ranks", "seed", "trial"}
_SHOWN = ("tokens_per_second", "step_time", "mfu", "memory_peak_rss", "loss_final", "loss_validation")
"""Metrics of the table unless others are asked for."""
_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)


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
            help="engine=ddp, ranks>=2, mfu>0.3, layout~zero; = != < > >= <= ~ (contains). Several must all hold.",
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column or metric; with - before it the largest first.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metrics to show; may be repeated.", show_default="the main ones"),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="csv and parquet have a row a trial and metric.")
    ] = Format.table,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there and not to stdout.")
    ] = None,
    json: common.JSON = False,
) -> None:
    """Show what trials measured, each with its unit, number of samples and interval; exit status 1 if any is invalid.

    Example: flagperf results runs --where engine=ddp --where ranks=2 --sort -tokens_per_second
    """
    from flagperf.collect.runs import find_runs
    from flagperf.collect.store import Store
    from flagperf.errors import UsageError
    from flagperf.metrics import metric as declared

    chosen_format = Format.json if json else format_
    if chosen_format is Format.parquet and output is None:
        raise UsageError("Parquet isn't for a terminal.", "Say where it goes: --format parquet -o results.parquet")
    names = [declared(name).name for name in metric or []]
    conditions = [parse_condition(text) for text in where or []]
    order = _order(sort) if sort else None
    store = Store(find_runs(runs or []), _progress)
    found = [result for result in store.results() if all(holds(result) for holds in conditions)]
    if order:
        found = order(found)
    _write(found, chosen_format, names, output)
    _tell_broken(store)
    if store.broken or any(result.verdict == "invalid" and result.purpose == "measure" for result in found):
        raise typer.Exit(1)


def parse_condition(text: str) -> Callable[[Result], bool]:
    """Turn `COLUMN OPERATOR VALUE` into a test of a result; a metric that a result lacks fulfils nothing."""
    import operator

    from flagperf.errors import UsageError

    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--where can't be read: {text!r}.", "It is COLUMN OPERATOR VALUE, for example engine=ddp or mfu>0.3"
        )
    column, sign, wanted = match.groups()
    numeric = _is_number(column)
    if sign == "~":
        return lambda result: wanted.lower() in str(_value(result, column) or "").lower()
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "=": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        ">": operator.gt,
        "<=": operator.le,
        ">=": operator.ge,
    }
    test = tests[sign]
    if not numeric:
        return lambda result: test(_value(result, column), wanted)
    try:
        limit = float(wanted)
    except ValueError:
        raise UsageError(f"{column} is a number; {wanted!r} isn't.", f"For example --where '{column}{sign}2'") from None
    return lambda result: (value := _value(result, column)) is not None and test(value, limit)


def _is_number(column: str) -> bool:
    """Whether a column holds numbers; raise UnknownName if there is none of this name."""
    from flagperf.errors import UnknownName
    from flagperf.metrics import catalogue

    if column in COLUMNS:
        return column in _WHOLE
    if column in catalogue():
        return True
    raise UnknownName("column or metric", column, [*COLUMNS, *catalogue()])


def _value(result: Result, column: str) -> Any:
    if column in COLUMNS:
        return getattr(result, column)
    measured = result.metrics.get(column)
    return None if measured is None else measured.value


def _order(text: str) -> Callable[[list[Result]], list[Result]]:
    """Return what sorts results by `COLUMN` or `-COLUMN`; by a metric, invalid ones aren't ranked but come last."""
    column, falling = text.removeprefix("-"), text.startswith("-")
    _is_number(column)

    def ranked(result: Result) -> bool:
        return column in COLUMNS or (result.verdict == "valid" and column in result.metrics)

    def sort(results: list[Result]) -> list[Result]:
        there = sorted(filter(ranked, results), key=lambda result: _value(result, column), reverse=falling)
        return there + [result for result in results if not ranked(result)]

    return sort


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


def _write(found: Sequence[Result], form: Format, names: Sequence[str], output: Path | None) -> None:
    from flagperf.errors import FlagPerfError

    try:
        if form is Format.parquet:
            assert output is not None
            _parquet(found, names, output)
        elif output is None:
            _print(found, form, names)
        else:
            with output.open("w", encoding="utf-8", newline="") as file:
                _print(found, form, names, file)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or output is None:
            raise
        raise FlagPerfError(
            f"Can't write {output}: {error.strerror or error}.", "Choose another file with -o."
        ) from error


def _print(found: Sequence[Result], form: Format, names: Sequence[str], file: Any = None) -> None:
    import sys

    stream = file or sys.stdout
    if form is Format.json:
        import msgspec

        body = msgspec.json.encode({"results": [_only(result, names) for result in found]})
        stream.write(msgspec.json.format(body, indent=2).decode() + "\n")
    elif form is Format.csv:
        import csv

        from flagperf.collect.store import TABLES, long_rows

        table = csv.DictWriter(stream, list(TABLES["results"]))
        table.writeheader()
        table.writerows(row for result in found for row in long_rows(_only(result, names)))
    else:
        from rich.console import Console

        _table(found, names, Console(file=file, highlight=False) if file else common.out())


def _only(result: Result, names: Sequence[str]) -> Result:
    """Return the result with the metrics asked for, all if none were."""
    import msgspec

    if not names:
        return result
    return msgspec.structs.replace(
        result, metrics={name: result.metrics[name] for name in names if name in result.metrics}
    )


def _parquet(found: Sequence[Result], names: Sequence[str], output: Path) -> None:
    from flagperf.collect.store import write_results

    write_results([_only(result, names) for result in found], output)


def _table(found: Sequence[Result], names: Sequence[str], console: Console) -> None:
    """Print a line a trial; under them, why trials are invalid and what must be known of the others.

    The lines are laid out here: a rich table of 600 trials takes seconds, and folds cells so that no line can be found.
    """
    from flagperf.metrics import metric as declared

    if not found:
        console.print("No results.")
        return
    shown = list(names) or [name for name in _SHOWN if any(name in result.metrics for result in found)]
    several = len({result.run for result in found}) > 1
    heads = [*(["run"] if several else []), "trial", "case", "preset", "engine", "layout", "dtype", "ranks", "verdict"]
    units = [f"{name} {declared(name).unit}" for name in shown]
    rows = [
        [
            *([result.run] if several else []),
            *(result.id, result.case, result.preset, result.engine, result.layout, result.dtype, str(result.ranks)),
            result.verdict,
            *(_cell(result, name) for name in shown),
        ]
        for result in found
    ]
    widths = [max(map(len, column)) for column in zip([*heads, *units], *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[: len(heads)], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(cells[len(heads) :], widths[len(heads) :], strict=True)]
        return "  ".join([*left, *right]).rstrip()

    console.out("Value, number of samples, [95 % interval]", style="italic", highlight=False)
    console.out(line([*heads, *units]), style="bold", highlight=False)
    lines = [(result.verdict, line(row)) for result, row in zip(found, rows, strict=True)]
    for verdict, group in itertools.groupby(lines, key=lambda pair: pair[0]):
        text = "\n".join(text for _, text in group)
        console.out(text, style=None if verdict == "valid" else "red strike", highlight=False)
    _reasons(found, several, console)


def _cell(result: Result, name: str) -> str:
    from flagperf.cli.tables import number

    measured = result.metrics.get(name)
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
