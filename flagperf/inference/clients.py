"""The scenario `concurrency`: so many clients, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np

from flagperf.inference.answers import Answer, Watch, collected
from flagperf.inference.rig import Rig
from flagperf.schema.event import Key
from flagperf.schema.inference import Load, LoadStart

PATIENCE = 10
"""Times as long as elsewhere an answer may take that is off the record."""
LEAST_QUERIES = 2
"""A client has answered at least, however short the time is."""


def run(rig: Rig) -> Load:
    """Ask at each number of clients, for an equal part of the time; raise FlagPerfError when the engine has stalled."""
    each = rig.load.duration * rig.scale / len(rig.load.clients)
    seconds = sum(ask(rig, clients, each) for clients in rig.load.clients)
    return Load(scenario="concurrency", seconds=seconds, settings={"clients": rig.load.clients, "seconds_each": each})


def ask(rig: Rig, clients: int, seconds: float) -> float:
    """Keep `clients` queries going for `seconds`; return how long it took until the last answer.

    Before that each client asks once off the record: batches of a new size may have to be compiled. Queries still
    going at the end are waited for, and count: leaving them out would favour short answers.
    """
    prompts = _prompts(rig)
    collected(rig.engine.submit, [rig.requests[next(prompts)] for _ in range(clients)], PATIENCE * rig.load.patience)
    start = LoadStart(scenario="concurrency", seconds=seconds, queries=LEAST_QUERIES * clients, clients=clients)
    rig.recorder.write(Key.LOAD_START, start)
    over, watch = threading.Semaphore(0), Watch(rig.load.patience)

    def ended(answer: Answer) -> None:
        rig.keep(answer)
        watch.ended(answer)
        over.release()

    prompts = _prompts(rig)
    began = time.monotonic()
    sent = going = 0
    while True:
        enough = time.monotonic() - began >= seconds and sent >= LEAST_QUERIES * clients
        while going < clients and not enough:
            prompt = next(prompts)
            answer = Answer(rig.number(), prompt, rig.requests[prompt], clients=clients, ended=ended)
            watch.issued(answer)
            rig.submit(answer)
            going, sent = going + 1, sent + 1
        if not going:
            return time.monotonic() - began
        going -= over.acquire(timeout=watch.pause)
        watch.look()


def _prompts(rig: Rig) -> Iterator[int]:
    """Yield prompts in a shuffled order, all of them before one comes again: the same at every number of clients."""
    random = np.random.default_rng([rig.seed, len(rig.requests)])
    return (int(place) for _ in itertools.count() for place in random.permutation(len(rig.requests)))
