"""The kernel protocol of one rank: what is wrong is found, what fails stops no other, what is told is true."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import planted
import pytest
import torch
from helpers import rank_alone
from hypothesis import given
from hypothesis import strategies as st

from flagperf.journal import Journal, Reader
from flagperf.kernels import InputSets, ProviderRun, compare, measure_kernels, upstream, worst
from flagperf.measure import roofs
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.sweep import Accuracy, Roofs, Samples


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Samples]]:
    """Measures a planted case in this process and returns its samples by provider."""
    planted.plant(tmp_path)
    monkeypatch.setattr("flagperf.kernels.measured_roofs", lambda *_: Roofs(flops={"fp32": 1e9}, bandwidth=1e9))

    def run(case: str = "planted/double", providers: str = "", **settings: Any) -> dict[str, Samples]:
        registries = Registries([tmp_path])
        engines = [providers] if providers else []
        options = Options(cases=[case], vendor="cpu", engines=engines, settings=settings)
        trial = plan(options, registries).trials[0]
        path = tmp_path / "rank0.journal"
        path.unlink(missing_ok=True)
        with Journal(path, {}) as journal:
            context = rank_alone(trial, journal, registries)
            measure_kernels(context, registries.cases.load(case)(trial))
        told = [msgspec.convert(event.value, Samples) for event in Reader(path) if event.key == Key.SAMPLES]
        found = {each.provider + str(each.at.get("cache", "")): each for each in told}
        assert len(found) == len(told)
        return found

    return run


def test_wrong_results_are_found_and_failures_stop_no_other(measured: Callable[..., dict[str, Samples]]) -> None:
    told = measured()
    assert set(told) == set(planted.PROVIDERS)
    verdicts = {name: each.verdict for name, each in told.items()}
    assert verdicts == {"right": "valid", **dict.fromkeys(planted.WRONG, "wrong"), **planted.OTHERS}
    right = told["right"]
    assert len(right.seconds) >= 3 and all(seconds > 0 for seconds in right.seconds)
    assert right.memory is not None and 4000 <= right.memory < 4100
    assert right.bytes == 8000 and right.first is not None
    assert right.accuracy is not None and right.accuracy.wrong == 0 and right.accuracy.elements == 1000
    assert right.facts == {"input_sets": 2, "input_bytes": 8000}
    assert "elements are outside the tolerance" in told["stale"].why
    assert told["raising"].why == "RuntimeError: no such luck"
    assert "after five calls" in told["late"].why
    assert told["picky"].why == "it takes fp16 only"
    assert "beyond its inputs" in told["huge"].why and "GiB" in told["huge"].why
    assert "can't allocate" in told["out_of_memory"].why
    assert all(not told[name].seconds for name in planted.OTHERS)


def test_gradients_are_judged_too(measured: Callable[..., dict[str, Samples]]) -> None:
    told = measured("planted/slope", "right,near,zeros")
    assert {name: each.verdict for name, each in told.items()} == {"right": "valid", "near": "wrong", "zeros": "wrong"}


def test_a_slope_that_is_wrong_by_little(measured: Callable[..., dict[str, Samples]]) -> None:
    accuracy = measured("planted/slope", "near")["near"].accuracy
    assert accuracy is not None and accuracy.max_absolute == pytest.approx(0.0005, rel=0.1)


def test_cold_sets_overflow_the_caches(
    measured: Callable[..., dict[str, Samples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flagperf.kernels.last_level_cache", lambda device: 100_000)
    told = measured(providers="right,stale", sweep={"cache": ["warm", "cold"]})
    assert told["rightwarm"].facts["input_sets"] == 2
    assert told["rightcold"].facts["input_sets"] == _SETS_OF_100_000
    assert {each.verdict for name, each in told.items() if "right" in name} == {"valid"}
    assert {each.verdict for name, each in told.items() if "stale" in name} == {"wrong"}


_SETS_OF_100_000 = 51
"""200,000 bytes in sets of 4,000, and one more."""


def sets_of(tmp_path: Path, **axes: Any) -> InputSets:
    planted.plant(tmp_path)
    registries = Registries([tmp_path])
    trial = plan(Options(cases=["planted/double"], vendor="cpu", engines=["right"]), registries).trials[0]
    case = registries.cases.load("planted/double")(trial)
    return InputSets(case, {"dtype": "fp32", "n": 1000, **axes}, 1, registries.vendors.adapter("cpu").runtime(0, 1, 1))


def test_warm_calls_of_a_round_have_the_same_inputs_and_the_next_round_others(tmp_path: Path) -> None:
    sets = sets_of(tmp_path)
    run = ProviderRun("right", sets, lambda x: x * 2)
    assert [run.call.place(number) for number in range(3)] == [0, 0, 0]
    with ExitStack() as entered:
        run.turn(entered)
    assert [run.call.place(number) for number in range(3)] == [1, 1, 1]


def test_cold_calls_go_round_copies_that_are_larger_than_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flagperf.kernels.last_level_cache", lambda device: 10_000)
    sets = sets_of(tmp_path, cache="cold")
    assert len(sets) == 6 and sets.facts["input_bytes"] > 2 * 10_000
    run = ProviderRun("right", sets, lambda x: x * 2)
    assert [run.call.place(number) for number in range(8)] == [0, 1, 2, 3, 4, 5, 0, 1]
    assert len({inputs[0].data_ptr() for inputs in sets.inputs}) == 6
    assert torch.equal(sets.inputs[0][0], sets.inputs[4][0]) and not torch.equal(sets.inputs[0][0], sets.inputs[1][0])
    for number in range(8):
        assert sets.judge(run.call(number), run.call.place(number)).wrong == 0


def test_results_are_poisoned_before_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of a result's size are filled with NaN, both held at once, and then given back."""
    run = ProviderRun("right", sets_of(tmp_path), lambda x: x * 2)
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []
    full = torch.full

    def watched(*given: Any, **named: Any) -> torch.Tensor:
        block: torch.Tensor = full(*given, **named)
        assert block.shape == (1000,) and bool(block.isnan().all())
        made.append(weakref.ref(block))
        held.append(sum(each() is not None for each in made))
        return block

    monkeypatch.setattr(torch, "full", watched)
    with ExitStack() as entered:
        run.turn(entered)
    assert held == [1, 2]
    assert all(each() is None for each in made)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), st.integers(0, 29), st.floats(0.1, 1e6))
