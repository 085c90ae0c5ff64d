"""Canonical weights: the same wherever and in whatever order they are made."""

from __future__ import annotations

import math

import pytest
import torch

from flagperf.cases.aquila.config import AquilaConfig
from flagperf.cases.aquila.model import Aquila
from flagperf.cases.aquila.weights import RESIDUAL_OUTPUTS, fill, initial_weight

CONFIG = AquilaConfig(dim=128, layers=8, heads=2, vocab_size=512, seq_len=16, init_std=0.05)


def filled(seed: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Aquila(CONFIG)
    model.to_empty(device="cpu")
    fill(model, CONFIG, seed)
    return model.state_dict()


def test_a_parameter_made_alone_is_the_one_in_the_model() -> None:
    torch.manual_seed(99)
    weights = filled(3)
    for name in reversed(weights):
        assert torch.equal(initial_weight(CONFIG, name, tuple(weights[name].shape), 3), weights[name])
    assert torch.initial_seed() == 99


def test_seeds_and_names_give_different_numbers() -> None:
    first, second = filled(0), filled(1)
    matrices = [name for name, weight in first.items() if weight.dim() == 2]
    assert all(not torch.equal(first[name], second[name]) for name in matrices)
    assert not torch.equal(first["blocks.0.attention.qkv.weight"], first["blocks.1.attention.qkv.weight"])


@pytest.mark.parametrize("seed", [0, -1, 2**80])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert torch.isfinite(initial_weight(CONFIG, "embed.weight", (16, 8), seed)).all()


def test_distribution() -> None:
    residual = 0
    for name, weight in filled(0).items():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        small = name.endswith(RESIDUAL_OUTPUTS)
        residual += small
        expected = CONFIG.init_std / math.sqrt(2 * CONFIG.layers) if small else CONFIG.init_std
        error = expected / math.sqrt(weight.numel())  # of the mean; 1 / sqrt(2) of it of the standard deviation
        assert abs(weight.mean().item()) < 5 * error
        assert weight.std().item() == pytest.approx(expected, abs=5 * error)
    assert residual == 2 * CONFIG.layers


def test_the_numbers_stay_as_they_are() -> None:
    # Published results depend on them: a change here is a change of every loss curve.
    weight = initial_weight(CONFIG, "embed.weight", (4, 8), 1234)
    torch.testing.assert_close(
        weight[0, :3], torch.tensor([0.0483179465, 0.0107962219, -0.0595238581]), rtol=1e-6, atol=0
    )
