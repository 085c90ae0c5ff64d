"""`weights=trained`: an Aquila trained on this host by the case `aquila/pretrain`, once for each shape and text."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import msgspec
import torch

from flagperf import paths
from flagperf.context import RankContext
from flagperf.data import DataSettings, Progress, cache, open_tokens
from flagperf.engines.single import Single
from flagperf.journal import Journal
from flagperf.registry import Registries
from flagperf.schema.layout import Layout
from flagperf.schema.trial import Trial
from flagperf.settings import merged, typed

from . import checkpoints
from .config import AquilaConfig
from .settings import PretrainSettings
from .task import AquilaTask

CASE, PRESET = "aquila/pretrain", "tiny"
"""Whose optimizer and batch are used."""
FORMAT = 1


def trained(model: AquilaConfig, data: DataSettings, steps: int, trial: Trial, report: Progress) -> Path:
    """Return a folder with the trained weights in fp32, in Hugging Face's format; train where there is none yet.

    The model's seed is the case's own, so all trials of all runs are given the same weights.
    """
    registries = Registries([])
    case = registries.cases.get(CASE)
    preset = case.presets[PRESET]
    told = {"model": msgspec.to_builtins(model), "data": msgspec.to_builtins(data)}
    proper = merged(merged(case.settings, preset.settings), told)
    proper["optimizer"] |= {
        "schedule_steps": steps,
        "warmup_steps": min(steps // 5, proper["optimizer"]["warmup_steps"]),
    }
    settings = typed(proper, PretrainSettings)
    protocol = msgspec.convert(
        {**msgspec.to_builtins(case.protocol), **preset.protocol, "steps": steps, "validation": 1}, type(case.protocol)
    )
    corpus = open_tokens(data)
    told = {
        "format": FORMAT,
        "torch": torch.__version__.partition("+")[0],
        "corpus": corpus.meta.fingerprint,
        "settings": msgspec.to_builtins(settings),
        "protocol": [protocol.seed, protocol.global_batch, steps],
    }
    digest = hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()
    entry = paths.cache() / "weights" / f"trained-{digest[:16]}"
    trial = msgspec.structs.replace(
        trial, dtype="fp32", layout=Layout(), ranks=1, seed=protocol.seed, protocol=protocol, link=None
    )

    def make(folder: Path) -> None:
        runtime = registries.vendors.adapter("cpu").runtime(0, 1, trial.threads)
        with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "journal", {}) as journal:
            context = RankContext.alone(trial, runtime, journal, registries)
            task = AquilaTask(settings, trial)
            engine = Single(context)
            engine.build(task)
            for step in range(steps):
                batches = [task.batch(step, first, preset.micro) for first in range(0, task.global_batch, preset.micro)]
                output = engine.step(batches, task.learning_rate(step))
                if step % 10 == 0:
                    report(f"training the model whose weights are used, loss {float(output.loss):.2f}", step / steps)
        checkpoints.write(folder, model, engine.weights(), torch.float32, corpus.tokenizer)

    with cache.storage_errors():
        return cache.made(entry, make, report)
