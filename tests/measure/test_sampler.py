"""A vendor's devices as a source of samples, with what goes wrong put in: on the sampler itself and on real tools."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagperf.deadlines import Deadlines
from flagperf.journal import Journal, Reader
from flagperf.measure.sampler import DeviceSampler
from flagperf.measure.telemetry import Telemetry
from flagperf.schema.event import Key
from flagperf.tools import kill_tools, run_tool


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.005)


class Source:
    """An adapter's `sample` that does what it's told."""

    def __init__(self) -> None:
        self.calls = 0
        self.problem: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.answer: Any = [{"index": 0, "power_w": 1.0}]

    def __call__(self) -> list[dict[str, Any]]:
        self.calls += 1
        self.open.wait(60)
        if self.problem is not None:
            raise self.problem
        answer: list[dict[str, Any]] = self.answer
        return answer


def took(sampler: DeviceSampler) -> list[dict[str, Any]]:
    """Take until a reading comes."""
    found: list[dict[str, Any]] = []
    until(lambda: bool(found.extend(sampler.take()[0]) or found))
    return found


def test_what_fails_is_left_alone_longer_and_longer_and_then_taken_up_again() -> None:
    source = Source()
    source.problem = OSError("no card")
    sampler = DeviceSampler(source, interval=0.02)
    problems = []
    for _ in range(40):
        problems.append(sampler.take()[1])
        time.sleep(0.02)
    counts = sampler.counts["devices"]
    # Pauses of 2, 4, 8, 16 … intervals: of 40 ticks only a few are attempts.
    assert 2 <= source.calls <= 12
    assert counts.failed == source.calls and counts.read == 0
    assert counts.missed >= 40 - 2 * source.calls
    assert {problem for problem in problems if problem} == {"OSError: no card"}
    source.problem = None
    assert took(sampler)[0]["power_w"] == 1.0
    calls = source.calls
    until(lambda: bool(sampler.take()) and source.calls >= calls + 5, 5)  # at every tick again


def test_a_call_that_hangs_is_one_failure_and_what_it_returns_late_is_dropped() -> None:
    source = Source()
    source.open.clear()
    sampler = DeviceSampler(source, interval=0.01, timeout=0.05)
    said = []
    for _ in range(20):
        readings, problem = sampler.take()
        assert readings == []
        said.append(problem)
        time.sleep(0.01)
    assert [problem for problem in said if problem] == ["no answer within 0.05 s"]
    assert (source.calls, sampler.counts["devices"].failed) == (1, 1)
    source.answer = [{"index": 0, "power_w": 2.0}]
    source.open.set()
    found = took(sampler)
    assert source.calls >= 2 and all(reading["power_w"] == 2.0 for reading in found)
    assert sampler.counts["devices"].failed == 1


@pytest.mark.parametrize("answer", [None, 7, [7], [{"index": 0, "card": object()}], [{"index": 0, 1j: 2}]])
def test_garbage_from_an_adapter_is_a_failure_and_no_journal_suffers(tmp_path: Path, answer: Any) -> None:
    source = Source()
    source.answer = answer
    sampler = DeviceSampler(source, interval=0.01)
    path = tmp_path / "telemetry.journal"
    with Journal(path, {"role": "telemetry"}) as journal:
        telemetry = Telemetry(journal, 0.01, os.getpid(), sampler)
        until(lambda: (telemetry.sample(1), sampler.counts["devices"].failed > 0)[1])
        telemetry.sample(2)
    assert "devices" in {name for event in Reader(path) for name in (event.value.get("unavailable") or {})}
    assert all("devices" not in event.value for event in Reader(path) if event.key == Key.TELEMETRY)


def test_the_end_waits_for_one_more_reading_but_not_for_what_hangs() -> None:
    source = Source()
    sampler = DeviceSampler(source)
    readings, _ = sampler.finish(20)
    assert [reading["index"] for reading in readings] == [0] and readings[0]["ns"] <= time.monotonic_ns()
    source.open.clear()
    assert sampler.finish(0.05) == ([], "")
    source.open.set()


def test_a_device_that_tells_of_a_fault_is_counted_by_itself() -> None:
    source = Source()
    source.answer = [{"index": 0}, {"index": 1, "faulty": "lost"}]
    sampler = DeviceSampler(source, interval=0.01)
    assert {reading["index"] for reading in took(sampler)} == {0, 1}
    assert sampler.counts["devices"].read >= 1 and sampler.counts["devices.1"].failed >= 1
    assert "devices.0" not in sampler.counts


def test_a_full_disk_costs_samples_and_doesnt_end_telemetry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "telemetry.journal"
    write, full = os.write, [False]

    def torn(descriptor: int, data: Any) -> int:
        if full[0] and bytes(data[:3]) == b":::":
            return write(descriptor, data[:40])  # the disk takes a part of the line …
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr("flagperf.journal.os.write", torn)
    with Journal(path, {"role": "telemetry"}) as journal:
        telemetry = Telemetry(journal, 1.0, os.getpid())
        for tick in range(6):
            full[0] = tick in (2, 3)
            telemetry.sample(tick)
    assert (telemetry.samples, telemetry.unwritten) == (4, 2)
    reader = Reader(path)
    assert [event.value["tick"] for event in reader if event.key == Key.TELEMETRY] == [0, 1, 4, 5]
    assert {flaw.kind for flaw in reader.flaws} == {"corrupt"}
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_wall_clock_that_is_set_moves_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flagperf.collect.journals import read_telemetry

    path = tmp_path / "telemetry.journal"
    now = time.time_ns
    with Journal(path, {"role": "telemetry"}) as journal:
        telemetry = Telemetry(journal, 0.02, os.getpid())
        waits = iter(range(8))

        def jump(seconds: float) -> bool:
            if next(waits) == 4:
                monkeypatch.setattr("flagperf.journal.time.time_ns", lambda: now() - 3600 * 10**9)
            time.sleep(seconds)
            return telemetry.samples >= 6

        telemetry.run(jump)
    read = read_telemetry(path)
    times, ticks = read.series("tick")
    assert (times[1:] > times[:-1]).all() and (ticks[1:] >= ticks[:-1]).all() and len(ticks) >= 6
    assert read.clock_jump == pytest.approx(3600, abs=1)


def test_a_tool_that_vanishes_or_hangs(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\necho 1\n")
    tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run_tool(["smi"], 20, environment).stdout == b"1\n"
    tool.rename(tmp_path / "gone")
    assert run_tool(["smi"], 20, environment).problem == "smi isn't on PATH"
    (tmp_path / "smi").write_text("#!/bin/sh\nsleep 600\n")
    (tmp_path / "smi").chmod(0o755)
    outputs = []
    thread = threading.Thread(target=lambda: outputs.append(run_tool(["smi"], 60, environment)))
    thread.start()
    until(lambda: (kill_tools(), not thread.is_alive())[1])  # what a telemetry process does at its end
    assert outputs[0].status is not None and outputs[0].status < 0


def test_calls_with_a_deadline() -> None:
    calls: Deadlines[str, int] = Deadlines()
    gate, entered = threading.Event(), []

    def hang() -> int:
        entered.append(1)
        gate.wait(60)
        return 1

    assert calls.call({"a": hang, "b": lambda: 2}, 0.05) == {"b": 2}
    threads = threading.active_count()
    began = time.monotonic()
    assert calls.call({"a": hang, "b": lambda: 3}, 30) == {"b": 3}  # not asked again, and not waited for
    assert time.monotonic() - began < 20
    gate.set()
    until(lambda: "a" in calls.call({"a": lambda: 4}, 1))
    assert entered == [1]

    def broken() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        calls.call({"a": broken}, 20)
    assert calls.call({"a": lambda: 5}, 20) == {"a": 5}
    assert threading.active_count() <= threads  # the same two all the while
