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


@pytest.mark.parametrize(("end", "status"), [("return 3", 3), ("return 0", 0), ("raise ValueError('no')", 1)])
def test_a_program_ends_with_its_status_and_does_what_it_registered(end: str, status: int) -> None:
    program = f"""
import atexit, sys
from flagperf.processes import exit_by

class Kept:
    def __del__(self):
        print("taken apart")

def main():
    sys.kept = Kept()
    atexit.register(print, "registered")
    print("said", end="; ")
    {end}

exit_by(main)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (status, "said; registered\n")
    assert ("ValueError: no" in told.stderr) == (status == 1)
