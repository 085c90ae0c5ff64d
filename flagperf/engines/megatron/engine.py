"""Engine `megatron`: Megatron-Core's GPTModel under its own schedules, DDP and optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from flagperf.engine import Batch, Held, StepOutput, TrainingTask
from flagperf.engines.common import LOSS_SCALE, LOSS_SCALE_WINDOW, scale_gradients, sum_of_squares, tensor_bytes

from . import shims
from .parallel import MegatronParallel


class Megatron(MegatronParallel):
    """ZeRO 0 is Megatron's plain optimizer, ZeRO 1 its distributed one, which shards masters and moments."""

    def build(self, task: TrainingTask) -> None:
        """Build the model, its DDP and the optimizer from the canonical weights."""
        self.build_model(task)
        config, layout = self.model.config, self.layout
        self.sharded = layout.zero == 1
        overlap = layout.overlap and self.data_size > 1
        wrapped = self.model if self.context.trial.dtype == "fp32" else Float16Module(config, self.model)
        self.cuda_shims += shims.name_types(self.model, self.context.runtime.device)
        self.parallel = DistributedDataParallel(
            config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=self.sharded,
                overlap_grad_reduce=overlap,
                overlap_param_gather=overlap and self.sharded,
                check_for_nan_in_grad=False,  # it would end the process; the harness judges losses
            ),
            wrapped,
        )
        self.optimizer = self._optimizer(task)
        for name, parameter in self.model.named_parameters():
            master = getattr(parameter, "main_param", None)
            if master is not None:  # it was made from a weight already rounded to 16 bits
                master.copy_(self._part(parameter, self.initial(name, parameter)).view_as(master))
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss
        config.no_sync_func = self.parallel.no_sync if overlap else None

    def _optimizer(self, task: TrainingTask) -> MegatronOptimizer:
        settings, dtype = task.optimizer, self.context.trial.dtype
        config = OptimizerConfig(
            optimizer="adam",
            lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=0.0,  # clipped in `step`, by one accurate norm
            bf16=dtype == "bf16",
            fp16=dtype == "fp16",
            params_dtype=self.model.config.params_dtype,
            initial_loss_scale=LOSS_SCALE,
            loss_scale_window=LOSS_SCALE_WINDOW,
            hysteresis=1,
            use_distributed_optimizer=self.sharded,
            overlap_param_gather=self.parallel.ddp_config.overlap_param_gather,
        )
        (optimizer,) = get_megatron_optimizer(config, [self.parallel], use_gloo_process_groups=False).chained_optimizers
        for group in optimizer.param_groups:
            # Megatron leaves this to its scheduler, which isn't used: the harness has one for all engines.
            group["weight_decay"] = settings.weight_decay * group["wd_mult"]
            group["fused"] = True
        return optimizer

    def step(self, batches: Sequence[Batch], learning_rate: float) -> StepOutput:
        """Take one optimizer step."""
        self.parallel.train()
        self.parallel.zero_grad_buffer()
        self.optimizer.zero_grad()
        scale = float(self.optimizer.get_loss_scale()) if self.context.trial.dtype == "fp16" else 1.0
        loss = self._run(batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        overflow = self.optimizer.prepare_grads()
        loss, squares = self._told([loss, sum_of_squares(self.optimizer.get_main_grads_for_grad_norm())])
        if self.sharded:
            dist.all_reduce(squares, group=parallel_state.get_data_parallel_group())
        norm = squares.sqrt().float()
        if not overflow:
            gradients = [p.grad for p in self.optimizer.get_parameters() if p.grad is not None]
            scale_gradients(gradients, norm, self.task.optimizer.clip)
            self.optimizer.step_with_ready_grads()
        return StepOutput(loss.float(), norm, overflow, scale)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch."""
        self.parallel.eval()
        return self._told([self._run([batch], forward_only=True)])[0].float()

    def _run(self, batches: Sequence[Batch], forward_only: bool = False) -> torch.Tensor:
        """Send micro-batches through the pipeline; return their mean loss where it is known, else 0."""
        losses = get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=iter(batches),
            model=self.parallel,
            num_microbatches=len(batches),
            seq_length=self.task.sequence_length,
            micro_batch_size=len(batches[0].tokens),
            forward_only=forward_only,
        )
        return torch.stack(losses).mean() if self.leader else torch.zeros((), device=self.context.runtime.device)

    def _told(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
        """Add up scalars over the ranks that hold one copy of the model together."""
        together = torch.stack([value.to(values[-1].dtype) for value in values])
        dist.all_reduce(together, group=parallel_state.get_model_parallel_group())
        return list(together)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name."""
        if self.sharded:
            self.parallel.start_param_sync(force_sync=True)  # else it would wait for the next forward pass
        return super().weights()

    def master(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return a weight from its fp32 master where there is one, whose parts are spread over data-parallel ranks."""
        if not hasattr(parameter, "main_param"):
            return parameter.detach()
        whole = torch.zeros_like(parameter, dtype=torch.float32)
        if parameter.main_param is not None:
            self._part(parameter, whole).copy_(parameter.main_param.view(-1))
        if self.sharded:
            dist.all_reduce(whole, group=parallel_state.get_data_parallel_group())
        return whole

    def _part(self, parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """Return the elements of a weight whose master this rank keeps, as a flat view of `whole`."""
        flat = whole.view(-1)
        if not self.sharded:
            return flat
        part = self.optimizer._get_model_param_range_map(parameter)["param"]
        return flat[part.start : part.end]

    def held(self) -> Held:
        """Return the bytes of this rank's weights, of DDP's gradient buffers, and of masters and moments."""
        parameters = list(self.model.parameters())
        moments = [x for state in self.optimizer.state.values() for x in state.values()]
        weights = tensor_bytes(parameters)
        return Held(
            weights=weights,
            gradients=tensor_bytes(p.main_grad for p in parameters),
            # In fp32 what the optimizer updates are the weights themselves, or views of them.
            optimizer=tensor_bytes([*parameters, *self.optimizer.get_parameters(), *moments]) - weights,
        )

    def facts(self) -> dict[str, object]:
        """Return how gradients are exchanged and weights updated."""
        ddp = self.parallel.ddp_config
        return {
            **super().facts(),
            "optimizer": f"Megatron's {type(self.optimizer).__name__} over torch.optim.AdamW, fused",
            "gradients": "accumulated and reduced in fp32, in DDP's buffers",
            "masters": "the weights themselves"
            if self.context.trial.dtype == "fp32"
            else "fp32, from canonical weights",
            "overlap": {"grad_reduce": ddp.overlap_grad_reduce, "param_gather": ddp.overlap_param_gather},
        }


def _forward(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    """Run one micro-batch through this stage, as Megatron's schedules want it."""
    batch = next(batches)
    return model(batch.tokens, position_ids=None, attention_mask=None, labels=batch.targets), _mean


def _mean(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of a micro-batch's losses twice: the schedule divides the first in place."""
    loss = losses.mean()
    return loss, loss.detach().clone()
