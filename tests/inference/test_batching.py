"""Continuous batching, whatever is asked in whatever order; and what becomes of requests when something goes wrong."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.small import Started, planned

from flagperf.cases.aquila.generation import AquilaGeneration
from flagperf.errors import FlagPerfError, UsageError
from flagperf.inference.agreement import agreement
from flagperf.inference.answers import collected
from flagperf.inference.batching import Batcher
from flagperf.inference.engine import Request
from flagperf.inference.prefixes import BLOCK, PrefixCache


@pytest.fixture(scope="module")
def cached(start: Callable[..., Started]) -> Started:
    return start(prefix_cache=True)


# Few tokens, so that beginnings are often alike.
prompt = st.lists(st.integers(0, 1), min_size=1, max_size=50) | st.just([1] * 40)
request = st.tuples(prompt, st.integers(1, 14)).map(lambda told: Request(*told))


@settings(max_examples=25)
@given(mix=st.lists(request, min_size=1, max_size=9))
def test_any_mix_is_answered_as_by_the_plain_model(cached: Started, mix: list[Request]) -> None:
    engine, task = cached
    told = agreement(engine, task, mix)
    assert told.wrong == 0, told.first
    assert told.tokens == sum(each.limit for each in mix)


def test_a_cache_that_is_left_behind_is_found(start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, task = start()

    def forget(self: Batcher, place: int) -> None:  # the last row moves up, its keys and values don't
        last = self._rows.pop()
        if place < len(self._rows):
            self._rows[place] = last

    assert agreement(engine, task, task.requests()).wrong == 0
    monkeypatch.setattr(Batcher, "_remove", forget)
    assert agreement(engine, task, task.requests()).wrong > 0


@pytest.mark.parametrize(("error", "fault"), [(ValueError("no"), "engine"), (MemoryError(), "memory")])
def test_a_step_that_fails_ends_its_requests_alone(
    start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str
) -> None:
    engine, task = start()
    step, calls = engine.batcher._step, []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        return step(*arguments)

    requests = task.requests()
    expected = [answer.ids for answer in collected(engine.submit, requests)]
    monkeypatch.setattr(engine.batcher, "_step", failing)
    answers = collected(engine.submit, requests)
    failed = [answer for answer in answers if answer.fault]
    assert 1 <= len(failed) <= 3 and {answer.fault for answer in failed} == {fault}
    for answer, ids in zip(answers, expected, strict=True):
        assert answer.ids == ids[: len(answer.ids)] and (answer.fault or answer.ids == ids)


@pytest.mark.parametrize("name", ["eager", "transformers"])
def test_what_isnt_done_when_an_engine_closes_has_failed(start: Callable[..., Started], name: str) -> None:
    engine, _ = start(name)
    outcomes: list[str] = []

    class Reply:
        def tokens(self, ids: object) -> None: ...

        def recounted(self, total: int) -> None: ...

        def done(self) -> None:
            outcomes.append("done")

        def failed(self, fault: str, why: str) -> None:
            outcomes.append(fault)

    for _ in range(6):
        engine.submit(Request([5] * 4, 60), Reply())
    engine.close()
    engine.submit(Request([5] * 4, 2), Reply())
    assert len(outcomes) == 7 and outcomes[-1] == "engine" and outcomes.count("engine") >= 4


def test_blocks_that_are_long_unused_go_first() -> None:
    row = [torch.zeros(2, 64, 4) for _ in range(3)]
    one = 3 * 2 * BLOCK * 4 * row[0].itemsize
    cache = PrefixCache(room=2 * one)
    prompts = [[number] * (BLOCK + 1) for number in range(3)]
    for number in (0, 1):
        for each in row:
            each.fill_(number)
        cache.keep(prompts[number], row)
    assert cache.restore(prompts[0], row) == BLOCK and float(row[2][1, BLOCK - 1, 0]) == 0
    cache.keep(prompts[2], row)
    assert cache.bytes == 2 * one
    assert [cache.restore(each, row) for each in prompts] == [BLOCK, 0, BLOCK]
    assert cache.restore(prompts[0][:BLOCK], row) == 0  # something must be left to read


@pytest.mark.slow
def test_compiled_code_serves_all_sizes(start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    engine, task = start("inductor")
    assert counter.frame_count == 2  # one row or several
    told = agreement(engine, task, task.requests())
    assert told.wrong == 0 and counter.frame_count == 2


def surprise(task: AquilaGeneration) -> float:
    """Return the mean loss of the next token after held-out passages, in nats."""
    passages, following = zip(*task.held_out(), strict=True)
    with torch.inference_mode():
        logits = task.reference()(torch.tensor(passages))[:, -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(following)))


def test_trained_weights_are_made_once_and_say_more(start: Callable[..., Started], tmp_path: Path) -> None:
    learning = {"model": {"init_std": 0.05}, "held_out": 200}
    _, random = start(**learning)
    engine, task = start(weights="trained", training=60, **learning)
    assert surprise(task) < surprise(random) - 0.05
    made = task.folder()
    before = (made / "SHA256SUMS").stat().st_mtime_ns
    again, other = start(weights="trained", training=60, **learning)
    assert other.folder() == made and (made / "SHA256SUMS").stat().st_mtime_ns == before
    # The same as any folder, whose own shape is gone by.
    foreign, same = start(weights=str(made), model={"dim": 64, "layers": 5}, held_out=200)
    assert (same.config.dim, same.config.layers, same.config.rotary) == (32, 2, "half")
    requests = task.requests()
    expected = [answer.ids for answer in collected(engine.submit, requests)]
    for each in (again, foreign):
        assert [answer.ids for answer in collected(each.submit, requests)] == expected


def test_what_an_engine_cant_do_is_refused_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without prefix_cache"):
        planned("transformers", prefix_cache=True)
    with pytest.raises(UsageError, match=r"config\.json can't be read"):
        planned(weights=str(tmp_path))
    with pytest.raises(FlagPerfError, match="bf16"):
        planned("onnxruntime", "bf16")


@pytest.mark.skipif(
    sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="counts by Linux's /proc, on two cores"
)
def test_the_thread_that_serves_is_not_put_to_sleep_between_operations() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    program = [sys.executable, Path(__file__).with_name("asleep.py")]
    told = subprocess.run(program, stdout=subprocess.PIPE, env=environment, check=True, timeout=300)
    counted = json.loads(told.stdout)
    assert counted["threads"] > 1 and counted["steps"] > 100
    assert counted["sleeps"] < 5 * counted["steps"]
