"""Canonical matrices to tensor-parallel shards and back, exactly."""

from __future__ import annotations

import pytest
import torch

from flagperf.engines.bmtrain.model import cut, joined, sections
from flagperf.schema.decoder import Decoder

DECODER = Decoder(
    dim=16, layers=1, heads=8, kv_heads=4, ffn=24, vocab_size=32, seq_len=8,
    norm_eps=1e-5, rope_theta=1e4, rotary_interleaved=True,
)  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "shape", "dim"),
    [
        ("blocks.0.attention.qkv.weight", (32, 16), 0),
        ("blocks.0.attention.out.weight", (16, 16), 1),
        ("blocks.0.ffn.gate_up.weight", (48, 16), 0),
        ("blocks.0.ffn.down.weight", (16, 24), 1),
    ],
)
def test_shards_join_to_what_they_were_cut_from(name: str, shape: tuple[int, int], dim: int, size: int) -> None:
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    heights = sections(name, DECODER)
    shards = [cut(whole, heights, dim, size, rank) for rank in range(size)]
    assert all(shard.numel() == whole.numel() // size for shard in shards)
    assert torch.equal(joined(shards, heights, dim), whole)


def test_a_rank_has_whole_heads_of_queries_keys_and_values() -> None:
    rows = torch.arange(32).unsqueeze(1)  # eight query heads of two, then four key heads, then four value heads
    shard = cut(rows, sections("qkv.weight", DECODER), 0, 4, 1)
    assert shard.flatten().tolist() == [4, 5, 6, 7, 18, 19, 26, 27]
