"""The case `parallel/inference`: sequences scored by one model, or by a copy of it in each of several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from ..aquila.config import AquilaConfig
from .workers import Job, WorkersCase, WorkersSettings

if TYPE_CHECKING:
    from flagperf.vendor import Runtime


class InferenceSettings(WorkersSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the case can be told. An item is a batch."""

    model: AquilaConfig
    batch: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Sequences a batch, as long as the model's context."""


class ParallelInference(WorkersCase):
    """Scoring of sequences by an Aquila model."""

    Settings = InferenceSettings

    def job(self) -> Job:
        """Return the batches to score."""
        return Scoring(self.settings.model, self.settings.items, self.settings.batch, self.trial.seed)


class Scoring(Job):
    """The likeliest token after each of a sequence's, for seeded sequences and seeded weights."""

    def __init__(self, model: AquilaConfig, count: int, batch: int, seed: int) -> None:
        self.config, self.count, self.batch, self.seed = model, count, batch, seed

    def start(self, runtime: Runtime) -> None:
        """Build the model on the device."""
        import torch

        from ..aquila.model import Aquila
        from ..aquila.weights import fill

        self.device = runtime.device
        self.model = Aquila(self.config).eval()
        fill(self.model, self.config, self.seed)
        self.model.to(self.device)
        shape = (self.count, self.batch, self.config.seq_len)
        generator = torch.Generator().manual_seed(self.seed)
        self.tokens = torch.randint(self.config.vocab_size, shape, generator=generator)

    def __getstate__(self) -> dict[str, object]:
        """Send what the work is, not what `start` made of it."""
        return {name: getattr(self, name) for name in ("config", "count", "batch", "seed")}

    def items(self) -> int:
        """Return the number of batches."""
        return self.count

    def outcome(self, item: int) -> bytes:
        """Score a batch."""
        import torch

        with torch.inference_mode():
            likeliest = self.model(self.tokens[item].to(self.device)).argmax(-1)
        told: bytes = likeliest.to("cpu", torch.int32).numpy().tobytes()
        return told
