"""Processes that are adopted, and for how long."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from flagperf.processes import adopted_orphans

HOLD = "import subprocess as s; print(s.Popen(['sleep', '30'], stdin=s.DEVNULL, stdout=s.DEVNULL).pid)"


def orphan() -> psutil.Process:
    """Return a process whose own parent has gone."""
    told = subprocess.run([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, check=True).stdout
    return psutil.Process(int(told))


@pytest.mark.skipif(sys.platform != "linux", reason="adoption is Linux's prctl")
def test_orphans_are_adopted_within_and_not_after() -> None:
    ours = psutil.Process()
    with adopted_orphans():
        within = orphan()
        assert within.ppid() == ours.pid
        with adopted_orphans():
            pass
        still = orphan()
        assert still.ppid() == ours.pid  # the inner block has put back what was
    after = orphan()
    try:
        assert after.ppid() != ours.pid
    finally:
        for process in (within, still, after):
            process.kill()
            if process is not after:
                process.wait()