def test_compare_finds_one_element(values: list[float], place: int, away: float) -> None:
    right = torch.tensor(values, dtype=torch.float64)
    have = right.clone()
    have[place % len(values)] += away + 1e-3 * abs(float(right[place % len(values)]))
    told = compare([have], [right], (1e-3, 1e-4))
    assert (told.wrong, told.elements) == (1, len(values))
    assert compare([right.clone()], [right], (1e-3, 1e-4)).wrong == 0


def test_compare_takes_nan_only_where_the_reference_has_it() -> None:
    nan, inf = float("nan"), float("inf")
    right = torch.tensor([1.0, nan, inf], dtype=torch.float64)
    assert compare([right.clone()], [right], (0.0, 0.0)).wrong == 0
    told = compare([torch.tensor([nan, 1.0, -inf])], [right], (1.0, 1.0))
    assert told.wrong == 3 and told.max_absolute is None
    with pytest.raises(ValueError, match="shape"):
        compare([torch.zeros(2)], [torch.zeros(3)], (1.0, 1.0))
    with pytest.raises(ValueError, match="2 results, not 1"):
        compare([torch.zeros(2)] * 2, [torch.zeros(2)], (1.0, 1.0))


def test_the_worse_of_two_judgements_is_kept() -> None:
    def judged(wrong: int, away: float | None) -> Accuracy:
        return Accuracy(max_absolute=away, max_relative=away, absolute=0, relative=0, wrong=wrong, elements=9)

    assert worst(judged(0, 0.1), judged(2, 0.0)).wrong == 2
    assert worst(judged(0, None), judged(0, 5.0)).max_absolute is None


def test_what_comes_from_above_is_neither_constant_nor_zero() -> None:
    above = upstream(torch.zeros(3, 50))
    assert above.unique().numel() == 150 and bool((above.abs() <= 0.5).all())
    assert torch.equal(above, upstream(torch.ones(3, 50)))


def test_the_cache_of_this_machine_is_known() -> None:
    assert roofs.last_level_cache(torch.device("cpu")) > 2**16
