"""What an engine's wrapper costs over the same package driven by a few bare lines, as a ratio of step times.

    python benchmarks/engines/wrapper_cost.py [--engine deepspeed:zero=2 …] [--rounds 40] [--json]

Two ranks with one thread each hold two copies of the model: one trained by FlagPerf's engine, one by the package as its
documentation drives it, with its own clipping. Steps go A B, B A, A B, … over the same tokens, so that what slows the
machine slows both. The ratio is the median of the rounds', its interval the 95 % bootstrap over rounds. The last losses
are printed too: a bare script that trained something else would be told by them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from flagperf.cases.aquila.settings import PretrainSettings
from flagperf.cases.aquila.task import AquilaTask
from flagperf.engine import Batch, TrainingEngine
from flagperf.journal import Journal
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.schema.trial import Trial
from flagperf.settings import typed
from flagperf.worker import rank_context

ARMS = [
    *("ddp", "fsdp:zero=3", "bmtrain:zero=2", "bmtrain:zero=3", "deepspeed:zero=2", "deepspeed:zero=3"),
    *("megatron:zero=1", "megatron-deepspeed:zero=2"),
]
AIM = 1.02
RATE = 1e-4
RESAMPLES = 10_000
Step = Callable[[Sequence[Batch]], torch.Tensor]
"""One optimizer step over micro-batches; returns the mean loss."""


# The bare scripts: each the shortest that its package's documentation suggests for this recipe.


def canonical(task: AquilaTask) -> nn.Module:
    """Return the task's model with its canonical weights."""
    model = task.model(recompute=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(task.initial_weight(name, parameter.shape))
    return model


def adam(model: nn.Module, task: AquilaTask) -> torch.optim.Optimizer:
    """Return the recipe's AdamW."""
    recipe = task.optimizer
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(
        model.parameters(), RATE, betas, recipe.epsilon, weight_decay=recipe.weight_decay, fused=True
    )


def bare_torch(engine: TrainingEngine, task: AquilaTask) -> Step:
    """DistributedDataParallel or FSDP2."""
    model = canonical(task)
    if engine.context.trial.engine == "ddp":
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    else:
        for block in [*task.blocks(model), model]:
            torch.distributed.fsdp.fully_shard(block, reshard_after_forward=True)
    optimizer = adam(model, task)

    def step(batches: Sequence[Batch]) -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            loss = model(*batch) / len(batches)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), task.optimizer.clip)
        optimizer.step()
        return total

    return step


def bare_bmtrain(engine: TrainingEngine, task: AquilaTask) -> Step:
    """BMTrain's own conversion of a model, its optimizer and its manager."""
    import bmtrain as bmt

    model = bmt.BMTrainModelWrapper(canonical(task))
    for block in (module for module in model.modules() if isinstance(module, bmt.Block)):
        block._zero_level, block._use_checkpoint = engine.layout.zero, False
    recipe = task.optimizer
    optimizer = bmt.optim.AdamOptimizer(
        model.parameters(), RATE, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, weight_decay=0.0
    )
    manager = bmt.optim.OptimManager(loss_scale=None)
    manager.add_optimizer(optimizer)

    def step(batches: Sequence[Batch]) -> torch.Tensor:
        manager.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            loss = model(*batch) / len(batches)
            manager.backward(loss)
            total += loss.detach()
        manager.clip_grad_norm(optimizer.param_groups, recipe.clip)
        manager.step()
        return total

    return step


def bare_deepspeed(engine: Any, task: AquilaTask) -> Step:
    """`deepspeed.initialize`, then forward, backward and step; on Megatron's model too."""
    import deepspeed

    if megatron := engine.context.trial.engine.startswith("megatron"):
        from flagperf.engines.megatron.model import build

        model = build(task.decoder, engine.layout, "fp32")
        model.load_state_dict(
            {name: engine.initial(name, parameter).detach() for name, parameter in model.named_parameters()},
            strict=False,
        )
    elif engine.stage == 3:
        with deepspeed.zero.Init(config_dict_or_path=engine.config):
            model = task.model(recompute=False)
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                if dist.get_rank() == 0:
                    parameter.data.copy_(task.initial_weight(name, parameter.shape))
    else:
        model = canonical(task)
    own, *_ = deepspeed.initialize(model=model, optimizer=adam(model, task), config=engine.config, mpu=engine.mpu)

    def step(batches: Sequence[Batch]) -> torch.Tensor:
        total = torch.zeros(())
        for batch in batches:
            loss = own(batch.tokens, None, None, labels=batch.targets).mean() if megatron else own(*batch)
            own.backward(loss)
            own.step()
            total += loss.detach() / len(batches)
        return total

    return step


