"""MLPerf's scenarios, issued and judged by MLCommons' LoadGen.

LoadGen decides when queries are issued and whether enough of them were; the times that count are our own, taken in the
same process. Its figures are kept beside them as a cross-check, its logs in the trial's output.

Rules are those of MLPerf's mlperf.conf (LoadGen 6.0): 600 s at least for every scenario; SingleStream is judged by the
90th percentile, MultiStream and Server by the 99th; LoadGen's early stopping says how many queries that takes.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from flagperf.errors import FlagPerfError
from flagperf.inference.answers import Answer, Watch
from flagperf.inference.rig import Rig
from flagperf.processes import end_at_once
from flagperf.schema.event import Key
from flagperf.schema.inference import Load, LoadStart, Rule, Scenario

PREFIX = b":::MLLOG "
NAMES = {"singlestream": "SingleStream", "multistream": "MultiStream", "server": "Server", "offline": "Offline"}
LEAST_QUERIES = {"singlestream": 100, "multistream": 662, "server": 662}
"""Before `--scale`. LoadGen's default; mlperf.conf's; and as many, with which early stopping bears a late one. Offline
asks every prompt at least once, as MLPerf does where there are fewer than 24,576."""
FEWEST = {"singlestream": 8, "multistream": 2, "server": 16, "offline": 16}
"""However short a try-out is."""
SLACK = 2.0
"""By how much an engine may be faster than in its warm-up before LoadGen runs out of the queries it made beforehand;
LoadGen itself makes twice as many as that."""
OFFLINE_SLACK = 1.5
"""Likewise; LoadGen adds a tenth. The whole of it is asked, however long it takes."""
_RULES: dict[str, Rule] = {
    "result_perf_constraints_met": "latency",
    "result_min_duration_met": "duration",
    "result_min_queries_met": "queries",
    "early_stopping_met": "early_stopping",
}


def at_99(load: Load, what: str) -> float:
    """Return LoadGen's 99th percentile of `first_token` or `output_token`, in seconds."""
    for name, value in load.figures.items():
        if f"{what}_99.00_percentile" in name:
            return value / 1e9
    return math.nan


class Probe(NamedTuple):
    """What makes a run of Server a short one, to find out whether a rate can be held."""

    number: int
    """Counted from 1; queries then come at other moments than in the measurement."""
    seconds: float


def run(
    rig: Rig, scenario: Scenario, *, rate: float, pace: float = 0.0, probe: Probe | None = None, name: str = ""
) -> Load:
    """Put an engine under one scenario; return what LoadGen says of it.

    `rate` is what Server issues, in queries a second, and what Offline's size follows from. `pace` is about how many
    seconds a query of SingleStream or MultiStream takes. `name` is a folder's, for LoadGen's logs, where there is more
    than one run. Raises FlagPerfError when the engine has stalled, or LoadGen can't write its logs.
    """
    import mlperf_loadgen as lg

    folder = rig.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    settings, told = _settings(lg, scenario, rig, rate, pace, probe)
    least = told["min_query_count"]
    if scenario == "offline":
        least = max(1, int(1.1 * told["min_duration_ms"] / 1000 * told["offline_expected_qps"]))
    start = LoadStart(
        scenario=scenario,
        seconds=told["min_duration_ms"] / 1000,
        queries=least,
        rate=rate if scenario == "server" else None,
        probe=probe is not None,
    )
    rig.recorder.write(Key.LOAD_START, start)
    log = lg.LogSettings()
    log.log_output.outdir = str(folder)
    log.enable_trace = False
    watch = Watch(rig.load.patience)
    generator = _Generator(lg, rig, watch)
    _tested(lg, generator, watch, settings, log)
    figures, broken, reasons, wanting = _said(folder / "mlperf_log_detail.txt")
    return Load(
        scenario=scenario,
        seconds=generator.seconds,
        settings=told,
        valid=not broken,
        reasons=reasons,
        broken=broken,
        wanting=wanting,
        figures=figures,
    )


