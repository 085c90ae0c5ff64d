"""How far the harness of inference can be trusted, with engines that only pretend and whose times are known.

Cost: an engine that sleeps 10 ms a query and counts how long it really slept, asked by LoadGen one query after the
other, through answers, journal and watch. All time that it didn't sleep ÷ the time it did is what the harness takes.
In turn with that, LoadGen alone with the fewest lines that can be asked: what it takes itself.

Percentiles: an engine whose times to the first token and between tokens are drawn beforehand; each percentile that the
collector finds ÷ the one of what was drawn.

Rate: an engine that is a queue with one server of fixed service time. At Poisson arrivals its waiting time has a known
distribution (M/D/1: Erlang 1909; the series is that of Franx, Operations Research Letters 29, 2001), and so the highest
rate that keeps a bound at the 99th percentile is known; the rate that Server finds ÷ that.

    python benchmarks/inference_harness.py
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq

sys.path.insert(0, str(Path(__file__).parents[1]))

from flagperf.collect.journals import read_rank
from flagperf.inference import loadgen, rates
from flagperf.inference.engine import GenerationTask, InferenceEngine, Reply, Request
from flagperf.schema.inference import HeldByInference
from flagperf.statistics import quantile_interval
from tests.inference.fakes import Bench, OneServer, Timed

SLEEP = 0.010
SERVICE = 0.004
BOUND = 0.040
"""Seconds of the time to the first token."""


def main() -> int:
    """Measure, print, and end with 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of the cost, each of 100 queries both ways")
    parser.add_argument("--queries", type=int, default=1200, help="for the percentiles")
    parser.add_argument("--seconds", type=float, default=25.0, help="that a rate is measured for")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {
            "cost": cost(folder, options.rounds),
            "percentiles": percentiles(folder, options.queries),
            "rate": rate(folder, options.seconds),
        }
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    good = found["cost"]["share"] <= 0.01 and abs(found["rate"]["ratio"] - 1) <= 0.05
    return 0 if good and all(abs(ratio - 1) <= 0.02 for ratio in found["percentiles"].values()) else 1


def show(found: dict[str, dict[str, float]]) -> None:
    """Print what was found beside the aims."""
    cost, rate = found["cost"], found["rate"]
    interval = f"[{cost['low']:.2%}, {cost['high']:.2%}], of which LoadGen alone {cost['loadgen']:.2%}"
    print(f"harness' cost of a {SLEEP * 1000:g} ms query: {cost['share']:.2%} {interval} (aim: at most 1 %)")
    for name, ratio in found["percentiles"].items():
        print(f"{name}: found ÷ planted {ratio:.4f} (aim: within 2 %)")
    print(f"Server's rate ÷ what M/D/1 can hold: {rate['ratio']:.3f} (aim: within 5 %), ", end="")
    print(f"{rate['found']:.1f} and {rate['theory']:.1f} queries/s, {rate['probes']:.0f} probes")


class Sleeper(InferenceEngine):
    """Sleeps in the caller's thread, and notes for how long."""

    def __init__(self) -> None:
        self.slept = 0.0

    def start(self, task: GenerationTask) -> None:
        """Do nothing."""

    def held(self) -> HeldByInference:
        """Hold nothing."""
        return HeldByInference()

    def submit(self, request: Request, reply: Reply) -> None:
        """Sleep, and answer."""
        began = time.perf_counter()
        time.sleep(SLEEP)
        self.slept += time.perf_counter() - began
        reply.tokens((1,))
        reply.tokens((2,))
        reply.done()


def cost(folder: Path, rounds: int) -> dict[str, float]:
    """Return the harness's share of a query, the median of rounds with its interval."""
    shares, bare = [], []
    for number in range(rounds):
        engine = Sleeper()
        bench = Bench(folder / f"cost{number}", engine, requests=[Request([1] * 64, 2)] * 8, duration=1.0)
        with bench as rig:
            load = loadgen.run(rig, "singlestream", rate=1.0, pace=SLEEP)
        shares.append(load.seconds / engine.slept - 1)
        bare.append(alone(folder))
    low, high = quantile_interval(np.array(shares), 0.5) or (math.nan, math.nan)
    return {"share": float(np.median(shares)), "low": low, "high": high, "loadgen": float(np.median(bare))}


