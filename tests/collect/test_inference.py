"""Queries of journals → metrics, points and reasons, against examples worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from collect import served
from hypothesis import given
from hypothesis import strategies as st

from flagperf.collect.inference import Served, inference_points, inference_reasons, latencies, percentile, steady, whole
from flagperf.collect.journals import read_rank
from flagperf.collect.queries import NONE, Queries, QueryColumns
from flagperf.collect.runs import read_run
from flagperf.collect.store import Store
from flagperf.collect.trials import read_trial
from flagperf.errors import FlagPerfError
from flagperf.journal import Journal
from flagperf.schema.event import Key
from flagperf.schema.inference import SCENARIOS, TOLD, Load, Probe, Query, Scenario, told
from flagperf.schema.result import Result
from flagperf.schema.trial import Trial

LOADED = Load(scenario="offline", seconds=1.0)


def columns(*queries: Query) -> Queries:
    gathered = QueryColumns()
    for each in queries:
        gathered.add(each)
    return gathered.queries()


def planned(scenario: Scenario = "singlestream", **changes: Any) -> Trial:
    (only,) = served.trials(scenarios=[scenario], **changes)
    return only


def result(folder: Path, scenario: Scenario, queries: list[Query], **changes: Any) -> Result:
    """The result of one trial of these queries."""
    trial = planned(scenario, **changes)
    served.write(folder, [trial], asked=queries)
    (only,) = Store([folder]).results()
    return only


def test_times_of_an_answer() -> None:
    """First token after 0.1 s, a piece of two at 0.2, one at 0.4: 0.3 s for the three tokens after the first."""
    some = columns(
        served.query(0, 0.0, 0.1, 0.1, 4, tokens=[1, 2, 1], times=[100_000, 200_000, 400_000], done=500_000),
        served.query(1, 1.0, 0.05, 0.0, 1),
    )
    assert some.ttft.tolist() == [0.1, 0.05]
    assert some.tpot[0] == pytest.approx(0.1) and np.isnan(some.tpot[1])
    assert some.gaps.tolist() == pytest.approx([0.1, 0.2])
    assert some.latency.tolist() == [0.5, 0.05]
    assert some.tokens.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("tokens", "times", "burst"),
    [
        ([1, 1, 1, 1], [100, 10_000, 20_000, 30_000], False),
        ([4], [100], True),
        ([1, 1, 1, 1], [9_000, 9_050, 9_140, 20_000], True),  # three of four, each within 100 µs of the one before
        ([1, 1, 1, 1], [9_000, 9_050, 20_000, 30_000], False),  # two of four: not most of them
        ([3], [100], False),  # so short that it can't show it
        ([], [], False),
    ],
)
def test_tokens_that_come_together_have_no_times(tokens: list[int], times: list[int], burst: bool) -> None:
    other = served.query(1, 0.0, 0.1, 0.1, 6)
    some = columns(served.query(0, 0.0, 0.1, 0.1, 4, tokens=tokens, times=times, done=50_000), other)
    assert some.bursty.tolist() == [burst, False]
    assert np.isnan(some.ttft[0]) == (burst or not tokens)
    assert len(some.gaps) == 5 + (0 if burst else max(0, len(times) - 1))


def test_within_both_bounds() -> None:
    some = columns(
        served.query(0, 0.0, 0.2, 0.05, 4),  # both bounds just kept
        served.query(1, 0.0, 0.21, 0.05, 4),
        served.query(2, 0.0, 0.2, 0.06, 4),
        served.query(3, 0.0, 0.1, 0.0, 1),  # one token: nothing after it can be late
        served.query(4, 0.0, 0.1, 0.0, 4),  # a burst: not known, so not kept
    )
    assert some.within(0.2, 0.05).tolist() == [True, False, False, True, False]


def test_throughput_and_goodput_are_over_the_whole_scenario(tmp_path: Path) -> None:
    """Ten answers of 5 tokens, one a second, the last of which ends 0.5 s after its issue: 50 tokens in 9.5 s."""
    queries = [served.query(n, float(n), 0.1, 0.1, 5) for n in range(10)]
    queries[3] = served.query(3, 3.0, 0.3, 0.05, 5)
    found = result(tmp_path / "run", "server", queries)
    values = found.metrics
    assert found.verdict == "valid"
    assert values["output_tokens_per_second"].value == pytest.approx(50 / 9.5)
    assert values["queries_per_second"].value == pytest.approx(10 / 9.5)
    assert values["goodput"].value == pytest.approx(0.0)  # 0.1 s a token is too slow, 0.3 s to the first one too
    assert values["ttft_p50"].value == pytest.approx(0.1) and values["ttft_p50"].n == 10
    assert values["latency_p99"].value == pytest.approx(0.5)
    interval = values["output_tokens_per_second"].low, values["output_tokens_per_second"].high
    assert interval[0] is not None and interval[0] < 50 / 9.5 < (interval[1] or 0)


def test_percentiles_are_answers_as_load_gen_counts_them() -> None:
    """Of 1 … 10: half are within 5, 90 % within 9, 99 % within 10."""
    series = np.arange(10.0, 0.0, -1.0)
    assert [percentile(series, q) for q in (0.5, 0.9, 0.99)] == [5.0, 9.0, 10.0]


def test_a_rate_of_windows_that_are_alike_is_known_well(tmp_path: Path) -> None:
    steadily = [served.query(n, n * 0.1, 0.01, 0.01, 10) for n in range(100)]
    value = result(tmp_path / "run", "offline", steadily).metrics["output_tokens_per_second"]
    assert value.low is not None and value.high is not None and value.high - value.low < 0.05 * value.value


def test_a_multistream_query_is_answered_when_its_last_sample_is() -> None:
    trial = planned("multistream")  # four samples a query
    ends = [0.1, 0.4, 0.2, 0.3, 0.5, 0.1, 0.1, 0.1, 0.9]
    some = columns(*(served.query(n, n // 4 + 0.01 * (n % 4), end, 0.0, 1) for n, end in enumerate(ends)))
    assert latencies(trial, some)["latency"].tolist() == pytest.approx([0.41, 0.5])  # the third one isn't whole


def test_clients_are_counted_while_all_of_them_ask() -> None:
    """Two clients, 4 tokens an answer, 0.4 s each: the last is issued at 0.8 s, when 16 tokens have come."""
    trial = planned("concurrency")
    asked = [served.query(n, n // 2 * 0.4, 0.1, 0.1, 4, clients=2) for n in range(6)]
    some = columns(*asked)
    span = steady(some)
    assert span is not None and (span.stop_ns - span.start_ns) / 1e9 == pytest.approx(0.8)
    points = {point.at["clients"]: point for point in inference_points(trial, _journal(some))}
    values = points[2].metrics
    assert values["output_tokens_per_second"].value == pytest.approx(16 / 0.8)
    assert values["queries_per_second"].value == pytest.approx(4 / 0.8)
    assert values["ttft_p50"].n == 6
    assert (points[1].verdict, points[1].why) == ("failed", "nothing was asked")


def _journal(queries: Queries) -> Served:
    found = Served(read_rank(Path("nowhere"), 0))
    found.queries = queries
    found.load = Load(scenario="concurrency", seconds=1.0)
    return found


def test_failed_queries_are_told_and_make_no_point() -> None:
    trial = planned("concurrency")
    fine = [served.query(n, n * 1.0, 0.1, 0.1, 4, clients=1) for n in range(3)]
    stalled = served.query(3, 3.0, 0.1, 0.1, 2, clients=1, done=None, fault="stalled", why="nothing came for 60 s")
    journal = _journal(columns(*fine, stalled))
    point = inference_points(trial, journal)[0]
    assert (point.verdict, point.why) == ("failed", "1 of 4 queries have no answer: stalled 1")
    (reason,) = inference_reasons(trial, journal)
    assert reason.code == "queries_failed" and "nothing came for 60 s" in reason.message


def test_a_query_that_the_journal_lost_is_missed(tmp_path: Path) -> None:
    asked = [served.query(n, n * 1.0, 0.1, 0.1, 4) for n in (0, 1, 3, 4)]
    trial = planned()
    journal = Served(read_rank(served.rank(tmp_path / "rank0.journal", trial, asked, LOADED), 0))
    (reason,) = inference_reasons(trial, journal)
    assert reason.code == "queries_missing" and "lacks 1 of" in reason.message


def test_queries_that_looked_for_the_rate_are_no_part_of_the_result(tmp_path: Path) -> None:
    asked = [served.query(n, n * 1.0, 9.0 if n < 3 else 0.1, 0.1, 4) for n in range(6)]
    path = served.rank(tmp_path / "rank0.journal", planned("server"), asked, LOADED)
    with Journal(path, {}) as journal:
        probe = Probe(rate=9.0, first=0, count=3, seconds=1.0, ttft=9.0, tpot=0.1, failed=0, held=False)
        journal.write(Key.PROBE, probe)
    found = Served(read_rank(path, 0))
    assert found.queries.number.tolist() == [3, 4, 5] and found.probes == [probe]
    assert list(inference_reasons(planned("server"), found)) == []


def test_bursts_make_a_trial_invalid() -> None:
    asked = [served.query(n, n * 1.0, 0.1, 0.0 if n < 2 else 0.1, 4) for n in range(20)]
    (reason,) = inference_reasons(planned(), _journal(columns(*asked)))
    assert reason.code == "bursts" and reason.message.startswith("2 of 20 answers")


def test_what_can_not_be_is_a_flaw() -> None:
    good = served.query(0, 0.0, 0.1, 0.1, 4)
    change = msgspec.structs.replace
    bad = [
        change(good, number=1, times=[5, 4, 6, 7]),
        change(good, number=2, times=[1, 2]),
        change(good, number=3, done=1),
        change(good, number=4, tokens=[1, 0, 1, 1]),
        change(good, number=5, issued=2**70),
        change(good, number=-1),
        change(good, times=[1, 2, 3, 4]),  # the number once more
    ]
    gathered = QueryColumns()
    for each in (good, *bad):
        gathered.add(each)
    kept = gathered.queries()
    assert kept.number.tolist() == [0] and kept.times[0] == 100_000
    assert gathered.malformed == len(bad)


def test_a_scenario_is_told_by_what_says_something_of_it() -> None:
    assert set(TOLD) == set(SCENARIOS)
    offline = told("offline", served.METRICS)
    assert offline[0] == "output_tokens_per_second" and "ttft_p99" not in offline and "memory_cache" in offline
    assert told("singlestream", served.METRICS)[0] == "latency_p90"
    assert told("", ["mfu", "loss_final"]) == ["mfu", "loss_final"]
    assert told("offline", ["queries_per_second", "x"]) == ["queries_per_second", "x"]


def test_without_a_load_a_plan_is_refused(tmp_path: Path) -> None:
    folder = served.write(tmp_path / "run", served.trials(scenarios=["offline"]))
    (trial,) = read_run(folder).trials
    with pytest.raises(FlagPerfError, match="can't be read"):
        inference_points(msgspec.structs.replace(trial, scenario="concurrency", settings={}), _journal(NONE))


def test_every_scenario_of_a_made_run_is_valid(tmp_path: Path) -> None:
    folder = served.write(tmp_path / "run", served.trials(scenarios=SCENARIOS), broken=())
    found = {each.scenario: each for each in Store([folder]).results()}
    assert {each.verdict for each in found.values()} == {"valid"}
    assert found["server"].metrics["server_rate"].value == 7.5
    assert [point.verdict for point in found["concurrency"].points] == ["valid"] * 4
    assert "ttft_p50" not in found["offline"].metrics


piece = st.integers(-(2**70), 2**70) | st.integers(0, 10**6)
anything = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=3) | st.lists(piece, max_size=3)


@given(
    lines=st.lists(
        st.dictionaries(
            st.sampled_from([*Query.__struct_fields__, "other"]), anything | st.lists(piece, max_size=6), max_size=12
        ),
        max_size=6,
    ),
    scenario=st.sampled_from(SCENARIOS),
    times=st.lists(st.integers(0, 500), max_size=8),
)
def test_whatever_a_journal_holds_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], scenario: Scenario, times: list[int]
) -> None:
    """Hostile and damaged queries never end the reading, and what is counted is finite."""
    trial = planned(scenario)
    folder = tmp_path_factory.mktemp("hostile")
    times = sorted(times)
    extra = [
        served.query(n, n * 1e-6, 0.0, 0.0, 1, clients=1, tokens=[1] * n, times=times[:n]) for n in range(len(times))
    ]
    path = served.rank(folder / "rank0.journal", trial, extra)
    good = [msgspec.to_builtins(each) for each in extra] or [{}]
    with path.open("ab") as file:
        for number, line in enumerate(lines):
            value = {**good[number % len(good)], **line}
            event = {"namespace": "", "time_ms": 1, "event_type": "POINT_IN_TIME", "key": "query", "value": value}
            file.write(b":::MLLOG " + msgspec.json.encode({**event, "metadata": {}}) + b"\n")
    journal = Served(read_rank(path, 0))
    journal.load = Load(scenario=scenario, seconds=1.0)
    assert whole(journal.queries) is None or len(journal.complete)
    list(inference_reasons(trial, journal))
    for point in inference_points(trial, journal):
        assert all(np.isfinite(value.value) for value in point.metrics.values())


def test_reading_a_trial_gives_the_queries_too(tmp_path: Path) -> None:
    folder = served.write(tmp_path / "run")
    run = read_run(folder)
    record = read_trial(folder, run, run.trials[0])
    assert record.served is not None and len(record.served.queries) == 12
