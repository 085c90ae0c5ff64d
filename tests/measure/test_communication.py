"""Exposed communication: the arithmetic over spans, planted delays between two real ranks, and what a trial tells."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from flagperf.journal import Reader
from flagperf.measure.communication import Span, StepProfiler, _without, parts
from flagperf.schema.event import Communication, Key

END = 24
POINTS = st.integers(-4, END + 4)
SPANS = st.lists(st.tuples(POINTS, POINTS), max_size=8)


def cells(spans: list[Span]) -> set[int]:
    """Unit cells of the step that spans cover: the definition, counted one by one."""
    return {cell for start, stop in spans for cell in range(int(max(0, start)), int(min(END, stop)))}


@given(SPANS, SPANS)
def test_parts_are_what_counting_cells_gives(communication: list[Span], compute: list[Span]) -> None:
    told, worked = cells(communication), cells(compute)
    found = parts((0, END), communication, compute)
    assert found == (len(told), len(told - worked), len(worked), END - len(told | worked))
    assert found.compute + found.exposed + found.idle == END


@given(SPANS, SPANS, st.randoms())
def test_order_and_repetition_change_nothing(communication: list[Span], compute: list[Span], random: Any) -> None:
    shuffled = communication * 2
    random.shuffle(shuffled)
    assert parts((0, END), shuffled, compute[::-1]) == parts((0, END), communication, compute)


@given(SPANS, SPANS)
def test_what_waits_is_cut_out_of_what_works(spans: list[Span], holes: list[Span]) -> None:
    left = _without(spans, holes, (0, END))
    assert cells(left) == cells(spans) - cells(holes)
    assert sum(stop - start for start, stop in left) == len(cells(left))  # none twice


def traced(path: Path) -> set[str]:
    """Return the names in a trace that Perfetto reads."""
    return {event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}


@pytest.mark.slow
def test_a_wait_is_exposed_unless_the_rank_computes_meanwhile(tmp_path: Path) -> None:
    script = ROOT / "tests" / "measure" / "observed.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    early, late = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name in ("idle", "busy"):
        for told in (early[name], late[name]):
            assert told["steps"] == 1 and told["operations"] == 1
            assert told["seconds"] == pytest.approx(told["compute"] + told["exposed"] + told["idle"])
        # The early rank's operation lasts from its call until the late rank has come.
        assert early[name]["communication"] > 0.9 * early["late"] > late[name]["communication"]
        assert late[name]["idle"] > 0.9 * early["late"]  # asleep: neither computing nor communicating
        assert {"gloo:all_reduce"} <= traced(tmp_path / name / "rank0.trace.json.gz")
    assert early["idle"]["exposed"] > 0.9 * early["idle"]["communication"]
    assert early["busy"]["exposed"] < 0.5 * early["busy"]["communication"]
    assert early["busy"]["compute"] > early["busy"]["communication"] > early["idle"]["compute"]


def test_work_inside_what_a_step_waits_for_counts_once() -> None:
    with StepProfiler(torch.device("cpu")) as profiler, profiler.step():
        torch.nn.functional.linear(torch.ones(200, 200, requires_grad=True), torch.ones(200, 200)).sum().backward()
    told = profiler.observed()
    assert told.failure == "" and told.operations == 0 and told.communication == 0
    assert told.seconds and told.compute and told.idle and 0 < told.compute < told.seconds


def test_a_profiler_that_fails_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no counters here")

    monkeypatch.setattr(torch.profiler, "profile", refuse)
    steps = 0
    with StepProfiler(torch.device("cpu")) as profiler, profiler.step():
        steps += 1
    assert steps == 1
    assert profiler.observed() == Communication(failure="RuntimeError: no counters here")
    assert profiler.export(tmp_path / "trace.json.gz") == "RuntimeError: no counters here"


def test_a_device_of_which_nothing_was_recorded_is_told() -> None:
    with StepProfiler(torch.device("xpu")) as profiler, profiler.step():
        torch.ones(3)
    assert profiler.observed().failure == "the profiler recorded nothing of the device (xpu)"


def test_an_error_of_a_step_propagates() -> None:
    with pytest.raises(ZeroDivisionError), StepProfiler(torch.device("cpu")) as profiler, profiler.step():
        1 / 0  # noqa: B018


@pytest.mark.slow
def test_a_trial_tells_its_communication_and_its_memory_by_purpose(
    finished_run: tuple[Path, dict[str, Any]],
) -> None:
    folder, output = finished_run
    for result in output["results"]:
        values = {name: metric["value"] for name, metric in result["metrics"].items()}
        assert 0 < values["communication_exposed"] <= values["communication_time"]
        assert 0 < values["communication_exposed_share"] < 1
        states = [values[f"memory_{name}"] for name in ("weights", "gradients", "optimizer")]
        assert values["memory_offloaded"] == 0
        assert values["memory_activations"] == pytest.approx(values["memory_peak_allocated"] - sum(states), rel=0.05)
        trial = folder / "trials" / result["id"]
        assert {"flagperf: step", "gloo:all_reduce"} & traced(trial / "output" / "rank0.trace.json.gz")
        for rank in range(2):
            journal = {event.key: event.value for event in Reader(trial / f"rank{rank}.journal")}
            told = msgspec.convert(journal[Key.COMMUNICATION], Communication)
            assert told.steps == 2 and told.failure == "" and told.operations
    whole, sharded = ({r["engine"]: r for r in output["results"]}[engine]["metrics"] for engine in ("ddp", "fsdp"))
    for name in ("memory_weights", "memory_gradients", "memory_optimizer"):
        assert sharded[name]["value"] == pytest.approx(whole[name]["value"] / 2, rel=0.02)
