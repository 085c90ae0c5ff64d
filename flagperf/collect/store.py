"""The results of many runs at once: journals → Parquet beside each run → one DuckDB over all.

What is stored is derived and may be deleted at any time. A run's files are made anew whenever a journal or a plan of it
has another size or time than when they were made.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flagperf._version import __version__
from flagperf.collect.points import point_rows
from flagperf.errors import FlagPerfError, UnknownName
from flagperf.paths import cache
from flagperf.schema.result import Result

if TYPE_CHECKING:
    import duckdb
    import numpy.typing as npt
    import pandas as pd

Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share done, 0 to 1."""


def _columns(text: str) -> dict[str, str]:
    return dict(column.split() for column in text.split(", "))


_TRIAL = _columns("run VARCHAR, id VARCHAR")
_RESULT = _TRIAL | _columns(
    "case VARCHAR, preset VARCHAR, scenario VARCHAR, vendor VARCHAR, engine VARCHAR, ranks BIGINT, layout VARCHAR, "
    "dtype VARCHAR, seed BIGINT, trial BIGINT, purpose VARCHAR, verdict VARCHAR"
)
_MEASURED = _columns("metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, unit VARCHAR, direction VARCHAR")
_POINT = _columns(
    "case VARCHAR, preset VARCHAR, scenario VARCHAR, vendor VARCHAR, ranks BIGINT, trial BIGINT, point VARCHAR, "
    "provider VARCHAR, verdict VARCHAR, why VARCHAR, bound VARCHAR"
)
_STEP = _columns(
    "step BIGINT, measured BOOLEAN, seconds DOUBLE, data_seconds DOUBLE, tokens BIGINT, loss DOUBLE, "
    "gradient_norm DOUBLE, learning_rate DOUBLE, skipped BOOLEAN, leader BOOLEAN, ns BIGINT"
)
TABLES: dict[str, dict[str, str]] = {
    "trials": _TRIAL | _columns("result VARCHAR"),
    "results": _RESULT | _MEASURED,
    "steps": _TRIAL | {"rank": "BIGINT"} | _STEP,
    "telemetry": _TRIAL | _columns("ns BIGINT, sensor VARCHAR, value DOUBLE"),
    "points": _TRIAL | _POINT | _MEASURED,
}
"""What can be asked for, and its columns. `trials` holds whole results as JSON; `results` a row a trial and metric, and
one row without a metric for a trial that has none; `steps` a row a rank and step; `telemetry` a row a sample and
sensor; `points` a row a point of a sweep, provider and metric, `point` being its axes as JSON."""


class Store:
    """The runs in some folders, ready to be queried.

    `broken` tells which runs can't be read, and why. Raises that error itself if no run can.
    """

    def __init__(self, run_dirs: Sequence[Path], progress: Progress | None = None) -> None:
        self.broken: dict[Path, FlagPerfError] = {}
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._folders: list[Path] = []
        builder: _Builder | None = None
        for number, run_dir in enumerate(run_dirs):
            try:
                digest = _digest(run_dir)
                folder = next((place for place in _places(run_dir) if _stamp(place) == digest), None)
                if folder is None:
                    if progress:
                        progress(f"reading {run_dir.name}", number / len(run_dirs))
                    builder = builder or _Builder()
                    folder = builder.build(run_dir)
            except FlagPerfError as error:
                if len(run_dirs) == 1:
                    raise
                self.broken[run_dir] = error
            else:
                self._folders.append(folder)
        if builder and progress:
            progress("reading runs", 1.0)
        if self.broken and not self._folders:
            raise next(iter(self.broken.values()))

    def results(self) -> list[Result]:
        """Return the result of every trial, in the order of the runs and of their plans."""
        rows = self._table("trials").execute("SELECT result FROM trials").fetchall()
        decode = msgspec.json.Decoder(Result).decode
        return [decode(text) for (text,) in rows]

    def frame(self, table: str) -> pd.DataFrame:
        """Return one of TABLES as a data frame."""
        frame: pd.DataFrame = self._table(table).sql(f"SELECT * FROM {table}").df()
        return frame

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run a query over all TABLES in DuckDB's SQL."""
        for table in TABLES:
            connection = self._table(table)
        return connection.sql(query)

    def curves(self) -> dict[tuple[str, str], dict[int, float]]:
        """Return each trial's training loss by step, warm-up included, mean over the global batch; by run and id."""
        query = """
            SELECT run, id, step, sum(loss * tokens) / sum(tokens) FROM steps
            WHERE leader AND tokens > 0 GROUP BY ALL ORDER BY ALL
        """
        curves: dict[tuple[str, str], dict[int, float]] = {}
        for run, trial, step, loss in self._table("steps").execute(query).fetchall():
            curves.setdefault((run, trial), {})[step] = loss
        return curves

    def _table(self, name: str) -> duckdb.DuckDBPyConnection:
        """Return the connection, in which this table can be asked for."""
        if name not in TABLES:
            raise UnknownName("table", name, TABLES)
        if self._connection is None:
            self._connection = _connect()
        if self._folders:
            files = ", ".join(_pattern(folder / f"{name}.parquet") for folder in self._folders)
            source = f"VIEW {name} AS SELECT * FROM read_parquet([{files}])"
        else:
            columns = ", ".join(f'"{column}" {kind}' for column, kind in TABLES[name].items())
            source = f"TABLE {name} ({columns})"
        self._connection.execute(f"CREATE {source.replace(' ', ' IF NOT EXISTS ', 1)}")
        return self._connection


