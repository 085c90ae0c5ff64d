"""What the kernel says of this process's memory."""

from __future__ import annotations

import subprocess
import sys

from flagperf.measure.memory import process_memory

MIB = 2**20
PEAK = f"""
from flagperf.measure.memory import process_memory, reset_peak_rss
def peak():
    return process_memory()[0] / {MIB}
before = peak()
block = bytearray(200 * {MIB})
with_block = peak()
del block
kept = peak()
reset = reset_peak_rss()
print(before, with_block, kept, reset, peak())
"""


def test_the_peak_stays_until_it_is_reset() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, with_block, kept, reset, after = done.stdout.split()
    assert 199 < float(with_block) - float(before) < 210
    assert float(kept) > float(with_block) - 1  # the kernel gathers each core's count in lots
    if reset == "True":
        assert float(after) < float(before) + 20
    else:
        assert float(after) > float(with_block) - 1


def test_the_proportional_set_is_smaller_than_the_resident_peak() -> None:
    peak, proportional = process_memory()
    assert peak is not None and proportional is not None
    assert 0 < proportional <= peak
