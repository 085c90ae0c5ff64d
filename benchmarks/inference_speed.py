"""Speed of generating: the engines `eager` and `inductor` against transformers' `generate` and each other.

    python benchmarks/inference_speed.py [--rounds 12] [--threads 2] [--json]

Each engine in a process of its own, as in a trial; fp32, the same weights, prompts of 64 tokens, answers of 48, 1 or 8
at once. What counts is decoding: from the moment on when every answer has its first token until the first one is
complete. Engines take turns, round by round; a ratio is the median of the rounds' ratios. Tokens are checked to be the
same first. `inductor` is measured at the smallest shape only, since compiling takes a minute where its cache is empty.
Ends with 1 where eager isn't at least AIM times as fast as transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from flagperf.cases.aquila.generate import AquilaGenerate
from flagperf.cases.aquila.generation import AquilaGeneration
from flagperf.context import RankContext
from flagperf.inference.answers import Answer, collected
from flagperf.inference.engine import InferenceEngine, Request
from flagperf.journal import Journal
from flagperf.plan import Options, alone
from flagperf.registry import Registries
from flagperf.schema.trial import Trial
from flagperf.statistics import compare_rounds

CASE = "aquila/generate"
AIM = 1.2
PROMPT, MADE = 64, 48
PRESETS = {"tiny": ["transformers", "eager", "inductor"], "mini": ["transformers", "eager"]}
BATCHES = [1, 8]
PAIRS = [("eager", "transformers"), ("inductor", "eager")]


def main() -> int:
    """Measure, print, and end with 1 where the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [each for preset in PRESETS for each in measured(preset, options.rounds, options.threads)]
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{'shape':6} {'batch':>5} {'engines':26} {'tokens/s':>16} {'ratio':>6}  95 % interval")
        for each in found:
            speeds = " and ".join(f"{each['tokens_per_second'][name]:.0f}" for name in each["engines"])
            low, high = each["interval"]
            row = f"{each['preset']:6} {each['batch']:5} {' ÷ '.join(each['engines']):26} {speeds:>16}"
            print(f"{row} {each['ratio']:6.2f}  {low:.2f} to {high:.2f}")
    aimed = [each["ratio"] for each in found if each["engines"] == ["eager", "transformers"]]
    return int(min(aimed) < AIM)


def measured(preset: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return what was found of a shape: an entry for each batch and pair of engines."""
    trial = alone(CASE, Options(cases=[CASE], preset=preset, engines=[]), Registries())
    trial = msgspec.structs.replace(trial, threads=threads, vendor="cpu")
    AquilaGenerate(trial).prepare(lambda stage, done: None)
    # A row more than is measured: for what keeps an engine busy until all others wait.
    trial.settings["load"]["batch"] = max(BATCHES) + 1
    stream = [int(token) for token in AquilaGeneration(AquilaGenerate(trial).settings, trial).requests()[0].prompt]
    processes = get_context("spawn")
    engines: dict[str, Connection] = {}
    found = []
    for name in PRESETS[preset]:
        engines[name], theirs = processes.Pipe()
        processes.Process(target=serve, args=(trial, name, theirs), daemon=True).start()
        theirs.close()
        engines[name].recv()  # it's ready
    for batch in BATCHES:
        prompts = [[*stream[row % len(stream) :], *range(row, PROMPT + row)][:PROMPT] for row in range(batch)]
        found += compared(preset, engines, [Request(prompt, MADE) for prompt in prompts], rounds)
    for pipe in engines.values():
        pipe.send(None)
    return found


def serve(trial: Trial, name: str, pipe: Connection) -> None:
    """Start an engine, and answer requests that come through a pipe with the tokens made and their speed."""
    registries = Registries()
    runtime = registries.vendors.adapter("cpu").runtime(0, 1, trial.threads)
    trial = msgspec.structs.replace(trial, engine=name)
    task = AquilaGeneration(AquilaGenerate(trial).settings, trial)
    with TemporaryDirectory() as scratch, Journal(Path(scratch) / "journal", {}) as journal:
        context = RankContext.alone(trial, runtime, journal, registries)
        engine: InferenceEngine = registries.engines.load(name)(context)
        engine.start(task)
        pipe.send(None)
        while requests := pipe.recv():
            answers = asked(engine, requests)
            pipe.send(([answer.ids for answer in answers], decoded(answers)))
        engine.close()


def compared(
    preset: str, engines: dict[str, Connection], requests: Sequence[Request], rounds: int
) -> list[dict[str, Any]]:
    """Return the ratios of the engines for requests that are asked at once."""

    def turn(name: str) -> tuple[list[list[int]], float]:
        engines[name].send(requests)
        told: tuple[list[list[int]], float] = engines[name].recv()
        return told

    ids = {name: turn(name)[0] for name in engines}
    if any(ids[name] != ids["transformers"] for name in engines):
        sys.exit(f"The engines' tokens differ at {preset}, {len(requests)} at once: a speed would mean nothing.")
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        for name in list(engines)[:: -1 if number % 2 else 1]:
            speeds[name].append(turn(name)[1])
    told = []
    for first, second in PAIRS:
        if first in engines and second in engines:
            estimate = compare_rounds(speeds[first], speeds[second], "higher", 0.03)
            told.append(
                {
                    "preset": preset,
                    "batch": len(requests),
                    "engines": [first, second],
                    "ratio": estimate.ratio,
                    "interval": [estimate.low, estimate.high],
                    "tokens_per_second": {n: median(speeds[n]) for n in (first, second)},
                    "samples": {n: speeds[n] for n in (first, second)},
                }
            )
    return told


def asked(engine: InferenceEngine, requests: Sequence[Request]) -> list[Answer]:
    """Return the answers to requests that are worked on together."""
    if len(requests) == 1:
        return collected(engine.submit, requests)
    return collected(engine.submit, [Request(requests[0].prompt, 2), *requests])[1:]


def decoded(answers: Sequence[Answer]) -> float:
    """Return the tokens a second made while all answers were worked on."""
    queries = [answer.query() for answer in answers]
    stamps = [[query.issued / 1e9 + at / 1e6 for at in query.times] for query in queries]
    begin, end = max(each[0] for each in stamps), min(each[-1] for each in stamps)
    return sum(begin < at <= end for each in stamps for at in each) / (end - begin)


if __name__ == "__main__":
    sys.exit(main())
