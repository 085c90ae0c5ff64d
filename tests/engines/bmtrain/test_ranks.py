"""The layer on two ranks, over a backend that torch learns of from Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, flagperf, needs

pytestmark = pytest.mark.slow


def test_it_trains_over_another_backend_and_skips_what_overflows(tmp_path: Path) -> None:
    """Everything is asserted in `ranks.py`, by both ranks."""
    needs("bmtrain")
    assert flagperf("data", "prepare", "synthetic", "--vocab-size", "512", "--tokens", "65536").returncode == 0
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ranks.py")), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
