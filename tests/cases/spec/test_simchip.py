"""Specifications where there is a device: its events, its memory, the way to it, its power, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagperf.collect.specifications import kept_up
from flagperf.vendors.simchip import build

TESTS = Path(__file__).parents[2]
MIB = 2**20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `simchip_specs.py` saw."""
    if build.compiler() is None:
        if os.environ.get("CI"):
            pytest.fail("no C++ compiler (on CI nothing may be left out)")
        pytest.skip("no C++ compiler")
    build.build()
    environment = {
        **os.environ,
        "SIMCHIP_DEVICES": "1",
        "SIMCHIP_MEMORY_MIB": "64",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
        "SIMCHIP_STATE": str(tmp_path_factory.mktemp("simchip")),
    }
    script = [sys.executable, str(TESTS / "measure" / "simchip_specs.py")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_kernel_is_as_long_as_the_device_says_and_who_doesnt_wait_is_told(specs: dict[str, Any]) -> None:
    known = specs["known"]
    assert known["clock"] == "device" and known["calls"] == 1
    assert min(known["seconds"]) >= 5e-3 * 0.999
    assert "completed" in known["forgot"]


def test_throttling_shows_in_the_curve(specs: dict[str, Any]) -> None:
    one = specs["throttled"]
    assert one["verdict"] == "valid", one["why"]
    share = kept_up(one["seconds"])
    assert share is not None and share < 0.75
    assert one["clock"] == "device" and len(one["host_seconds"]) == len(one["seconds"])


def test_memory_that_runs_out_in_the_search_is_told(specs: dict[str, Any]) -> None:
    assert specs["full"]["verdict"] == "too big" and "not even the smallest size fits" in specs["full"]["why"]


def test_copies_go_each_way_and_both_at_once(specs: dict[str, Any]) -> None:
    assert len(specs["copies"]) == 6 and {one["verdict"] for one in specs["copies"]} == {"valid"}
    for one in specs["copies"]:
        ways = 2 if one["at"]["direction"] == "both" else 1
        assert one["bytes"] == ways * one["facts"]["bytes_each_way"]
        # No copy is faster than the link; both ways at once share nothing.
        assert min(one["seconds"]) >= 0.99 * one["facts"]["bytes_each_way"] / 5e8


def test_all_of_a_devices_memory_is_had(specs: dict[str, Any]) -> None:
    (one,) = specs["capacity"]
    assert 60 * MIB <= one["values"]["capacity"] * 1e9 <= 64 * MIB
    assert one["facts"]["stopped_at"] == "there was no more"


def test_launches_are_told_by_the_hosts_clock_with_the_devices_beside(specs: dict[str, Any]) -> None:
    alone, together = specs["launch"]
    assert {one["verdict"] for one in specs["launch"]} == {"valid"}
    assert "host_seconds" not in alone and alone["facts"]["device_seconds"] > 0 and together["calls"] > 1


def test_memory_is_moved_and_power_is_read(specs: dict[str, Any]) -> None:
    assert {one["verdict"] for one in specs["memory"]} == {"valid"}
    idle, load = specs["power"]
    assert idle["values"]["power_idle"] == pytest.approx(75.0, abs=40)
    assert load["values"]["power_load"] > idle["values"]["power_idle"]
