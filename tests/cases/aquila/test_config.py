"""Shapes of the released models, and refusals of shapes that can't exist."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from flagperf.cases.aquila.config import AquilaConfig
from flagperf.errors import UsageError

SMALL: dict[str, Any] = {"dim": 64, "layers": 2, "heads": 4, "vocab_size": 128, "seq_len": 16}


@pytest.mark.parametrize(
    ("shape", "ffn"),
    [
        ({"dim": 4096, "heads": 32}, 11008),
        ({"dim": 6656, "heads": 52}, 17920),
        ({"dim": 6144, "heads": 48, "multiple_of": 4096, "ffn_multiplier": 1.3}, 24576),
        ({"dim": 8192, "heads": 64, "multiple_of": 4096, "ffn_multiplier": 1.3}, 28672),
        ({"ffn_hidden": 100}, 100),
    ],
)
def test_ffn_follows_the_rule(shape: dict[str, Any], ffn: int) -> None:
    assert AquilaConfig(**{**SMALL, **shape}).ffn == ffn


def test_kv_heads_default_to_heads() -> None:
    assert AquilaConfig(**SMALL).kv_heads == 4
    assert AquilaConfig(**SMALL, kv_heads=2).kv_heads == 2
    assert AquilaConfig(**SMALL).head_dim == 16


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"heads": 5}, "64 doesn't divide into 5 heads"),
        ({"kv_heads": 3}, "4 heads can't share 3"),
        ({"kv_heads": -1}, "kv_heads is -1"),
        ({"dim": 60, "heads": 4}, "odd head dimension, 15"),
        ({"layers": 0}, "layers is 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"init_std": float("nan")}, "init_std is nan"),
        ({"ffn_hidden": 0}, "ffn_hidden is 0"),
        ({"rotary": "whole"}, "rotary is 'whole'"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        AquilaConfig(**{**SMALL, **wrong})
    assert caught.value.hint


def test_unknown_fields_are_refused_and_a_round_trip_is_exact() -> None:
    config = AquilaConfig(**SMALL, kv_heads=2, ffn_multiplier=1.3)
    assert msgspec.convert(msgspec.to_builtins(config), AquilaConfig) == config
    with pytest.raises(msgspec.ValidationError, match="hidden_size"):
        msgspec.convert({**SMALL, "hidden_size": 64}, AquilaConfig)
