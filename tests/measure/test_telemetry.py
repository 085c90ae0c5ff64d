"""The telemetry process, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagperf.journal import Journal, Reader
from flagperf.measure.telemetry import DeviceSampler, Telemetry
from flagperf.schema.event import Key


def start(out: Path, parent: int, interval: float = 0.1, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flagperf.measure.telemetry", "--out", str(out), "--parent", str(parent)]
    return subprocess.Popen([*command, "--interval", str(interval), *more])


def samples(path: Path) -> list[dict[str, Any]]:
    return [event.value for event in Reader(path) if event.key == Key.TELEMETRY]


def cost(path: Path) -> dict[str, Any]:
    (value,) = [event.value for event in Reader(path) if event.key == Key.TELEMETRY_COST]
    assert isinstance(value, dict)
    return value


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it didn't happen"
        time.sleep(0.02)


def count(path: Path) -> int:
    return len(samples(path)) if path.exists() else 0


def test_samples_ranks_and_ends_on_sigterm(tmp_path: Path) -> None:
    out = tmp_path / "telemetry.journal"
    code = "x = bytearray(80_000_000)\nwhile True: pass"
    rank = subprocess.Popen([sys.executable, "-c", code])
    telemetry = start(out, os.getpid())
    try:
        eventually(lambda: count(out) >= 15)
        telemetry.send_signal(signal.SIGTERM)
        assert telemetry.wait(10) == 0
    finally:
        rank.kill()
        rank.wait()
        telemetry.kill()
        telemetry.wait()
    reader = Reader(out)
    events = list(reader)
    assert reader.flaws == []
    assert events[0].key == Key.HEADER and events[0].value["role"] == "telemetry"
    assert events[-1].key == Key.TELEMETRY_COST
    seen = samples(out)
    ours = [process for sample in seen for process in sample["processes"] if process["pid"] == rank.pid]
    assert max(process["rss"] for process in ours) > 80_000_000
    assert max(process["cpu_percent"] or 0 for process in ours) > 20
    assert telemetry.pid not in {process["pid"] for sample in seen for process in sample["processes"]}
    assert all(sample["cpu_percent"] <= 100 for sample in seen[1:] if "cpu_percent" in sample)
    ticks = [sample["tick"] for sample in seen]
    assert ticks == sorted(ticks)
    spent = cost(out)
    assert spent["samples"] == len(seen)
    # Every tick between the first and the last regular one was sampled or counted as missed; one sample ends it.
    assert spent["missed"] == ticks[-1] - ticks[0] + 1 - (len(seen) - 1)
    assert 0 < spent["cpu_seconds"] < spent["wall_seconds"]
    said = [name for sample in seen for name in sample.get("unavailable", {})]
    assert len(said) == len(set(said))


def test_ends_when_the_parent_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "telemetry.journal"
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    # An interval far longer than the test: the end of the parent itself wakes it.
    telemetry = start(out, parent.pid, 600)
    try:
        eventually(lambda: count(out) >= 1)
        parent.kill()
        assert telemetry.wait(10) == 0
    finally:
        parent.wait()
        telemetry.kill()
        telemetry.wait()
    assert cost(out)["samples"] == 2


def test_ends_at_once_where_the_parent_is_gone_already(tmp_path: Path) -> None:
    out = tmp_path / "telemetry.journal"
    parent = subprocess.Popen([sys.executable, "-c", ""])
    parent.wait()
    assert start(out, parent.pid, 600).wait(20) == 0
    assert cost(out)["missed"] == 0


def test_an_unknown_vendor_is_said_and_the_host_sampled(tmp_path: Path) -> None:
    out = tmp_path / "telemetry.journal"
    telemetry = start(out, os.getpid(), 0.1, "--vendor", "nobody")
    try:
        eventually(lambda: count(out) >= 2)
    finally:
        telemetry.terminate()
        assert telemetry.wait(10) == 0
    seen = samples(out)
    assert "nobody" in seen[0]["unavailable"]["devices"]
    assert "memory_used" in seen[1]


VENDOR = """
name = "test"
title = "Test"
summary = "Two devices."
entry = ".adapter:Test"
device_type = "cpu"
backend = "gloo"
"""
ADAPTER = """
from flagperf.vendor import Vendor

