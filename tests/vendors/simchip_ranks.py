"""One of two ranks on the simulated devices: collectives in each data type, and training by DDP and FSDP.

`python simchip_ranks.py RANK STORE` prints one JSON object: what was wrong, and the losses.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from flagperf.vendors.simchip import torch_device as simchip

RANK, SIZE = int(sys.argv[1]), 2
DEVICE = torch.device("simchip", RANK)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8]


def collectives(dtype: torch.dtype) -> list[str]:
    """Return which collectives give something else than they should; rank r puts in r + 1, r + 2, r + 3, r + 4."""
    own = torch.arange(4, device=DEVICE).to(dtype) + RANK + 1
    a, b = (torch.arange(4) + r + 1 for r in range(SIZE))
    wrong: list[str] = []

    def check(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        if found.device != DEVICE or not found.cpu().equal(expected.to(dtype)):
            wrong.append(f"{name}: {found} should be {expected}")

    operations: list[tuple[str, Any, torch.Tensor]] = [
        *(("sum", dist.ReduceOp.SUM, a + b), ("max", dist.ReduceOp.MAX, b), ("min", dist.ReduceOp.MIN, a)),
        ("product", dist.ReduceOp.PRODUCT, a * b),
        ("mean", dist.ReduceOp.AVG, (a + b) / 2),
    ]
    for name, operation, expected in operations:
        x = own.clone()
        work = dist.all_reduce(x, operation, async_op=True)
        work.wait()
        check(f"all_reduce {name}", x, expected)
    if dtype in FLOATS:
        half = torch.empty(2, dtype=dtype, device=DEVICE)
        dist.reduce_scatter_tensor(half, own, dist.ReduceOp.AVG)
        check("reduce_scatter mean", half, ((a + b) / 2).chunk(SIZE)[RANK])
    both = torch.empty(8, dtype=dtype, device=DEVICE)
    dist.all_gather_into_tensor(both, own)
    check("all_gather_into_tensor", both, torch.cat([a, b]))
    x = own.clone()
    dist.broadcast(x, 1)
    check("broadcast", x, b)
    got = torch.empty_like(own)
    if RANK == 0:
        dist.send(own, 1)
    else:
        dist.recv(got, 0)
        check("send and receive", got, a)
    swapped = torch.empty_like(own)
    dist.all_to_all_single(swapped, own)
    check("all_to_all", swapped, torch.cat([a.chunk(SIZE)[RANK], b.chunk(SIZE)[RANK]]))
    return wrong


def train(wrap: str) -> list[float]:
    """Return the mean loss of each step: alone over the whole batch, or together over halves of it."""
    torch.manual_seed(0)
    model: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
    data = torch.randn(5, 8, 16)
    model = copy.deepcopy(model).to(DEVICE)
    if wrap == "ddp":
        model = DistributedDataParallel(model)
    elif wrap == "fsdp":
        fully_shard(model[0])  # type: ignore[index]
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    losses = []
    for batch in data.to(DEVICE):
        share = batch if wrap == "single" else batch.chunk(SIZE)[RANK]
        loss = (model(share) - share.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach()
        if wrap != "single":
            dist.all_reduce(total, dist.ReduceOp.AVG)
        losses.append(total.item())
    return losses


if __name__ == "__main__":
    simchip.set_device(RANK)
    dist.init_process_group("simccl", init_method=f"file://{sys.argv[2]}", rank=RANK, world_size=SIZE, device_id=DEVICE)
    found = {
        "wrong": {str(dtype): said for dtype in DTYPES if (said := collectives(dtype))},
        "losses": {wrap: train(wrap) for wrap in ("single", "ddp", "fsdp")},
    }
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(found))
