"""The training-engine contract: what BMTrain, DeepSpeed, Megatron and torch's own engines have in common.

An engine is a manifest (`*.toml`, see `EngineManifest`) and an entry class derived from `TrainingEngine`. It may bring
its own initialisation, parameter classes, optimizer and model code; it must start from the task's canonical weights,
average the loss over the same tokens, clip once a step by the global norm, and advance the learning rate once a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from flagperf.context import RankContext
from flagperf.schema.decoder import Decoder


class Batch(NamedTuple):
    """Sequences on the rank's device."""

    tokens: torch.Tensor
    """int64 [B, S]."""
    targets: torch.Tensor
    """int64 [B, S]: each position's next token."""


class StepOutput(NamedTuple):
    """What a step tells; tensors stay on the device until the clock has stopped."""

    loss: torch.Tensor
    """Mean over the tokens that this rank's data-parallel group read, before the update: a float32 scalar."""
    gradient_norm: torch.Tensor
    """Global norm before clipping: a scalar; of unscaled gradients, and not finite where they overflowed."""
    skipped: bool = False
    """Whether the update was left out because gradients overflowed, as loss scaling in fp16 foresees."""
    loss_scale: float = 1.0
    """By which the loss was multiplied before the backward pass."""


class Held(NamedTuple):
    """Bytes of state that a rank holds between two steps, by what they are for."""

    weights: int
    """In which the model computes, shards or whole."""
    gradients: int
    optimizer: int
    """Moments, and fp32 master weights where they are kept apart from `weights`."""
    host: int = 0
    """Of the three, what was offloaded to the host; not counted in them."""


class AdamW(NamedTuple):
    """The optimizer all engines use; decay applies to matrices, not to norms."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip: float
    """Largest global gradient norm."""


class TrainingTask(ABC):
    """What a training case gives to an engine."""

    optimizer: AdamW
    global_batch: int
    """Sequences an optimizer step."""
    sequence_length: int
    flops_per_token: float
    """Model FLOPs of training on one token, recomputation not counted."""
    recompute_factor: float
    """Hardware FLOPs over model FLOPs when every block is recomputed."""
    decoder: Decoder
    """What the model is, for engines that build it from parts of their own."""

    @abstractmethod
    def model(self, *, recompute: bool) -> torch.nn.Module:
        """Return the model, uninitialised, on torch's default device: `model(tokens, targets)` is the mean loss."""

    @abstractmethod
    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the repeated units, in order: what is sharded, recomputed and compiled one by one."""

    @abstractmethod
    def initial_weight(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return the canonical initial value of a parameter: float32, on the host, the same on every rank."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""

    @abstractmethod
    def batch(self, step: int, first: int, count: int) -> Batch:
        """Return `count` sequences of the step's global batch from its `first` on, on the host."""

    @abstractmethod
    def validation(self, first: int, count: int) -> tuple[Batch, int]:
        """Return held-out sequences and how many bytes of text their targets stand for."""

    @abstractmethod
    def digest(self, step: int, first: int, batch: Batch) -> int:
        """Return the sum of the digests of a batch's sequences on the host: which tokens, at which place."""


class TrainingEngine(ABC):
    """One rank's share of a training job."""

    def __init__(self, context: RankContext) -> None:
        self.context = context
        self.layout = context.trial.layout

    @property
    def data_rank(self) -> int:
        """Which data-parallel group this rank belongs to."""
        return self.context.rank // self.layout.model_parallel

    @property
    def data_size(self) -> int:
        """How many data-parallel groups there are."""
        return self.context.world_size // self.layout.model_parallel

    @property
    def leader(self) -> bool:
        """Whether this rank speaks for its data-parallel group."""
        return self.context.rank % self.layout.model_parallel == 0

    def start(self) -> None:
        """Bring up what the engine needs first: by default torch.distributed on the vendor's backend."""
        self.context.connect()

    @abstractmethod
    def build(self, task: TrainingTask) -> None:
        """Build model and optimizer from the task's canonical initial weights."""

    @abstractmethod
    def step(self, batches: Sequence[Batch], learning_rate: float) -> StepOutput:
        """Take one optimizer step over this rank's micro-batches of the global batch."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch without learning from it: a float32 scalar."""

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name, float32 on the host; every rank must call it."""

    @abstractmethod
    def held(self) -> Held:
        """Return what this rank holds after a step; called once, off the clock."""

    def facts(self) -> dict[str, object]:
        """Return what a reader should know of how the engine ran, as plain JSON; called when the model is built."""
        return {}

    def close(self) -> None:
        """Take down what `start` brought up."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
