"""Loads against engines with known times and known faults: everything is counted, told, and comes to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import ROOT, needs
from inference.fakes import REQUESTS, Bench, Faulty, OneServer, Timed

from flagperf.collect.journals import read_rank
from flagperf.errors import FlagPerfError
from flagperf.inference import clients, loadgen, rates
from flagperf.inference.answers import collected
from flagperf.inference.engine import Request
from flagperf.schema.inference import Load, Scenario

needs("mlcommons-loadgen")


@pytest.mark.parametrize("scenario", ["singlestream", "multistream", "server", "offline"])
def test_every_query_is_in_the_journal(scenario: Scenario, tmp_path: Path) -> None:
    bench = Bench(tmp_path, Timed(lambda _, request: [0.001] * request.limit), scale=0.05)
    with bench as rig:
        load = loadgen.run(rig, scenario, rate=200.0, pace=0.001)
    queries = bench.events("query")
    samples = rig.load.batch if scenario == "multistream" else len(queries) if scenario == "offline" else 1
    assert len(queries) == load.figures["query_count"] * samples == rig.issued
    assert sorted(query["number"] for query in queries) == list(range(rig.issued))
    assert all(sum(query["tokens"]) == query["asked"] and query["done"] for query in queries)
    assert "latency" not in load.broken
    (start,) = bench.events("load_start")
    assert start["scenario"] == scenario
    assert len(queries) >= start["queries"]
    assert (tmp_path / "loadgen" / "mlperf_log_detail.txt").exists()


def test_prompts_and_arrivals_follow_from_the_seed(tmp_path: Path) -> None:
    asked = []
    for place, seed in enumerate((7, 7, 8)):
        bench = Bench(tmp_path / str(place), Timed(lambda _, request: [0.0] * request.limit), scale=0.05)
        with bench as rig:
            rig.seed = seed
            loadgen.run(rig, "server", rate=500.0)
        asked.append([query["prompt"] for query in sorted(bench.events("query"), key=lambda each: each["number"])])
    assert asked[0] == asked[1] != asked[2]
    assert len(set(asked[0])) > 1


def test_our_percentiles_are_loadgens(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    firsts, gaps = random.uniform(0.010, 0.020, 1000), random.uniform(0.004, 0.008, 1000)
    bench = Bench(
        tmp_path, Timed(lambda n, request: firsts[n] + gaps[n] * np.arange(request.limit)), duration=1.5, ttft=1, tpot=1
    )
    with bench as rig:
        load = loadgen.run(rig, "singlestream", rate=1.0, pace=0.03)
    # All of them, as LoadGen does: on a busy machine tokens may come late and at once, of which we'd tell no time.
    told = [(each["times"], sum(each["tokens"]), each["done"]) for each in bench.events("query")]
    ttft = np.array([times[0] for times, _, _ in told]) / 1e6
    tpot = np.array([(times[-1] - times[0]) / (count - 1) for times, count, _ in told]) / 1e6
    latency = np.array([done for _, _, done in told]) / 1e6
    for name, ours in (("first_token", ttft), ("per_output_token", tpot), ("", latency)):
        for level in ("50.00", "90.00"):
            names = [f"{name}_{level}_percentile_latency_ns", f"time_{name}_{level}_percentile_ns"]
            names.append(f"{level}_percentile_latency_ns")
            theirs = next(load.figures[each] for each in names if each in load.figures) / 1e9
            mine = np.sort(ours)[int(len(ours) * float(level) / 100)]  # as LoadGen counts
            assert mine == pytest.approx(theirs, rel=0.05, abs=0.002), (name, level)


@pytest.mark.parametrize("scenario", ["singlestream", "server", "offline", "concurrency"])
def test_faults_are_counted_and_the_rest_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    faults = {3: "fail", 5: "raise", 6: "more", 8: "empty"}
    warmed = sum(clients for clients in (1, 3)) if scenario == "concurrency" else 0
    engine = Faulty(faults) if not warmed else Faulty({place + 40: fault for place, fault in faults.items()})
    bench = Bench(tmp_path, engine, scale=1.0 if warmed else 0.1)
    with bench as rig:
        load = clients.run(rig) if warmed else loadgen.run(rig, scenario, rate=100.0, pace=0.001)
    queries = bench.events("query")
    kinds = Counter(query["fault"] for query in queries if query.get("fault"))
    assert kinds == {"memory": 1, "engine": 1, "too_many": 1, "closed": 1}
    assert rig.failed == 4
    assert len(queries) == rig.issued >= 10
    assert load.seconds > 0
    assert {query["why"] for query in queries if query.get("fault") == "engine"} == {"MemoryError: the cache is full"}


@pytest.mark.parametrize("scenario", ["singlestream", "offline", "concurrency"])
def test_one_that_hangs_is_given_up(scenario: Scenario, tmp_path: Path) -> None:
    closed = scenario == "concurrency"
    bench = Bench(tmp_path, Faulty({12 if closed else 7: "hang"}), scale=1.0 if closed else 0.1, patience=0.3)
    with bench as rig:
        clients.run(rig) if closed else loadgen.run(rig, scenario, rate=100.0, pace=0.001)
    queries = bench.events("query")
    assert [query["fault"] for query in queries if query.get("fault")] == ["stalled"]
    assert len(queries) == rig.issued > 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", ["hang", "die"])
def test_an_engine_that_hangs_or_dies_ends_the_load(fault: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, Faulty({0: "", 1: "", 2: fault, -1: fault}), patience=0.1)  # 0 is the warm-up's
    with bench as rig, pytest.raises(FlagPerfError, match="stalled"):
        clients.run(rig)
    queries = bench.events("query")
    assert any(query.get("fault") == "stalled" for query in queries)
    assert any(query.get("done") for query in queries), "what was measured is kept"


def test_a_warm_up_that_hangs_ends() -> None:
    engine = Faulty({-1: "hang"})
    with pytest.raises(FlagPerfError, match="stalled"):
        collected(engine.submit, REQUESTS[:2], patience=0.1)
    engine.close()


HUNG = """
import sys
from pathlib import Path
from flagperf.inference import loadgen
from inference.fakes import Bench, Faulty
bench = Bench(Path(sys.argv[1]), Faulty({-1: "hang", 0: "", 1: ""}), scale=0.1, patience=0.2)
with bench as rig:
    if sys.argv[2] == "interrupt":
        import os, signal, threading
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        rig.load = type(rig.load)(**{n: getattr(rig.load, n) for n in rig.load.__struct_fields__} | {"patience": 60.0})
    loadgen.run(rig, "server", rate=5.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("stall", "stalled"), ("interrupt", "KeyboardInterrupt")])
