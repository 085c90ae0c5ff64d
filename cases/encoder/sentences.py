"""Classification of sentences as an engine sees it."""

from __future__ import annotations

from typing import Any

import torch

from flagperf.inference.classification import ClassificationTask
from flagperf.schema.trial import Trial

from .model import Encoder, fill


class Sentences(ClassificationTask):
    """The encoder with seeded weights, and seeded sentences as long as it takes."""

    def __init__(self, settings: Any, trial: Trial) -> None:
        super().__init__(settings.load, trial)
        self.config = settings.model

    def module(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return the model."""
        model = Encoder(self.config)
        fill(model, self.config, self.seed)
        return model.to(dtype)

    def inputs(self) -> torch.Tensor:
        """Return token ids [count, seq_len]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.config.vocab_size, (self.load.count, self.config.seq_len), generator=generator)
