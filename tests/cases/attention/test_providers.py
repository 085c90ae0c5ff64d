"""Every provider computes attention: held against the definition in float64, written down another way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch

from flagperf.cases.attention import packed, providers
from flagperf.kernel import KernelCase, Unsupported
from flagperf.measure.inputs import Inputs
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.vendors.ascend import kernels as ascend

CPU = torch.device("cpu")
DENSE = ("exact", "naive", "math", "flash")
SIZES = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "seq": 37, "dtype": "fp32"}


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention by its definition, all heads at once."""
    q, k, v = q.double(), k.double(), v.double()
    b, h, s, d = q.shape
    groups = q.reshape(b, k.shape[1], h // k.shape[1], s, d)
    scores = torch.einsum("bkgsd,bktd->bkgst", groups, k) / d**0.5
    if causal:
        scores += torch.full((s, k.shape[2]), float("-inf"), dtype=scores.dtype).triu(1)
    weights = (scores - scores.logsumexp(-1, keepdim=True)).exp()
    return torch.einsum("bkgst,bktd->bkgsd", weights, v).reshape(b, h, s, d)


@cache
def case(name: str) -> KernelCase:
    registries = Registries()
    trial = plan(Options(cases=[f"attention/{name}"], vendor="cpu"), registries).trials[0]
    made: KernelCase = registries.cases.load(trial.case)(trial)
    return made


def drawn(name: str, **changes: Any) -> tuple[torch.Tensor, ...]:
    return case(name).inputs(SIZES | changes, Inputs(7, "fp32", CPU))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("grouped", [True, False])
def test_whole_sequences_and_their_gradients(name: str, causal: bool, grouped: bool) -> None:
    inputs = [x.requires_grad_() for x in drawn("forward", kv_heads=2 if grouped else 4)]
    out = getattr(providers, name)(*inputs, causal=causal)
    right = definition(*inputs, causal)
    torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)
    above = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    got, wanted = (torch.autograd.grad(y, inputs, above.to(y.dtype)) for y in (out, right))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_a_new_token_against_a_cache(name: str) -> None:
    inputs = drawn("decode")
    out = getattr(providers, name)(*inputs, causal=False)
    torch.testing.assert_close(out.double(), definition(*inputs, False), rtol=1e-4, atol=1e-5)


def split(packed: torch.Tensor, offsets: torch.Tensor) -> list[torch.Tensor]:
    ends = offsets.tolist()
    return [packed[a:b].transpose(0, 1)[None] for a, b in pairwise(ends)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", DENSE)
def test_packed_sequences(name: str, causal: bool) -> None:
    sizes = SIZES | {"batch": 4, "causal": causal}
    *inputs, offsets = drawn("varlen", **sizes)
    out = getattr(packed, name)(*inputs, offsets, **case("varlen").arguments(sizes))
    parts = zip(*(split(each, offsets) for each in inputs), strict=True)
    right = torch.cat([definition(*part, causal)[0].transpose(0, 1) for part in parts])
    torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)


def test_a_backend_that_torch_lacks_here_is_told() -> None:
    with pytest.raises(Unsupported, match="no EFFICIENT_ATTENTION kernel for these inputs on cpu"):
        providers.efficient(*drawn("forward"), causal=True)


def test_flex_has_no_gradients_here() -> None:
    inputs = [x.requires_grad_() for x in drawn("forward")]
    with pytest.raises(Unsupported, match="no gradients on a CPU"):
        providers.flex(*inputs, causal=True)


@pytest.mark.slow
def test_flex_compiled() -> None:
    """One shape each of whole and packed sequences: compiling takes about ten seconds."""
    *inputs, offsets = drawn("varlen", batch=3)
    arguments = case("varlen").arguments(SIZES | {"batch": 3, "causal": True})
    with torch.no_grad():
        out = packed.flex(*inputs, offsets, **arguments)
        torch.testing.assert_close(out, packed.naive(*inputs, offsets, **arguments), rtol=1e-4, atol=1e-5)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Callable[..., Any]) -> None:
    """Put a module in a package's place whose functions keep to its documentation."""
    made = ModuleType(module)
    for name, function in functions.items():
        setattr(made, name, function)
    monkeypatch.setitem(sys.modules, module, made)


def tokens_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """flash_attn_func: q [B, S, H, D]."""
    dense = definition(*(x.transpose(1, 2) for x in (q, k, v)), causal)
    return dense.transpose(1, 2).to(q.dtype)


