"""The timer of sweeps, on a clock of its own: what it measures of known times, whatever disturbs them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flagperf.measure import timer as timing
from flagperf.measure.timer import MOST_ROUNDS, SHORTEST, Timer, in_turn
from flagperf.statistics import compare_rounds, independent

CPU, CHIP = torch.device("cpu"), torch.device("meta")
LOOP = 50
"""Nanoseconds that calling a kernel takes by itself."""


class World:
    """A host's clock and a device's, which only what runs on them moves."""

    def __init__(self) -> None:
        self.host = self.device = 0
        self.reading = 20

    def perf_counter_ns(self) -> int:
        self.host += self.reading
        return self.host

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)

    def kernel(self, nanoseconds: Callable[[], float]) -> timing.Call:
        """A kernel of the host's that takes this long."""

        def call(number: int) -> int:
            self.host += LOOP + round(nanoseconds())
            return number

        return call

    def launch(self, nanoseconds: float) -> timing.Call:
        """A kernel of the device's: the call is back when it has been launched."""

        def call(number: int) -> int:
            self.host += 5000
            self.device = max(self.host, self.device) + round(nanoseconds)
            return number

        return call

    def event(self, device: torch.device, enable_timing: bool) -> Any:
        world = self

        class Event:
            at: int

            def record(self) -> None:
                self.at = max(world.host, world.device)

            def elapsed_time(self, other: Event) -> float:
                if world.host < world.device:
                    raise RuntimeError("not completed")
                return (other.at - self.at) / 1e6

        return Event()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(timing.time, "perf_counter_ns", made.perf_counter_ns)
    monkeypatch.setattr(timing.torch, "Event", made.event)
    monkeypatch.setattr(timing, "_nothing", made.kernel(lambda: 0.0))
    return made


@pytest.mark.parametrize("nanoseconds", [0, 1000, 30_000, 10_000_000])
def test_a_known_time_is_measured_within_what_the_timer_says(world: World, nanoseconds: int) -> None:
    timer = Timer(CPU, world.synchronize)
    rounds = in_turn(timer, {"a": world.kernel(lambda: nanoseconds)}, warmup=1, rounds=3, seconds=0.0)["a"]
    uncertainty = timer.uncertainty(rounds.calls)
    assert max(rounds.seconds) - nanoseconds / 1e9 <= uncertainty
    assert min(rounds.seconds) - nanoseconds / 1e9 >= -uncertainty
    assert uncertainty < 60e-9 + 0.001 * max(rounds.seconds)
    assert rounds.calls * rounds.seconds[0] >= SHORTEST or nanoseconds > SHORTEST * 1e9


def test_a_device_is_timed_by_its_events_and_waited_for(world: World) -> None:
    timer = Timer(CHIP, world.synchronize)
    rounds = in_turn(timer, {"a": world.launch(1e6)}, warmup=1, rounds=4, seconds=0.0)["a"]
    assert rounds.seconds == pytest.approx([1e-3] * 4, rel=0.01)
    assert all(host >= device for host, device in zip(rounds.host_seconds, rounds.seconds, strict=True))
    # A kernel shorter than its launch is as slow as launching is.
    assert in_turn(timer, {"a": world.launch(100)}, warmup=1, rounds=1, seconds=0.0)["a"].seconds[0] > 4e-6


def test_a_round_is_long_enough_though_the_first_ones_were_disturbed(world: World) -> None:
    disturbed = iter([50e6, 0.0, 80e6])
    calls = Timer(CPU, world.synchronize).calibrate(world.kernel(lambda: 1000 + next(disturbed, 0.0)))
    assert calls * 1e-6 >= SHORTEST * 0.9


def test_the_timers_own_error_isnt_that_of_the_machine(world: World) -> None:
    once = iter([0.0] * 10 + [9e6])
    timing._nothing = world.kernel(lambda: next(once, 0.0))
    timer = Timer(CPU, world.synchronize)
    assert timer.error < 200e-9
    assert timer.overhead == pytest.approx(50e-9, rel=0.01)


