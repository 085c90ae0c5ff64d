"""Points of sweeps as rows, as tables on a terminal, and against another provider or run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result as Ran
from collect import runs, swept
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from flagperf.cli import common, points, rows
from flagperf.cli.compare import compare
from flagperf.cli.results import results
from flagperf.collect.points import compare_providers, compare_sweeps, sweeps
from flagperf.collect.store import TABLES, Store
from flagperf.errors import FlagPerfError, UnknownName, UsageError
from flagperf.schema.output import CompareOutput, ResultsOutput

app = typer.Typer()
app.command()(results)
app.command()(compare)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with everything that a point can be, three trials of one without, and the same a fifth slower."""
    home = tmp_path_factory.mktemp("swept")
    swept.write(home / "troubled", behaviour=swept.troubled, name="troubled")
    three = [swept.trial(n, trial=n, seed=100 + n) for n in range(3)]

    def slower(provider: str, at: Any, trial: int) -> dict[str, Any]:
        return {"seconds": [1.25 * x for x in swept.attention(provider, at, trial + 7)["seconds"]]}

    swept.write(home / "three", three, name="three")
    swept.write(home / "slower", three, behaviour=slower, name="slower")
    return home


def run(*arguments: str | Path, status: int = 0) -> Ran:
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(ran.exception, FlagPerfError):
        raise ran.exception
    assert ran.exit_code == status, ran.output
    return ran


def test_a_sweep_over_its_trials(home: Path) -> None:
    (sweep,) = sweeps(Store([home / "three"]).results())
    assert (sweep.trials, sweep.baseline, sweep.leading, sweep.fixed) == (3, "naive", "flops_rate", {})
    assert list(sweep.axes) == ["dtype", "causal", "seq"] and len(sweep.points) == 12
    cell = sweep.cells["flash", "dtype=bf16 causal=true seq=512"]
    time = cell.metrics["kernel_time"]
    assert time.n == 3 and time.low is not None and time.low < time.value < (time.high or 0)
    assert cell.speedup is not None and cell.speedup.pairs == 3
    assert cell.speedup.ratio == pytest.approx(2.5, rel=0.02)


def test_the_worst_that_a_trial_says_of_a_point_counts(tmp_path: Path) -> None:
    def once(provider: str, at: Any, trial: int) -> dict[str, Any]:
        return {"accuracy": swept.WRONG, "verdict": "wrong", "why": "no"} if (provider, trial) == ("flash", 1) else {}

    trials = [swept.trial(n, ("naive", "flash"), trial=n, seed=100 + n) for n in range(2)]
    (sweep,) = sweeps(Store([swept.write(tmp_path / "run", trials, {"seq": [128]}, once)]).results())
    cell = sweep.cells["flash", "seq=128"]
    assert (cell.verdict, cell.speedup, cell.value("error_absolute")) == ("wrong", None, None)
    assert sweep.fixed == {"seq": 128} and sweep.axes == {}


def test_the_store_has_a_row_a_point_and_metric(home: Path) -> None:
    store = Store([home / "troubled", home / "three"])
    frame = store.frame("points")
    assert list(frame.columns) == list(TABLES["points"])
    query = "SELECT value, n FROM points WHERE run = 'troubled' AND provider = 'flash' AND metric = 'kernel_speed'"
    assert len(store.sql(query).fetchall()) == 10  # of 12 two are wrong
    query = "SELECT DISTINCT verdict FROM points WHERE run = 'troubled' AND metric IS NULL ORDER BY ALL"
    assert store.sql(query).fetchall() == [("too big",), ("unsupported",)]
    query = (
        "SELECT count(*) FROM points WHERE metric = 'kernel_time' AND (point->>'$.seq')::INT >= 512 AND run = 'three'"
    )
    assert store.sql(query).fetchall() == [(3 * 3 * 8,)]


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        (["provider=flash"], 12),
        (["provider=flash", "seq>=512", "dtype=bf16"], 4),
        (["provider!=naive", "verdict=valid", "causal=true"], 5 + 2),
        (["seq<512", "flops_rate>1"], 0),
        (["provider=naive", "kernel_memory>1"], 8),
        (["bound=compute", "provider~LAS", "kernel_speed>1"], 10),
    ],
)
def test_conditions_on_points(home: Path, conditions: Sequence[str], count: int) -> None:
    options = [option for condition in conditions for option in ("--where", condition)]
    found = json.loads(run("results", home / "troubled", "--json", *options, status=1 if count else 0).stdout)
    assert sum(len(result["points"]) for result in found["results"]) == count