def by_offsets(
    *given: Any, causal: bool = False, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = True
) -> torch.Tensor:
    """flash_attn_varlen_func and torch's varlen_attn: packed tensors, offsets and the longest length, twice each."""
    q, k, v, offsets, again, longest, most = given
    assert torch.equal(offsets, again) and longest == most == int((offsets[1:] - offsets[:-1]).max())
    parts = zip(*(split(each, offsets) for each in (q, k, v)), strict=True)
    masked = causal or window_size == (-1, 0)
    return torch.cat([definition(*part, masked)[0].transpose(0, 1) for part in parts]).to(q.dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_3", "varlen"])
def test_packages_are_called_as_they_document(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them can run here: their place is taken by functions that keep to their documentation."""
    stand_in(monkeypatch, "flash_attn", flash_attn_func=tokens_first, flash_attn_varlen_func=by_offsets)
    stand_in(
        monkeypatch,
        "flash_attn_interface",
        flash_attn_func=lambda *given, **named: (tokens_first(*given, **named), None),
        flash_attn_varlen_func=by_offsets,
    )
    stand_in(monkeypatch, "torch.nn.attention.varlen", varlen_attn=by_offsets)
    half = [x.bfloat16() for x in drawn("forward")]
    if name != "varlen":
        function = getattr(providers, name)
        out = function(*half, causal=causal).double()
        torch.testing.assert_close(out, definition(*half, causal), rtol=2e-2, atol=2e-2)
        with pytest.raises(Unsupported, match="fp16 and bf16 only"):
            function(*drawn("forward"), causal=causal)
    sizes = SIZES | {"batch": 3, "causal": causal}
    *inputs, offsets = drawn("varlen", **sizes)
    half, arguments = [x.bfloat16() for x in inputs], case("varlen").arguments(sizes)
    out = getattr(packed, name)(*half, offsets, **arguments)
    torch.testing.assert_close(out, packed.naive(*half, offsets, **arguments), rtol=2e-2, atol=2e-2)


def fused(
    *given: Any, scale: float, atten_mask: Any = None, sparse_mode: int = 0, **ends: list[int]
) -> tuple[Any, ...]:
    """torch_npu.npu_fusion_attention: seven results, of which the first is the attention."""
    q, k, v, heads, layout = given
    assert scale == q.shape[-1] ** -0.5 and heads == q.shape[1]
    if atten_mask is not None:
        assert sparse_mode == 3 and torch.equal(atten_mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    causal = atten_mask is not None
    if layout == "BNSD":
        return (definition(q, k, v, causal).to(q.dtype), *([None] * 6))
    assert layout == "TND" and ends["actual_seq_qlen"] == ends["actual_seq_kvlen"]
    offsets = torch.tensor([0, *ends["actual_seq_qlen"]])
    longest = int((offsets[1:] - offsets[:-1]).max())
    return (by_offsets(q, k, v, offsets, offsets, longest, longest, causal=causal), *([None] * 6))


def one_token(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **named: Any) -> torch.Tensor:
    """torch_npu.npu_incre_flash_attention."""
    assert named["num_heads"] == q.shape[1] and named["num_key_value_heads"] == k.shape[1]
    assert named["scale_value"] == q.shape[-1] ** -0.5 and named["input_layout"] == "BNSD"
    return definition(q, k, v, False).to(q.dtype)


@pytest.mark.parametrize("causal", [True, False])
def test_ascends_operators_are_called_as_they_document(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "torch_npu", npu_fusion_attention=fused, npu_incre_flash_attention=one_token)
    inputs = drawn("forward")
    out = ascend.fusion_attention(*inputs, causal=causal)
    torch.testing.assert_close(out, providers.naive(*inputs, causal=causal), rtol=1e-4, atol=1e-5)
    sizes = SIZES | {"batch": 3, "causal": causal}
    *inputs, offsets = drawn("varlen", **sizes)
    arguments = case("varlen").arguments(sizes)
    out = ascend.fusion_attention_packed(*inputs, offsets, **arguments)
    torch.testing.assert_close(out, packed.naive(*inputs, offsets, **arguments), rtol=1e-4, atol=1e-5)
    new = drawn("decode")
    out = ascend.incre_flash_attention(*new, causal=False)
    torch.testing.assert_close(out, providers.naive(*new, causal=False), rtol=1e-4, atol=1e-5)
