"""What `flagperf results` chooses and sorts: trials, or points of sweeps, by columns, axes and metrics."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from flagperf.errors import UnknownName, UsageError
from flagperf.metrics import catalogue
from flagperf.schema.result import Result
from flagperf.schema.sweep import Point

COLUMNS = (
    *("run", "id", "case", "preset", "scenario", "vendor", "engine", "ranks", "layout", "dtype", "seed", "trial"),
    *("purpose", "verdict"),
)
"""What results can be chosen and sorted by, besides metrics."""
OF_POINTS = ("provider", "bound")
"""What points have besides these, their axes and their verdict."""
_WHOLE = {"ranks", "seed", "trial"}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


class Row(NamedTuple):
    """A trial, or one provider at one point of it."""

    result: Result
    point: Point | None = None


class Asked(NamedTuple):
    """A condition as it was typed."""

    column: str
    sign: str
    wanted: str


def parse(text: str) -> Asked:
    """Read `COLUMN OPERATOR VALUE`; raise UsageError if it isn't that."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--where can't be read: {text!r}.", "It is COLUMN OPERATOR VALUE, for example engine=ddp or mfu>0.3"
        )
    return Asked(*match.groups())


def choose(
    results: Sequence[Result], where: Sequence[Asked], sort: str | None, *, pointwise: bool = False
) -> tuple[list[Row], bool]:
    """Return the rows for which all conditions hold, in order, and whether they are points.

    They are if asked for, or if a condition or the order names what only points have. Raises UnknownName for a column
    that neither has, UsageError for a number that is none.
    """
    axes = _axes(results)
    tests = [(asked.column, _test(asked, axes)) for asked in where]
    column = None if sort is None else sort.removeprefix("-")
    if column is not None:
        _is_number(column, axes)
    named = {asked.column for asked in where} | ({column} if column else set())
    pointwise = pointwise or any(name not in COLUMNS and name not in catalogue() for name in named)
    rows = [Row(result, point) for result in results for point in (result.points if pointwise else [None])]
    rows = [row for row in rows if all(holds(value(row, name)) for name, holds in tests)]
    return (rows if sort is None else _sorted(rows, sort)), pointwise


def _axes(results: Sequence[Result]) -> dict[str, bool]:
    """Return the axes of all sweeps, and whether each has but numbers."""
    found: dict[str, bool] = {}
    for axis, label in (item for result in results for point in result.points for item in point.at.items()):
        found[axis] = found.get(axis, True) and isinstance(label, (int, float)) and not isinstance(label, bool)
    return found


def _test(asked: Asked, axes: Mapping[str, bool]) -> Callable[[Any], bool]:
    """Return the test of a value; a metric that a row lacks fulfils nothing."""
    column, sign, wanted = asked
    numeric = _is_number(column, axes)
    if sign == "~":
        return lambda seen: wanted.lower() in str("" if seen is None else seen).lower()
    test = _TESTS[sign]
    if not numeric:
        return lambda seen: test("" if seen is None else str(seen), wanted)
    try:
        limit = float(wanted)
    except ValueError:
        raise UsageError(f"{column} is a number; {wanted!r} isn't.", f"For example --where '{column}{sign}2'") from None
    return lambda seen: isinstance(seen, (int, float)) and test(seen, limit)


def _is_number(column: str, axes: Mapping[str, bool]) -> bool:
    """Whether a column holds numbers; raise UnknownName if there is none of this name."""
    if column in COLUMNS:
        return column in _WHOLE
    if column in catalogue():
        return True
    if column in axes or column in OF_POINTS:
        return axes.get(column, False)
    raise UnknownName("column or metric", column, [*COLUMNS, *OF_POINTS, *axes, *catalogue()])


def value(row: Row, column: str) -> Any:
    """Return what a row has in a column: an axis or the verdict of a point before the trial's; None if it has none."""
    result, point = row
    if point is not None:
        if column in point.at:
            label = point.at[column]
            return str(label).lower() if isinstance(label, bool) else label
        if column in (*OF_POINTS, "verdict"):
            return getattr(point, column)
        if column in COLUMNS:
            return getattr(result, column)
        if column == "kernel_speed" and point.speedup is not None:
            return point.speedup.ratio
        measured = point.metrics.get(column)
    elif column in COLUMNS:
        return getattr(result, column)
    else:
        measured = result.metrics.get(column)
    return None if measured is None else measured.value


def _sorted(rows: Sequence[Row], text: str) -> list[Row]:
    """Sort by `COLUMN` or `-COLUMN`; by a metric, what doesn't count isn't ranked but comes last."""
    column, falling = text.removeprefix("-"), text.startswith("-")

    def key(row: Row) -> tuple[bool, Any]:
        seen = value(row, column)
        return isinstance(seen, str), seen  # an axis may have numbers in one sweep and names in another

    def ranked(row: Row) -> bool:
        verdict = row.result.verdict if row.point is None else row.point.verdict
        return value(row, column) is not None and (column not in catalogue() or verdict == "valid")

    there = sorted(filter(ranked, rows), key=key, reverse=falling)
    return there + [row for row in rows if not ranked(row)]


def joined(rows: Sequence[Row], names: Sequence[str]) -> list[Result]:
    """Return the results of rows, each with no points but those chosen, and the metrics asked for."""
    points: dict[int, list[Point]] = {}
    results: dict[int, Result] = {}
    for result, point in rows:
        results[id(result)] = result
        if point is not None:
            points.setdefault(id(result), []).append(point)
    replace = msgspec.structs.replace
    chosen = [replace(result, points=points.get(key, result.points)) for key, result in results.items()]
    return [only(result, names) for result in chosen]


def only(result: Result, names: Sequence[str]) -> Result:
    """Return the result with the metrics asked for, all if none were."""
    if not names:
        return result
    replace = msgspec.structs.replace
    return replace(
        result,
        metrics={name: result.metrics[name] for name in names if name in result.metrics},
        points=[
            replace(point, metrics={name: point.metrics[name] for name in names if name in point.metrics})
            for point in result.points
        ],
    )