def _tested(lg: Any, generator: _Generator, watch: Watch, settings: Any, log: Any) -> None:
    """Run LoadGen to its end in a thread of its own, so that this one hears signals and sees when nothing comes.

    LoadGen can't be stopped. When there is an error it's left behind, and this process is bound to end at once.
    """

    def test() -> None:
        sut = lg.ConstructSUT(generator.issue, lambda: None)
        count = len(generator.rig.requests)
        qsl = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(sut, qsl, settings, log, "")
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)

    thread = threading.Thread(target=test, name="loadgen", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(watch.pause)
            watch.look()
    except BaseException:
        generator.left = True
        end_at_once()
        raise


def _settings(
    lg: Any, scenario: Scenario, rig: Rig, rate: float, pace: float, probe: Probe | None
) -> tuple[Any, dict[str, Any]]:
    """Return LoadGen's settings, and those of them that a reader should know."""
    load, scale = rig.load, rig.scale
    duration = probe.seconds if probe else load.duration * scale
    least = len(rig.requests) if scenario == "offline" else LEAST_QUERIES[scenario]
    queries = max(FEWEST[scenario], 0 if probe else math.ceil(least * scale))
    told: dict[str, Any] = {"min_duration_ms": math.ceil(duration * 1000), "min_query_count": queries}
    expected = max(1.0, pace / SLACK * 1e9)
    if scenario == "singlestream":
        told["single_stream_expected_latency_ns"] = expected
    elif scenario == "multistream":
        told |= {"multi_stream_samples_per_query": load.batch, "multi_stream_expected_latency_ns": expected}
    elif scenario == "offline":
        told |= {"min_query_count": queries, "offline_expected_qps": OFFLINE_SLACK * rate}
    else:
        told |= {"server_target_qps": rate}
        told |= {"ttft_latency": round(load.ttft * 1e9), "tpot_latency": round(load.tpot * 1e9)}
    if probe:  # by Little's law more can't be under way within the bounds
        longest = max(request.limit for request in rig.requests)
        told["server_max_async_queries"] = math.ceil(2 * rate * (load.ttft + load.tpot * longest)) + 64
    seeds = np.random.SeedSequence([rig.seed, probe.number if probe else 0]).generate_state(3)
    names = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
    told |= dict(zip(names, seeds.tolist(), strict=True))
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, NAMES[scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.use_token_latencies = True
    for name, value in told.items():
        setattr(settings, name, value)
    return settings, told


class _Generator:
    """What LoadGen calls: it issues queries to the engine and hears when they have ended."""

    def __init__(self, lg: Any, rig: Rig, watch: Watch) -> None:
        self.rig = rig
        self.left = False
        """Whether LoadGen is to hear nothing any more."""
        self._lg, self._watch = lg, watch
        self._first_ns = self._last_ns = 0

    @property
    def seconds(self) -> float:
        """From the first query's issue to the last one's end."""
        return (self._last_ns - self._first_ns) / 1e9

    def issue(self, samples: Sequence[Any]) -> None:
        """Send a query's samples to the engine; all were issued at the same moment."""
        now = time.monotonic_ns()
        self._first_ns = self._first_ns or now
        for sample in samples:
            if self.left:
                return
            self._send(sample.id, sample.index, now)

    def _send(self, sample: int, prompt: int, now: int) -> None:
        rig, lg = self.rig, self._lg

        def first(answer: Answer) -> None:
            if not self.left:
                lg.FirstTokenComplete([lg.QuerySampleResponse(sample, 0, 0, 1)])

        def ended(answer: Answer) -> None:
            if not answer.ids:  # LoadGen wants a first token of every query
                first(answer)
            self._last_ns = max(self._last_ns, answer.ended_ns)
            rig.keep(answer)
            self._watch.ended(answer)
            if not self.left:  # with fewer than two tokens LoadGen complains
                lg.QuerySamplesComplete([lg.QuerySampleResponse(sample, 0, 0, max(2, len(answer.ids)))])

        answer = Answer(rig.number(), prompt, rig.requests[prompt], issued=now, first=first, ended=ended)
        self._watch.issued(answer)
        rig.submit(answer)


def _said(path: Path) -> tuple[dict[str, float], list[Rule], list[str], int]:
    """Return LoadGen's figures, the rules it says are broken, its reasons, and how many queries it would have wanted.

    All are from its detailed log.
    """
    figures: dict[str, float] = {}
    broken: list[Rule] = []
    reasons: list[str] = []
    wanting = 0
    verdict = ""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        if not line.startswith(PREFIX):
            continue
        event = msgspec.json.decode(line[len(PREFIX) :])
        key, value = event["key"], event["value"]
        if key == "result_validity":
            verdict = value
        elif key in _RULES:
            if value is False:
                broken.append(_RULES[key])
        elif key == "error_runtime" and "outstanding" in str(value):  # of a probe, whose queue has grown too long
            broken.append("latency")
        elif key == "result_invalid_reason":
            reasons += [value.strip()] if value.strip() else []
        elif key.startswith("early_stopping_") and isinstance(value, str):
            missing = _wanting(value)
            wanting = max(wanting, missing)
            reasons += [" ".join(value.replace("*", "").split())] if missing else []
        elif key.startswith("result_") and isinstance(value, int | float) and not isinstance(value, bool):
            figures[key.removeprefix("result_")] = float(value)
    if not verdict:
        raise FlagPerfError(
            f"LoadGen has left no result in {path.parent}.", "Is the disk full, or the folder not writable?"
        )
    return figures, list(dict.fromkeys(broken)), reasons, wanting


def _wanting(text: str) -> int:
    """Return how many more queries early stopping wants."""
    if more := re.search(r"at least (\d+)\s+more queries", text):
        return int(more[1])
    done, needed = re.search(r"Only processed (\d+)", text), re.search(r"at least (\d+)\s+queries", text)
    return max(0, int(needed[1]) - int(done[1])) if done and needed else 0
