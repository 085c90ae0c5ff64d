"""Formulas against published figures, and against what torch counts and allocates."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flagperf.cases.aquila import formulas
from flagperf.cases.aquila.config import AquilaConfig
from flagperf.cases.aquila.model import Aquila

V1: dict[str, Any] = {"vocab_size": 100008, "seq_len": 2048}
V2: dict[str, Any] = {
    "vocab_size": 100008,
    "seq_len": 4096,
    "kv_heads": 8,
    "multiple_of": 4096,
    "ffn_multiplier": 1.3,
    "rotary": "half",
}
RELEASED = {
    "7b": AquilaConfig(dim=4096, layers=32, heads=32, **V1),
    "33b": AquilaConfig(dim=6656, layers=60, heads=52, **V1),
    "34b": AquilaConfig(dim=6144, layers=60, heads=48, **V2),
    "70b": AquilaConfig(dim=8192, layers=80, heads=64, **V2),
}
GROUPED = AquilaConfig(dim=96, layers=3, heads=6, kv_heads=2, vocab_size=200, seq_len=64, rotary="half")


def on_meta(config: AquilaConfig, *, recompute: bool = False) -> Aquila:
    with torch.device("meta"):
        return Aquila(config, recompute=recompute)


@pytest.mark.parametrize(
    ("name", "count"),
    [("7b", 7_295_537_152), ("33b", 33_434_266_112), ("34b", 33_693_554_688), ("70b", 70_090_891_264)],
)
def test_parameters_of_the_released_models(name: str, count: int) -> None:
    assert formulas.parameters(RELEASED[name]) == count
    assert sum(p.numel() for p in on_meta(RELEASED[name]).parameters()) == count


@pytest.mark.parametrize(("name", "giga"), [("7b", 44.54), ("33b", 206.42), ("34b", 216.59), ("70b", 447.83)])
def test_training_flops_of_the_released_models(name: str, giga: float) -> None:
    assert formulas.training_flops_per_token(RELEASED[name]) / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize(("name", "size"), [("7b", 524_288), ("33b", 1_597_440), ("34b", 245_760), ("70b", 327_680)])
def test_kv_cache_of_the_released_models(name: str, size: int) -> None:
    assert formulas.kv_cache_bytes_per_token(RELEASED[name]) == size


def addmm_in_place_flops(total: list[int], left: list[int], right: list[int], **_: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def counted_flops(config: AquilaConfig, batch: int, *, recompute: bool = False, backward: bool = True) -> int:
    """FLOPs that torch counts in one step on the meta device, where attention takes the path of plain products."""
    model = on_meta(config, recompute=recompute)
    tokens = torch.zeros(batch, config.seq_len, dtype=torch.long, device="meta")
    # torch's counter knows addmm, but not its in-place form, which the backward of SwiGLU and the loss add up with.
    in_place = {torch.ops.aten.addmm_: addmm_in_place_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        if backward:
            model(tokens, tokens).backward()
        else:
            with torch.no_grad():
                model(tokens)
    return counter.get_total_flops()


def test_flops_are_what_torch_counts() -> None:
    # RMSNorm's backward sums with two matrix-vector products, which torch counts and the convention (norms are free)
    # doesn't: 2·d a token and norm for the weight's gradient; the other, a plain mv, torch doesn't count.
    config, tokens = GROUPED, 2 * GROUPED.seq_len
    norms = 2 * formulas.norm_parameters(config) * tokens
    training = formulas.training_flops_per_token(config) * tokens
    assert counted_flops(config, 2, backward=False) == formulas.forward_flops_per_token(config) * tokens
    assert counted_flops(config, 2) - norms == training
    recomputed = formulas.hardware_flops_per_token(config, recompute=True) * tokens
    # torch stops recomputing at the last tensor that the backward needs, short of the down projection's product.
    skipped = 2 * config.layers * config.dim * config.ffn * tokens
    assert counted_flops(config, 2, recompute=True) - norms == recomputed - skipped
    assert formulas.recompute_factor(config) == recomputed / training


def test_flops_of_the_whole_7b_are_what_torch_counts() -> None:
    config = RELEASED["7b"]
    expected = formulas.training_flops_per_token(config) * config.seq_len
    assert counted_flops(config, 1) == pytest.approx(expected, rel=1e-4)


def test_causal_half_halves_attention_alone() -> None:
    full = formulas.training_flops_per_token(GROUPED, 128)
    half = formulas.training_flops_per_token(GROUPED, 128, causal_half=True)
    assert full - half == 6 * GROUPED.layers * 128 * GROUPED.dim
    assert 1.3 < formulas.recompute_factor(RELEASED["7b"]) < 4 / 3


def test_rows_of_a_chunk_of_the_loss() -> None:
    config = RELEASED["7b"]
    assert formulas.loss_chunk(2048, config.dim, config.vocab_size) == 256
    assert formulas.loss_chunk(100, 64, 64) == 100


def test_formulas_need_no_torch() -> None:
    code = "import sys, flagperf.cases.aquila.formulas, flagperf.cases.aquila.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
