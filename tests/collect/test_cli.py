"""`flagperf results` and `flagperf compare`, as they are typed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result as Ran
from collect import runs
from typer.testing import CliRunner

from flagperf.cli.compare import compare
from flagperf.cli.results import results
from flagperf.errors import FlagPerfError, UnknownName, UsageError

app = typer.Typer()
app.command()(results)
app.command()(compare)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs; in `second` fsdp is twice as slow, and its last trial never ran."""
    home = tmp_path_factory.mktemp("runs")
    order = [("ddp", 0), ("fsdp", 0), ("fsdp", 1), ("ddp", 1), ("ddp", 2), ("fsdp", 2)]
    trials = [runs.trial(n, engine=engine, trial=t, seed=100 + t) for n, (engine, t) in enumerate(order)]
    runs.write_run(home / "first", runs.run(trials, name="first"))
    runs.write_run(
        home / "second",
        runs.run(trials, name="second"),
        skip=["005-fsdp"],
        seconds=lambda trial, rank, step: runs.step_seconds(trial, rank, step) * (2 if trial.engine == "fsdp" else 1),
    )
    return home


def run(*arguments: str | Path, status: int = 0) -> Ran:
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(ran.exception, FlagPerfError):
        raise ran.exception
    assert ran.exit_code == status, ran.output
    return ran


def test_table(home: Path) -> None:
    text = run("results", home / "first", "--metric", "step_time").stdout
    assert "step_time s" in text
    assert text.count("n=10 [0.") == 6  # with the interval
    both = run("results", home, status=1).stdout
    assert "invalid: second/005-fsdp: The trial wasn't started" in both


def test_json_is_one_object(home: Path) -> None:
    whole = json.loads(run("results", home, "--json", status=1).stdout)
    assert len(whole["results"]) == 12
    first = whole["results"][0]
    assert first["metrics"]["step_time"].keys() == {"value", "unit", "direction", "n", "low", "high"}
    one = json.loads(run("results", home / "first", "--format", "json", "--metric", "mfu").stdout)
    assert set(one["results"][0]["metrics"]) == {"mfu"}


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["engine=ddp"], ["000-ddp", "003-ddp", "004-ddp"]),
        (["engine!=ddp"], ["001-fsdp", "002-fsdp", "005-fsdp"]),
        (["engine = ddp", "trial>=1", "seed<102"], ["003-ddp"]),
        (["id~FSDP", "trial > 1"], ["005-fsdp"]),
        (["tokens_per_second>1", "trial<=0"], ["000-ddp", "001-fsdp"]),
        (["step_time<0"], []),
        (["layout~micro"], ["000-ddp", "001-fsdp", "002-fsdp", "003-ddp", "004-ddp", "005-fsdp"]),
        (["engine=ddp' OR '1'='1"], []),
        (["mfu_rated!=3"], []),
    ],
)
def test_where(home: Path, conditions: list[str], ids: list[str]) -> None:
    options = [option for condition in conditions for option in ("--where", condition)]
    found = json.loads(run("results", home / "first", "--json", *options).stdout)["results"]
    assert [result["id"] for result in found] == ids


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        (["--where", "engin=ddp"], UnknownName, "Did you mean 'engine'"),
        (["--where", "stp_time>1"], UnknownName, "Did you mean 'step_time'"),
        (["--where", "ranks=two"], UsageError, "ranks is a number"),
        (["--where", "engine"], UsageError, "can't be read"),
        (["--where", "1=1; DROP TABLE results"], UsageError, "can't be read"),
        (["--sort", "-speed"], UnknownName, "speed"),
        (["--metric", "tokens_per_secnd"], UnknownName, "Did you mean 'tokens_per_second'"),
        (["--format", "parquet"], UsageError, "-o"),
    ],
)
def test_wrong_usage(home: Path, option: list[str], kind: type[FlagPerfError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        run("results", home / "first", *option)
    assert caught.value.exit_status == 2


def test_sort(home: Path) -> None:
    def order(*sort: str) -> list[Any]:
        found = json.loads(run("results", home / "second", "--json", "--sort", *sort, status=1).stdout)["results"]
        return [result["metrics"].get("step_time", {}).get("value") for result in found]

    rising, falling = order("step_time"), order("-step_time")
    assert rising[-1] is None  # what has no value comes last
    assert falling[-1] is None
    assert rising[:-1] == sorted(rising[:-1])
    assert falling[:-1] == sorted(rising[:-1], reverse=True)


def test_csv_and_parquet_have_a_row_a_metric(home: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("results", home / "second", "--format", "csv", status=1).stdout)))
    time = next(row for row in rows if row["metric"] == "step_time")
    assert (time["unit"], time["n"], time["verdict"]) == ("s", "10", "valid")
    assert [row["id"] for row in rows if row["verdict"] == "invalid"] == ["005-fsdp"]
    written = tmp_path / "results.parquet"
    run("results", home / "second", "--format", "parquet", "-o", written, status=1)
    import duckdb

    assert duckdb.sql(f"SELECT count(*) FROM '{written}'").fetchall() == [(len(rows),)]
    page = tmp_path / "results.json"
    assert run("results", home / "first", "--json", "-o", page).stdout == ""
    assert len(json.loads(page.read_text("utf-8"))["results"]) == 6
    with pytest.raises(FlagPerfError, match="Can't write"):
        run("results", home / "first", "--json", "-o", tmp_path / "no" / "x.json")


def test_compare_takes_the_runs_own_baseline(home: Path) -> None:
    rows = json.loads(run("compare", home / "first", "--json").stdout)["comparisons"]
    assert {(row["candidate"], row["baseline"]) for row in rows} == {("fsdp", "ddp")}
    assert {row["verdict"] for row in rows} == {"equivalent"}
    turned = json.loads(run("compare", home / "first", "--baseline", "fsdp", "--metric", "mfu", "--json").stdout)
    assert [(row["metric"], row["baseline"]) for row in turned["comparisons"]] == [("mfu", "fsdp")]
    with pytest.raises(UnknownName, match="Did you mean 'fsdp'"):
        run("compare", home / "first", "--baseline", "fsdq")


def test_compare_shows_ratio_interval_and_verdict(home: Path) -> None:
    text = run("compare", home / "second", "--metric", "step_time", status=1).stdout
    assert "2.000" in text
    assert "…" in text
    assert "worse" in text
    assert "1 of 3 trials of fsdp is invalid" in text


@pytest.mark.parametrize("baseline", [["--baseline", "first"], []])
def test_compare_run_against_run(home: Path, baseline: list[str]) -> None:
    ran = run("compare", home / "first", home / "second", *baseline, "--metric", "step_time", "--json", status=1)
    rows = {row["candidate"]: row for row in json.loads(ran.stdout)["comparisons"]}
    assert rows["ddp in second"]["verdict"] == "equivalent"
    assert rows["fsdp in second"]["verdict"] == "worse"
    assert rows["fsdp in second"]["notes"][-1]["code"] == "not_interleaved"
