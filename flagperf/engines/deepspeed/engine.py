"""The engine on DeepSpeed; what another model brings (Megatron's, say) it overrides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from flagperf.context import RankContext
from flagperf.engine import Batch, Held, StepOutput, TrainingEngine, TrainingTask
from flagperf.engines.common import NARROW, adamw, clip_gradients, tensor_bytes
from flagperf.engines.deepspeed.config import config
from flagperf.engines.deepspeed.shims import prepare
from flagperf.errors import FlagPerfError

_REDUCED = ("once a step", "once a step", "every micro-batch", "every micro-batch")


class DeepSpeed(TrainingEngine):
    """The task's own model under `deepspeed.initialize`.

    In 16 bits ZeRO 1 to 3 compute with 16-bit weights and keep fp32 masters, which start as the canonical weights to
    the bit; without ZeRO the weights are fp32 and the model runs under autocast.
    """

    mpu: Any = None
    """What tells DeepSpeed of model-parallel groups, for an engine that has them."""

    def __init__(self, context: RankContext) -> None:
        super().__init__(context)
        self.stage = self.layout.zero or 0
        self.dtype = context.trial.dtype

    def start(self) -> None:
        """Bring up torch.distributed on the vendor's backend, and DeepSpeed on that."""
        self.shims = prepare(self.context.runtime.device)
        super().start()
        import deepspeed

        deepspeed.init_distributed(dist_backend=self.context.runtime.backend, verbose=False)

    def build(self, task: TrainingTask) -> None:
        """Build the model from its canonical weights and let DeepSpeed take it over."""
        import deepspeed

        self.task = task
        micro = self.layout.micro or 1
        self.accumulation = task.global_batch // self.data_size // micro
        self.config = config(
            self.layout,
            dtype=self.dtype,
            clip=task.optimizer.clip,
            micro=micro,
            accumulation=self.accumulation,
            unit=self.unit(),
        )
        self.model = self.construct()
        self._fill()
        self.adamw = adamw(self.model, task.optimizer, lambda p: len(shape(p)))
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.model, optimizer=self.adamw, config=self.config, mpu=self.mpu
        )
        if self.masters:
            for name, parameter in self.model.named_parameters():
                deepspeed.utils.safe_set_full_fp32_param(parameter, self._on_device(self.initial(name, parameter)))

    # What an engine with a model of its own overrides

    def unit(self) -> int:
        """Return the elements of the largest block."""
        with torch.device("meta"):
            model = self.task.model(recompute=False)
        return max(sum(p.numel() for p in block.parameters()) for block in self.task.blocks(model))

    def construct(self) -> nn.Module:
        """Return the model with parameters yet to be filled; under ZeRO 3 each is sharded as soon as it is made."""
        import deepspeed

        device = self.context.runtime.device
        if self.stage == 3:
            with deepspeed.zero.Init(config_dict_or_path=self.config, mpu=self.mpu):
                return self.task.model(recompute=self.layout.recompute)
        with torch.device("meta"):
            model = self.task.model(recompute=self.layout.recompute)
        if self.layout.compile:
            for block in self.task.blocks(model):
                block.compile()
        return model.to(NARROW[self.dtype] if self.masters else torch.float32).to_empty(device=device)

    def initial(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        """Return what a parameter of this rank's model starts as: float32, on the host, whole under ZeRO 3 too."""
        return self.task.initial_weight(name, shape(parameter))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch."""
        loss: torch.Tensor = self.engine(*batch)
        return loss

    # The contract

    def step(self, batches: Sequence[Batch], learning_rate: float) -> StepOutput:
        """Take one optimizer step, which DeepSpeed does at the last micro-batch."""
        if len(batches) != self.accumulation:
            raise FlagPerfError(
                f"DeepSpeed was set up for {self.accumulation} micro-batches a step and was given {len(batches)}.",
                "The layout's `micro` must be the size of the batches.",
            )
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        scale = self._loss_scale()
        total = torch.zeros((), device=self.context.runtime.device)
        norm = total
        for number, batch in enumerate(batches, 1):
            loss = self.loss(batch)
            self.engine.backward(loss)
            total += loss.detach().float()
            if number == len(batches) and not self.stage:
                norm = self._clip()
            self.engine.step()
        if self.stage:
            norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32)
        return StepOutput(total / len(batches), norm, self._skipped(scale), scale)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch."""
        self.engine.eval()
        loss = self.loss(batch).float()
        self.engine.train()
        return loss

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name, from the fp32 masters where there are any."""
        for name, parameter in self.model.named_parameters():
            yield name, self.full(parameter)

    def full(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return a parameter gathered over the data-parallel ranks: float32, on the host."""
        import deepspeed

        whole = deepspeed.utils.safe_get_full_fp32_param(parameter) if self.stage else parameter
        return whole.detach().float().cpu()

    def held(self) -> Held:
        """Return the bytes of this rank's state; DeepSpeed frees most gradients as it takes the step."""
        parameters = list(self.model.parameters())
        masters = _masters(self.optimizer) if self.stage else []
        moments = [x for state in self.adamw.state.values() for x in state.values()]
        gradients = [getattr(self.optimizer, "grad_partitions_flat_buffer", None), *(p.grad for p in parameters)]
        master_gradients = [master.grad for master in masters]
        weights = tensor_bytes([*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)])
        if self.layout.offload:
            host = tensor_bytes([*masters, *moments, *master_gradients, *gradients])
            return Held(weights=weights, gradients=0, optimizer=0, host=host)
        return Held(
            weights=weights,
            gradients=tensor_bytes([*gradients, *master_gradients]),
            optimizer=tensor_bytes([*masters, *moments]),
        )

    def facts(self) -> dict[str, object]:
        """Return the versions, and what DeepSpeed made of the layout."""
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        return {
            "deepspeed": deepspeed.__version__,
            "accelerator": get_accelerator().device_name(),
            "shims": self.shims,
            "zero": self.stage,
            "optimizer": f"torch {type(self.adamw).__name__}, fused" + ", on the host" * self.layout.offload,
            "optimizer_wrapper": type(self.optimizer).__name__,
            "weights": "fp32, autocast" if self.dtype != "fp32" and not self.stage else self.dtype,
            "gradients_reduced": f"{_REDUCED[self.stage]}, in fp32",
            "gradients_accumulated": "fp32",
            "gradient_norm": "squares summed in fp64" if self._exact_norm() else "squares summed in fp32",
            "overlap": "none without ZeRO: gradients are reduced after the backward pass"
            if not self.stage
            else "asked for"
            if self.layout.overlap
            else "off",
        }

    def close(self) -> None:
        """Take down DeepSpeed's hooks and buffers, then torch.distributed."""
        if hasattr(self, "engine"):
            self.engine.destroy()
            del self.engine, self.optimizer, self.adamw, self.model
        super().close()

    # Parts

    @property
    def masters(self) -> bool:
        """Whether fp32 masters are kept apart from narrower weights."""
        return self.stage > 0 and self.dtype != "fp32"

    @torch.no_grad()
    def _fill(self) -> None:
        """Give every parameter, or this rank's shard of it, its canonical weight."""
        for name, parameter in self.model.named_parameters():
            value = self.initial(name, parameter)
            shard = getattr(parameter, "ds_tensor", None)
            if shard is None:
                parameter.copy_(value)
                continue
            # ZeRO 3 cuts the flat parameter into equal parts, the last one padded.
            first = self.data_rank * shard.numel()
            part = value.flatten()[first : first + shard.numel()]
            shard.view(-1)[: part.numel()].copy_(part)

    def _on_device(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.context.runtime.device)

    def _loss_scale(self) -> float:
        if self.dtype != "fp16":
            return 1.0
        scaler = self.engine.torch_autocast_z0_gradscaler
        return float(scaler.get_scale() if scaler else self.optimizer.loss_scale)

    def _skipped(self, scale: float) -> bool:
        """Say whether the step was left out: a scaler of torch's own tells only by having become smaller."""
        if self.dtype == "fp16" and not self.stage:
            return self._loss_scale() < scale
        return not self.engine.was_step_applied()

    def _clip(self) -> torch.Tensor:
        """Clip the reduced gradients where DeepSpeed leaves it to the engine."""
        if self.engine.torch_autocast_z0_gradscaler:
            self.engine.torch_autocast_z0_gradscaler.unscale_(self.adamw)
        return clip_gradients(self.model, self.task.optimizer.clip)

    def _exact_norm(self) -> bool:
        from deepspeed.accelerator import get_accelerator

        # The optimizer for bf16 under ZeRO 1 is another one, with a sum of its own.
        other = type(self.optimizer).__name__ == "BF16_Optimizer"
        on_host = self.context.runtime.device.type == "cpu"
        return not other and (get_accelerator().is_fp64_supported() if self.stage else on_host)


def shape(parameter: torch.Tensor) -> torch.Size:
    """Return a parameter's full shape, also where ZeRO 3 has left it empty."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _masters(optimizer: Any) -> list[torch.Tensor]:
    """Return this rank's fp32 copies of the weights, by what each of DeepSpeed's optimizers calls them."""
    named: Iterable[str] = (
        "single_partition_of_fp32_groups",
        "fp32_partitioned_groups_flat",
        "fp32_groups_flat_partition",
    )
    return [tensor for name in named for tensor in getattr(optimizer, name, [])]