def test_loadgen_is_left_behind_in_good_order(how: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUNG, str(tmp_path), how],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        check=False,
    )
    assert done.returncode == 1, done.stderr  # not a crash of native threads
    assert said in done.stderr
    queries = read_rank(tmp_path / "rank0.journal", 0).queries
    assert len(queries.complete) == 2


def test_clients_ask_all_prompts_alike(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Timed(lambda _, request: [0.01] * request.limit), duration=0.4)
    with bench as rig:
        clients.run(rig)
    queries = bench.events("query")
    for count in rig.load.clients:
        asked = sorted((query for query in queries if query["clients"] == count), key=lambda query: query["number"])
        first = [query["prompt"] for query in asked[: len(REQUESTS)]]
        assert sorted(first) == list(range(len(REQUESTS))), "every prompt once before one comes again"
        issued, ends = ([query["issued"] for query in asked], [q["issued"] + q["done"] * 1000 for q in asked])
        going = [sum(i <= at < e for i, e in zip(issued, ends, strict=True)) for at in issued]
        assert max(going) == count
    assert [start["clients"] for start in bench.events("load_start")] == rig.load.clients


@pytest.mark.slow
def test_a_rate_is_searched(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OneServer(0.005), requests=[Request([1], 2)], duration=20.0, scale=0.05, ttft=0.05)
    with bench as rig:
        load = rates.highest(rig, 300.0)
    probes = bench.events("probe")
    assert {probe["held"] for probe in probes} == {True, False}
    assert all(probe["rate"] < 300 for probe in probes[1:]), "beyond what it can answer nothing is tried again"
    assert load.settings["server_target_qps"] <= min(probe["rate"] for probe in probes if not probe["held"])
    numbers = [number for probe in probes for number in range(probe["first"], probe["first"] + probe["count"])]
    assert numbers == list(range(len(numbers)))
    assert len(bench.events("query")) > len(numbers), "the measured run's are beside them"


def test_a_search_for_a_rate_that_there_isnt_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_SECONDS", 0.5)
    bench = Bench(tmp_path, Timed(lambda _, request: [0.03] * request.limit), duration=4.0, scale=0.1, ttft=0.02)
    with bench as rig:
        load = rates.highest(rig, 60.0)
    assert 1 <= len([each for each in bench.events("probe") if each["count"]]) < rates.MOST_STEPS
    assert "latency" in load.broken, "no rate is claimed that didn't hold"


def test_a_given_rate_is_measured_as_given(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OneServer(0.02), requests=[Request([1], 2)], scale=0.1, ttft=0.021)
    with bench as rig:
        load = loadgen.run(rig, "server", rate=200.0)
    assert load.settings["server_target_qps"] == 200.0
    assert "latency" in load.broken
    assert not load.valid


@pytest.mark.parametrize(
    ("text", "wanting"),
    [
        (" * Only processed 9 queries.  * Need to process at least 64 queries for early stopping.", 55),
        (" * Run unsuccessful.  * Processed 121 queries.  * Would need to run at least 338 more queries,  with", 338),
        (" * Run successful.", 0),
        ("", 0),
    ],
)
def test_what_early_stopping_wants(text: str, wanting: int) -> None:
    assert loadgen._wanting(text) == wanting


def test_no_result_of_loadgens_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlagPerfError, match="left no result"):
        loadgen._said(tmp_path / "none.txt")


def test_a_load_survives_the_journal(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Faulty({}), scale=0.1)
    with bench as rig:
        load = loadgen.run(rig, "singlestream", rate=1.0, pace=0.001)
        rig.recorder.write("load", load)
    assert msgspec.convert(bench.events("load")[0], Load) == load
    assert load.broken == ["early_stopping"]
    assert load.wanting > 0
