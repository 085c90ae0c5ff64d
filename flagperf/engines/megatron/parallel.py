"""What engines on Megatron's model-parallel layers share: process groups, weights in and out, whose rank speaks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from flagperf.engine import TrainingEngine, TrainingTask

from . import shims, weights
from .model import build


class MegatronParallel(TrainingEngine):
    """A rank of Megatron's tensor-, pipeline- and data-parallel groups.

    Ranks of one tensor-parallel group are neighbours, then come data-parallel groups, then pipeline stages.
    """

    model: GPTModel
    """This rank's part, unwrapped."""

    @property
    def data_rank(self) -> int:
        """Which data-parallel group this rank belongs to."""
        rank: int = parallel_state.get_data_parallel_rank()
        return rank

    @property
    def leader(self) -> bool:
        """Whether this rank speaks for its group: of the last stage, which has the loss, the first tensor rank."""
        last: bool = parallel_state.is_pipeline_last_stage()
        return last and parallel_state.get_tensor_model_parallel_rank() == 0

    def start(self) -> None:
        """Bring up torch.distributed and Megatron's process groups."""
        super().start()
        self.start_groups()

    def start_groups(self) -> None:
        """Make Megatron's process groups; torch.distributed must be up."""
        self.cuda_shims = shims.install(self.context.runtime.device)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.layout.tp,
            pipeline_model_parallel_size=self.layout.pp,
            create_gloo_process_groups=False,
        )
        # Nothing here is random, but sequence parallelism and recomputation look for its random states.
        model_parallel_cuda_manual_seed(self.context.trial.seed)

    def build_model(self, task: TrainingTask) -> None:
        """Build this rank's part of the model from the canonical weights."""
        self.task = task
        self.model = build(task.decoder, self.layout, self.context.trial.dtype).to(self.context.runtime.device)
        self.know(self.model)
        for name, parameter in self.model.named_parameters():
            with torch.no_grad():
                parameter.copy_(self.initial(name, parameter))

    def know(self, model: GPTModel) -> None:
        """Learn which canonical weights this rank's part has, and tell Megatron's optimizers what they ask for."""
        stage = parallel_state.get_pipeline_model_parallel_rank()
        placed = weights.places(self.task.decoder, self.layout.pp).items()
        self._canonical = {place.name: name for name, place in placed if place.stage == stage}
        self._parameters = dict(model.named_parameters())
        for name, parameter in self._parameters.items():
            # Megatron marks what it splits only while it initialises weights; by this a norm is known to be a copy.
            whole = len(weights.shape(self._canonical[name], self.task.decoder)) < 2
            parameter.tensor_model_parallel = not whole

    def initial(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return what a parameter of this rank, by Megatron's name, starts as: its shard, float32, on the host."""
        canonical, decoder = self._canonical[name], self.task.decoder
        full = self.task.initial_weight(canonical, weights.shape(canonical, decoder))
        rank: int = parallel_state.get_tensor_model_parallel_rank()
        return weights.shard(canonical, full, decoder, rank, self.layout.tp).contiguous()

    def master(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return this rank's shard of a weight in the precision in which it is kept; all ranks of a group call it."""
        return parameter.detach()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name: gathered in their stage, then told to the others."""
        decoder, device = self.task.decoder, self.context.runtime.device
        stage, pipeline = (
            parallel_state.get_pipeline_model_parallel_rank(),
            (parallel_state.get_pipeline_model_parallel_group()),
        )
        for name, place in weights.places(decoder, self.layout.pp).items():
            if place.stage == stage:
                own = self.master(self._parameters[place.name]).to(device, torch.float32).contiguous()
                shards = [torch.empty_like(own) for _ in range(self.layout.tp)]
                dist.all_gather(shards, own, group=parallel_state.get_tensor_model_parallel_group())
                full = weights.merge(name, shards, decoder).contiguous()
            else:
                full = torch.empty(weights.shape(name, decoder), device=device)
            dist.broadcast(full, group=pipeline, group_src=place.stage)
            yield name, full.cpu()

    def facts(self) -> dict[str, object]:
        """Return the versions, the kernels and what was done about CUDA's absence."""
        return {
            "megatron-core": version("megatron-core"),
            "layers": "Megatron's local spec; RMSNorm of torch; no fused kernels",
            "attention": "torch scaled_dot_product_attention in place of the local spec's, as in other engines",
            "loss": "Megatron's vocabulary-parallel cross-entropy on whole logits, in float32",
            "shims": self.cuda_shims,
        }

    def close(self) -> None:
        """Take down Megatron's process groups and torch.distributed."""
        parallel_state.destroy_model_parallel()
        super().close()