def alone(folder: Path) -> float:
    """Return the share that LoadGen takes itself."""
    import mlperf_loadgen as lg

    slept: list[float] = []

    def issue(samples: Sequence[Any]) -> None:
        began = time.perf_counter()
        time.sleep(SLEEP)
        slept.append(time.perf_counter() - began)
        for sample in samples:
            lg.FirstTokenComplete([lg.QuerySampleResponse(sample.id, 0, 0, 1)])
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0, 2)])
        ends.append(time.perf_counter())

    def test() -> None:
        sut = lg.ConstructSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(8, 8, lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(sut, qsl, settings, log, "")
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)

    ends: list[float] = []
    settings, log = lg.TestSettings(), lg.LogSettings()
    settings.min_duration_ms, settings.use_token_latencies = 1000, True
    settings.single_stream_expected_latency_ns = SLEEP * 5e8
    log.log_output.outdir, log.enable_trace = str(folder), False
    thread = threading.Thread(target=test)
    thread.start()
    thread.join()
    return (ends[-1] - ends[0]) / sum(slept[1:]) - 1


def percentiles(folder: Path, queries: int) -> dict[str, float]:
    """Return each percentile found ÷ that of what was planted."""
    random = np.random.default_rng(1)
    firsts = 0.030 * np.exp(0.4 * random.standard_normal(4 * queries))
    gaps = 0.008 * np.exp(0.3 * random.standard_normal(4 * queries))
    bench = Bench(
        folder / "percentiles",
        Timed(lambda n, request: firsts[n] + gaps[n] * np.arange(request.limit)),
        requests=[Request([1], 6)] * 8,
        duration=queries / 60,
        ttft=10.0,
        tpot=10.0,
    )
    with bench as rig:
        loadgen.run(rig, "server", rate=60.0)
    found = read_rank(folder / "percentiles" / "rank0.journal", 0).queries
    planted = {"ttft": firsts[: len(found)], "tpot": gaps[: len(found)]}
    planted["latency"] = planted["ttft"] + 5 * planted["tpot"]
    series = {"ttft": found.ttft, "tpot": found.tpot, "latency": found.latency}
    return {
        f"{name}_p{level}": float(np.nanpercentile(series[name], level) / np.percentile(planted[name], level))
        for name in series
        for level in (50, 90, 99)
    }


def waits_at_most(wait: float, load: float, service: float) -> float:
    """Return the share of M/D/1's customers that wait at most so long, at an offered load below 1.

    It is (1 - ρ) Σ e^(-a) a^j / j! with a = λ (jD - t), over j up to t/D; its terms alternate:
    `math.fsum` sums them well enough for waits of some tens of services.
    """
    arrivals = load / service
    terms = []
    for j in range(int(wait / service) + 1):
        a = arrivals * (j * service - wait)
        terms.append(math.exp(-a) * a**j / math.factorial(j))
    return (1 - load) * math.fsum(terms)


def rate(folder: Path, seconds: float) -> dict[str, float]:
    """Return the rate that Server finds, and the one at which 99 % of M/D/1's customers are served within the bound."""
    theory = brentq(lambda load: waits_at_most(BOUND - SERVICE, load, SERVICE) - 0.99, 0.05, 0.99) / SERVICE
    bench = Bench(
        folder / "rate",
        OneServer(SERVICE),
        requests=[Request([1], 2)] * 8,
        duration=seconds,
        ttft=BOUND,
        tpot=1.0,
    )
    with bench as rig:
        load = rates.highest(rig, 0.9 / SERVICE)
    found = float(load.settings["server_target_qps"])
    probes = len(bench.events("probe"))
    return {"ratio": found / theory, "found": found, "theory": theory, "probes": probes, "valid": float(load.valid)}


if __name__ == "__main__":
    sys.exit(main())