def test_points_in_every_format(home: Path, tmp_path: Path) -> None:
    import duckdb
    import msgspec

    text = run("results", home / "troubled", "--points", "--sort", "-kernel_speed", status=1).stdout
    lines = text.splitlines()
    assert lines[1].split()[:5] == ["dtype", "causal", "seq", "provider", "verdict"]
    assert "flash" in lines[2] and "[2." in lines[2] and "speed ×" in lines[1]
    assert "too big: math: its scores need 9.1 GiB, there are 2 (4 points)" in text
    assert "no bf16 on [this] device" in text  # no markup
    asked = ("--where", "seq=512", "--metric", "kernel_time", "--sort", "-kernel_time")
    table = list(csv.DictReader(io.StringIO(run("results", home / "three", *asked, "--format", "csv").stdout)))
    times = [float(row["value"]) for row in table if row["metric"] == "kernel_time"]
    assert len(times) == 3 * 12 and times == sorted(times, reverse=True)
    assert json.loads(table[0]["point"])["seq"] == 512
    run("results", home / "three", *asked, "--format", "parquet", "-o", tmp_path / "p.parquet")
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path / 'p.parquet'}'").fetchall() == [(len(table),)]
    whole = run("results", home / "three", *asked, "--json").stdout
    decoded = msgspec.json.decode(whole, type=ResultsOutput)
    assert {name for result in decoded.results for point in result.points for name in point.metrics} == {"kernel_time"}
    trials = run("results", home / "three").stdout
    assert "3 trials have points: --points shows them." in trials and "seq" not in trials.splitlines()[1]
    assert run("results", home / "three", "--where", "seq>1e9").stdout == "No points.\n"


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        (["--where", "sek>1"], UnknownName, "Did you mean 'seq'"),
        (["--where", "seq>long"], UsageError, "seq is a number"),
        (["--sort", "-speeed"], UnknownName, "speeed"),
    ],
)
def test_wrong_usage(home: Path, option: list[str], kind: type[FlagPerfError], words: str) -> None:
    with pytest.raises(kind, match=words):
        run("results", home / "three", *option)


AXIS = st.dictionaries(
    st.sampled_from(["seq", "dtype", "causal"]), st.integers() | st.booleans() | st.floats(allow_nan=False) | st.text()
)


@given(st.lists(AXIS, max_size=5), st.sampled_from(["seq", "-dtype", "causal"]), st.text(max_size=8))
def test_whatever_labels_there_are_they_are_chosen_and_sorted(axes: list[Any], sort: str, wanted: str) -> None:
    from flagperf.schema.result import Result
    from flagperf.schema.sweep import Point

    told = [Point(at={**at, "all": 1}, provider="p", verdict="valid") for at in axes]
    head = {"case": "a/b", "preset": "tiny", "vendor": "cpu", "engine": "p", "layout": "", "dtype": "", "reasons": []}
    result = Result(**head, ranks=1, seed=1, trial=0, verdict="valid", metrics={}, points=told)
    column = sort.removeprefix("-")
    if not any(column in at for at in axes):
        return
    found, pointwise = rows.choose([result], [], sort)
    assert pointwise or column == "dtype"  # trials have one too
    found, _ = rows.choose([result], [], sort, pointwise=True)
    assert sorted(id(row.point) for row in found) == sorted(map(id, told))
    try:
        rows.choose([result], [rows.parse(f"{column}{sign}{wanted}") for sign in "=~"], None, pointwise=True)
    except UsageError as error:
        assert "is a number" in error.message or "can't be read" in error.message


def test_providers_against_another_baseline(home: Path) -> None:
    usual = json.loads(run("compare", home / "troubled", "--json", status=1).stdout)["comparisons"]
    assert {row["baseline"] for row in usual} == {"naive"}
    turned = json.loads(run("compare", home / "troubled", "--baseline", "flash", "--json", status=1).stdout)
    pairs = {(row["candidate"], row["baseline"]) for row in turned["comparisons"]}
    assert pairs == {("naive", "flash"), ("math", "flash")}
    assert len(turned["comparisons"]) == 10 + 4  # what is wrong is no baseline
    first = next(row for row in turned["comparisons"] if row["candidate"] == "naive")
    assert first["ratio"] == pytest.approx(0.4, rel=0.02) and first["verdict"] == "worse"
    text = run("compare", home / "troubled", status=1).stdout
    assert "flash ÷ naive, speed" in text and "10 points: better at 10" in text
    with pytest.raises(UnknownName, match="Did you mean 'flash'"):
        run("compare", home / "troubled", "--baseline", "flush")