class Test(Vendor):
    def devices(self):
        return []

    def sample(self):
        return [{"index": index, "power_watts": 10.0 * index} for index in range(2)]
"""


def test_a_vendors_own_sensors_are_sampled(tmp_path: Path) -> None:
    folder = tmp_path / "plugins" / "vendors" / "telemetry_test"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("")
    (folder / "test.toml").write_text(VENDOR)
    (folder / "adapter.py").write_text(ADAPTER)
    out = tmp_path / "telemetry.journal"
    telemetry = start(out, os.getpid(), 0.1, "--vendor", "test", "--plugins", str(tmp_path / "plugins"))
    try:
        eventually(lambda: count(out) >= 4)
    finally:
        telemetry.terminate()
        assert telemetry.wait(10) == 0
    devices = [device for sample in samples(out) for device in sample.get("devices", [])]
    assert {(device["index"], device["power_watts"]) for device in devices} == {(0, 0.0), (1, 10.0)}
    assert all(device["ns"] > 0 for device in devices)


def test_a_sensor_that_hangs_or_fails_stops_nothing(tmp_path: Path) -> None:
    hung = threading.Event()

    def hang() -> list[dict[str, Any]]:
        hung.wait(60)
        return []

    def fail() -> list[dict[str, Any]]:
        raise RuntimeError("no such card")

    for name, sample, words in (("hang", hang, "no answer"), ("fail", fail, "no such card")):
        path = tmp_path / f"{name}.journal"
        with Journal(path, {"role": "telemetry"}) as journal:
            telemetry = Telemetry(journal, 0.05, os.getpid(), DeviceSampler(sample, timeout=0.1))
            for tick in range(6):
                telemetry.sample(tick)
                time.sleep(0.05)
        seen = samples(path)
        assert len(seen) == 6
        assert telemetry.failed >= 1
        said = [sample["unavailable"]["devices"] for sample in seen if "devices" in sample.get("unavailable", {})]
        assert len(said) == 1 and words in said[0]
        assert "memory_used" in seen[-1]
    hung.set()


def test_a_host_sensor_that_breaks_is_counted_and_said_once(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.journal"

    def broken() -> dict[str, Any]:
        raise OSError("went away")

    with Journal(path, {"role": "telemetry"}) as journal:
        telemetry = Telemetry(journal, 1.0, os.getpid())
        telemetry._sensors["load"] = broken
        for tick in range(3):
            telemetry.sample(tick)
    assert telemetry.failed == 3
    seen = samples(path)
    assert ["load" in sample.get("unavailable", {}) for sample in seen] == [True, False, False]
    assert all("memory_used" in sample and "load" not in sample for sample in seen)


def test_ticks_that_were_slept_through_are_counted(tmp_path: Path) -> None:
    with Journal(tmp_path / "telemetry.journal", {"role": "telemetry"}) as journal:
        telemetry = Telemetry(journal, 0.02, os.getpid())
        waits = iter([0.2, 0.0])

        def late(seconds: float) -> bool:
            held = next(waits)
            time.sleep(held + seconds)
            return held == 0.0

        telemetry.run(late)
    assert telemetry.missed >= 8
    assert telemetry.samples == 3


@pytest.mark.parametrize("interval", ["0", "-1", "nan"])
def test_a_senseless_interval_is_refused(tmp_path: Path, interval: str) -> None:
    command = [sys.executable, "-m", "flagperf.measure.telemetry", "--out", str(tmp_path / "x"), "--parent", "1"]
    done = subprocess.run([*command, "--interval", interval], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--interval" in done.stderr
    assert not (tmp_path / "x").exists()
