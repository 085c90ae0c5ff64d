"""Serial work against shared-out work: the same outcomes, workers that end, failures that are told."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch  # noqa: F401  # once, for all forks
from helpers import rank_alone

from flagperf.cases.parallel import workers
from flagperf.cases.parallel.workers import SERIAL, Job, Place, _shared, _workers
from flagperf.collect.journals import read_rank
from flagperf.collect.sweeps import sweep_notes, sweep_points
from flagperf.errors import FlagPerfError
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries


class Letters(Job):
    """Items that are told by their number; `ill` makes one process's outcomes differ, or ends it."""

    def __init__(self, count: int, ill: str = "") -> None:
        self.count, self.ill = count, ill
        self.started = False

    def start(self, runtime: Any) -> None:
        self.started = True

    def items(self) -> int:
        return self.count

    def outcome(self, item: int) -> bytes:
        assert self.started
        alone = multiprocessing.parent_process() is None
        if self.ill == "dies" and not alone and item == 3:
            os._exit(9)
        if self.ill == "fails" and not alone:
            raise ValueError(f"no {item}")
        return str(item + (self.ill == "differs" and not alone and item == 2)).encode()


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that needn't import torch anew; these jobs don't compute with it."""
    monkeypatch.setattr(workers, "_METHOD", "fork")


PLACE = Place("cpu", [], 0, 2, 1)


def test_outcomes_come_in_the_items_order() -> None:
    job = Letters(5)
    job.start(None)
    with _workers(Letters(5), PLACE) as pipes:
        assert _shared(pipes, 5) == job.run(range(5))
        ours = multiprocessing.active_children()
        assert len(ours) == 2
    assert not any(process.is_alive() for process in ours)


@pytest.mark.parametrize(("ill", "told"), [("dies", "died"), ("fails", "ValueError: no 0")])
def test_a_worker_that_cant_go_on_is_told(ill: str, told: str) -> None:
    with pytest.raises(FlagPerfError, match=told), _workers(Letters(5, ill), PLACE) as pipes:
        _shared(pipes, 5)
    assert not multiprocessing.active_children()


def test_points_are_compared_and_stand_beside_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registries = Registries()
    settings = {"protocol": {"seconds": 0.0}, "items": 6}
    options = Options(cases=["parallel/inference"], vendor="cpu", steps=3, settings=settings)
    (trial,) = plan(options, registries).trials
    assert trial.providers == [SERIAL, "workers"]
    for ill, verdict in (("", "valid"), ("differs", "wrong")):
        case: Any = registries.cases.load(trial.case)(trial)
        monkeypatch.setattr(case, "job", lambda ill=ill: Letters(6, ill))
        path = tmp_path / f"{ill}.journal"
        with Journal(path, {}) as journal:
            case.measure(rank_alone(trial, journal, registries))
        points = sweep_points(trial, [read_rank(path, 0)])
        assert [point.verdict for point in points] == ["valid", verdict]
        notes = [note.message for note in sweep_notes(points) if note.code == "claim"]
        if ill:
            assert "1 of 6 outcomes differ" in points[1].why and not notes
        else:
            assert points[1].speedup is not None and points[1].speedup.pairs == 3
            assert "up to 2 times" in notes[0] and "FlagEval" in notes[0]
            points[1].facts["claim"] = 7
            assert "claim" not in [note.code for note in sweep_notes(points)]
        assert msgspec.to_builtins(points)[0]["facts"]["items"] == 6
