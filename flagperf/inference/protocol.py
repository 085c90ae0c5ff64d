"""The protocol of one inference trial: start, check answers, warm up, put it under load; all goes to the journal."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from flagperf.context import RankContext
from flagperf.inference import clients, loadgen, rates
from flagperf.inference.agreement import next_tokens_right
from flagperf.inference.answers import Recorder, collected
from flagperf.inference.classification import ClassificationTask, Classifier
from flagperf.inference.engine import GenerationTask, InferenceEngine, ModuleEngine, Request
from flagperf.inference.rig import Rig
from flagperf.inference.worker import apart
from flagperf.processes import end_at_once
from flagperf.schema.event import Key
from flagperf.schema.trial import Trial

ALONE = 4
"""Queries that are asked one by one before SingleStream."""
CLOSING = 10.0
"""Seconds that an engine may take to close."""


def run_generation(
    context: RankContext,
    task: GenerationTask,
    requests: Sequence[Request],
    held_out: Sequence[tuple[Sequence[int], int]],
) -> None:
    """Bring up the trial's engine, measure it, and take it down."""
    engine: InferenceEngine = context.registries.engines.load(context.trial.engine)(context)
    run(context, engine, task, requests, held_out)


def run_classification(context: RankContext, task: ClassificationTask) -> None:
    """Bring up the trial's engine, measure how it classifies, and take it down."""
    engine: ModuleEngine = context.registries.engines.load(context.trial.engine)(context)
    run(context, Classifier(context, engine), task, task.requests())


def run(
    context: RankContext,
    engine: InferenceEngine,
    task: Any,
    requests: Sequence[Request],
    held_out: Sequence[tuple[Sequence[int], int]] = (),
) -> None:
    """Measure an engine; `task` is what it's started with, says its load, and judges its answers."""
    try:
        _measure(context, engine, task, requests, held_out)
    except BaseException:
        with suppress(Exception):  # what went wrong first is what is told
            _closed(engine)
        raise
    _closed(engine)


def _closed(engine: InferenceEngine) -> None:
    """Take the engine down. One that hangs is left behind, and this process then ends at once."""
    failure: list[Exception] = []

    def close() -> None:
        try:
            engine.close()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=close, name="close", daemon=True)
    thread.start()
    thread.join(CLOSING)
    if thread.is_alive():
        end_at_once()
    if failure:
        raise failure[0]


def _measure(
    context: RankContext,
    engine: InferenceEngine,
    task: Any,
    requests: Sequence[Request],
    held_out: Sequence[tuple[Sequence[int], int]],
) -> None:
    trial, journal, runtime = context.trial, context.journal, context.runtime
    began = time.perf_counter()
    engine.start(task)
    seconds = time.perf_counter() - began
    journal.write(Key.BUILD, {"seconds": seconds, "facts": {**runtime.facts(), **engine.facts()}})
    journal.write(Key.INIT_STOP)
    if engine.checked:
        agreed = apart(lambda: task.agreement(engine, requests))
        journal.write(Key.AGREEMENT, msgspec.structs.replace(agreed, judged=engine.exact))
    if held_out and engine.checked:
        journal.write(Key.EVAL, {"next_token_accuracy": next_tokens_right(engine, held_out), "count": len(held_out)})
    rate, pace = _warmed(engine, requests, trial, task.load.batch)
    runtime.reset_peak_memory()
    journal.write(Key.SERVED, engine.facts())
    journal.write(Key.RUN_START)
    with Recorder(journal) as recorder:
        rig = Rig(
            engine=engine,
            requests=requests,
            load=task.load,
            scale=trial.scale,
            seed=trial.seed,
            recorder=recorder,
            folder=journal.path.parent / "output" / "loadgen",
        )
        if trial.scenario == "concurrency":
            told = clients.run(rig)
        elif trial.scenario == "server" and not task.load.rate:
            told = rates.highest(rig, rate)
        else:
            told = loadgen.run(rig, trial.scenario, rate=task.load.rate or rate, pace=pace)
    journal.write(Key.LOAD, told)
    journal.write(Key.MEMORY, engine.memory(runtime.memory()))
    journal.write(Key.HELD, engine.held())
    journal.write(Key.SERVED, engine.facts())


def _warmed(engine: InferenceEngine, requests: Sequence[Request], trial: Trial, batch: int) -> tuple[float, float]:
    """Answer some queries off the record.

    Return how many a second that are when all are asked at once, and how many seconds a query of the scenario takes.
    """
    some = list(itertools.islice(itertools.cycle(requests), trial.protocol.warmup * batch))
    collected(engine.submit, some[:batch])
    began = time.perf_counter()
    collected(engine.submit, some)
    rate = len(some) / (time.perf_counter() - began)
    if trial.scenario != "singlestream":
        return rate, batch / rate
    began = time.perf_counter()
    for request in some[:ALONE]:
        collected(engine.submit, [request])
    return rate, (time.perf_counter() - began) / len(some[:ALONE])
