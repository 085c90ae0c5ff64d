"""A sweep's journals → its points: metrics over ranks, speed-ups from pairs of rounds, and every way to fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collect import runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flagperf.collect.store import Store
from flagperf.collect.sweeps import compare_points
from flagperf.collect.trials import read_trial
from flagperf.journal import Journal
from flagperf.schema.event import Key
from flagperf.schema.result import Result
from flagperf.schema.sweep import Accuracy, Roofs, Samples
from flagperf.schema.trial import Trial

RIGHT = Accuracy(max_absolute=1e-6, max_relative=2e-6, absolute=1e-5, relative=1e-4, wrong=0, elements=64)
AT = {"dtype": "fp32", "seq": 128}


def sweep(ranks: int = 1, providers: str = "naive+flash", **changes: Any) -> Trial:
    """A trial of a kernel case."""
    metrics = ["flops_rate", "kernel_time", "kernel_memory", "roofline_share"]
    usual = {"case": "attention/forward", "kind": "kernel", "engine": providers, "metrics": metrics}
    return runs.trial(**{**usual, "ranks": ranks, "id": "000-attention-forward", "peak_flops": None, **changes})


def samples(provider: str, seconds: Sequence[float], **changes: Any) -> Samples:
    """What a rank measured of a provider: 2 MFLOP and 4 kB a call."""
    usual: dict[str, Any] = {"flops": 2e6, "bytes": 4e3, "memory": 2**20, "accuracy": RIGHT, "first": 0.5}
    return Samples(**{"at": AT, "provider": provider, "seconds": list(seconds), **usual, **changes})


def read(folder: Path, trial: Trial, told: Sequence[Sequence[Samples]], points: int = 1) -> Result:
    """Write the journals of ranks that told this and read the trial."""
    plan = runs.run([trial])
    runs.write_run(folder, plan, skip=[trial.id])
    for rank, each in enumerate(told):
        header = {"role": "rank", "trial": trial.id, "rank": rank, "world_size": trial.ranks}
        with Journal(folder / "trials" / trial.id / f"rank{rank}.journal", header) as journal:
            journal.write(Key.SWEEP, {"points": points, "providers": trial.providers})
            journal.write(Key.ROOFS, Roofs(flops={"fp32": 1e9}, bandwidth=1e9))
            for one in each:
                journal.write(Key.SAMPLES, one)
            journal.write(Key.RUN_STOP, {"status": "success"})
    return read_trial(folder, plan, trial).result


def codes(result: Result) -> set[str]:
    return {reason.code for reason in result.reasons} - {"no_outcome"}


def test_time_is_the_slowest_ranks_round_by_round(tmp_path: Path) -> None:
    first, second = [0.004] * 9 + [0.008], [0.002] * 9 + [0.016]
    result = read(tmp_path, sweep(ranks=2, providers="naive"), [[samples("naive", x)] for x in (first, second)])
    values = {name: metric.value for name, metric in result.points[0].metrics.items()}
    assert not codes(result)
    assert values["kernel_time"] == 0.004
    assert values["flops_rate"] == pytest.approx(2e6 / 0.004 / 1e12)
    assert values["bandwidth"] == pytest.approx(4e3 / 0.004 / 1e9)
    assert values["kernel_memory"] == 1
    assert values["first_call"] == 0.5
    assert values["roofline_share"] == pytest.approx(0.002 / 0.004)  # 2 MFLOP at 1 GFLOP/s
    assert result.points[0].bound == "compute"
    assert result.metrics["flops_rate"].value == values["flops_rate"]  # the best of the sweep
    assert "kernel_time" not in result.metrics  # of many sizes there is no one time


def test_speed_is_against_the_first_provider_in_pairs_of_rounds(tmp_path: Path) -> None:
    drift = 1 + np.linspace(0, 1, 20)  # the machine gets slower all the time; the ratio is the same all along
    told = [samples("naive", 0.004 * drift), samples("flash", 0.002 * drift)]
    result = read(tmp_path, sweep(), [told])
    assert result.points[0].speedup is None
    speedup = result.points[1].speedup
    assert speedup is not None
    assert (speedup.baseline, speedup.verdict, speedup.pairs) == ("naive", "better", 20)
    assert speedup.low == pytest.approx(2.0, rel=1e-6) and speedup.high == pytest.approx(2.0, rel=1e-6)
    (comparison,) = compare_points([result])
    assert (comparison.metric, comparison.candidate, comparison.at) == ("kernel_speed", "flash", AT)


def test_several_trials_are_compared_by_trials(tmp_path: Path) -> None:
    results = []
    for number, factor in enumerate((2.0, 2.1, 1.9)):
        told = [samples("naive", [0.004 * factor] * 8), samples("flash", [0.004] * 8)]
        results.append(read(tmp_path / str(number), sweep(trial=number), [told]))
    (comparison,) = compare_points(results)
    assert comparison.ratio == pytest.approx(2.0)
    assert comparison.pairs == 3
    assert comparison.low is not None and comparison.low <= 1.9


def test_what_is_wrong_is_never_ranked(tmp_path: Path) -> None:
    wrong = RIGHT.__class__(**{**{f: getattr(RIGHT, f) for f in RIGHT.__struct_fields__}, "wrong": 3})
    told = [
        samples("naive", [0.004] * 8),
        samples(
            "flash", [0.001] * 8, accuracy=wrong, verdict="wrong", why="3 of 64 elements are outside the tolerance"
        ),
    ]
    result = read(tmp_path, sweep(), [told])
    assert codes(result) == {"wrong_result"}
    assert result.points[1].verdict == "wrong"
    assert "kernel_time" not in result.points[1].metrics and "error_absolute" in result.points[1].metrics
    assert result.points[1].speedup is None
    assert result.metrics["flops_rate"].value == result.points[0].metrics["flops_rate"].value
    assert not compare_points([result])


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ([[]], {"points_missing", "nothing_measured"}),
        ([[samples("naive", [0.1] * 8)]], {"points_missing"}),
        ([[samples("naive", [], verdict="failed", why="boom"), samples("flash", [0.1])]], {"point_failed"}),
        (
            [[samples("naive", [], verdict="too big"), samples("flash", [], verdict="unsupported")]],
            {"nothing_measured"},
        ),
    ],
)
def test_reasons(tmp_path: Path, told: Sequence[Sequence[Samples]], code: set[str]) -> None:
    assert codes(read(tmp_path, sweep(), told)) == code


def test_a_rank_that_lacks_a_point(tmp_path: Path) -> None:
    both = [samples("naive", [0.1] * 8), samples("flash", [0.1] * 8)]
    result = read(tmp_path, sweep(ranks=2), [both, both[:1]])
    assert [point.verdict for point in result.points] == ["valid", "failed"]
    assert codes(result) == {"point_failed"}


def test_what_doesnt_fit_is_told_and_no_fault(tmp_path: Path) -> None:
    told = [samples("naive", [], verdict="too big", why="it needs 34 GiB"), samples("flash", [0.1] * 8)]
    result = read(tmp_path, sweep(), [told])
    assert not codes(result)
    assert any(note.code == "too_big" and "34 GiB" in note.message for note in result.notes)


def test_the_store_keeps_points(tmp_path: Path) -> None:
    read(tmp_path, sweep(), [[samples("naive", [0.004] * 8), samples("flash", [0.002] * 8)]])
    (result,) = Store([tmp_path]).results()
    assert [point.provider for point in result.points] == ["naive", "flash"]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    damage=st.dictionaries(
        st.sampled_from(Samples.__struct_fields__),
        JSON | st.lists(st.floats()) | st.floats() | st.dictionaries(st.sampled_from(["bandwidth", "x"]), st.floats()),
        max_size=3,
    ),
    roofs=JSON,
    heading=JSON | st.fixed_dictionaries({"points": JSON, "providers": JSON}),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_journal_makes_it_raise(
    tmp_path_factory: pytest.TempPathFactory, damage: Mapping[str, Any], roofs: Any, heading: Any
) -> None:
    trial = sweep()
    folder = tmp_path_factory.mktemp("damaged")
    plan = runs.run([trial])
    runs.write_run(folder, plan, skip=[trial.id])
    header = {"role": "rank", "trial": trial.id, "rank": 0, "world_size": 1}
    with Journal(folder / "trials" / trial.id / "rank0.journal", header) as journal:
        journal.write(Key.SWEEP, heading)
        journal.write(Key.ROOFS, roofs)
        for provider in ("naive", "flash"):
            good = samples(provider, [0.004, 0.005])
            plain = {name: getattr(good, name) for name in good.__struct_fields__ if name != "accuracy"}
            journal.write(Key.SAMPLES, {**plain, **(damage if provider == "flash" else {})})
    read_trial(folder, plan, trial)
