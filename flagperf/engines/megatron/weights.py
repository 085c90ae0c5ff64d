"""Canonical weights to and from Megatron's names and tensor-parallel shards, exactly: rows and columns only move.

See `flagperf.schema.decoder` for the canonical names and shapes. Megatron differs in three places:

- `linear_qkv` holds its rows by query group: the group's query heads, its key head, its value head, then the next
  group, so that a rank can take whole groups;
- `linear_fc1` is split inside gate and up: a rank has its part of the gate's rows, then its part of the up rows;
- each pipeline stage counts its layers from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from flagperf.schema.decoder import Decoder

_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.qkv.weight": "self_attention.linear_qkv.weight",
    "attention.out.weight": "self_attention.linear_proj.weight",
    "ffn_norm.weight": "pre_mlp_layernorm.weight",
    "ffn.gate_up.weight": "mlp.linear_fc1.weight",
    "ffn.down.weight": "mlp.linear_fc2.weight",
}
_OUTSIDE = {
    "embed.weight": "embedding.word_embeddings.weight",
    "norm.weight": "decoder.final_layernorm.weight",
    "output.weight": "output_layer.weight",
}


class Place(NamedTuple):
    """Where a canonical parameter lives in a pipeline."""

    stage: int
    name: str
    """Megatron's, in that stage."""


def places(decoder: Decoder, stages: int) -> dict[str, Place]:
    """Return where each canonical parameter lives, in canonical order, when `stages` divides the layers."""
    each = decoder.layers // stages
    found = {"embed.weight": Place(0, _OUTSIDE["embed.weight"])}
    for layer in range(decoder.layers):
        stage, local = divmod(layer, each)
        for canonical, name in _LAYER.items():
            found[f"blocks.{layer}.{canonical}"] = Place(stage, f"decoder.layers.{local}.{name}")
    return found | {name: Place(stages - 1, _OUTSIDE[name]) for name in ("norm.weight", "output.weight")}


def shape(name: str, decoder: Decoder) -> torch.Size:
    """Return the shape of a canonical parameter."""
    d, f, rows = decoder.dim, decoder.ffn, (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    shapes = {
        "embed.weight": (decoder.vocab_size, d),
        "output.weight": (decoder.vocab_size, d),
        "attention.qkv.weight": (rows, d),
        "attention.out.weight": (d, decoder.heads * decoder.head_dim),
        "ffn.gate_up.weight": (2 * f, d),
        "ffn.down.weight": (d, f),
    }
    return torch.Size(shapes.get(_kind(name), (d,)))


def shard(name: str, full: Tensor, decoder: Decoder, rank: int, ranks: int) -> Tensor:
    """Return what tensor-parallel rank `rank` of `ranks` holds of a canonical parameter."""
    match _kind(name):
        case "attention.qkv.weight":
            return _by_group(full, decoder).chunk(ranks)[rank]
        case "ffn.gate_up.weight":
            return torch.cat([half.chunk(ranks)[rank] for half in full.chunk(2)])
        case "embed.weight" | "output.weight":
            return full.chunk(ranks)[rank]
        case "attention.out.weight" | "ffn.down.weight":
            return full.chunk(ranks, dim=1)[rank]
        case _:
            return full


def merge(name: str, shards: Sequence[Tensor], decoder: Decoder) -> Tensor:
    """Return a canonical parameter from what all tensor-parallel ranks hold of it, in their order."""
    match _kind(name):
        case "attention.qkv.weight":
            return _by_kind(torch.cat(list(shards)), decoder)
        case "ffn.gate_up.weight":
            return torch.cat(list(chain(*zip(*(part.chunk(2) for part in shards), strict=True))))
        case "embed.weight" | "output.weight":
            return torch.cat(list(shards))
        case "attention.out.weight" | "ffn.down.weight":
            return torch.cat(list(shards), dim=1)
        case _:
            return shards[0]


def _kind(name: str) -> str:
    """Return a canonical name without its layer."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def _by_group(qkv: Tensor, decoder: Decoder) -> Tensor:
    """Return rows [q…, k…, v…] as [q…, k, v] of each query group in turn."""
    groups, rows = decoder.kv_heads, [size * decoder.head_dim for size in (decoder.heads, *[decoder.kv_heads] * 2)]
    return torch.cat([part.reshape(groups, -1, decoder.dim) for part in torch.split(qkv, rows)], dim=1).flatten(0, 1)


def _by_kind(rows: Tensor, decoder: Decoder) -> Tensor:
    """Undo `_by_group`."""
    sizes = [heads * decoder.head_dim for heads in (decoder.heads // decoder.kv_heads, 1, 1)]
    groups = rows.reshape(decoder.kv_heads, -1, decoder.dim)
    return torch.cat([part.flatten(0, 1) for part in torch.split(groups, sizes, dim=1)])