def _connect() -> duckdb.DuckDBPyConnection:
    import duckdb

    # Nothing is fetched from the network, whatever a query asks for.
    return duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _pattern(path: Path) -> str:
    """Quote a path for where DuckDB would take `*`, `?` and `[` for a pattern."""
    return re.sub(r"[*?[]", r"[\g<0>]", _quoted(path))


def _places(run_dir: Path) -> Iterator[Path]:
    """Yield where a run's files can be: beside it, or in the user's cache where it can't be written to."""
    yield run_dir / "store"
    yield cache() / "store" / hashlib.blake2b(os.fsencode(run_dir.resolve()), digest_size=12).hexdigest()


def _stamp(place: Path) -> str:
    """Return the digest that a folder's files were made for; empty if one of them is missing."""
    try:
        text = (place / "stamp").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if all((place / f"{table}.parquet").exists() for table in TABLES) else ""


def _digest(run_dir: Path) -> str:
    """Return a digest of all that a run's results depend on: its files' names, sizes and times, and this code."""
    seen: list[tuple[str, int, int]] = []

    def look(folder: str, prefix: str) -> list[str]:
        inner = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith((".journal", ".json")):
                        status = entry.stat()
                        seen.append((prefix + entry.name, status.st_size, status.st_mtime_ns))
                    elif prefix == "trials/":
                        inner.append(entry.name)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            pass
        except OSError as error:
            raise FlagPerfError(f"{folder} can't be read: {error.strerror}.") from error
        return inner

    root = str(run_dir)
    look(root, "")
    for name in look(f"{root}/trials", "trials/"):
        seen.append((name, 0, 0))  # put-aside attempts are counted by their folders
        if ".attempt" not in name:
            look(f"{root}/trials/{name}", f"trials/{name}/")
    seen.sort()
    return hashlib.blake2b(repr((code_digest(), seen)).encode(), digest_size=16).hexdigest()


@functools.cache
def code_digest() -> str:
    """Return a digest of what turns journals into results: in a checkout it changes while the version doesn't."""
    here = Path(__file__).parent
    others = ("journal.py", "metrics.toml", "statistics.py")
    content = hashlib.blake2b(__version__.encode(), digest_size=16)
    for path in [*sorted(here.glob("*.py")), *(here.parent / name for name in others)]:
        content.update(path.read_bytes())
    return content.hexdigest()