def test_calls_take_turns_and_each_round_is_announced_off_the_clock(world: World) -> None:
    told: list[str] = []
    numbers: dict[str, list[int]] = {"a": [], "b": [], "c": []}

    def before(name: str) -> None:
        told.append(name)
        world.host += 10**6

    def call(name: str) -> timing.Call:
        def run(number: int) -> None:
            numbers[name].append(number)
            world.host += 10**6

        return run

    timer = Timer(CPU, world.synchronize)
    taken = in_turn(timer, {n: call(n) for n in "abc"}, warmup=2, rounds=3, seconds=0.0, before=before)
    assert "".join(told)[-15:] == "abccbaabccbaabc"
    assert [each.seconds for each in taken.values()] == [pytest.approx([1e-3] * 3, rel=0.001)] * 3
    assert numbers["b"][-3:] == [0, 1, 2]  # by which a call can take other inputs than the one before


def test_it_goes_on_for_as_long_as_was_said_and_no_longer(world: World) -> None:
    timer = Timer(CPU, world.synchronize)
    calls = {name: world.kernel(lambda: 10e6) for name in "ab"}
    assert len(in_turn(timer, calls, warmup=1, rounds=2, seconds=0.5)["a"].seconds) == 50
    many = in_turn(timer, {"a": world.kernel(lambda: 1000)}, warmup=1, rounds=2, seconds=2.0)["a"]
    assert 0.8 * MOST_ROUNDS <= len(many.seconds) <= MOST_ROUNDS
    assert in_turn(timer, {}, warmup=1, rounds=2, seconds=1.0) == {}


def test_one_result_is_held_not_one_a_round_and_garbage_is_collected_again(world: World) -> None:
    class Result:
        pass

    alive: list[weakref.ref[Result]] = []
    most = 0

    def call(number: int) -> Result:
        nonlocal most
        most = max(most, sum(each() is not None for each in alive))
        assert len(alive) < 4 or not gc.isenabled()
        result = Result()
        alive.append(weakref.ref(result))
        world.host += 10**6
        return result

    taken = in_turn(Timer(CPU, world.synchronize), {"a": call}, warmup=1, rounds=20, seconds=0.0)
    assert isinstance(taken["a"].result, Result) and sum(each() is not None for each in alive) == 1
    assert most == 0
    assert gc.isenabled()


def test_the_same_is_equivalent_and_three_percent_are_found_on_a_machine_that_is_disturbed(world: World) -> None:
    """A machine that drifts by half, is disturbed for some calls on end, and favours who comes second."""
    random = np.random.default_rng(7)
    state = {"left": 0}

    def disturbed() -> float:
        if state["left"] == 0 and random.random() < 0.01:
            state["left"] = int(random.integers(1, 20))
        state["left"] = max(0, state["left"] - 1)
        drift = 1 + 0.25 * np.sin(world.host / 3e8)
        return float(drift * (1 + 0.02 * random.standard_normal()) * (3 if state["left"] else 1))

    timer = Timer(CPU, world.synchronize)
    same = slower = holds = 0
    for _ in range(100):
        for factor in (1.0, 1.03):
            calls = {
                "a": world.kernel(lambda: 300_000 * disturbed()),
                "b": world.kernel(lambda factor=factor: 300_000 * factor * disturbed()),
            }
            taken = in_turn(timer, calls, warmup=1, rounds=10, seconds=0.1)
            found = compare_rounds(taken["a"].seconds, taken["b"].seconds, "higher", 0.015)
            assert found.low is not None and found.high is not None
            holds += found.low <= 1 / factor <= found.high
            same += factor == 1.0 and found.verdict == "equivalent"
            slower += factor != 1.0 and found.verdict == "worse"
    assert same >= 95 and slower >= 90
    assert holds >= 180


@given(st.lists(st.floats(0.1, 10.0), min_size=20, max_size=200), st.floats(0.5, 2.0))
def test_a_ratio_of_rounds_is_found_whatever_the_rounds(base: list[float], factor: float) -> None:
    found = compare_rounds([factor * x for x in base], base, "higher", 0.03)
    assert found.ratio == pytest.approx(factor)
    assert found.low == pytest.approx(factor) and found.high == pytest.approx(factor)
    swapped = compare_rounds(base, [factor * x for x in base], "higher", 0.03)
    assert {found.verdict, swapped.verdict} in ({"better", "worse"}, {"equivalent"}, {"cannot tell"})


def test_neighbours_that_are_alike_tell_less() -> None:
    random = np.random.default_rng(3)
    noise = random.standard_normal(2000)
    assert independent(noise) > 1400
    assert independent(np.repeat(noise[:200], 10)) == pytest.approx(200, rel=0.4)
    assert independent(np.tile([1.0, -1.0], 100)) == 200  # who comes first alternates, and evens out
    assert independent(np.ones(50)) == 50
