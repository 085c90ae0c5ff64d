"""The highest rate of the Server scenario that keeps the bounds: found by short probes, then measured.

A probe is a run of LoadGen's. Rates are bracketed from a first guess, then bisected by their geometric mean, each probe
twice as long as the last: far from the answer a short one can tell.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from flagperf.inference import loadgen
from flagperf.inference.rig import Rig
from flagperf.schema.event import Key
from flagperf.schema.inference import Load, Probe

FIRST_SHARE = 1 / 16
"""Of a measurement's duration, that the first probes last; all of them together last about as long as it."""
LEAST_BOUNDS = 10
"""A probe lasts at least so many times as long as a first token may: a rate a tenth too high shows no sooner."""
FACTOR = 1.3
"""Between the rates of two probes until one has held and one hasn't …"""
MOST_STEPS = 12
"""… and how many of those there may be."""
MOST_SECONDS = 180.0
"""That the search for the bracket goes on at most, if that is longer than a measurement: where bounds can't be kept at
all, each lower rate would take longer than the one before."""
BISECTIONS, BISECTIONS_SCALED = 4, 1
"""After four the bracket is `FACTOR ** (1 / 16)` wide: 1.7 %. Probes of a try-out can't tell as much."""
STEP_DOWN, STEP_DOWN_SCALED = 0.02, 0.1
"""By which a rate that turns out to be too high when it's measured is lowered; by twice as much each time …"""
MOST_MEASURED = 5
"""… and how often at most it's measured. The last one counts, held or not."""


def highest(rig: Rig, guess: float) -> Load:
    """Find the highest rate that keeps the bounds and measure it; return what LoadGen says of that.

    `guess` is a rate in queries a second to begin with. All else that was tried is journalled as probes. Raises
    FlagPerfError as `flagperf.inference.loadgen.run` does.
    """
    search = _Search(rig)
    rate = search.found(guess)
    tried = search.tried(rate)
    step = STEP_DOWN if rig.scale == 1 else STEP_DOWN_SCALED
    for again in range(MOST_MEASURED - 1):
        if tried.held:
            break
        rig.recorder.write(Key.PROBE, tried.probe)
        rate = min(rate * (1 - step * 2**again), tried.answered)
        tried = search.tried(rate)
    return tried.load


class _Tried(NamedTuple):
    load: Load
    probe: Probe

    @property
    def held(self) -> bool:
        return self.probe.held

    @property
    def answered(self) -> float:
        """Queries a second."""
        return self.probe.count / self.probe.seconds


class _Search:
    """Tries rates, one after the other."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._tries = 0

    def found(self, guess: float) -> float:
        """Return the highest rate that held in probes."""
        load = self.rig.load
        seconds = max(load.duration * self.rig.scale * FIRST_SHARE, LEAST_BOUNDS * load.ttft)
        low, high, rate = 0.0, math.inf, guess
        until = time.monotonic() + max(MOST_SECONDS, load.duration * self.rig.scale)
        for _ in range(MOST_STEPS):
            probed = self._probed(rate, seconds)
            if probed.held:
                low, rate = rate, rate * FACTOR
            else:
                high, rate = rate, min(rate / FACTOR, probed.answered)
            if (low and high < math.inf) or time.monotonic() > until:
                break
        if not low or high == math.inf:
            return low or rate
        for _ in range(BISECTIONS if self.rig.scale == 1 else BISECTIONS_SCALED):
            rate = math.sqrt(low * high)
            low, high = (rate, high) if self._probed(rate, seconds).held else (low, rate)
            seconds *= 2
        return low

    def _probed(self, rate: float, seconds: float) -> _Tried:
        tried = self.tried(rate, seconds)
        self.rig.recorder.write(Key.PROBE, tried.probe)
        return tried

    def tried(self, rate: float, seconds: float | None = None) -> _Tried:
        """Put the engine under a rate, for so many seconds or, without, as long as a measurement takes."""
        rig = self.rig
        self._tries += 1
        first, failed = rig.issued, rig.failed
        probe = loadgen.Probe(self._tries, seconds) if seconds is not None else None
        load = loadgen.run(rig, "server", rate=rate, probe=probe, name=f"{self._tries:02}-{rate:.4g}-a-second")
        failed = rig.failed - failed
        unsure = probe is None and rig.scale == 1 and "early_stopping" in load.broken
        told = Probe(
            rate=rate,
            first=first,
            count=rig.issued - first,
            seconds=load.seconds,
            ttft=loadgen.at_99(load, "first_token"),
            tpot=loadgen.at_99(load, "output_token"),
            failed=failed,
            held=not failed and not unsure and "latency" not in load.broken,
        )
        return _Tried(load, told)
