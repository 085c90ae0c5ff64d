"""Carrying out a run: folders, nodes that share one, and a progress display that can't end what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagperf.errors import FlagPerfError, UsageError
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.run import _Progress, new_folder
from flagperf.schema.event import Key, Step
from flagperf.schema.trial import Nodes, Run

ONE = Nodes()
FIRST, SECOND = (Nodes(count=2, index=index, rendezvous="h:1") for index in range(2))


@pytest.fixture(scope="module")
def run() -> Run:
    return plan(Options(cases=["aquila/pretrain"], engines=["single"], trials=1), Registries())


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, run: Run) -> None:
    assert new_folder(tmp_path / "new", run, ONE) == tmp_path / "new"
    assert new_folder(tmp_path / "new", run, ONE) == tmp_path / "new"  # nothing has come into it yet
    (tmp_path / "new" / "notes.txt").touch()
    with pytest.raises(UsageError, match="isn't empty"):
        new_folder(tmp_path / "new", run, ONE)


def test_nodes_share_a_folder_whichever_comes_first(tmp_path: Path, run: Run) -> None:
    shared = new_folder(tmp_path / "shared", run, SECOND)
    (shared / "run.json").touch()
    (shared / "harness-node1.journal").touch()
    assert new_folder(shared, run, FIRST) == shared
    (shared / "harness.journal").touch()
    with pytest.raises(UsageError, match="isn't empty"):
        new_folder(shared, run, FIRST)


def test_a_folder_that_cant_be_made_is_told(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlagPerfError, match="Can't write to"):
        new_folder(tmp_path / "file" / "run", run, ONE)


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float | None]] = []

    def step(self, done: int, planned: int, loss: float | None, tokens_per_second: float) -> None:
        self.steps.append((done, planned, loss))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_progress_is_read_as_it_comes_and_bears_torn_lines(tmp_path: Path, run: Run) -> None:
    seen, path = Seen(), tmp_path / "rank0.journal"
    progress = _Progress(path, run.trials[0], seen)  # type: ignore[arg-type]
    progress.look()
    step = {"measured": True, "seconds": 0.5, "data_seconds": 0.0, "tokens": 10}
    with Journal(path, {}) as journal:
        journal.write(Key.STEP, Step(step=0, loss=3.0, **step))
        progress.look()
        progress.look()  # nothing new
        with path.open("ab") as file:
            file.write(b':::MLLOG {"key":"step","value":{"st')  # a full disk took the rest
        journal.write(Key.STEP, Step(step=1, loss=2.0, **step))
        progress.look()
        journal.write(Key.STEP, Step(step=2, loss=float("nan"), **step))
        progress.look()
    planned = run.trials[0].protocol.warmup + run.trials[0].protocol.steps
    assert [(number, count) for number, count, _ in seen.steps] == [(1, planned), (3, planned)]
    assert [loss for *_, loss in seen.steps] == [3.0, None]
