"""Engines under scenarios: against each other at the same number of clients, and as tables on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import typer
from collect import served
from typer.testing import CliRunner

from flagperf.cli import tables
from flagperf.cli.compare import compare
from flagperf.cli.points import print_sweeps
from flagperf.cli.results import results
from flagperf.collect.clients import compare_clients
from flagperf.collect.points import sweeps
from flagperf.collect.store import Store
from flagperf.schema.inference import Query
from flagperf.schema.result import Result
from flagperf.schema.trial import Trial

ENGINES = {"eager": 1.0, "inductor": 0.5}
app = typer.Typer()
app.command()(results)
app.command()(compare)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two engines, one in half the time, three trials each; the usual one fails at eight clients in its last trial."""

    def change(trial: Trial, query: Query) -> Query | None:
        if (trial.engine, trial.trial, query.clients) == ("eager", 2, 8) and query.number % 7 == 0:
            return msgspec.structs.replace(query, done=None, fault="stalled", why="nothing came")
        return query

    planned = served.trials(ENGINES, ["singlestream", "offline", "concurrency"], count=3)
    return served.write(tmp_path_factory.mktemp("served") / "run", planned, ENGINES, change)


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Result]:
    return Store([folder]).results()


def run(*arguments: str | Path, status: int) -> str:
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == status, ran.output
    return ran.output


def test_the_same_number_of_clients_is_compared_over_pairs(found: list[Result]) -> None:
    compared = {(c.at or {}).get("clients"): c for c in compare_clients(found, metrics=["tpot_p50"])}
    assert list(compared) == [1, 2, 4, 8]
    four = compared[4]
    assert (four.candidate, four.baseline, four.scenario) == ("inductor", "eager", "concurrency")
    assert four.verdict == "better"
    assert four.ratio == pytest.approx(0.5, rel=0.05)
    assert (four.pairs, compared[8].pairs) == (3, 2)  # at eight a trial lost queries
    assert any(note.code == "invalid_left_out" for note in compared[8].notes)
    both = [(c.metric, (c.at or {})["clients"]) for c in compare_clients(found, "inductor")]
    assert both[:3] == [("output_tokens_per_second", 1), ("tpot_p50", 1), ("output_tokens_per_second", 2)]
    assert compare_clients(found, "nobody") == []


def test_engines_under_clients_are_one_sweep(found: list[Result]) -> None:
    (sweep,) = sweeps(found)
    assert sweep.providers == ["eager", "inductor"] and list(sweep.axes) == ["clients"]
    assert sweep.leading == "output_tokens_per_second"
    speed = sweep.cells["inductor", "clients=2"].speedup
    assert sweep.cells["eager", "clients=8"].verdict == "failed"  # the worst that a trial says counts
    assert speed is not None and speed.ratio == pytest.approx(2.0, rel=0.15)


def test_each_scenario_has_a_table_led_by_its_own_metric(
    found: list[Result], capsys: pytest.CaptureFixture[str]
) -> None:
    tables.print_results(found)
    said = capsys.readouterr().out
    heads = [line.strip() for line in said.splitlines() if "median over valid" in line]
    assert [head.split(":")[0] for head in heads] == ["Singlestream", "Offline", "Concurrency"]
    offline = said[said.index("Offline") : said.index("Concurrency")]
    assert "Generation throughput" in offline and "Time to first token" not in offline
    assert "Latency, 90th percentile ms" in said
    assert "A try-out: durations and counts were multiplied by 0.01" in said
    print_sweeps(found)
    said = capsys.readouterr().out
    assert "by number of clients" in said and "eager failed at 1: clients=8: 7 of 48 queries" in said


def test_results_are_chosen_by_scenario(folder: Path) -> None:
    said = run("results", folder, "--where", "scenario=offline", "--json", status=0)
    chosen = json.loads(said)["results"]
    assert len(chosen) == 6 and {each["scenario"] for each in chosen} == {"offline"}
    said = run("results", folder, status=1)  # one trial is invalid
    assert said.index("latency_p90 s") < said.index("output_tokens_per_second tokens/s")
    said = run("results", folder, "--where", "clients=4", "--format", "csv", status=1)
    assert ",concurrency," in said and "eager" in said


def test_compare_says_of_which_scenario(folder: Path) -> None:
    said = run("compare", folder, status=1)
    assert "Singlestream: inductor ÷ eager" in said and "clients=8" in said
    assert said.index("Latency, 90th") < said.index("Time to first token")  # what it is judged by comes first
    told = json.loads(run("compare", folder, "--json", status=1).partition("\nInvalid")[0])["comparisons"]
    assert {each["scenario"] for each in told} == {"singlestream", "offline", "concurrency"}


def test_one_trial_has_a_way_out(tmp_path: Path) -> None:
    folder = served.write(tmp_path / "run", served.trials(ENGINES, ["offline"]), ENGINES)
    assert "one trial has no spread, --trials 3 measures three" in run("compare", folder, status=0)
