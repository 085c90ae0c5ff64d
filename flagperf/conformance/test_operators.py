"""Operators that models of this kind are made of: results and gradients against float64 on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Problems, check

if TYPE_CHECKING:
    import torch

_EPSILON = {"fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}
"""The distance from 1 to the next number."""
_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_TOLERANCE = 16.0
"""In units of that, relative to the largest value of a result: a sum over some hundred terms, in any order. fp32 is
given `_FP32` times as much, since many devices multiply in TF32 or in three bf16 parts unless told otherwise."""
_FP32 = 64.0

Operator = Callable[..., Any]


def _operators() -> dict[str, tuple[Operator, list[tuple[int, ...]]]]:
    """Return each operator with the shapes of its arguments, by name."""
    import torch
    from torch.nn import functional

    def loss(logits: torch.Tensor) -> torch.Tensor:
        targets = (torch.arange(logits.shape[0], device=logits.device) * 7) % logits.shape[1]
        return functional.cross_entropy(logits, targets)

    def embedding(table: torch.Tensor) -> torch.Tensor:
        return functional.embedding((torch.arange(96, device=table.device) * 5 % 64).view(4, 24), table)

    def rotary(x: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(x.shape[-2], device=x.device).float()[:, None] * 0.01 * torch.ones(32, device=x.device)
        first, second = x.float().chunk(2, dim=-1)
        turned = (first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos())
        return torch.cat(turned, dim=-1).to(x.dtype)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def gathered(x: torch.Tensor) -> torch.Tensor:
        return x[torch.arange(0, x.shape[0], 3, device=x.device)].transpose(0, 1).contiguous()

    def masked(x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.ones_like(x, dtype=torch.bool).tril(), x, torch.zeros_like(x))

    heads = (2, 4, 32, 64)
    return {
        "mm": (torch.mm, [(96, 128), (128, 80)]),
        "bmm": (torch.bmm, [(3, 40, 64), (3, 64, 24)]),
        "linear": (functional.linear, [(5, 33, 64), (48, 64), (48,)]),
        "add": (torch.add, [(33, 65), (65,)]),
        "mul": (torch.mul, [(33, 65), (33, 1)]),
        "sum": (lambda x: x.sum(dim=1), [(17, 300)]),
        "mean": (lambda x: x.mean(dim=0), [(300, 17)]),
        "softmax": (lambda x: torch.softmax(x, dim=-1), [(32, 100)]),
        "log_softmax": (lambda x: torch.log_softmax(x, dim=-1), [(32, 100)]),
        "cross_entropy": (loss, [(48, 100)]),
        "rms_norm": (lambda x, w: functional.rms_norm(x, (64,), w), [(5, 33, 64), (64,)]),
        "layer_norm": (lambda x, w, b: functional.layer_norm(x, (64,), w, b), [(5, 33, 64), (64,), (64,)]),
        "silu": (functional.silu, [(33, 65)]),
        "gelu": (functional.gelu, [(33, 65)]),
        "rsqrt": (lambda x: torch.rsqrt(x * x + 1), [(33, 65)]),
        "exp": (torch.exp, [(33, 65)]),
        "rotary": (rotary, [heads]),
        "embedding": (embedding, [(64, 48)]),
        "attention": (attention, [heads, heads, heads]),
        "gather": (gathered, [(50, 20)]),
        "where": (masked, [(40, 40)]),
        "norm": (lambda x: torch.linalg.vector_norm(x), [(40, 40)]),
    }


_NAMES = (
    *("mm", "bmm", "linear", "add", "mul", "sum", "mean", "softmax", "log_softmax", "cross_entropy", "rms_norm"),
    *("layer_norm", "silu", "gelu", "rsqrt", "exp", "rotary", "embedding", "attention", "gather", "where", "norm"),
)


@check(
    "A kernel that is wrong trains a model that is wrong, fast.",
    "Mend the kernel; until then say in the README which, and keep the data type out by [limits].",
    where="device",
)
@pytest.mark.parametrize("name", _NAMES)
def test_agree_with_float64(bench: Bench, name: str) -> Problems:
    import torch

    operator, shapes = _operators()[name]
    for dtype in bench.dtypes():
        generator = torch.Generator().manual_seed(len(name))
        rounded = [torch.randn(shape, generator=generator).to(getattr(torch, _TORCH[dtype])) for shape in shapes]
        right = _results(operator, [each.double() for each in rounded])
        found = _results(operator, [each.to(bench.runtime.device) for each in rounded])
        for place, (exact, got) in enumerate(zip(right, found, strict=True)):
            what = "result" if place == 0 else f"gradient of argument {place}"
            yield from _far(f"{dtype}, {what}", exact, got, dtype)


@check(
    "The optimizer's step is computed in fp32 whatever the model is, over thousands of steps.",
    "Mend the kernels of torch.optim.AdamW, also those for many tensors at once (foreach).",
    where="device",
)
@pytest.mark.parametrize("foreach", ["foreach", "one by one"])
def test_adamw_agrees_with_float64(bench: Bench, foreach: str) -> Problems:
    import torch

    def stepped(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        weights = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in ((40, 30), (30,))
        ]
        optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1, foreach=foreach == "foreach")
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(device, dtype)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        return [weight.detach() for weight in weights]

    right, found = stepped(torch.device("cpu"), torch.float64), stepped(bench.runtime.device, torch.float32)
    for place, (exact, got) in enumerate(zip(right, found, strict=True)):
        yield from _far(f"weights {place}", exact, got, "fp32", 1.0)


def _results(operator: Operator, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the result and the gradients of all arguments, for a sum weighted unevenly."""
    import torch

    leaves = [argument.requires_grad_() for argument in arguments]
    result = operator(*leaves)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(5))
    (result * weights.to(result.device, result.dtype)).sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _far(what: str, exact: torch.Tensor, got: torch.Tensor, dtype: str, looser: float | None = None) -> Problems:
    back = got.cpu().double()
    if back.shape != exact.shape:
        yield f"{what}: shape {tuple(back.shape)} in place of {tuple(exact.shape)}"
        return
    scale = max(float(exact.abs().max()), 1e-6)
    error = float((back - exact).abs().max()) / scale
    factor = (_FP32 if dtype == "fp32" else 1.0) if looser is None else looser * 4
    allowed = _TOLERANCE * _EPSILON[dtype] * factor
    if not error <= allowed:
        yield f"{what}: off by {error:.2g} of the largest value, {allowed:.2g} are allowed"
