"""Aquila pre-training as an engine sees it."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from flagperf.data import open_tokens
from flagperf.data.batches import Batches, sample_digest
from flagperf.engine import AdamW, Batch, TrainingTask
from flagperf.errors import UsageError
from flagperf.schema.trial import Trial

from . import formulas
from .model import Aquila
from .settings import PretrainSettings
from .weights import initial_weight


class AquilaTask(TrainingTask):
    """The model, the weights it starts from, the tokens in their order, and the schedule."""

    def __init__(self, settings: PretrainSettings, trial: Trial) -> None:
        self.config, self.schedule, self.seed = settings.model, settings.optimizer, trial.seed
        self.global_batch, self.sequence_length = trial.protocol.global_batch, self.config.seq_len
        self.flops_per_token = formulas.training_flops_per_token(self.config, self.config.seq_len)
        self.recompute_factor = formulas.recompute_factor(self.config, self.config.seq_len)
        self.decoder = self.config.decoder
        schedule = settings.optimizer
        self.optimizer = AdamW(schedule.beta1, schedule.beta2, schedule.epsilon, schedule.weight_decay, schedule.clip)
        data = open_tokens(settings.data)
        self.batches = Batches(data.train, self.sequence_length, self.global_batch, trial.seed, data.validation)
        self.held_out = self.batches.validation(trial.protocol.validation)
        if len(self.held_out) < trial.protocol.validation:
            raise UsageError(
                f"The validation text makes {len(self.held_out)} sequences; {trial.protocol.validation} are wanted.",
                f"Use --set protocol.validation={len(self.held_out)}, or hold out more with --set data.validation=0.1.",
            )
        self.token_bytes = data.token_bytes() if data.meta.bytes("validation") else None

    def model(self, *, recompute: bool) -> torch.nn.Module:
        """Return an uninitialised Aquila."""
        return Aquila(self.config, recompute=recompute)

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer blocks."""
        return list(cast(Aquila, model).blocks)

    def initial_weight(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return a parameter's canonical initial value."""
        return initial_weight(self.config, name, tuple(shape), self.seed)

    def learning_rate(self, step: int) -> float:
        """Warm up linearly, then follow half a cosine down to the minimum."""
        s = self.schedule
        if step < s.warmup_steps:
            return s.learning_rate * (step + 1) / s.warmup_steps
        done = min(1.0, (step - s.warmup_steps) / max(1, s.schedule_steps - s.warmup_steps))
        return s.learning_rate * (s.minimum_ratio + (1 - s.minimum_ratio) * 0.5 * (1 + math.cos(math.pi * done)))

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Return sequences of the step's global batch."""
        return _batch(np.stack([self.batches.sample(step, first + i) for i in range(count)]))

    def validation(self, first: int, count: int) -> tuple[Batch, int]:
        """Return held-out sequences and the bytes of text that their targets stand for, 0 where there is no text."""
        windows = self.held_out[first : first + count]
        return _batch(windows), 0 if self.token_bytes is None else int(self.token_bytes[windows[:, 1:]].sum())

    def digest(self, step: int, first: int, batch: Batch) -> int:
        """Return the sum of the sequences' digests."""
        whole = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1).numpy()
        number = step * self.global_batch + first
        return sum(sample_digest(number + i, sequence) for i, sequence in enumerate(whole))


def _batch(windows: npt.NDArray[np.int64]) -> Batch:
    whole = torch.from_numpy(windows)
    return Batch(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())
