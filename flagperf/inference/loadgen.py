"""MLPerf's scenarios, issued and judged by MLCommons' LoadGen.

LoadGen decides when queries are issued and whether enough of them were; the times that count are our own, taken in the
same process. Its figures are kept beside them as a cross-check, its logs in the trial's output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flagperf.inference.answers import Answer, Recorder
from flagperf.inference.engine import InferenceEngine, Request
from flagperf.schema.inference import Load, LoadSettings, Scenario

PREFIX = b":::MLLOG "
LEAST_QUERIES = {"singlestream": 1024, "multistream": 662, "server": 662, "offline": 24576}
"""MLPerf's own, before `--scale`: samples for Offline."""
FEWEST = {"singlestream": 8, "multistream": 2, "server": 16, "offline": 16}
"""However short a try-out is."""


def run(
    scenario: Scenario,
    engine: InferenceEngine,
    requests: Sequence[Request],
    load: LoadSettings,
    *,
    scale: float,
    rate: float,
    folder: Path,
    recorder: Recorder,
    numbers: itertools.count[int],
) -> Load:
    """Put an engine under one scenario; return what LoadGen says of it.

    `rate` is the rate in queries a second that Server issues and that Offline's size follows from.
    """
    import mlperf_loadgen as lg

    folder.mkdir(parents=True, exist_ok=True)
    settings, told = _settings(lg, scenario, load, scale, rate)
    generator = _Generator(lg, engine, requests, recorder, numbers)
    log = lg.LogSettings()
    log.log_output.outdir = str(folder)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = False
    sut = lg.ConstructSUT(generator.issue, lambda: None)
    qsl = lg.ConstructQSL(len(requests), len(requests), lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(sut, qsl, settings, log, "")
    finally:
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
    figures, valid, reasons = _said(folder / "mlperf_log_detail.txt")
    return Load(
        scenario=scenario,
        seconds=generator.seconds,
        settings=told,
        valid=valid,
        reasons=reasons,
        figures=figures,
    )


def _settings(lg: Any, scenario: Scenario, load: LoadSettings, scale: float, rate: float) -> tuple[Any, dict[str, Any]]:
    """Return LoadGen's settings, and those of them that a reader should know."""
    queries = max(FEWEST[scenario], math.ceil(LEAST_QUERIES[scenario] * scale))
    told: dict[str, Any] = {"min_duration_ms": math.ceil(load.duration * scale * 1000), "min_query_count": queries}
    if scenario == "offline":
        told |= {"min_query_count": 1, "offline_expected_qps": rate}
        told["min_duration_ms"] = max(told["min_duration_ms"], math.ceil(queries / rate * 1000))
    if scenario == "multistream":
        told["multi_stream_samples_per_query"] = load.batch
    if scenario == "server":
        told |= {"server_target_qps": rate}
        told |= {"ttft_latency": round(load.ttft * 1e9), "tpot_latency": round(load.tpot * 1e9)}
    settings = lg.TestSettings()
    names = {
        "singlestream": "SingleStream",
        "multistream": "MultiStream",
        "server": "Server",
        "offline": "Offline",
    }
    settings.scenario = getattr(lg.TestScenario, names[scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.use_token_latencies = True
    for name, value in told.items():
        setattr(settings, name, value)
    return settings, told


class _Generator:
    """What LoadGen calls: it issues queries to the engine and hears when they have ended."""

    def __init__(
        self,
        lg: Any,
        engine: InferenceEngine,
        requests: Sequence[Request],
        recorder: Recorder,
        numbers: itertools.count[int],
    ) -> None:
        self._lg, self._engine, self._requests = lg, engine, requests
        self._recorder, self._numbers = recorder, numbers
        self._first_ns = self._last_ns = 0
        self._kept: list[np.ndarray[Any, Any]] = []
        """Tokens that LoadGen has been given the address of."""

    @property
    def seconds(self) -> float:
        """From the first query's issue to the last one's end."""
        return (self._last_ns - self._first_ns) / 1e9

    def issue(self, samples: Sequence[Any]) -> None:
        """Send a query's samples to the engine."""
        for sample in samples:
            request = self._requests[sample.index]

            def first(answer: Answer, sample: int = sample.id) -> None:
                self._lg.FirstTokenComplete([self._response(sample, answer)])

            def ended(answer: Answer, sample: int = sample.id) -> None:
                if not answer.ids:  # LoadGen wants a first token of every query
                    self._lg.FirstTokenComplete([self._response(sample, answer)])
                self._last_ns = max(self._last_ns, answer.ended_ns)
                self._recorder(answer)
                self._lg.QuerySamplesComplete([self._response(sample, answer)])

            answer = Answer(next(self._numbers), sample.index, request, first=first, ended=ended)
            self._first_ns = self._first_ns or answer.issued
            self._engine.submit(request, answer)

    def _response(self, sample: int, answer: Answer) -> Any:
        ids = np.asarray(answer.ids or [0], np.int64)
        self._kept.append(ids)
        return self._lg.QuerySampleResponse(sample, ids.ctypes.data, ids.nbytes, max(1, len(answer.ids)))


def _said(path: Path) -> tuple[dict[str, float], bool, list[str]]:
    """Return LoadGen's figures, its verdict, and its reasons, from its detailed log."""
    figures: dict[str, float] = {}
    verdict, reasons = "", []
    for line in path.read_bytes().splitlines():
        if not line.startswith(PREFIX):
            continue
        event = msgspec.json.decode(line[len(PREFIX) :])
        key, value = event["key"], event["value"]
        if key == "result_validity":
            verdict = value
        elif key.startswith("result_invalid_reason"):
            reasons.append(str(value))
        elif key.startswith("result_") and isinstance(value, int | float) and not isinstance(value, bool):
            figures[key.removeprefix("result_")] = float(value)
    return figures, verdict == "VALID", reasons
