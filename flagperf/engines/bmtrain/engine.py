"""Engine `bmtrain`: a training task under BMTrain's own blocks, optimizers and loss scaling."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import register_rendezvous_handler

from flagperf.context import RankContext
from flagperf.engine import Batch, Held, StepOutput, TrainingEngine, TrainingTask
from flagperf.engines.common import (
    LOSS_SCALE,
    LOSS_SCALE_WINDOW,
    NARROW,
    scale_gradients,
    sum_of_squares,
    tensor_bytes,
)
from flagperf.errors import FlagPerfError

from . import enable, shut_down
from .model import TensorParallelDecoder, cut, joined, sections, wrapped
from .rewrite import PACKAGE, VERSION

_RENDEZVOUS = "flagperf-bmtrain"
_starts = 0
"""How often BMTrain has been initialised in this process: each time it needs a store without old keys."""


def _meet(url: str, *arguments: Any, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """Give BMTrain the ranks' present store: it would open one of its own, and old keys would lead it astray."""
    global _starts
    _starts += 1
    yield PrefixStore(f"{_RENDEZVOUS}/{_starts}", _get_default_store()), dist.get_rank(), dist.get_world_size()


register_rendezvous_handler(_RENDEZVOUS, _meet)  # type: ignore[no-untyped-call]