class _Builder:
    """Makes the files of runs."""

    def __init__(self) -> None:
        self._connection = _connect()

    def build(self, run_dir: Path) -> Path:
        """Read a run's journals, write its files and return the folder they are in."""
        from flagperf.collect.runs import read_run

        read_run(run_dir)  # an unreadable plan is told before anything is written
        refused: OSError | None = None
        for place in _places(run_dir):
            try:
                self._build(run_dir, place)
            except OSError as error:
                refused = error
            else:
                return place
        raise FlagPerfError(
            f"What is derived from {run_dir} can't be written, neither beside it nor in {cache()}: {refused}.",
            "Make room, or set FLAGPERF_CACHE to a folder you may write to.",
        )

    def _build(self, run_dir: Path, place: Path) -> None:
        from filelock import FileLock

        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            digest = _digest(run_dir)  # before reading: what is written meanwhile makes the files stale
            if _stamp(place) == digest:
                return  # another process made them while this one waited
            (place / "stamp").unlink(missing_ok=True)
            for table, columns in _read(run_dir).items():
                self.write(table, columns, place / f"{table}.parquet")
            fresh = place / "stamp.new"
            fresh.write_text(digest, "ascii")
            fresh.replace(place / "stamp")

    def write(self, table: str, columns: dict[str, npt.NDArray[Any]], path: Path) -> None:
        """Write a table to a Parquet file, whole or not at all; raise OSError if it can't be."""
        fresh = path.with_name(path.name + ".new")
        typed = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in TABLES[table].items())
        self._connection.register("columns", columns)
        try:
            self._connection.execute(
                f"COPY (SELECT {typed} FROM columns) TO {_quoted(fresh)} (FORMAT parquet, COMPRESSION zstd)"
            )
        except _duckdb_io_error() as error:
            raise OSError(str(error)) from error
        finally:
            self._connection.unregister("columns")
        fresh.replace(path)


def _read(run_dir: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Read a run's journals into the columns of all TABLES."""
    import numpy as np

    from flagperf.collect.journals import read_harness
    from flagperf.collect.runs import read_run
    from flagperf.collect.trials import read_trial

    run = read_run(run_dir)
    harness = read_harness(run_dir)
    parts: dict[str, list[dict[str, npt.NDArray[Any]]]] = {"steps": [], "telemetry": []}
    results = []
    for trial in run.trials:
        record = read_trial(run_dir, run, trial, harness)
        results.append(record.result)
        for rank in record.ranks:
            count = len(rank.steps)
            numbers = {name: getattr(rank.steps, name) for name in _STEP}
            parts["steps"].append({**_key(record.result, count), "rank": np.full(count, rank.rank), **numbers})
        telemetry = record.telemetry
        sensors = {"ns": telemetry.ns, "sensor": np.array(telemetry.sensor, object), "value": telemetry.value}
        parts["telemetry"].append({**_key(record.result, len(telemetry.ns)), **sensors})
    columns = {
        table: {name: np.concatenate([part[name] for part in some]) for name in TABLES[table]}
        for table, some in parts.items()
        if some
    }
    whole = [{"run": result.run, "id": result.id, "result": msgspec.json.encode(result).decode()} for result in results]
    rows = {
        "trials": whole,
        "results": [row for result in results for row in long_rows(result)],
        "points": [row for result in results for row in point_rows(result)],
    }
    return {table: columns.get(table) or _objects(table, rows.get(table, [])) for table in TABLES}


def _key(result: Result, count: int) -> dict[str, npt.NDArray[Any]]:
    import numpy as np

    return {"run": np.full(count, result.run, object), "id": np.full(count, result.id, object)}


def _objects(table: str, rows: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """Turn rows into columns of objects, in which None stays what it is."""
    import numpy as np

    return {name: np.array([row[name] for row in rows], object) for name in TABLES[table]}


def _duckdb_io_error() -> type[Exception]:
    import duckdb

    return duckdb.IOException


def write_table(table: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows of one of TABLES as a Parquet file; raise OSError if it can't be."""
    _Builder().write(table, _objects(table, rows), path)


def long_rows(result: Result) -> list[dict[str, Any]]:
    """Return a result as rows of the table `results`: one a metric, or one without where there is none."""
    head = {name: getattr(result, name) for name in _RESULT}
    empty = dict.fromkeys(_MEASURED)
    rows = [
        head | empty | {"metric": name} | {field: getattr(value, field) for field in value.__struct_fields__}
        for name, value in result.metrics.items()
    ]
    return rows or [head | empty]
