"""The Aquila decoder for generation: keys and values of what it has read are kept in a cache, a row a request."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import AquilaConfig
from .kernels import RotaryTable
from .model import Aquila, Attention, Block, FeedForward, RMSNorm

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
        self.embed, self.blocks, self.norm, self.output = model.embed, model.blocks, model.norm, model.output
        for each in self.blocks:
            block = cast(Block, each)
            block.ffn = cast(FeedForward, _SplitFeedForward(block.ffn))
            if config.rotary == "interleaved":
                _halve(block.attention, config)
        table = RotaryTable(config.seq_len, config.head_dim, config.rope_theta, False, torch.device("cpu"))
        self.cos: Tensor
        self.sin: Tensor
        self.eps: Tensor
        self.register_buffer("eps", torch.tensor(config.norm_eps, dtype=torch.float32), persistent=False)
        self.register_buffer("cos", torch.cat([table.cos, table.cos], -1), persistent=False)
        self.register_buffer("sin", torch.cat([-table.sin, table.sin], -1), persistent=False)

    def forward(self, tokens: Tensor, past: Tensor, count: Tensor, *cache: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits after each row's last token; see the class."""
        batch, width = tokens.shape
        kv_heads, group, device = self.config.kv_heads, self.config.heads // self.config.kv_heads, tokens.device
        x = self.embed(tokens)
        places = torch.arange(width, device=device)
        positions = past.unsqueeze(1) + places  # padding has some, too, where nobody looks
        turn = positions.clamp(max=self.config.seq_len - 1)
        cos, sin = self.cos[turn], self.sin[turn]
        known = torch.arange(cache[0].shape[2], device=device)
        if self.functional:
            read = (known < past.unsqueeze(1)).unsqueeze(1).expand(-1, width, -1)
            seen = torch.cat([read, (places <= places.unsqueeze(1)).expand(batch, -1, -1)], 2)
        else:
            seen = known <= positions.unsqueeze(2)
        # As numbers, so that not every layer makes them of the booleans again.
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=device).masked_fill(~seen, -torch.inf).unsqueeze(1)
        if group > 1:  # query heads that share a KV head become one with `group` times as many queries
            mask = mask.repeat(1, 1, group, 1)
        rows = torch.arange(batch, device=device).unsqueeze(1)
        made: list[Tensor] = []
        for number, each in enumerate(self.blocks):
            block = cast(Block, each)
            queries, new = self._projected(block.attention, self._normed(block.attention_norm, x), cos, sin)
            if self.functional:
                made.append(new.transpose(1, 2))
                known_and_new = torch.cat([cache[number], made[-1]], 2)
            else:
                known_and_new = cache[number]
                known_and_new.transpose(1, 2).index_put_((rows, turn), new)
            keys, values = known_and_new[:, :kv_heads], known_and_new[:, kv_heads:]
            if group > 1:
                queries = queries.view(batch, width, kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
                mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
                mixed = mixed.view(batch, kv_heads, group, width, -1).permute(0, 3, 1, 2, 4).flatten(2)
            else:
                mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask)
                mixed = mixed.transpose(1, 2).flatten(2)
            x = x + block.attention.out(mixed)
            x = x + block.ffn(self._normed(block.ffn_norm, x))
        last = x[rows.squeeze(1), count - 1]
        logits = self._scored(self._normed(self.norm, last))
        return (logits, *made) if self.functional else logits

    def _normed(self, norm: RMSNorm, x: Tensor) -> Tensor:
        """Return x, normed in fp32, by as few operations as there can be."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(norm.weight).to(x.dtype)

    def _scored(self, x: Tensor) -> Tensor:
        weight = self.output.weight
        odd = type(weight) is not nn.Parameter or self.functional or x.device.type != "cpu"
        # A compiler has code of its own for one row, and needs more of it for every other number that is told apart.
        if odd or x.shape[0] < (2 if torch.compiler.is_compiling() else MANY):
            made: Tensor = self.output(x)
            return made
        return weight.mm(x.t()).t()

    def _projected(self, attention: Attention, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries [B, Q, heads, head_dim] and keys and values [B, Q, 2·kv_heads, head_dim]; values unturned."""
        heads, kv_heads = attention.heads, attention.kv_heads
        made: Tensor = attention.qkv(x)
        qkv = made.view(*x.shape[:2], heads + 2 * kv_heads, -1)
        wide = qkv[:, :, : heads + kv_heads].float()
        first, second = wide.chunk(2, dim=-1)
        turned = torch.addcmul(wide * cos, torch.cat([second, first], -1), sin).to(x.dtype)
        return turned[:, :, :heads], torch.cat([turned[:, :, heads:], qkv[:, :, heads + kv_heads :]], 2)


class _SplitFeedForward(nn.Module):
    """SwiGLU by two products rather than one of twice the width: the halves come out contiguous."""

    def __init__(self, whole: FeedForward) -> None:
        super().__init__()
        self.gate, self.up = (_linear(half) for half in whole.gate_up.weight.detach().chunk(2))
        self.down = whole.down

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear


@torch.no_grad()
def _halve(attention: Attention, config: AquilaConfig) -> None:
    """Put rows of queries and keys that turn together, neighbours so far, half a head apart."""
    turned = attention.qkv.weight[: (config.heads + config.kv_heads) * config.head_dim]
    turned.copy_(turned.view(-1, config.head_dim // 2, 2, config.dim).transpose(1, 2).reshape(turned.shape))
