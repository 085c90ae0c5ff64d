"""The protocol of one inference trial: start, check answers, warm up, put it under load; all goes to the journal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from flagperf.context import RankContext
from flagperf.inference import clients, loadgen
from flagperf.inference.agreement import agreement, next_tokens_right
from flagperf.inference.answers import Recorder, collected
from flagperf.inference.engine import GenerationTask, InferenceEngine, Request
from flagperf.schema.event import Key
from flagperf.schema.inference import Load

CHECKED = 8
"""Prompts whose answers are compared with the reference."""


def run_generation(
    context: RankContext,
    task: GenerationTask,
    requests: Sequence[Request],
    held_out: Sequence[tuple[Sequence[int], int]],
) -> None:
    """Bring up the trial's engine, measure it, and take it down."""
    engine: InferenceEngine = context.registries.engines.load(context.trial.engine)(context)
    try:
        _measure(context, engine, task, requests, held_out)
    finally:
        engine.close()


def _measure(
    context: RankContext,
    engine: InferenceEngine,
    task: GenerationTask,
    requests: Sequence[Request],
    held_out: Sequence[tuple[Sequence[int], int]],
) -> None:
    trial, journal, runtime = context.trial, context.journal, context.runtime
    began = time.perf_counter()
    engine.start(task)
    seconds = time.perf_counter() - began
    journal.write(Key.BUILD, {"seconds": seconds, "facts": {**runtime.facts(), **engine.facts()}})
    journal.write(Key.INIT_STOP)
    journal.write(Key.AGREEMENT, agreement(engine, task, requests[:CHECKED]))
    if held_out:
        journal.write(Key.EVAL, {"next_token_accuracy": next_tokens_right(engine, held_out), "count": len(held_out)})
    rate = _warmed(engine, requests, trial.protocol.warmup * task.load.batch)
    runtime.reset_peak_memory()
    journal.write(Key.RUN_START)
    numbers = itertools.count()
    with Recorder(journal) as recorder:
        if trial.scenario == "concurrency":
            each = task.load.duration * trial.scale / len(task.load.clients)
            spent = sum(clients.ask(engine, requests, count, each, recorder, numbers) for count in task.load.clients)
            told = Load(scenario="concurrency", seconds=spent, settings={"clients": task.load.clients})
        else:
            told = loadgen.run(
                trial.scenario,
                engine,
                requests,
                task.load,
                scale=trial.scale,
                rate=task.load.rate or rate,
                folder=journal.path.parent / "output" / "loadgen",
                recorder=recorder,
                numbers=numbers,
            )
    journal.write(Key.LOAD, told)
    journal.write(Key.MEMORY, runtime.memory())
    journal.write(Key.HELD, engine.held())
    journal.write(Key.SERVED, {"facts": engine.facts()})


def _warmed(engine: InferenceEngine, requests: Sequence[Request], count: int) -> float:
    """Answer some queries at once, off the record; return how many a second that were, the second time."""
    some = list(itertools.islice(itertools.cycle(requests), count))
    collected(engine.submit, some)
    began = time.perf_counter()
    collected(engine.submit, some)
    return count / (time.perf_counter() - began)
