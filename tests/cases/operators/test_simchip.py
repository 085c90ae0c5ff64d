"""Operators on a device that isn't the CPU: every one runs on the simulated chip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagperf.vendors.simchip import build

HERE = Path(__file__).parent


@pytest.mark.slow
def test_all_operators_run_on_a_device_of_another_kind(tmp_path: Path) -> None:
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    environment = {"SIMCHIP_DEVICES": "1", "SIMCHIP_STATE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "simchip_points.py")],
        capture_output=True, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["eager"] == dict.fromkeys(told["eager"], "valid")
    assert len(told["eager"]) == 67  # 56 operators, 11 of them with their gradients
    assert "no code generator for simchip devices" in told["inductor"]
