"""The ranks of the fairness tests: train an engine in several layouts and keep what it did.

`python fair.py RANKS FOLDER ENGINE ARM …`, an arm being `DTYPE:LAYOUT`: `fp32:zero=2,micro=1`;
`OTHER DTYPE:LAYOUT` is an arm of another engine; with `!` behind its data type, gradients overflow at first.
Starting up takes longer than training a model this small: ranks are forks of a process that has imported what they
need, and all arms share one process group.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from forks import run_ranks

from flagperf.cases.aquila.settings import PretrainSettings
from flagperf.cases.aquila.task import AquilaTask
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.schema.layout import Layout
from flagperf.schema.trial import Trial
from flagperf.settings import typed
from flagperf.worker import rank_context

SETTINGS: dict[str, Any] = {
    "data": {"source": "synthetic", "vocab_size": 512, "tokens": 65536},
    "model": {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "seq_len": 64, "vocab_size": 512},
    # Far from anyone's defaults, so that an engine that forgets one of them is seen to. Epsilon is of the size of the
    # clipped gradients: with Adam's own 1e-8 an element of no importance would move as far as any, in either direction.
    "optimizer": {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.5, "clip": 0.2},
    "protocol": {"validation": 4},
}
RATES = [1e-2, 0.0, 2e-2, 5e-3, 1e-2]
"""The learning rate at each step, given to the engine: one of zero, at which nothing may move."""
JUDGED = 2
"""After this step the model is judged, in between, which may change nothing."""


def trial(engine: str, layout: str, dtype: str, ranks: int) -> Trial:
    """Return the trial that all engines are given, but for its layout and, with `!` behind the type, larger weights."""
    arm = engine + (f":{layout}" if layout else "")
    options = Options(
        cases=["aquila/pretrain"],
        engines=[arm],
        ranks=ranks,
        dtype=dtype.removesuffix("!"),
        settings={**SETTINGS, "model": {**SETTINGS["model"], "init_std": 1}} if dtype.endswith("!") else SETTINGS,
        oversubscribe=True,
    )
    return plan(options, Registries()).trials[0]


def task(of: Trial) -> AquilaTask:
    """Return the case's task for a trial."""
    return AquilaTask(typed(of.settings, PretrainSettings), of)


def main(ranks: int, folder: Path, name: str, arms: list[str]) -> int:
    """Plan every arm, which is done before ranks are bound to cores, and have ranks train them; return their status."""
    planned = []
    for arm in arms:
        *other, rest = arm.split()
        dtype, _, layout = rest.partition(":")
        planned.append(trial(other[0] if other else name, layout, dtype, ranks))
    _import({each.engine for each in planned})
    return run_ranks(ranks, lambda: _rank(folder, planned))


def _import(engines: set[str]) -> None:
    """Import what engines import when they start, but nothing that starts a thread."""
    importlib.import_module("torch._dynamo")
    for name in engines:
        Registries().engines.load(name)
    if any("deepspeed" in name for name in engines):
        from flagperf.engines.deepspeed.shims import prepare

        prepare(torch.device("cpu"))
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")


def _rank(folder: Path, planned: list[Trial]) -> None:
    """Train every arm; each rank writes its own numbers, rank 0 the weights besides."""
    rank = int(os.environ["RANK"])
    end, begun = dist.destroy_process_group, False
    for number, one in enumerate(planned):
        with Journal(folder / f"{number}-{rank}.journal", {}) as journal:
            context = rank_context(one, journal)
            torch.set_num_threads(1)  # the model is too small for two, which would wait for each other
            engine = context.registries.engines.load(one.engine)(context)
            if begun:  # the group of the first arm serves all
                dist.init_process_group = lambda *_, **__: None
            engine.start()
            dist.destroy_process_group, begun = (lambda *_, **__: None), True
            told, kept = _train(engine, task(one), one.layout)
            engine.close()
        (folder / f"{number}-{rank}.json").write_text(json.dumps(told))
        if rank == 0:
            np.savez(folder / f"{number}.npz", **kept)
    if dist.is_initialized():
        end()


def _train(engine: Any, given: AquilaTask, layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a rank's engine told of each step, and the weights at the start and after each."""
    engine.build(given)
    share, micro = given.global_batch // engine.data_size, layout.micro or 1
    first = engine.data_rank * share
    kept, steps, digest, judged = _weights(engine, "start"), [], 0, 0.0
    for step, rate in enumerate(RATES):
        batches = [given.batch(step, first + start, micro) for start in range(0, share, micro)]
        output = engine.step(batches, rate)
        steps.append([float(output.loss), float(output.gradient_norm), output.skipped, output.loss_scale])
        kept |= _weights(engine, str(step))
        if engine.leader:
            digest += sum(given.digest(step, first + i * micro, batch) for i, batch in enumerate(batches))
        if step == JUDGED:
            judged = float(engine.evaluate(given.batch(len(RATES), 0, micro)))
    told = {"leader": engine.leader, "share": share, "steps": steps, "digest": str(digest), "judged": judged}
    return {**told, "held": engine.held()._asdict(), "facts": engine.facts()}, kept


def _weights(engine: Any, when: str) -> dict[str, Any]:
    return {f"{when}/{name}": weight.numpy().copy() for name, weight in engine.weights()}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
