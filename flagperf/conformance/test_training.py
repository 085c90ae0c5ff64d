"""Training: a tiny language model on the device and on the host, from the same weights with the same tokens."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Absent, Problems, check

if TYPE_CHECKING:
    import torch

_BAND = {"fp32": 2e-4, "bf16": 2e-2, "fp16": 1e-2}
"""By how much of it a loss may differ."""
_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_STEPS, _VOCABULARY, _WIDTH, _HEADS, _LENGTH, _BATCH = 12, 64, 32, 2, 16, 8


@check(
    "All that a device computes ends in the loss: where it leaves the host's, something on the way is wrong.",
    "Look at the checks of operators and of memory first; then compare layer by layer.",
    where="device",
)
@pytest.mark.parametrize("dtype", list(_BAND))
def test_losses_match_the_hosts(bench: Bench, dtype: str) -> Problems:

    if dtype in bench.manifest.limits:
        raise Absent(f"{dtype}, which the manifest rules out")
    right, found = _host_losses(), _losses(bench.runtime.device, dtype)
    for step, (exact, got) in enumerate(zip(right, found, strict=True)):
        if not abs(got - exact) <= _BAND[dtype] * exact:
            yield f"step {step}: loss {got:.5f}, on the host {exact:.5f}"
    if not found[-1] < 0.95 * found[0]:
        yield f"nothing is learnt: the loss goes from {found[0]:.4f} to {found[-1]:.4f}"


@check(
    "Trials are compared by their losses: if the same run gives others, a difference means nothing.",
    "Use deterministic kernels, or say in the README which aren't.",
    where="device",
)
def test_the_same_run_gives_the_same_losses(bench: Bench) -> Problems:
    first, second = (_losses(bench.runtime.device, "fp32") for _ in range(2))
    if any(abs(a - b) > 1e-5 * abs(a) for a, b in zip(first, second, strict=True)):
        yield f"last loss {first[-1]:.6f}, then {second[-1]:.6f}"


@check(
    "Data-parallel training is what every engine comes down to: ranks must stay alike, and learn as one would.",
    "Look at the checks of collectives first.",
    where="group",
)
def test_two_ranks_learn_as_one(bench: Bench) -> Problems:

    if "all_reduce" in bench.manifest.lacking:
        raise Absent("all_reduce, which the manifest rules out")
    bench.join()
    right, found = _host_losses(), _losses(bench.runtime.device, "fp32", bench.rank, bench.ranks)
    for step, (exact, got) in enumerate(zip(right, found, strict=True)):
        if not abs(got - exact) <= _BAND["fp32"] * exact:
            yield f"step {step}: loss {got:.5f}, one process on the host {exact:.5f}"


@functools.cache
def _host_losses() -> list[float]:
    import torch

    return _losses(torch.device("cpu"), "fp32")


def _losses(device: torch.device, dtype: str, rank: int = 0, ranks: int = 1) -> list[float]:
    """Train from fixed weights on fixed tokens and return each step's loss; ranks divide the batch.

    The weights are kept in fp32 and used in `dtype`; the loss is computed in fp32.
    """
    import torch
    import torch.distributed as dist
    from torch.nn import functional

    generator = torch.Generator().manual_seed(11)
    shapes = [(_VOCABULARY, _WIDTH), (3 * _WIDTH, _WIDTH), (_WIDTH, _WIDTH), (4 * _WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH)]
    drawn = [torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes]
    weights = [torch.nn.Parameter(each.to(device)) for each in drawn]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.1)
    kind, losses = getattr(torch, _TORCH[dtype]), []
    for _ in range(_STEPS):
        starts = torch.randint(0, _VOCABULARY, (_BATCH, 1), generator=generator)
        tokens = ((starts + 3 * torch.arange(_LENGTH + 1)) % _VOCABULARY).chunk(ranks)[rank].to(device)
        table, attend, join, widen, narrow = (weight.to(kind) for weight in weights)
        x = functional.embedding(tokens[:, :-1], table)
        q, k, v = functional.linear(functional.rms_norm(x, (_WIDTH,)), attend).chunk(3, dim=-1)
        q, k, v = (part.view(*part.shape[:2], _HEADS, -1).transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + functional.linear(mixed.transpose(1, 2).flatten(2), join)
        x = x + functional.linear(functional.silu(functional.linear(functional.rms_norm(x, (_WIDTH,)), widen)), narrow)
        logits = functional.linear(functional.rms_norm(x, (_WIDTH,)), table).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        told = loss.detach()
        if ranks > 1:
            for shared in (told, *(weight.grad for weight in weights)):
                assert shared is not None
                dist.all_reduce(shared)
                shared /= ranks
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(told))
    return losses
