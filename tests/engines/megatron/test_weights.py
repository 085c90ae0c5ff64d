"""Canonical weights to Megatron's names and shards, and back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagperf.engines.megatron import weights
from flagperf.schema.decoder import Decoder


def decoder(groups: int, queries: int, head_dim: int, ffn: int, vocab: int, layers: int) -> Decoder:
    return Decoder(
        dim=groups * queries * head_dim,
        layers=layers,
        heads=groups * queries,
        kv_heads=groups,
        ffn=ffn,
        vocab_size=vocab,
        seq_len=8,
        norm_eps=1e-5,
        rope_theta=1e4,
        rotary_interleaved=True,
    )


def numbered(name: str, of: Decoder) -> torch.Tensor:
    """Return a parameter of which no two elements are alike."""
    shape = weights.shape(name, of)
    return torch.arange(shape.numel()).view(shape)


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 3, 4, 8]),
    groups=st.integers(1, 2),
    queries=st.integers(1, 4),
    head_dim=st.sampled_from([2, 4]),
    wide=st.integers(1, 5),
    stages=st.sampled_from([1, 2, 3]),
    each=st.integers(1, 3),
)
def test_shards_of_all_ranks_make_the_canonical_weight_again(
    ranks: int, groups: int, queries: int, head_dim: int, wide: int, stages: int, each: int
) -> None:
    of = decoder(groups * ranks, queries, head_dim, wide * ranks, (wide + 1) * ranks, stages * each)
    places = weights.places(of, stages)
    assert len(set(places.values())) == len(places) == 3 + 6 * of.layers
    assert [place.stage for place in places.values()] == sorted(place.stage for place in places.values())
    for name in places:
        full = numbered(name, of)
        shards = [weights.shard(name, full, of, rank, ranks) for rank in range(ranks)]
        assert len({shard.shape for shard in shards}) == 1
        if full.dim() > 1:  # all that is split is split evenly, nothing is held twice
            assert torch.equal(torch.cat([shard.flatten() for shard in shards]).sort().values, full.flatten())
        merged = weights.merge(name, shards, of)
        assert torch.equal(merged, full), name


def test_a_rank_has_whole_query_groups_each_with_its_key_and_value() -> None:
    of = decoder(groups=4, queries=3, head_dim=2, ffn=4, vocab=4, layers=1)
    name = "blocks.0.attention.qkv.weight"
    heads = weights.shard(name, numbered(name, of), of, 1, 2)[::2, 0] // (2 * of.dim)  # each row pair is one head's
    groups = [2, 3]
    wanted = [head for g in groups for head in (3 * g, 3 * g + 1, 3 * g + 2, 12 + g, 16 + g)]
    assert heads.tolist() == wanted


def test_a_rank_has_its_gate_rows_then_its_up_rows() -> None:
    of = decoder(groups=2, queries=1, head_dim=2, ffn=6, vocab=4, layers=1)
    name = "blocks.0.ffn.gate_up.weight"
    rows = weights.shard(name, numbered(name, of), of, 1, 2)[:, 0] // of.dim
    assert rows.tolist() == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_stages_have_neighbouring_layers_counted_from_zero(stages: int) -> None:
    of = decoder(groups=1, queries=1, head_dim=2, ffn=2, vocab=2, layers=4)
    places = weights.places(of, stages)
    norms = [places[f"blocks.{layer}.attention_norm.weight"] for layer in range(4)]
    assert norms[0] == (0, "decoder.layers.0.input_layernorm.weight")
    for before, after in pairwise(norms):
        step = int(after.name.split(".")[2]) - int(before.name.split(".")[2])
        assert (after.stage - before.stage, step) in ((0, 1), (1, 1 - 4 // stages))
    assert places["embed.weight"].stage == 0 and places["output.weight"].stage == stages - 1
