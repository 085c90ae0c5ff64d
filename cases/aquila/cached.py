"""The Aquila decoder for generation: keys and values of what it has read are kept in a cache, a row a request."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import AquilaConfig
from .kernels import RotaryTable
from .model import Aquila, Attention, Block, RMSNorm

MANY = 4
"""Rows from which on a CPU takes half as long for W·xᵀ as for x·Wᵀ, W being [vocabulary, dim] (MKL 2024.2, fp32)."""


class CachedAquila(nn.Module):
    """An Aquila that reads some tokens a row after `past` others, whose keys and values are in the cache.

    `model(tokens [B, Q], past [B], count [B], *cache)`: row b has `past[b]` tokens in the cache and reads `count[b]`
    more, the rest of its Q being padding on the right. `cache` is a [B, 2·kv_heads, P, head_dim] a layer, of which the
    first kv_heads are keys, the others values. Returns the logits [B, V] after each row's last token.

    With `functional`, each layer's new keys and values [B, 2·kv_heads, Q, head_dim] follow the logits, and P need hold
    the past only. Else they are written into the cache at their positions, for which P must have room.
    It takes `model` over, and changes it: rotary pairs are always half a head apart, rows of queries and keys being put
    in that order, and gate and up projection are apart.
    """

    def __init__(self, model: Aquila, *, functional: bool) -> None:
        super().__init__()
        config = self.config = model.config
        self.functional = functional
        self.embed, self.norm, self.output = model.embed, _Norm(model.norm), model.output
        self.blocks = nn.ModuleList(_Block(cast(Block, each), config, functional) for each in model.blocks)
        table = RotaryTable(config.seq_len, config.head_dim, config.rope_theta, False, torch.device("cpu"))
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.cat([table.cos, table.cos], -1), persistent=False)
        self.register_buffer("sin", torch.cat([-table.sin, table.sin], -1), persistent=False)

    def forward(self, tokens: Tensor, past: Tensor, count: Tensor, *cache: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits after each row's last token; see the class."""
        batch, width = tokens.shape
        device = tokens.device
        x = self.embed(tokens)
        places = torch.arange(width, device=device)
        positions = past.unsqueeze(1) + places  # padding has some, too, where nobody looks
        turn = positions.clamp(max=self.config.seq_len - 1)
        known = torch.arange(cache[0].shape[2], device=device)
        if self.functional:
            read = (known < past.unsqueeze(1)).unsqueeze(1).expand(-1, width, -1)
            seen = torch.cat([read, (places <= places.unsqueeze(1)).expand(batch, -1, -1)], 2)
        else:
            seen = known <= positions.unsqueeze(2)
        # As numbers, so that not every layer makes them of the booleans again.
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=device).masked_fill(~seen, -torch.inf).unsqueeze(1)
        group = self.config.heads // self.config.kv_heads
        if group > 1:  # query heads that share a KV head become one with `group` times as many queries
            mask = mask.repeat(1, 1, group, 1)
        rows = torch.arange(batch, device=device)
        at = (rows.unsqueeze(1), turn)
        cos, sin = self.cos[turn], self.sin[turn]
        made: list[Tensor] = []
        for block, held in zip(self.blocks, cache, strict=True):
            x, *new = block(x, held, cos, sin, mask, *at)
            made += new
        logits = self._scored(self.norm(x[rows, count - 1]))
        return (logits, *made) if self.functional else logits

    def _scored(self, x: Tensor) -> Tensor:
        weight = self.output.weight
        odd = type(weight) is not nn.Parameter or self.functional or x.device.type != "cpu"
        # A compiler has code of its own for one row, and needs more of it for every other number that is told apart.
        if odd or x.shape[0] < (2 if torch.compiler.is_compiling() else MANY):
            made: Tensor = self.output(x)
            return made
        return weight.mm(x.t()).t()


class _Block(nn.Module):
    """One layer, made of a `Block` that it takes over."""

    def __init__(self, block: Block, config: AquilaConfig, functional: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.functional = config.heads, config.kv_heads, functional
        if config.rotary == "interleaved":
            _halve(block.attention, config)
        self.attention_norm, self.ffn_norm = _Norm(block.attention_norm), _Norm(block.ffn_norm)
        self.qkv, self.out = block.attention.qkv, block.attention.out
        # Two products rather than one of twice the width: the halves come out contiguous.
        self.gate, self.up = (_linear(half) for half in block.ffn.gate_up.weight.detach().chunk(2))
        self.down = block.ffn.down

    def forward(
        self, x: Tensor, held: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Tensor, turn: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the layer's output [B, Q, dim], and with `functional` its new keys and values.

        `held` is the layer's cache, `cos` and `sin` [B, Q, 1, head_dim] are angles, `mask` is what may be seen, and
        `rows` [B, 1] and `turn` [B, Q] are where in the cache new tokens belong.
        """
        batch, width, _ = x.shape
        queries, new = self._projected(self.attention_norm(x), cos, sin)
        if self.functional:
            made = new.transpose(1, 2)
            known = torch.cat([held, made], 2)
        else:
            known = held
            known.transpose(1, 2).index_put_((rows, turn), new)
        keys, values = known[:, : self.kv_heads], known[:, self.kv_heads :]
        group = self.heads // self.kv_heads
        if group > 1:
            queries = queries.view(batch, width, self.kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            mixed = mixed.view(batch, self.kv_heads, group, width, -1).permute(0, 3, 1, 2, 4).flatten(2)
        else:
            mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask)
            mixed = mixed.transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        normed = self.ffn_norm(x)
        x = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return (x, made) if self.functional else (x,)

    def _projected(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries [B, Q, heads, head_dim] and keys and values [B, Q, 2·kv_heads, head_dim]; values unturned."""
        heads, kv_heads = self.heads, self.kv_heads
        made: Tensor = self.qkv(x)
        qkv = made.view(*x.shape[:2], heads + 2 * kv_heads, -1)
        wide = qkv[:, :, : heads + kv_heads].float()
        first, second = wide.chunk(2, dim=-1)
        turned = torch.addcmul(wide * cos, torch.cat([second, first], -1), sin).to(x.dtype)
        return turned[:, :, :heads], torch.cat([turned[:, :, heads:], qkv[:, :, heads + kv_heads :]], 2)


class _Norm(nn.Module):
    """RMSNorm in fp32, by as few operations as there can be."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps: Tensor
        self.register_buffer("eps", torch.tensor(norm.eps, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight).to(x.dtype)


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear


@torch.no_grad()
def _halve(attention: Attention, config: AquilaConfig) -> None:
    """Put rows of queries and keys that turn together, neighbours so far, half a head apart."""
    turned = attention.qkv.weight[: (config.heads + config.kv_heads) * config.head_dim]
    turned.copy_(turned.view(-1, config.head_dim // 2, 2, config.dim).transpose(1, 2).reshape(turned.shape))
