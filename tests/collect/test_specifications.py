"""Specifications in the collector: the slowest device's own figure, the rated one beside it, and what can't be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from collect import runs
from hypothesis import given
from hypothesis import strategies as st

from flagperf.collect.specifications import kept_up
from flagperf.collect.trials import read_trial
from flagperf.journal import Journal
from flagperf.schema.chip import Chip
from flagperf.schema.event import Key
from flagperf.schema.result import Result
from flagperf.schema.sweep import Samples
from flagperf.schema.trial import Trial

CHIP = Chip(
    vendor="cpu", chip="X1", names=["x1"], devices=2, memory_gb=32, memory_bandwidth_gbs=200, fp64_tflops=1,
    fp64_matrix_tflops=4, bf16_tflops=20, int8_tops=40, tdp_w=300, source="a page", confidence="high",
)  # fmt: skip


def spec(ranks: int = 1, **changes: Any) -> Trial:
    metrics = ["flops_rate", "rated_share", "sustained_share", "kernel_time"]
    usual = {"case": "spec/gemm", "kind": "specification", "engine": "torch", "metrics": metrics, "peak_flops": None}
    return runs.trial(**{**usual, "ranks": ranks, "id": "000-spec-gemm", **changes})


def samples(seconds: Sequence[float] = (1e-3,) * 6, **changes: Any) -> Samples:
    return Samples(**{"at": {"dtype": "bf16"}, "provider": "torch", "seconds": list(seconds), **changes})


def read(folder: Path, told: Sequence[Sequence[Samples]], chips: Sequence[object] = (CHIP,)) -> Result:
    trial = spec(len(told))
    plan = runs.run([trial])
    runs.write_run(folder, plan, skip=[trial.id])
    for rank, each in enumerate(told):
        header = {"role": "rank", "trial": trial.id, "rank": rank, "world_size": trial.ranks}
        with Journal(folder / "trials" / trial.id / f"rank{rank}.journal", header) as journal:
            chip = chips[rank % len(chips)]
            journal.write(Key.SWEEP, {"points": len(each), "providers": trial.providers, "chip": chip})
            for one in each:
                journal.write(Key.SAMPLES, one)
            journal.write(Key.RUN_STOP, {"status": "success"})
    return read_trial(folder, plan, trial).result


def reasons(result: Result) -> dict[str, str]:
    return {reason.code: reason.message for reason in result.reasons if reason.code != "no_outcome"}


def notes(result: Result) -> dict[str, str]:
    return {note.code: note.message for note in result.notes}


@pytest.mark.parametrize(
    ("figure", "work", "rated", "share"),
    [
        ("bf16_tflops", {"flops": 8e9}, 10.0, 0.8),  # of a card with two devices: each has half
        ("fp64_tflops", {"flops": 1.5e9}, 2.0, 0.75),  # what the matrix units do
        ("int8_tops", {"flops": 10e9}, 20.0, 0.5),
        ("memory_bandwidth_gbs", {"bytes": 90e6}, 100.0, 0.9),
        ("memory_gb", {"values": {"capacity": 12.0}, "seconds": ()}, 16.0, 0.75),
        ("tdp_w", {"values": {"power_load": 120.0}, "seconds": ()}, 150.0, 0.8),
    ],
)
def test_the_rated_figure_stands_beside_with_its_source(
    tmp_path: Path, figure: str, work: dict[str, Any], rated: float, share: float
) -> None:
    (point,) = read(tmp_path, [[samples(**{"figure": figure, **work})]]).points
    assert point.rated is not None and point.rated.value == pytest.approx(rated)
    assert (point.rated.chip, point.rated.source, point.rated.confidence) == ("X1", "a page", "high")
    assert point.metrics["rated_share"].value == pytest.approx(share)
    assert point.metrics[point.rated.metric].value == pytest.approx(share * rated)


def test_without_a_known_chip_or_a_source_there_is_no_share(tmp_path: Path) -> None:
    work = samples(flops=8e9, figure="bf16_tflops")
    for number, (figure, chips) in enumerate(
        [("bf16_tflops", [None]), ("fp8_tflops", [CHIP]), ("bf16_tflops", [{"chip": 3}]), ("", [CHIP])]
    ):
        result = read(tmp_path / str(number), [[samples(flops=8e9, figure=figure)]], chips)
        assert result.points[0].rated is None and "rated_share" not in result.points[0].metrics
        assert not reasons(result)
    assert read(tmp_path / "two", [[work], [work]], [CHIP, None]).points[0].rated is None


def test_above_the_rated_figure_is_told_and_far_above_it_is_invalid(tmp_path: Path) -> None:
    above = read(tmp_path / "above", [[samples(flops=10.3e9, figure="bf16_tflops")]])
    assert not reasons(above) and "1.030 times" in notes(above)["above_rated"]
    beyond = read(tmp_path / "beyond", [[samples(flops=10.6e9, figure="bf16_tflops")]])
    assert "1.05 times what X1 is rated at" in reasons(beyond)["wrong_result"]
    drawn = read(tmp_path / "drawn", [[samples((), values={"power_load": 200.0}, figure="tdp_w")]])
    assert not reasons(drawn) and "above_rated" in notes(drawn)  # for a while a device may
    binary = read(tmp_path / "binary", [[samples((), values={"capacity": 16 * 1.07}, figure="memory_gb")]])
    assert not reasons(binary) and "above_rated" not in notes(binary)


def test_each_device_has_a_best_size_of_its_own_and_the_slowest_is_told(tmp_path: Path) -> None:
    quick = samples([1e-3] * 6, flops=8e9, facts={"size": 1})
    slow = samples([3e-3] * 7, flops=12e9, facts={"size": 2})  # of more work, and still slower
    (point,) = read(tmp_path / "a", [[quick], [slow]]).points
    assert point.metrics["flops_rate"].value == pytest.approx(4.0)
    assert point.facts == {"size": 2} and point.metrics["kernel_time"].n == 7
    least = read(tmp_path / "b", [[samples((), values={"capacity": 5.0})], [samples((), values={"capacity": 4.0})]])
    assert least.points[0].metrics["capacity"].value == 4.0
    bad = read(tmp_path / "c", [[quick], [samples((), verdict="unsupported", why="none")]])
    assert bad.points[0].verdict == "unsupported"


def test_a_device_that_throttles_shows(tmp_path: Path) -> None:
    hot = read(tmp_path / "hot", [[samples([1e-3] * 60 + [1.5e-3] * 40, flops=1e9)]])
    assert hot.points[0].metrics["sustained_share"].value == pytest.approx(2 / 3)
    assert "33% slower than at its best" in notes(hot)["not_kept_up"] and not reasons(hot)
    cold = read(tmp_path / "cold", [[samples([1e-3] * 100, flops=1e9)]])
    assert cold.points[0].metrics["sustained_share"].value == 1 and "not_kept_up" not in notes(cold)
    few = read(tmp_path / "few", [[samples([1e-3, 9e-3] * 3, flops=1e9)]])
    assert "sustained_share" not in few.points[0].metrics


@given(st.lists(st.floats(1e-7, 10.0), min_size=20, max_size=300))
def test_what_is_kept_up_is_a_share(seconds: list[float]) -> None:
    share = kept_up(seconds)
    assert share is not None and 0 < share <= 1
    assert kept_up(sorted(seconds, reverse=True)) == 1.0
