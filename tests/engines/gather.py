"""One rank of a test, under torchrun: build an engine, gather its weights before and after a few steps, keep both.

`python -m torch.distributed.run … gather.py ENGINE FOLDER`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from flagperf.cases.aquila.settings import PretrainSettings
from flagperf.cases.aquila.task import AquilaTask
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.settings import typed
from flagperf.worker import rank_context

SETTINGS = {
    "data": {"source": "synthetic", "vocab_size": 512, "tokens": 65536},
    "model": {"dim": 64, "layers": 2, "seq_len": 64, "vocab_size": 512},
    "protocol": {"validation": 4},
}


def main(engine_name: str, folder: Path) -> None:
    """Train three steps and let rank 0 write what was gathered."""
    options = Options(cases=["aquila/pretrain"], engines=[engine_name], ranks=2, settings=SETTINGS)
    trial = plan(options, Registries()).trials[0]
    with Journal(folder / f"{engine_name}-{os.environ['RANK']}.journal", {}) as journal:
        context = rank_context(trial, journal)
        task = AquilaTask(typed(trial.settings, PretrainSettings), trial)
        engine = context.registries.engines.load(trial.engine)(context)
        engine.start()
        engine.build(task)
        before = {name: weight.numpy().copy() for name, weight in engine.weights()}
        for name, weight in before.items():
            assert (weight == task.initial_weight(name, weight.shape).numpy()).all(), name
        share = task.global_batch // engine.data_size
        for step in range(3):
            engine.step([task.batch(step, engine.data_rank * share, share)], 1e-3)
        after = {name: weight.numpy() for name, weight in engine.weights()}
        if context.rank == 0:
            np.savez(folder / engine_name, **after)
            np.savez(folder / f"{engine_name}-before", **before)
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
