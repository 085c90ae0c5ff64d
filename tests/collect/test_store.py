"""The store: derived, rebuilt when a journal has changed, safe to lose, and equal to what the journals say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from collect import runs

from flagperf.collect.runs import find_runs, read_run
from flagperf.collect.store import TABLES, Store, long_rows, write_table
from flagperf.collect.trials import read_trial
from flagperf.errors import FlagPerfError, UnknownName, UsageError
from flagperf.journal import Journal
from flagperf.schema.trial import Run

TRIALS = [runs.trial(0), runs.trial(1, engine="fsdp"), runs.trial(2, engine="fsdp", trial=1, seed=101)]


@pytest.fixture
def plan() -> Run:
    return runs.run(TRIALS)


@pytest.fixture
def folder(tmp_path: Path, plan: Run) -> Path:
    runs.write_run(tmp_path / "it's a run?", runs.run([runs.trial(9)]))  # would match the name below as a pattern
    Store([tmp_path / "it's a run?"])
    return runs.write_run(tmp_path / "it's [a] run*", plan, skip=["002-fsdp"])


def test_results_are_those_of_the_journals(folder: Path, plan: Run) -> None:
    read = [read_trial(folder, plan, trial).result for trial in plan.trials]
    assert Store([folder]).results() == read
    assert Store([folder]).results() == read  # from the files this time
    assert [result.verdict for result in read] == ["valid", "valid", "invalid"]


def test_tables(folder: Path, plan: Run) -> None:
    store = Store([folder])
    record = read_trial(folder, plan, plan.trials[0])
    steps = store.frame("steps")
    mine = steps[(steps["id"] == "000-ddp") & (steps["rank"] == 1)]
    assert mine["seconds"].tolist() == record.ranks[1].steps.seconds.tolist()
    assert mine["ns"].tolist() == record.ranks[1].steps.ns.tolist()
    assert len(steps) == 2 * 2 * 12
    query = "SELECT value, n, unit FROM results WHERE metric = 'step_time' AND engine = 'ddp'"
    time = record.result.metrics["step_time"]
    assert store.sql(query).fetchall() == [(time.value, 10, "s")]
    assert store.sql("SELECT count(*) FROM results WHERE verdict = 'invalid' AND metric IS NULL").fetchall() == [(1,)]
    assert set(store.frame("telemetry")["sensor"]) == {"tick", "cpu_percent", "energy_joules.package-0"}
    assert list(store.frame("results").columns) == list(TABLES["results"])
    curves = store.curves()
    assert curves["run", "000-ddp"] == {step: pytest.approx(runs.loss_of(TRIALS[0], step)) for step in range(12)}
    with pytest.raises(UnknownName, match="steps"):
        store.frame("stepz")


def test_a_changed_journal_is_read_again(folder: Path, plan: Run) -> None:
    assert Store([folder]).results()[2].verdict == "invalid"
    untouched = (folder / "store/results.parquet").stat().st_mtime_ns
    Store([folder])
    assert (folder / "store/results.parquet").stat().st_mtime_ns == untouched
    with Journal(folder / "harness.journal", {}) as harness:
        runs.write_trial(folder, plan.trials[2], harness)
    assert Store([folder]).results()[2].verdict == "valid"
    journal = folder / "trials/000-ddp/rank0.journal"
    status = journal.stat()
    data = journal.read_bytes()
    journal.write_bytes(data.replace(b'"success"', b'"failure"'))  # of the same size
    os.utime(journal, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert Store([folder]).results()[0].verdict == "invalid"
    (folder / "trials/000-ddp.attempt1").mkdir()
    assert Store([folder]).results()[0].facts["attempts"] == 2


def test_other_code_reads_the_journals_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store([folder])
    before = (folder / "store/results.parquet").stat().st_mtime_ns
    monkeypatch.setattr("flagperf.collect.store.code_digest", lambda: "of another version")
    Store([folder])
    after = (folder / "store/results.parquet").stat().st_mtime_ns
    assert after > before
    Store([folder])
    assert (folder / "store/results.parquet").stat().st_mtime_ns == after


@pytest.mark.parametrize("damage", ["stamp", "results.parquet", "all"])
def test_files_may_be_deleted(folder: Path, damage: str) -> None:
    before = Store([folder]).results()
    for path in (folder / "store").iterdir():
        if damage in (path.name, "all"):
            path.unlink()
    store = Store([folder])
    assert store.results() == before
    assert len(store.frame("results")) > 0


def test_a_folder_that_cannot_be_written_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path / "cache"))
    (folder / "store").write_text("in the way")  # root may write anywhere, but not into a file
    assert len(Store([folder]).results()) == 3
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == len(TABLES)
    monkeypatch.setenv("FLAGPERF_CACHE", str(folder / "store"))
    with pytest.raises(FlagPerfError, match="FLAGPERF_CACHE"):
        Store([folder])


def test_many_runs_in_order(tmp_path: Path) -> None:
    folders = [
        runs.write_run(tmp_path / f"{number}", runs.run([runs.trial(seed=number)], name=f"run{number}"))
        for number in (3, 1, 2)
    ]
    seen: list[tuple[str, float | None]] = []
    store = Store(folders, lambda stage, share: seen.append((stage, share)))
    assert [result.seed for result in store.results()] == [3, 1, 2]
    assert [stage for stage, _ in seen] == ["reading 3", "reading 1", "reading 2", "reading runs"]
    assert find_runs([tmp_path]) == sorted(folders)
    assert find_runs([folders[0], tmp_path, folders[0]]) == [folders[0], *sorted(folders[1:])]
    (folders[1] / "run.json").write_text("{")
    store = Store(folders)
    assert [result.seed for result in store.results()] == [3, 2]
    assert "damaged" in str(store.broken[folders[1]])
    with pytest.raises(FlagPerfError, match="damaged"):
        Store(folders[1:2])
    assert Store([]).results() == []


def test_a_newer_schema_is_refused_by_name(folder: Path) -> None:
    path = folder / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":7'))
    with pytest.raises(FlagPerfError, match="has schema 7; this FlagPerf reads schema 1"):
        read_run(folder)
    with pytest.raises(FlagPerfError, match="schema 7"):
        Store([folder])


def test_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="neither a run nor a folder of runs"):
        find_runs([tmp_path])
    with pytest.raises(UsageError, match="There is no run"):
        find_runs([tmp_path / "x"])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file"):
        find_runs([tmp_path / "file"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no folder runs"):
        find_runs()
    with pytest.raises(UsageError, match="no run"):
        Store([tmp_path])


def test_two_processes_at_once(folder: Path) -> None:
    code = "import sys; from pathlib import Path; from flagperf.collect.store import Store\n"
    code += "print(len(Store([Path(sys.argv[1])]).frame('steps')))"
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["48\n", "48\n"]
    assert not list((folder / "store").glob("*.new"))


def test_results_are_read_without_heavy_libraries(folder: Path) -> None:
    Store([folder])
    code = (
        "import json, sys; from pathlib import Path; from flagperf.collect.store import Store\n"
        "Store([Path(sys.argv[1])]).results(); print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    loaded: list[Any] = json.loads(done.stdout)
    assert not {"pandas", "scipy", "torch", "rich", "altair"} & set(loaded)


def test_results_as_parquet(folder: Path, tmp_path: Path) -> None:
    import duckdb

    results = Store([folder]).results()
    path = tmp_path / "o'ut.parquet"
    lines = [row for result in results for row in long_rows(result)]
    write_table("results", lines, path)
    rows = duckdb.sql(f"SELECT * FROM read_parquet({str(path)!r})").fetchall()
    assert rows == [tuple(row.values()) for row in lines]
    with pytest.raises(OSError):
        write_table("results", lines, tmp_path / "nowhere" / "x.parquet")


def test_results_survive_json(folder: Path) -> None:
    results = Store([folder]).results()
    assert msgspec.json.decode(msgspec.json.encode(results), type=list[type(results[0])]) == results  # type: ignore[misc]
