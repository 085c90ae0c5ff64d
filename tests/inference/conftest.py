"""Engines that are started in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import rank_alone
from inference.small import REGISTRIES, Started, planned

from flagperf.cases.aquila.generation import AquilaGeneration
from flagperf.inference.engine import InferenceEngine
from flagperf.journal import Journal


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Return what starts an engine with a small model, and gives its task with it; all are ended afterwards."""
    begun: list[InferenceEngine] = []
    folder = tmp_path_factory.mktemp("journals")

    def begin(name: str = "eager", dtype: str = "fp32", **over: Any) -> Started:
        trial = planned(name, dtype, **over)
        case: Any = REGISTRIES.cases.load(trial.case)(trial)
        case.prepare(lambda *_: None)
        journal = Journal(folder / f"{len(begun)}", {})
        context = rank_alone(trial, journal, REGISTRIES)
        task = AquilaGeneration(case.settings, trial)
        engine = REGISTRIES.engines.load(name)(context)
        begun.append(engine)
        engine.start(task)
        return engine, task

    yield begin
    for engine in begun:
        engine.close()
