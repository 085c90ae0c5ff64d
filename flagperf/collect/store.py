"""The results of many runs at once: journals → Parquet beside each run → one DuckDB over all.

What is stored is derived and may be deleted at any time. A run's files are made anew whenever a journal or a plan of it
has another size or time than when they were made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flagperf._version import __version__
from flagperf.errors import FlagPerfError, UnknownName
from flagperf.paths import cache
from flagperf.schema.result import Result

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from flagperf.collect.trials import TrialRecord

Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share done, 0 to 1."""

FORMAT = 1
"""Raised when what is stored changes its meaning, or is computed otherwise."""

TABLES = {
    "trials": "run VARCHAR, id VARCHAR, result VARCHAR",
    "results": 'run VARCHAR, id VARCHAR, "case" VARCHAR, preset VARCHAR, vendor VARCHAR, engine VARCHAR, ranks BIGINT, '
    "layout VARCHAR, dtype VARCHAR, seed BIGINT, trial BIGINT, verdict VARCHAR, metric VARCHAR, value DOUBLE, "
    "low DOUBLE, high DOUBLE, n BIGINT, unit VARCHAR, direction VARCHAR",
    "steps": "run VARCHAR, id VARCHAR, rank BIGINT, step BIGINT, measured BOOLEAN, seconds DOUBLE, "
    "data_seconds DOUBLE, tokens BIGINT, loss DOUBLE, gradient_norm DOUBLE, learning_rate DOUBLE, leader BOOLEAN, "
    "ns BIGINT",
    "telemetry": "run VARCHAR, id VARCHAR, ns BIGINT, sensor VARCHAR, value DOUBLE",
}
"""What can be asked for. `trials` holds whole results as JSON; `results` a row a trial and metric, and one row without
a metric for a trial that has none; `steps` a row a rank and step; `telemetry` a row a sample and sensor."""
RESULT_COLUMNS = tuple(column.split()[0].strip('"') for column in TABLES["results"].split(", "))


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
            files = ", ".join(_quoted(folder / f"{name}.parquet") for folder in self._folders)
            source = f"VIEW {name} AS SELECT * FROM read_parquet([{files}])"
        else:
            source = f"TABLE {name} ({TABLES[name]})"
        self._connection.execute(f"CREATE {source.replace(' ', ' IF NOT EXISTS ', 1)}")
        return self._connection


def _connect() -> duckdb.DuckDBPyConnection:
    import duckdb

    # Nothing is fetched from the network, whatever a query asks for.
    return duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _places(run_dir: Path) -> Iterator[Path]:
    """Yield where a run's files can be: beside it, or in the user's cache where it can't be written to."""
    yield run_dir / "store"
    yield cache() / "store" / hashlib.blake2b(os.fsencode(run_dir.resolve()), digest_size=12).hexdigest()


def _stamp(place: Path) -> str:
    try:
        return (place / "stamp").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""


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
    return hashlib.blake2b(repr((FORMAT, __version__, seen)).encode(), digest_size=16).hexdigest()


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
            self._read(run_dir)
            for table in TABLES:
                self.write(table, place / f"{table}.parquet")
            fresh = place / "stamp.new"
            fresh.write_text(digest, "ascii")
            fresh.replace(place / "stamp")

    def clear(self) -> None:
        """Begin with empty tables."""
        for table, columns in TABLES.items():
            self._connection.execute(f"CREATE OR REPLACE TABLE {table} ({columns})")

    def insert_result(self, result: Result) -> None:
        """Append a result's rows to the table `results`."""
        rows = [list(row.values()) for row in long_rows(result)]
        self._connection.executemany(f"INSERT INTO results VALUES ({', '.join('?' * len(RESULT_COLUMNS))})", rows)

    def _read(self, run_dir: Path) -> None:
        from flagperf.collect.journals import read_harness
        from flagperf.collect.runs import read_run
        from flagperf.collect.trials import read_trial

        self.clear()
        run = read_run(run_dir)
        harness = read_harness(run_dir / "harness.journal")
        for trial in run.trials:
            self._insert(read_trial(run_dir, run, trial, harness))

    def _insert(self, record: TrialRecord) -> None:
        from flagperf.collect.journals import COLUMNS

        result = record.result
        key = [result.run, result.id]
        self._connection.execute("INSERT INTO trials VALUES (?, ?, ?)", [*key, msgspec.json.encode(result).decode()])
        self.insert_result(result)
        for rank in record.ranks:
            if len(rank.steps):
                self._columns("steps", [*key, rank.rank], {name: getattr(rank.steps, name) for name in COLUMNS})
        if record.telemetry.sensor:
            import numpy as np

            telemetry = record.telemetry
            names = np.array(telemetry.sensor, dtype=object)
            self._columns("telemetry", key, {"ns": telemetry.ns, "sensor": names, "value": telemetry.value})

    def _columns(self, table: str, key: list[Any], columns: dict[str, npt.NDArray[np.generic]]) -> None:
        """Append arrays to a table, behind columns that are the same in every row."""
        self._connection.register("columns", columns)
        self._connection.execute(
            f"INSERT INTO {table} SELECT {', '.join('?' * len(key))}, {', '.join(columns)} FROM columns", key
        )
        self._connection.unregister("columns")

    def write(self, table: str, path: Path) -> None:
        """Write a table to a Parquet file, whole or not at all."""
        fresh = path.with_name(path.name + ".new")
        try:
            self._connection.execute(f"COPY {table} TO {_quoted(fresh)} (FORMAT parquet, COMPRESSION zstd)")
        except _duckdb_io_error() as error:
            raise OSError(str(error)) from error
        fresh.replace(path)


def _duckdb_io_error() -> type[Exception]:
    import duckdb

    return duckdb.IOException


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write results as a Parquet file with the columns of the table `results`; raise OSError if it can't be."""
    builder = _Builder()
    builder.clear()
    for result in results:
        builder.insert_result(result)
    builder.write("results", path)


def long_rows(result: Result) -> list[dict[str, Any]]:
    """Return a result as rows of the table `results`: one a metric, or one without where there is none."""
    head = {name: getattr(result, name) for name in RESULT_COLUMNS[:12]}
    empty = dict.fromkeys(RESULT_COLUMNS[12:])
    rows = [
        head | empty | {"metric": name} | {field: getattr(value, field) for field in value.__struct_fields__}
        for name, value in result.metrics.items()
    ]
    return rows or [head | empty]
