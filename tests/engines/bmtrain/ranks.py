"""Two ranks: the layer's collectives, a backend of another name, and what fp16 does when gradients overflow.

`python ranks.py FOLDER`; everything is asserted here.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engines import fair
from forks import run_ranks
from torch.distributed.distributed_c10d import _get_default_store

from flagperf.engines.bmtrain.collectives import Address, Collectives
from flagperf.engines.bmtrain.engine import BMTrain
from flagperf.journal import Journal
from flagperf.registry import Registries
from flagperf.worker import rank_context

BACKEND = "vendor"
SUM, PRODUCT, MAX, MIN, MEAN = range(5)


def register() -> None:
    """Make a backend known to torch under a vendor's name, as a vendor's own module would: here it's gloo."""

    def create(store: dist.Store, rank: int, size: int, timeout: Any) -> Any:
        return dist.ProcessGroupGloo(store, rank, size, timeout)

    dist.Backend.register_backend(BACKEND, create, devices=["cpu"])


def engine(folder: Path, dtype: str, layout: str) -> BMTrain:
    """Return an engine that has been started on the vendor's backend."""
    planned = fair.trial("bmtrain", layout, dtype, 2)
    context = rank_context(planned, Journal(folder / f"{dtype}-{os.environ['RANK']}.journal", {}))
    context.runtime.backend = BACKEND
    context = replace(context, registries=Registries())
    torch.set_num_threads(1)
    started = BMTrain(context)
    started.start()
    started.build(fair.task(planned))
    return started


def take(started: BMTrain, step: int) -> Any:
    """Take a step over this rank's share, in two micro-batches."""
    share = started.task.global_batch // started.data_size
    first = started.data_rank * share
    batches = [started.task.batch(step, first + at, share // 2) for at in (0, share // 2)]
    return started.step(batches, 1e-3)


def overflow(folder: Path) -> None:
    """A loss scale far too large is halved, the updates left out, until gradients fit; then it learns."""
    started = engine(folder, "fp16", "zero=3")
    started.manager.loss_scale = 2.0**40
    before = dict(started.weights())
    skipped = 0
    while (output := take(started, skipped)).skipped:
        assert not math.isfinite(output.gradient_norm) and output.loss_scale == 2.0 ** (40 - skipped)
        skipped += 1
        for name, weight in started.weights():
            assert torch.equal(weight, before[name]), name
    assert 5 < skipped < 40 and math.isfinite(output.gradient_norm)
    assert output.loss_scale == 2.0 ** (40 - skipped) == started.manager.loss_scale
    assert any(not torch.equal(weight, before[name]) for name, weight in started.weights())
    losses = [float(take(started, step).loss) for step in range(skipped, skipped + 4)]
    assert all(abs(loss - math.log(512)) < 0.5 for loss in losses), losses
    started.close()


def at(tensor: torch.Tensor) -> Address:
    return Address(tensor.data_ptr(), tensor)


def collectives(started: BMTrain) -> None:
    """Every function does what NCCL's would, and on a side stream is done when it's waited for."""
    layer = started.layer
    assert layer is not None
    c, cuda = Collectives(layer.device, BACKEND), layer.accelerator
    rank, other = dist.get_rank(), 1 - dist.get_rank()
    comm, main = c.communicator(b"test", 2, rank), cuda.current_stream()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8):
        mine, theirs = (torch.arange(1, 7).to(dtype) * (who + 1) for who in (rank, other))
        wanted = {
            SUM: mine + theirs,
            PRODUCT: mine * theirs,
            MAX: torch.maximum(mine, theirs),
            MIN: mine.minimum(theirs),
        }
        for operation, value in wanted.items():
            for target in (torch.empty_like(mine), mine.clone()):
                source = target if operation == SUM and torch.equal(target, mine) else mine
                c.all_reduce(at(source), at(target), 6, 0, operation, comm, main)
                assert torch.equal(target, value), (dtype, operation)
            scattered, rooted = torch.empty(3, dtype=dtype), mine.clone()
            c.reduce_scatter(at(mine), at(scattered), 3, 0, operation, comm, main)
            assert torch.equal(scattered, value[3 * rank : 3 * rank + 3]), (dtype, operation)
            c.reduce(at(mine), at(rooted), 6, 0, operation, 1, comm, main)
            assert torch.equal(rooted, value if rank == 1 else mine)
        gathered, told = torch.empty(12, dtype=dtype), torch.empty_like(mine)
        c.all_gather(at(mine), at(gathered), 6, 0, comm, main)
        assert torch.equal(gathered.view(2, 6)[rank], mine) and torch.equal(gathered.view(2, 6)[other], theirs)
        c.broadcast(at(mine), at(told), 6, 0, 1, comm, main)
        assert torch.equal(told, mine if rank == 1 else theirs)
    third, mean = torch.tensor([1.0 + rank, 4.0]), torch.empty(2)
    c.all_reduce(at(third), at(mean), 2, 0, MEAN, comm, main)
    assert mean.tolist() == [1.5, 4.0]
    # Both send before they receive, which only works in the background.
    received = torch.empty(6)
    c.group_start()
    c.send(at(torch.full((6,), float(rank))), 6, 0, other, comm, main)
    c.recv(at(received), 6, 0, other, comm, main)
    c.group_end()
    assert received.tolist() == [float(other)] * 6
    # What is on a side stream isn't there before its work is waited for: the other rank hasn't begun.
    side, scattered, store = cuda.Stream(), torch.full((3,), -1.0), _get_default_store()
    if rank == 1:
        store.wait(["rank 0 has looked"])
    c.reduce_scatter(at(torch.ones(6)), at(scattered), 3, 0, SUM, comm, side)
    event = side.record_event()
    if rank == 0:
        assert scattered.tolist() == [-1.0] * 3 and len(side.pending) == 1
        store.set("rank 0 has looked", "")
    event.synchronize()
    assert scattered.tolist() == [2.0] * 3
    # A group waits for what was begun before it: here for what it is to gather.
    summed, gathered = torch.full((3,), -1.0), torch.empty(6)
    c.reduce_scatter(at(torch.ones(6)), at(summed), 3, 0, SUM, comm, side)
    c.group_start()
    c.all_gather(at(summed), at(gathered), 3, 0, comm, main)
    c.group_end()
    assert gathered.tolist() == [2.0] * 6
    alone = c.communicator(f"alone {rank}".encode(), 1, 0)
    c.all_reduce(at(third), at(mean), 2, 0, SUM, alone, main)
    assert torch.equal(mean, third)


def main(folder: Path) -> None:
    """Do all of it in one process group."""
    register()
    end = dist.destroy_process_group
    started = engine(folder, "fp32", "zero=2")
    assert dist.get_backend() == BACKEND and "vendor" in str(started.facts()["runs"])
    losses = [float(take(started, step).loss) for step in range(3)]
    assert losses[-1] < losses[0] + 0.1 and all(math.isfinite(loss) for loss in losses)
    collectives(started)
    dist.init_process_group, dist.destroy_process_group = (lambda *_, **__: None), (lambda *_, **__: None)
    started.close()
    overflow(folder)
    end()


if __name__ == "__main__":
    importlib.import_module("torch._dynamo")
    sys.exit(run_ranks(2, lambda: main(Path(sys.argv[1]))))
