"""Runs specification cases in this process, at sizes that take no time: `probe` is one rank of one trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import rank_alone

from flagperf.journal import Journal, Reader
from flagperf.plan import Options
from flagperf.plan.sweeps import sweep_trial
from flagperf.registry import Registries
from flagperf.schema.event import Key

QUICK = {"seconds": 0.02, "steps": 3, "warmup": 2}


def probe(folder: Path, case: str, vendor: str = "cpu", preset: str = "tiny", **settings: Any) -> list[dict[str, Any]]:
    """Return the samples that a rank journals of a case at these settings."""
    registries = Registries()
    adapter = registries.vendors.adapter(vendor)
    asked = {"protocol": {**QUICK, **settings.pop("protocol", {})}, **settings}
    options = Options(cases=[case], preset=preset, engines=[], settings=asked, ranks=1)
    trial = sweep_trial(case, options, adapter, registries)
    path = folder / "rank0.journal"
    with Journal(path, {"role": "rank"}) as journal:
        registries.cases.load(case)(trial).run(rank_alone(trial, journal, registries))
    return list(told(path))


def told(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of a journal, verdict and reason filled in."""
    for event in Reader(path):
        if event.key == Key.SAMPLES:
            yield {"verdict": "valid", "why": "", **event.value}