def test_two_runs_are_compared_point_by_point_as_groups(home: Path) -> None:
    import msgspec

    told = run("compare", home / "three", home / "slower", "--json").stdout
    found = msgspec.json.decode(told, type=CompareOutput).comparisons
    assert len(found) == 36 and {c.metric for c in found} == {"flops_rate"}
    assert {(c.candidate, c.baseline) for c in found if c.candidate.startswith("math")} == {
        ("math in slower", "math in three")
    }
    assert all(c.ratio == pytest.approx(0.8, rel=0.02) and c.verdict == "worse" and c.pairs == 3 for c in found)
    assert {note.code for note in found[0].notes} == {"not_interleaved"}
    one = compare_sweeps(Store([home / "three"]).results(), Store([home / "troubled"]).results())
    assert one[0].low is None and one[0].verdict == "cannot tell"  # of one trial there is no spread
    assert len(one) == 36 - 2 - 8  # what isn't valid in both
    text = run("compare", home / "three", home / "slower", "--metric", "kernel_time").stdout
    assert "1.2" in text and "worse at 12" in text and "weren't interleaved" in text


def test_other_settings_have_nothing_in_common(home: Path, tmp_path: Path) -> None:
    other = swept.write(tmp_path / "other", [swept.trial(settings={"sweep": {"seq": [1]}})], name="other")
    with pytest.raises(UsageError, match="nothing in common"):
        run("compare", home / "three", other)
    assert compare_providers({}) == []


def test_sweeps_and_training_in_one_run(tmp_path: Path) -> None:
    trained = [runs.trial(n, engine=engine) for n, engine in enumerate(("ddp", "fsdp"))]
    folder = swept.write(tmp_path / "mixed", [swept.trial(2)], {"seq": [128]}, name="mixed")
    runs.write_run(tmp_path / "trained", runs.run(trained, name="mixed"))
    for path in (tmp_path / "trained" / "trials").iterdir():
        path.rename(folder / "trials" / path.name)
    plan = runs.run([*trained, swept.trial(2)], name="mixed")
    (folder / "run.json").write_bytes(__import__("msgspec").json.encode(plan))
    harness = (tmp_path / "trained" / "harness.journal").read_bytes()
    with (folder / "harness.journal").open("ab") as journal:
        journal.write(harness.split(b"\n", 1)[1])
    found = json.loads(run("compare", folder, "--json").stdout)["comparisons"]
    assert {row["baseline"] for row in found} == {"naive", "ddp"}
    turned = json.loads(run("compare", folder, "--baseline", "flash", "--json").stdout)["comparisons"]
    assert {row["baseline"] for row in turned} == {"flash"}
    turned = json.loads(run("compare", folder, "--baseline", "fsdp", "--json").stdout)["comparisons"]
    assert {row["baseline"] for row in turned} == {"fsdp"}


def shown(monkeypatch: pytest.MonkeyPatch, folder: Path, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    monkeypatch.setattr(common, "out", lambda: console)
    points.print_sweeps(Store([folder]).results(), str(folder))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_of_points_fits_a_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, home / "troubled")
    table = [line for line in text.splitlines() if line.startswith("│")]
    assert len(table) == 12 and max(map(len, table)) <= 100
    assert "wrong" in table[2 + 6] and "too big" in table[2 + 6]
    assert "flash wrong at 2: dtype=bf16 causal=true seq=2048: 3 of 64 elements" in text
    assert "math unsupported at 4" in text and "no bf16 on [this] device" in text
    assert "GFLOP/s" in text  # as this machine has few of them


def test_hundreds_of_points_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = swept.write(tmp_path / "long", axes={"seq": list(range(128, 128 + 50))}, name="long")
    text = shown(monkeypatch, folder)
    assert "50 of 50" in text and "2.5" in text and "equivalent" in text
    assert f"All 50 points: flagperf results {folder} --points" in text
    assert len(text.splitlines()) < 30


def test_one_provider_shows_several_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def partly(provider: str, at: Any, trial: int) -> dict[str, Any]:
        return {"seconds": [], "accuracy": None, "verdict": "unsupported", "why": "no"} if at["seq"] == 512 else {}

    folder = swept.write(tmp_path / "alone", [swept.trial(0, ("torch",))], {"seq": [128, 512]}, partly)
    lines = shown(monkeypatch, folder).splitlines()
    assert lines[1].strip() == "torch"
    assert "Compute rate" in lines[3] and "Time a call" in lines[3] and "µs ↓" in lines[4]
    assert lines[6].count("…") == 1 and lines[7].count("unsupported") == 1
