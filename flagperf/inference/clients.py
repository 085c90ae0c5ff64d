"""The scenario `concurrency`: so many clients, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

from flagperf.inference.answers import Answer, Recorder
from flagperf.inference.engine import InferenceEngine, Request

LEAST_QUERIES = 2
"""A client has answered at least, however short the time is."""


def ask(
    engine: InferenceEngine,
    requests: Sequence[Request],
    clients: int,
    seconds: float,
    recorder: Recorder,
    numbers: itertools.count[int],
) -> float:
    """Keep `clients` queries going for `seconds`; return how long it took until the last answer.

    Queries still going at the end are waited for, and count: leaving them out would favour short answers.
    """
    idle: threading.Semaphore = threading.Semaphore(0)
    began = time.monotonic()

    def ended(answer: Answer) -> None:
        recorder(answer)
        idle.release()

    sent = 0
    going = 0
    while True:
        enough = time.monotonic() - began >= seconds and sent >= LEAST_QUERIES * clients
        while going < clients and not enough:
            number = next(numbers)
            request = requests[number % len(requests)]
            answer = Answer(number, number % len(requests), request, clients=clients, ended=ended)
            engine.submit(request, answer)
            going, sent = going + 1, sent + 1
        if not going:
            return time.monotonic() - began
        idle.acquire()
        going -= 1
