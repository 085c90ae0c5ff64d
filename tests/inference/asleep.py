"""Prints how often the thread that serves was put to sleep, per step, in one trial of `eager`: a program of its own."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from flagperf.engines.eager import Eager
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.worker import rank_context

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def main() -> None:
    os.environ.update(ALONE)
    eight = {"median": 8, "least": 8, "most": 8}
    few = {
        "data": {"source": "synthetic", "vocab_size": 8192, "tokens": 8192},
        "load": {"batch": 2, "count": 2, "input": eight, "output": eight},
        "held_out": 1,
    }
    options = Options(
        cases=["aquila/generate"],
        engines=["eager"],
        vendor="cpu",
        scenarios=["singlestream"],
        scale=0.0001,
        warmup=2,
        settings=few,
    )
    registries = Registries()
    [trial] = plan(options, registries).trials
    case: Any = registries.cases.load(trial.case)(trial)
    case.prepare(lambda stage, done: None)
    close = Eager.close

    def counted(engine: Eager) -> None:
        thread = Path(f"/proc/self/task/{engine.batcher._thread.native_id}/status")
        [sleeps] = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", thread.read_text(), re.MULTILINE)
        print(json.dumps({"sleeps": int(sleeps), "steps": engine.batcher._steps, "threads": trial.threads}))
        close(engine)

    Eager.close = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "rank0.journal", {}) as journal:
        case.run(rank_context(trial, journal))


if __name__ == "__main__":
    main()