class BMTrain(TrainingEngine):
    """Weights, gradients and optimizer state are sharded over the ranks; each block is gathered before it computes.

    The model computes in the type of its weights, norms and residual stream included. In 16 bits the optimizer keeps
    fp32 masters, which start as the canonical weights to the bit. With tp > 1 the blocks are BMTrain's column and row
    parallel layers, Megatron's way: whole activations on each rank. With pp > 1 ranks of a pipeline share the
    micro-batch for what is outside of blocks, which is BMTrain's way.
    """

    def __init__(self, context: RankContext) -> None:
        super().__init__(context)
        self.tp, self.pp = self.layout.tp, self.layout.pp
        self.scaled = context.trial.dtype == "fp16"
        self.dtype = NARROW.get(context.trial.dtype, torch.float32)

    @property
    def data_rank(self) -> int:
        """BMTrain puts the ranks of a stage side by side, those of a pipeline far apart."""
        return self.context.rank % self.data_size if self.pp > 1 else super().data_rank

    @property
    def leader(self) -> bool:
        """Whether this rank speaks for its data-parallel group."""
        return self.context.rank < self.data_size if self.pp > 1 else super().leader

    def start(self) -> None:
        """Bring up torch.distributed on the vendor's backend, and BMTrain over it."""
        super().start()
        runtime = self.context.runtime
        self.layer = enable(runtime.device, runtime.backend)
        self.bmt: Any = importlib.import_module(PACKAGE)
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        threads = torch.get_num_threads()
        self.bmt.init_distributed(
            init_method=f"{_RENDEZVOUS}://",
            seed=self.context.trial.seed,
            tp_size=self.tp,
            pipe_size=self.pp if self.pp > 1 else -1,
        )
        if cores is not None:  # BMTrain takes a slice of what is this rank's slice already
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)

    def build(self, task: TrainingTask) -> None:
        """Build the model from its canonical weights, a parameter at a time, each rank keeping its shard."""
        self.task = task
        if self.pp > 1 and (self.layout.micro or 1) % self.pp:
            raise FlagPerfError(
                f"BMTrain's pipeline of {self.pp} stages can't share micro-batches of {self.layout.micro} sequences.",
                f"Use micro={self.pp}, or a multiple of it.",
            )
        with torch.device("meta"):
            model = self._construct()
        self.canonical = {name: _shape(parameter) for name, parameter in model.named_parameters()}
        blocks = list(model.blocks) if isinstance(model, TensorParallelDecoder) else task.blocks(model)
        for name, parameter in list(model.named_parameters()):
            owner, _, key = name.rpartition(".")
            split = _split(parameter)
            model.get_submodule(owner)._parameters[key] = self.bmt.DistributedParameter(
                self._initial(name, split).to(self.dtype), tp_mode=split >= 0, tp_split_dim=split
            )
        self.model = wrapped(model, blocks, self.layout)
        self.parameters: dict[str, Any] = dict(self.model.named_parameters())
        self.optimizer = self._optimizer()
        self.manager = self.bmt.optim.OptimManager(
            loss_scale=LOSS_SCALE if self.scaled else None,
            loss_scale_steps=LOSS_SCALE_WINDOW,
            # The mean over all ranks: each has a share of its own, or under tp the same one as its neighbours.
            grad_scale=self.context.world_size,
        )
        self.manager.add_optimizer(self.optimizer)

    def step(self, batches: Sequence[Batch], learning_rate: float) -> StepOutput:
        """Take one optimizer step; in fp16 OptimManager leaves the update out where gradients overflowed."""
        self.manager.zero_grad()
        scale = self.manager.loss_scale
        total = torch.zeros((), device=self.context.runtime.device)
        for batch in batches:
            loss = self._loss(self._share(batch))
            self.manager.backward(loss / len(batches))
            total += loss.detach()
        norm = self._clip(scale)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.dtype == torch.float32:
            self._decay(learning_rate)
        self.manager.step()
        if self.pp > 1:
            total = self.bmt.distributed.all_reduce(total, "avg", self.bmt.config["pipe_comm"])
        return StepOutput(total / len(batches), norm, self.scaled and not bool(norm.isfinite()), float(scale))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over a batch; a pipeline's ranks each put in the whole of it."""
        return self._loss(batch).float()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the full weights by canonical name, from the fp32 masters where there are any."""
        for name, parameter in self.parameters.items():
            local = torch.zeros(parameter._original_shape.numel(), device=self.context.runtime.device)
            if (place := _place(parameter)) is not None:
                local[place] = self._master(parameter).detach().to(local.device, torch.float32).flatten()
            # Every element is on one rank and zero on all others.
            whole = self._sum(local, self._holders(parameter)).view(parameter._original_shape)
            split = parameter._tp_split_dim
            if split >= 0:
                shards = self.bmt.distributed.all_gather(whole, self.bmt.config["tp_comm"])
                whole = joined(list(shards), sections(name, self.task.decoder), split)
            if (stage := self._stage(name)) is not None:
                whole = self.bmt.distributed.broadcast(whole, stage, self.bmt.config["pipe_comm"])
            yield name, whole.cpu()

    def held(self) -> Held:
        """Return the bytes of this rank's state; under ZeRO 2 blocks keep what they gathered until the next step."""
        gathered = [
            torch.empty(0, dtype=storage.dtype, device=storage.device).set_(storage)
            for block in self._blocks()
            for storage in block._layer_dict.values()
        ]
        values = list(self.parameters.values())
        state = [x for of in self.optimizer.state.values() for x in of.values()]
        return Held(
            weights=tensor_bytes([*values, *gathered]),
            gradients=tensor_bytes(p.grad for p in values if p.grad is not None),
            optimizer=0 if self.layout.offload else tensor_bytes(state),
            host=tensor_bytes(state) if self.layout.offload else 0,
        )

    def facts(self) -> dict[str, object]:
        """Return the version, which way it runs, and what BMTrain made of the layout."""
        narrow = self.dtype != torch.float32
        moments = "fp16 and fp32, times the loss scale" if self.scaled and not self.layout.offload else "fp32"
        return {
            "bmtrain": VERSION,
            "runs": "natively"
            if self.layer is None
            else f"through a layer over {self.layer.device_type} and {self.layer.backend}",
            "rewritten_places": self.layer.places if self.layer else 0,
            "optimizer": f"bmtrain {type(self.optimizer).__name__}",
            "decay": "by the optimizer"
            if narrow
            else "by the engine before the step: this optimizer's fp32 path would add it to the gradient",
            "weights": self.context.trial.dtype + (", with fp32 masters" if narrow else ""),
            "gradients_reduced": f"every micro-batch, in {self.context.trial.dtype}",
            "moments": moments,
            "loss_scaling": "bmtrain OptimManager" if self.scaled else "off",
            "model": "flagperf's, of bmtrain's column and row parallel layers" if self.tp > 1 else "the task's own",
            "attention": "torch scaled_dot_product_attention" if self.tp > 1 else "the task's own",
            "overlap": "the reduce-scatter of a block with the backward pass of the one before it"
            if self.layout.overlap and self.pp == 1
            else "off",
        }

    def close(self) -> None:
        """Take down BMTrain's communicators, then torch.distributed."""
        for name in ("model", "parameters", "optimizer", "manager"):
            self.__dict__.pop(name, None)
        shut_down()

    # Building

    def _construct(self) -> torch.nn.Module:
        """Return the model with parameters yet to be filled."""
        if self.tp > 1:
            return TensorParallelDecoder(self.task.decoder, self.tp, self.dtype)
        return self.task.model(recompute=False)  # Block recomputes

    def _initial(self, name: str, split: int) -> torch.Tensor:
        """Return a parameter's canonical weight, or this tensor-parallel rank's shard of it."""
        whole = self.task.initial_weight(name, self.canonical[name])
        if split < 0:
            return whole
        return cut(whole, sections(name, self.task.decoder), split, self.tp, self.context.rank % self.tp)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return BMTrain's AdamW with masters that are the canonical weights, not what is left of them in 16 bits."""
        settings, values = self.task.optimizer, list(self.parameters.values())
        narrow = self.dtype != torch.float32
        matrices = [p for p in values if len(p._original_shape) >= 2]
        others = [p for p in values if len(p._original_shape) < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay if narrow else 0.0},
            {"params": others, "weight_decay": 0.0},
        ]
        kind = self.bmt.optim.AdamOffloadOptimizer if self.layout.offload else self.bmt.optim.AdamOptimizer
        betas = (settings.beta1, settings.beta2)
        optimizer: torch.optim.Optimizer = kind(groups, lr=0.0, betas=betas, eps=settings.epsilon)
        if narrow:
            names = {id(parameter): name for name, parameter in self.parameters.items()}
            state = {}
            for index, parameter in enumerate([*matrices, *others]):
                name, place = names[id(parameter)], _place(parameter)
                if place is not None and self._stage(name) in (None, self._own_stage()):
                    master = self._initial(name, parameter._tp_split_dim).flatten()[place]
                    # Each its own type: BMTrain casts what it loads.
                    moments = {"exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}
                    state[index] = {"step": 0, "_param_fp32": master.clone(), **moments}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return optimizer

    # Training

    def _share(self, batch: Batch) -> Batch:
        """Return what this rank puts into the model: in a pipeline, a stage's part of the micro-batch."""
        if self.pp == 1:
            return batch
        return Batch(*(x.chunk(self.pp)[self._own_stage()].contiguous() for x in batch))

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss; a pipeline's micro-batches are one sequence each, from every stage's part of it."""
        if self.pp > 1:
            self.bmt.config["micros"] = self.pp * len(batch.tokens)
        loss: torch.Tensor = self.model(*batch)
        return loss

    @torch.no_grad()
    def _clip(self, scale: float) -> torch.Tensor:
        """Scale the gradients so that their global norm is at most the limit; return the norm without the loss scale.

        BMTrain's own `clip_grad_norm` adds up in fp32; this is the norm that all engines are clipped by.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.tp > 1:
            # Each shard's gradient is there once a group, and was divided by the number of all ranks.
            split = [p.grad for p in self.parameters.values() if p.grad is not None and p._tp_split_dim >= 0]
            torch._foreach_mul_(split, float(self.tp))
        squares = self._sum(sum_of_squares(gradients), self.bmt.config["comm"])
        norm = (squares.sqrt() / scale).float()
        scale_gradients(gradients, norm, self.task.optimizer.clip)
        return norm

    @torch.no_grad()
    def _decay(self, rate: float) -> None:
        """Decay the matrices as AdamW does, before the optimizer's step."""
        factor = 1 - rate * self.task.optimizer.weight_decay
        for parameter in self.optimizer.param_groups[0]["params"]:
            if parameter.grad is not None:
                self._master(parameter).mul_(factor)

    # Parts

    def _master(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return this rank's shard of a parameter as the optimizer has it."""
        master: torch.Tensor = self.optimizer.state.get(parameter, {}).get("_param_fp32", parameter)
        return master

    def _sum(self, x: torch.Tensor, comm: Any) -> torch.Tensor:
        summed: torch.Tensor = self.bmt.distributed.all_reduce(x.detach(), "sum", comm)
        return summed

    def _blocks(self) -> list[Any]:
        return [module for module in self.model.modules() if isinstance(module, self.bmt.Block)]

    def _holders(self, parameter: Any) -> Any:
        """Return the communicator of the ranks that share a parameter."""
        if self.pp > 1 and parameter._in_block:
            return self.bmt.config["pp_zero_comm"]
        return parameter._zero_comm

    def _own_stage(self) -> int:
        return int(self.bmt.config["topology"].stage_id)

    def _stage(self, name: str) -> int | None:
        """Return the pipeline stage that trains a parameter; None if all do."""
        if self.pp == 1 or not self.parameters[name]._in_block:
            return None
        chain = next(m for m in self.model.modules() if isinstance(m, self.bmt.PipelineTransformerBlockList))
        prefix = next(n for n, m in self.model.named_modules() if m is chain)
        return int(chain.get_stage_by_layer_id(int(name.removeprefix(f"{prefix}.").partition(".")[0])))


def _split(parameter: Any) -> int:
    """Return the dimension that tensor parallelism splits, -1 for none."""
    return int(getattr(parameter, "_tp_split_dim", -1))


def _shape(parameter: Any) -> torch.Size:
    """Return the canonical shape."""
    return torch.Size(getattr(parameter, "_tp_original_shape", parameter.shape))


def _place(parameter: Any) -> slice | None:
    """Return which elements of the flat parameter this rank holds, if any."""
    first, last = parameter._start_partition, parameter._end_partition
    return None if first is None or first >= last else slice(first, last)
