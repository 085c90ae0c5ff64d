"""The host's sensors."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flagperf.measure.sensors import Absent, Cpu, Energy, Processes, open_sensors


def domain(root: Path, folder: str, name: str, energy: int, span: int = 1000) -> Path:
    place = root / folder
    place.mkdir()
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{energy}\n")
    (place / "max_energy_range_uj").write_text(f"{span}\n")
    return place / "energy_uj"


def test_energy_counts_disjoint_domains_and_wraps(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000, 1_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 1)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0, 1_000_000)
    domain(tmp_path, "intel-rapl:1", "psys", 5)
    energy = Energy(tmp_path)
    assert energy() == {"energy_joules": {"package-0": 0.0, "dram-0": 0.0}}
    package.write_text("100000\n")  # it went past a million and began anew
    memory.write_text("50000\n")
    assert energy() == {"energy_joules": {"package-0": 0.2, "dram-0": 0.05}}
    package.write_text("400000\n")
    assert energy()["energy_joules"]["package-0"] == 0.5


def test_energy_says_why_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="no RAPL"):
        Energy(tmp_path)


def test_cpu_sees_a_busy_core() -> None:
    sensor = Cpu()
    assert sensor() == {}
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    seen = sensor()
    assert max(seen["core_percent"]) > 50
    assert 0 < seen["cpu_percent"] <= 100


def test_processes_follow_grandchildren_and_forget_the_dead() -> None:
    inner = "x = bytearray(50_000_000); print(1, flush=True); import time; time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    child = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        sensor = Processes(child.pid)
        sensor.REFRESH = 0.0
        (found,) = sensor()["processes"]
        assert found["rss"] > 50_000_000
        assert found["cpu_percent"] is None
        (again,) = sensor()["processes"]
        assert again["pid"] == found["pid"] and again["cpu_percent"] is not None
        subprocess.run(["kill", "-9", str(found["pid"])], check=True)
        child.wait()
        assert sensor()["processes"] == []
    finally:
        child.kill()
        child.wait()


def test_every_sensor_is_there_or_says_why_not() -> None:
    sensors, absent = open_sensors(1)
    assert not sensors.keys() & absent.keys()
    assert {"cpu", "memory", "load", "network", "processes"} <= sensors.keys()
    assert all(why for why in absent.values())
    for read in sensors.values():
        assert isinstance(read(), dict)
