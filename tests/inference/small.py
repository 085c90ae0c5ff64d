"""A model so small that generating with it takes no time, and the trials that have it."""

from __future__ import annotations

from typing import Any

import pytest

from flagperf.cases.aquila.generation import AquilaGeneration
from flagperf.plan import Options, plan
from flagperf.registry import Registries, availability
from flagperf.schema.trial import Trial
from flagperf.settings import merged

REGISTRIES = Registries()
SETTINGS: dict[str, Any] = {
    "model": {
        "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "vocab_size": 300, "seq_len": 64, "multiple_of": 32,
        "init_std": 0.3,
    },
    "data": {"source": "synthetic", "vocab_size": 300, "tokens": 8192},
    "load": {
        "batch": 3,
        "count": 8,
        "input": {"median": 12, "least": 1, "most": 30},
        "output": {"median": 8, "least": 1, "most": 20},
    },
}  # fmt: skip
Started = tuple[Any, AquilaGeneration]


def planned(name: str = "eager", dtype: str = "fp32", **over: Any) -> Trial:
    """Return a trial of generation by a small model; skip the test where the engine isn't installed."""
    told = availability(REGISTRIES.engines.get(name))
    if not told.available:
        pytest.skip(told.reason)
    settings = merged(SETTINGS, over)
    options = Options(cases=["aquila/generate"], engines=[name], vendor="cpu", dtype=dtype, settings=settings)
    return plan(options, REGISTRIES).trials[0]