def bare_megatron(engine: Any, task: AquilaTask) -> Step:
    """Megatron-Core's DDP, optimizer and schedule, as its quick start puts them together."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from flagperf.engines.megatron import shims
    from flagperf.engines.megatron.model import build

    model = build(task.decoder, engine.layout, "fp32")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(engine.initial(name, parameter))
        parameter.tensor_model_parallel = parameter.dim() > 1
    shims.name_types(model, torch.device("cpu"))
    sharded = engine.layout.zero == 1
    ddp = DistributedDataParallel(
        model.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=sharded,
            overlap_grad_reduce=True,
            overlap_param_gather=sharded,
        ),
        model,
    )
    recipe = task.optimizer
    options = OptimizerConfig(
        optimizer="adam",
        lr=RATE,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        adam_eps=recipe.epsilon,
        clip_grad=0.0,
        use_distributed_optimizer=sharded,
        overlap_param_gather=sharded,
    )
    optimizer = get_megatron_optimizer(options, [ddp], use_gloo_process_groups=False)
    for group in optimizer.param_groups:
        group["fused"] = True
    model.config.finalize_model_grads_func = finalize_model_grads
    model.config.no_sync_func = ddp.no_sync
    run = get_forward_backward_func()

    def mean(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = losses.mean()
        return loss, loss.detach().clone()

    def forward(batches: Any, model: nn.Module) -> Any:
        batch = next(batches)
        return model(batch.tokens, position_ids=None, attention_mask=None, labels=batch.targets), mean

    def step(batches: Sequence[Batch]) -> torch.Tensor:
        ddp.zero_grad_buffer()
        optimizer.zero_grad()
        losses = run(
            forward_step_func=forward,
            data_iterator=iter(batches),
            model=ddp,
            num_microbatches=len(batches),
            seq_length=task.sequence_length,
            micro_batch_size=len(batches[0].tokens),
            forward_only=False,
        )
        optimizer.prepare_grads()
        # As `optimizer.step` does it, whose scaling takes nothing but CUDA's tensors.
        coefficient = recipe.clip / (optimizer.get_grad_norm() + 1e-6)
        if coefficient < 1:
            torch._foreach_mul_([p.grad for p in optimizer.get_parameters() if p.grad is not None], coefficient)
        optimizer.step_with_ready_grads()
        return torch.stack(losses).mean()

    return step


BARE = {
    "ddp": bare_torch,
    "fsdp": bare_torch,
    "bmtrain": bare_bmtrain,
    "deepspeed": bare_deepspeed,
    "megatron": bare_megatron,
    "megatron-deepspeed": bare_deepspeed,
}


# Measuring


def planned(arm: str, preset: str) -> Trial:
    """Return the trial that an arm is."""
    options = Options(
        cases=["aquila/pretrain"],
        engines=[arm],
        preset=preset,
        ranks=2,
        dtype="fp32",
        settings={"data": {"source": "synthetic"}},
    )
    return plan(options, Registries()).trials[0]


def rank(arm: str, preset: str, rounds: int, output: Path) -> None:
    """Be one rank: time both, interleaved; rank 0 writes what was measured."""
    trial = planned(arm, preset)
    with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "rank.journal", {}) as journal:
        context = rank_context(trial, journal)
        task = AquilaTask(typed(trial.settings, PretrainSettings), trial)
        engine = context.registries.engines.load(trial.engine)(context)
        engine.start()
        engine.build(task)
        bare = BARE[trial.engine](engine, task)
        steps: dict[str, Step] = {"engine": lambda batches: engine.step(batches, RATE).loss, "bare": bare}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        losses = {}
        share, micro = task.global_batch // engine.data_size, trial.layout.micro or 1
        first = engine.data_rank * share
        for number in range(-3, rounds):
            batches = [task.batch(number + 3, first + start, micro) for start in range(0, share, micro)]
            for name in list(steps)[:: -1 if number % 2 else 1]:
                dist.barrier()
                began = time.perf_counter()
                losses[name] = float(steps[name](batches))
                dist.barrier()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - began)
        if context.rank == 0:
            output.write_text(json.dumps({"seconds": seconds, "losses": losses}))
        engine.close()


def measure(arm: str, preset: str, rounds: int) -> dict[str, Any]:
    """Start the ranks and return an arm's ratio with its interval."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "measured.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__),
            *("--preset", preset, "--rounds", str(rounds), "--rank-of", arm, "--output", str(output)),
        ]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{arm}: {done.stderr[-3000:]}")
        measured = json.loads(output.read_text())
    # Round by round, since what slows the machine lasts longer than a step.
    ratios = np.divide(measured["seconds"]["engine"], measured["seconds"]["bare"])
    drawn = np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    ratio = float(np.median(ratios))
    return {"arm": arm, "ratio": ratio, "low": float(low), "high": float(high), "rounds": rounds, **measured}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", action="append", help="an engine with its layout; repeat it (default: all)")
    parser.add_argument("--preset", default="tiny", help="of aquila/pretrain (default tiny)")
    parser.add_argument("--rounds", type=int, default=40, help="measured steps of each (default 40)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        rank(options.rank_of, options.preset, options.rounds, options.output)
        return
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    if not options.json:
        print(
            f"step time by FlagPerf's engine ÷ by the bare package, {options.rounds} rounds; {AIM} at most is the aim\n"
        )
    rows = []
    for arm in options.engine or ARMS:
        row = measure(arm, options.preset, options.rounds)
        rows.append(row)
        if not options.json:
            told = " ".join(f"{name} {loss:.4f}" for name, loss in row["losses"].items())
            print(f"{arm:28} {row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})   last loss: {told}", flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "aim": AIM}))


if __name__ == "__main__":
    main()
