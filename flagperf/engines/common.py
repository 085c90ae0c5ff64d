"""What torch's own engines share; each says only how it wraps the model and places the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from flagperf.engine import AdamW, Batch, Held, StepOutput, TrainingEngine, TrainingTask

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types in which the model computes while weights and optimizer state are fp32."""
LOSS_SCALE = 2**16
"""By which the loss is multiplied at first in fp16."""
LOSS_SCALE_WINDOW = 2000
"""Steps without an overflow after which the scale is doubled."""


class TorchEngine(TrainingEngine):
    """One model, one fused AdamW, gradients accumulated over micro-batches."""

    def build(self, task: TrainingTask) -> None:
        """Build on the meta device, wrap, materialise, and fill in the canonical weights."""
        self.task = task
        device = self.context.runtime.device
        with torch.device("meta"):
            model = task.model(recompute=self.layout.recompute)
        if self.layout.compile:
            for block in task.blocks(model):
                block.compile()
        self.plain = model
        self.model = self.wrap(model, device)
        self.optimizer = adamw(self.model, task.optimizer)
        self.loss_scale = LossScale(on=self.context.trial.dtype == "fp16")

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """Return the model on the device with its initial weights, wrapped for this engine."""
        model.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.task.initial_weight(name, parameter.shape))
        return model

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Return the context of one micro-batch: gradients are exchanged on the last one only."""
        return nullcontext()

    def precision(self) -> AbstractContextManager[object]:
        """Return the context in which the model computes: 16 bits by autocast, weights and optimizer state in fp32."""
        if narrow := NARROW.get(self.context.trial.dtype):
            return torch.autocast(self.context.runtime.device.type, narrow)
        return nullcontext()

    def step(self, batches: Sequence[Batch], learning_rate: float) -> StepOutput:
        """Take one optimizer step; in fp16 the update is left out where gradients overflowed."""
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.loss_scale.value
        total = torch.zeros((), device=self.context.runtime.device)
        for number, batch in enumerate(batches):
            with self.accumulating(number == len(batches) - 1):
                with self.precision():
                    loss = self.model(*batch)
                (loss * (scale / len(batches))).backward()
            total += loss.detach()
        norm = clip_gradients(self.model, self.task.optimizer.clip, scale)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if not (skipped := self.loss_scale.overflowed(norm)):
            self.optimizer.step()
        return StepOutput(total / len(batches), norm, skipped, scale)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch."""
        with self.precision():
            loss: torch.Tensor = self.model(*batch)
        return loss.float()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name."""
        for name, parameter in self.plain.named_parameters():
            full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            yield name, full.detach().float().cpu()

    def held(self) -> Held:
        """Return the bytes of this rank's weights, gradients and optimizer state."""
        parameters = list(self.model.parameters())
        return Held(
            weights=tensor_bytes(parameters),
            gradients=tensor_bytes(p.grad for p in parameters if p.grad is not None),
            optimizer=tensor_bytes(x for state in self.optimizer.state.values() for x in state.values()),
        )


class LossScale:
    """Dynamic loss scaling, off but for fp16: halved when gradients overflow, doubled after a time without.

    It goes by the global norm, which is there anyway and the same on every rank, sharded or not.
    """

    def __init__(self, *, on: bool) -> None:
        self.on, self.value, self._good = on, float(LOSS_SCALE) if on else 1.0, 0

    def overflowed(self, norm: torch.Tensor) -> bool:
        """Say whether this step's update must be left out, and set the next step's scale."""
        if not self.on:
            return False
        finite = bool(norm.isfinite())
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self._good % LOSS_SCALE_WINDOW == 0:
            self.value *= 2
        return not finite


def tensor_bytes(tensors: Iterable[object]) -> int:
    """Return the bytes of the local storages behind tensors, each counted once, however many views there are of it."""
    storages = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            storage = local.untyped_storage()
            storages[local.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def adamw(
    model: torch.nn.Module, settings: AdamW, dimensions: Callable[[torch.Tensor], int] = torch.Tensor.dim
) -> torch.optim.Optimizer:
    """Return AdamW over a model's parameters, decaying the matrices only; `dimensions` tells which these are."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if dimensions(p) >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if dimensions(p) < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True)


@torch.no_grad()
def clip_gradients(model: torch.nn.Module, limit: float, loss_scale: float = 1.0) -> torch.Tensor:
    """Take the loss scale out of all gradients and their global norm down to `limit`; return the norm between the two.

    Shards are added up over the ranks that hold them.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    shards = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
    squares = sum_of_squares(shards)
    if hasattr(gradients[0], "device_mesh"):
        torch.distributed.all_reduce(squares, group=gradients[0].device_mesh.get_group())
    norm = (squares.sqrt() / loss_scale).float()
    scale_gradients(shards, norm, limit, loss_scale)
    return norm


def sum_of_squares(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the squares of all elements, a scalar: what one accurate norm for every engine is made of.

    In float64 on a CPU, whose float32 `clip_grad_norm_` is off by 5e-5, enough to set engines apart after a few steps.
    """
    exact = torch.float64 if tensors[0].device.type == "cpu" else torch.float32
    return torch.stack([torch.linalg.vector_norm(t, dtype=exact) for t in tensors]).square().sum()


def scale_gradients(gradients: list[torch.Tensor], norm: torch.Tensor, limit: float, loss_scale: float = 1.0) -> None:
    """Scale gradients in place: the loss scale out of them, and a global norm of `norm` without it down to `limit`."""
    scale = (limit / (norm + 1e-6)).clamp(max=1.0) / loss_scale
    if norm.device.type != "cpu" or scale < 1:  # elsewhere asking would make the host wait for the device
        torch._foreach_mul_(gradients, scale)
