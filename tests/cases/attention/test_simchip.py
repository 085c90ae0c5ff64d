"""Attention on the simulated chip, under pytest: timed by the device's events, right, and imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from flagperf.collect.pytest_benchmark import read_files
from flagperf.vendors.simchip import build


@pytest.fixture
def simulated(tmp_path: Path) -> dict[str, str]:
    """The environment of a host with one simulated device, whose library is built."""
    if build.compiler() is None:
        if os.environ.get("CI"):
            pytest.fail("no C++ compiler (on CI nothing may be left out)")
        pytest.skip("no C++ compiler")
    build.build()
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**ours, "SIMCHIP_DEVICES": "1", "SIMCHIP_STATE": str(tmp_path), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_one_point_of_the_chip(simulated: dict[str, str], tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
            *(str(ROOT / "cases" / "attention" / "forward.toml"), "--flagperf-vendor", "simchip"),
            *("--flagperf-provider", "naive,flash", "-k", "tiny-fp32-causal-128"),
            *("--benchmark-only", "--benchmark-max-time=0.01", "--benchmark-min-rounds=3"),
            f"--benchmark-json={told}",
        ],
        cwd=ROOT,
        env=simulated,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (part,) = read_files([told])
    assert (part.trial.vendor, part.trial.providers) == ("simchip", ["naive", "flash"])
    for samples in part.samples:
        assert (samples.clock, samples.verdict) == ("device", "valid")
        assert samples.memory and min(samples.seconds) > 0
