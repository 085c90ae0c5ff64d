"""The functions that stand for BMTrain's compiled ones, against torch's own definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from flagperf.engines.bmtrain import kernels
from flagperf.engines.bmtrain.collectives import Address

NARROW = st.sampled_from([torch.float16, torch.bfloat16])
BETAS, EPSILON, RATE, DECAY = (0.9, 0.95), 1e-6, 1e-2, 0.1


def at(tensor: torch.Tensor) -> Address:
    return Address(tensor.data_ptr(), tensor.view(-1))


def steps(function: Any, dtype: torch.dtype, mean: torch.dtype, scale: float, delta: bool = False) -> dict[str, Any]:
    """Take three steps of a function and of torch's AdamW on the same gradients; return what each ended with."""
    generator = torch.Generator().manual_seed(7)
    master = torch.randn(33, generator=generator)
    wanted = torch.nn.Parameter(master.clone())
    optimizer = torch.optim.AdamW([wanted], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    weights, m, v = master.to(dtype), torch.zeros(33, dtype=mean), torch.zeros(33)
    told = torch.zeros(4)
    before = master.clone()
    for step in range(1, 4):
        gradient = (torch.randn(33, generator=generator) * scale).to(dtype)
        wanted.grad = gradient.float() / scale
        optimizer.step()
        before = master.clone()
        corrections = (1 - BETAS[0] ** step, 1 - BETAS[1] ** step)
        where = [at(told) if delta else 0] if function is kernels.adam_on_host else []
        function(
            33,
            at(master),
            at(weights),
            *where,
            at(gradient),
            at(m),
            at(v),
            *BETAS,
            EPSILON,
            RATE,
            scale,
            DECAY,
            *corrections,
            None,
        )
    return {"master": master, "weights": weights, "wanted": wanted.detach(), "moved": before - master, "told": told}


@pytest.mark.parametrize(
    ("function", "dtype", "mean", "scale", "far"),
    [
        (kernels.adam, torch.bfloat16, torch.float32, 1.0, 1e-6),
        (kernels.adam_on_host, torch.bfloat16, torch.float32, 1.0, 1e-6),
        (kernels.adam_on_host, torch.float16, torch.float32, 1024.0, 1e-6),
        # Its first moment is fp16, as BMTrain has it.
        (kernels.adam_scaled, torch.float16, torch.float16, 1024.0, 2e-5),
    ],
)
def test_adam_is_adamw(function: Any, dtype: torch.dtype, mean: torch.dtype, scale: float, far: float) -> None:
    done = steps(function, dtype, mean, scale)
    torch.testing.assert_close(done["master"], done["wanted"], atol=far, rtol=0)
    assert torch.equal(done["weights"], done["master"].to(dtype))


def test_the_host_tells_how_far_weights_moved_for_each_unit_of_the_rate() -> None:
    done = steps(kernels.adam_on_host, torch.bfloat16, torch.float32, 1.0, delta=True)
    moved = done["moved"] / RATE
    wanted = torch.stack([moved.mean(), moved.var(correction=0), moved.sum(), moved.square().sum()])
    torch.testing.assert_close(done["told"], wanted, rtol=1e-3, atol=1e-3)


@given(
    st.integers(1, 40), NARROW, st.sampled_from([float("inf"), float("-inf"), float("nan"), 6e4]), st.integers(0, 39)
)
def test_what_is_not_finite_is_found_and_stays_found(count: int, dtype: torch.dtype, value: float, place: int) -> None:
    values, found = torch.zeros(count, dtype=dtype), torch.zeros((), dtype=torch.uint8)
    kernels.has_nan_inf(count, at(values), at(found), at(found), None)
    assert found == 0
    values[place % count] = value
    kernels.has_nan_inf(count, at(values), at(found), at(found), None)
    assert found == int(value != 6e4)
    kernels.has_nan_inf(count, at(torch.zeros(count, dtype=dtype)), at(found), at(found), None)
    assert found == int(value != 6e4)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 20), NARROW, st.integers(0, 2**31))
def test_cross_entropy_is_torchs_with_its_gradient(m: int, n: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(m, n, generator=generator) * 4).to(dtype)
    targets = torch.randint(0, n, (m,), generator=generator, dtype=torch.int32)
    targets[0] = -100
    wanted = logits.float().requires_grad_()
    losses = F.cross_entropy(wanted, targets.long(), reduction="none")
    gradients = torch.randn(m, generator=generator)
    (wanted_gradient,) = torch.autograd.grad(losses, wanted, gradients)
    softmax, told = torch.empty_like(logits), torch.empty(m)
    kernels.cross_entropy_forward(m, n, at(logits), at(targets), at(softmax), at(told), -100, None)
    torch.testing.assert_close(told, losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(softmax, logits.float().softmax(-1).to(dtype))
    kernels.cross_entropy_backward(m, n, at(gradients), at(targets), at(softmax), -100, None)
    torch.testing.assert_close(softmax.float(), wanted_gradient, rtol=2e-2, atol=2e-2)
    assert not softmax[0].any()


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 20), NARROW)
def test_a_split_softmax_is_the_whole_one(m: int, n: int, dtype: torch.dtype) -> None:
    logits = torch.randn(m, n).to(dtype)
    largest, sums = logits.float().amax(-1), torch.empty(m)
    kernels.fused_sumexp(m, n, at(logits), at(largest), at(sums), None)
    torch.testing.assert_close(sums, (logits.float() - largest[:, None]).exp().sum(-1))
    whole = logits.clone()
    kernels.fused_softmax(m, n, at(whole), at(largest), at(sums), None)
    torch.testing.assert_close(whole, logits.float().softmax(-1).to(dtype))


def test_casts_round_to_nearest() -> None:
    source, target = torch.tensor([1 + 2**-8 + 2**-9, 1.0]), torch.empty(2, dtype=torch.bfloat16)
    kernels.functions()["to_bf16_from_fp32"](2, at(source), at(target))
    assert target.tolist() == [1 + 2**-7, 1.0]  # truncated it would be 1


def test_there_are_the_31_functions_that_the_package_calls() -> None:
    from flagperf.engines.bmtrain.collectives import Collectives

    functions = {**Collectives(torch.device("cpu"), "gloo").functions(), **kernels.functions()}
    assert len(functions) == 31
