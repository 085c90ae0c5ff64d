"""Classification: classes equal torch's in fp32, batches are as large as what waits, and what fails is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rank_alone

from flagperf.cases.encoder.sentences import Sentences
from flagperf.inference.answers import collected
from flagperf.inference.classification import Classifier
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries

MODEL = {"dim": 16, "layers": 1, "heads": 2, "ffn": 32, "vocab_size": 50, "seq_len": 8, "init_std": 0.5}


@pytest.fixture
def task_and_engine(tmp_path: Path) -> tuple[Sentences, Classifier]:
    """A small encoder, and eager torch for it, not started yet."""
    registries = Registries()
    settings = {"model": MODEL, "load": {"count": 10, "batch": 4}}
    options = Options(cases=["encoder/classify"], engines=["eager"], vendor="cpu", settings=settings)
    trial = plan(options, registries).trials[0]
    case: Any = registries.cases.load(trial.case)(trial)
    context = rank_alone(trial, Journal(tmp_path / "journal", {}), registries)
    return Sentences(case.settings, trial), Classifier(context, registries.engines.load("eager")(context))


def test_classes_are_torchs_and_a_wrong_module_is_found(task_and_engine: tuple[Sentences, Classifier]) -> None:
    task, engine = task_and_engine
    engine.start(task)
    requests = task.requests()
    with torch.inference_mode():
        expected = task.module(torch.float32)(task.inputs()).argmax(1).tolist()
    assert [answer.ids for answer in collected(engine.submit, requests)] == [[each] for each in expected]
    assert task.agreement(engine, requests).wrong == 0
    facts = engine.facts()
    assert facts["answered"] == 20 and 1 < float(str(facts["rows_a_step"])) <= 4
    assert len(set(expected)) == 2
    engine._batches.forward = lambda inputs: torch.tensor([[1.0, 0.0]]).expand(len(inputs), -1)
    told = task.agreement(engine, requests)
    assert told.wrong == sum(expected) and "where the reference has 1" in told.first
    engine.close()


def test_what_fails_is_told_and_the_next_is_answered(task_and_engine: tuple[Sentences, Classifier]) -> None:
    task, engine = task_and_engine
    engine.start(task)
    sound = engine._batches.forward

    def short(inputs: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no more")

    engine._batches.forward = short
    answers = collected(engine.submit, task.requests()[:3])
    assert {answer.fault for answer in answers} == {"memory"}
    engine._batches.forward = sound
    assert not collected(engine.submit, task.requests()[:1])[0].fault
    engine.close()
