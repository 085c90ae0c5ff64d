"""How a model becomes BMTrain's: any model's blocks in its own, or a decoder of tensor-parallel layers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flagperf.errors import FlagPerfError
from flagperf.schema.decoder import Decoder
from flagperf.schema.layout import Layout

from .rewrite import PACKAGE


def wrapped(model: nn.Module, blocks: list[nn.Module], layout: Layout) -> nn.Module:
    """Return a model of DistributedParameters with its blocks in BMTrain's `Block`.

    `overlap` chains them in a TransformerBlockList: each block's gradients are then scattered while the one before it
    computes its own. Without it a block waits for its gradients. The model's own forward pass goes on iterating over
    its list of blocks; in a pipeline that list has one item, the whole.
    """
    bmt: Any = importlib.import_module(PACKAGE)
    name = next((name for name, module in model.named_modules() if _lists(module, blocks)), None)
    if name is None:
        raise FlagPerfError(
            "BMTrain takes models whose blocks are one ModuleList.", "Use an engine of torch's own: ddp, fsdp."
        )
    units = [
        bmt.Block(
            bmt.BMTrainModelWrapper(block),
            use_checkpoint=layout.recompute,
            zero_level=layout.zero,
            mode="PIPE" if layout.pp > 1 else "BLOCK",
        )
        for block in blocks
    ]
    if layout.pp > 1:

        class Whole(bmt.PipelineTransformerBlockList):  # type: ignore[misc]
            """A pipeline in the place of the list it's made of."""

            def __iter__(self) -> Iterator[Any]:
                yield self

        chain: Any = Whole(units)
    else:
        chain = bmt.TransformerBlockList(units) if layout.overlap else nn.ModuleList(units)
    owner, _, key = name.rpartition(".")
    setattr(model.get_submodule(owner), key, chain)
    whole: nn.Module = bmt.BMTrainModelWrapper(model)
    return whole


def _lists(module: nn.Module, blocks: list[nn.Module]) -> bool:
    return isinstance(module, nn.ModuleList) and list(module) == blocks


# Tensor parallel


def sections(name: str, decoder: Decoder) -> list[int] | None:
    """Return the heights of what is stacked in a canonical matrix, each of which is split; None if nothing is."""
    if name.endswith("qkv.weight"):
        width = decoder.kv_heads * decoder.head_dim
        return [decoder.heads * decoder.head_dim, width, width]
    return [decoder.ffn, decoder.ffn] if name.endswith("gate_up.weight") else None


def cut(whole: Tensor, heights: list[int] | None, dim: int, size: int, rank: int) -> Tensor:
    """Return one tensor-parallel rank's shard of a canonical matrix."""
    parts = torch.split(whole, heights, dim) if heights else [whole]
    return torch.cat([part.chunk(size, dim)[rank] for part in parts], dim)


def joined(shards: Sequence[Tensor], heights: list[int] | None, dim: int) -> Tensor:
    """Return the canonical matrix that `cut` made the shards of."""
    if heights is None:
        return torch.cat(list(shards), dim)
    parts = zip(*(torch.split(shard, [h // len(shards) for h in heights], dim) for shard in shards), strict=True)
    return torch.cat([torch.cat(part, dim) for part in parts], dim)


class TensorParallelDecoder(nn.Module):
    """A decoder whose blocks are split over tensor-parallel ranks; embeddings and norms are left to ZeRO.

    Every rank of a group has the same tokens and whole activations. Column parallel layers take them as they are and
    give out a rank's own columns, row parallel ones add up over the group: two all-reduces a block and direction.
    """

    def __init__(self, decoder: Decoder, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        for what, number in (("heads", decoder.heads), ("KV heads", decoder.kv_heads), ("FFN columns", decoder.ffn)):
            if number % size:
                raise FlagPerfError(f"{number} {what} can't be divided by tp={size}.", "Use a tp that divides them.")
        self.decoder = decoder
        self.embed = nn.Embedding(decoder.vocab_size, decoder.dim)
        self.blocks = nn.ModuleList(_Block(decoder, size, dtype) for _ in range(decoder.layers))
        self.norm = _Norm(decoder)
        self.output = nn.Linear(decoder.dim, decoder.vocab_size, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of tokens [B, S] against targets [B, S], a scalar in fp32."""
        table = _Angles(self.decoder, tokens.shape[1], tokens.device)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, table)
        logits = self.output(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class _Norm(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.eps = decoder.norm_eps
        self.weight = nn.Parameter(torch.ones(decoder.dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class _Angles:
    """Cosines and sines of rotary positions; no tensor itself, so that BMTrain's blocks let it pass."""

    def __init__(self, decoder: Decoder, length: int, device: torch.device) -> None:
        pair = torch.arange(0, decoder.head_dim, 2, dtype=torch.float64)
        turns = torch.outer(torch.arange(length, dtype=torch.float64), decoder.rope_theta ** (-pair / decoder.head_dim))
        self.cos, self.sin = (x.float().to(device) for x in (turns.cos(), turns.sin()))
        self.interleaved = decoder.rotary_interleaved

    def turn(self, x: Tensor) -> Tensor:
        """Turn heads [B, heads, S, D] by their position."""
        wide = x.float()
        first, second = (wide[..., 0::2], wide[..., 1::2]) if self.interleaved else wide.chunk(2, -1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return (torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, decoder: Decoder, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        bmt: Any = importlib.import_module(PACKAGE)
        self.heads, self.kv_heads = decoder.heads // size, decoder.kv_heads // size
        width = decoder.heads * decoder.head_dim
        whole = width + 2 * decoder.kv_heads * decoder.head_dim
        self.qkv = bmt.nn.ColumnParallelLinear(decoder.dim, whole, bias=False, dtype=dtype, gather_input=False)
        self.out = bmt.nn.RowParallelLinear(width, decoder.dim, bias=False, dtype=dtype, all_reduce_output=True)

    def forward(self, x: Tensor, table: _Angles) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1)).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
        mixed = F.scaled_dot_product_attention(
            table.turn(q), table.turn(k), v, is_causal=True, enable_gqa=self.kv_heads != self.heads
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, decoder: Decoder, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        bmt: Any = importlib.import_module(PACKAGE)
        self.gate_up = bmt.nn.ColumnParallelLinear(
            decoder.dim, 2 * decoder.ffn, bias=False, dtype=dtype, gather_input=False
        )
        self.down = bmt.nn.RowParallelLinear(decoder.ffn, decoder.dim, bias=False, dtype=dtype, all_reduce_output=True)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class _Block(nn.Module):
    def __init__(self, decoder: Decoder, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm, self.attention = _Norm(decoder), _Attention(decoder, size, dtype)
        self.ffn_norm, self.ffn = _Norm(decoder), _FeedForward(decoder, size, dtype)

    def forward(self, x: Tensor, table: _Angles) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out
