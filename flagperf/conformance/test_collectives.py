"""Collectives on two ranks: every operation that engines need, in every data type, to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Absent, Problems, check

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int64": "int64"}
_LENGTH = 1026
_WHY = "A gradient that is summed wrong trains another model on each rank, and nobody sees it but in the loss."
_FIX = "Mend the backend; until then name the operation in [lacking], so that engines that need it are refused."


@check(_WHY, _FIX, where="group")
@pytest.mark.parametrize("dtype", list(_DTYPES))
@pytest.mark.parametrize("operation", ["sum", "max", "min"])
def test_all_reduce(bench: Bench, operation: str, dtype: str) -> Problems:
    import torch
    import torch.distributed as dist

    own, every = _values(bench, dtype, "all_reduce")
    dist.all_reduce(own, getattr(dist.ReduceOp, operation.upper()))
    stacked = torch.stack(every)
    wanted = {"sum": stacked.sum(0), "max": stacked.amax(0), "min": stacked.amin(0)}[operation]
    yield from _differs(own, wanted)


@check(_WHY, _FIX, where="group")
@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_all_gather(bench: Bench, dtype: str) -> Problems:
    import torch
    import torch.distributed as dist

    own, every = _values(bench, dtype, "all_gather")
    gathered = [torch.empty_like(own) for _ in every]
    dist.all_gather(gathered, own)
    for got, wanted in zip(gathered, every, strict=True):
        yield from _differs(got, wanted)


@check(_WHY, _FIX, where="group")
@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_all_gather_into_tensor(bench: Bench, dtype: str) -> Problems:
    import torch
    import torch.distributed as dist

    own, every = _values(bench, dtype, "all_gather_into_tensor")
    gathered = own.new_empty(len(own) * bench.ranks)
    dist.all_gather_into_tensor(gathered, own)
    yield from _differs(gathered, torch.cat(every))


@check(_WHY, _FIX, where="group")
@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_reduce_scatter_tensor(bench: Bench, dtype: str) -> Problems:
    import torch
    import torch.distributed as dist

    own, every = _values(bench, dtype, "reduce_scatter_tensor")
    part = own.new_empty(len(own) // bench.ranks)
    dist.reduce_scatter_tensor(part, own)
    yield from _differs(part, torch.stack(every).sum(0).chunk(bench.ranks)[bench.rank])


@check(_WHY, _FIX, where="group")
@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_broadcast(bench: Bench, dtype: str) -> Problems:
    import torch.distributed as dist

    for source in range(bench.ranks):
        own, every = _values(bench, dtype, "broadcast")
        dist.broadcast(own, source)
        yield from _differs(own, every[source])


@check(
    "Pipelines hand activations from rank to rank by these.",
    "Mend the backend's send and recv; until then name them in [lacking].",
    where="group",
)
@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_send_and_recv(bench: Bench, dtype: str) -> Problems:
    import torch
    import torch.distributed as dist

    own, every = _values(bench, dtype, "send", "recv")
    got = torch.empty_like(own)
    for sender in range(bench.ranks):
        if bench.rank == sender:
            dist.send(own, 1 - sender)
        else:
            dist.recv(got, sender)
    yield from _differs(got, every[1 - bench.rank])


@check(
    "Trials begin and end at barriers: one that lets a rank through early makes the first step look slow.",
    "Mend the backend's barrier.",
    where="group",
)
def test_barrier_waits_for_every_rank(bench: Bench) -> Problems:
    import time

    import torch.distributed as dist

    bench.join()
    dist.barrier()
    late = 0.3
    began = time.monotonic()
    if bench.rank == 1:
        time.sleep(late)
    dist.barrier()
    bench.runtime.synchronize()
    if (waited := time.monotonic() - began) < 0.8 * late:
        yield f"it let rank {bench.rank} through after {waited:.3f} s, while another came after {late} s"


@check(
    "Engines overlap communication with computation: what is asked for and what is there aren't the same moment.",
    "Have the work that `async_op=True` returns end when the values are there.",
    where="group",
)
def test_asynchronous_work_ends_with_the_values(bench: Bench) -> Problems:
    import torch
    import torch.distributed as dist

    own, every = _values(bench, "fp32", "all_reduce")
    work = dist.all_reduce(own, async_op=True)
    assert work is not None
    work.wait()
    yield from _differs(own, torch.stack(every).sum(0))


def _values(bench: Bench, dtype: str, *operations: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return this rank's values on its device, and every rank's on the host: small integers, exact in each type."""
    import torch

    for name in (dtype, *operations):
        if name in bench.manifest.limits or name in bench.manifest.lacking:
            raise Absent(f"{name}, which the manifest rules out")
    bench.join()
    kind = getattr(torch, _DTYPES[dtype])
    every = [((torch.arange(_LENGTH) * (5 + 2 * rank)) % 61 - 30).to(kind) for rank in range(bench.ranks)]
    return every[bench.rank].clone().to(bench.runtime.device), every


def _differs(got: torch.Tensor, wanted: torch.Tensor) -> Problems:
    wrong = int((got.cpu() != wanted).sum())
    if wrong:
        yield f"{wrong} of {wanted.numel()} values are wrong"
