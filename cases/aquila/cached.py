"""The Aquila decoder for generation: keys and values of what it has read are kept in a cache, a row a request."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import AquilaConfig
from .kernels import RotaryTable
from .model import Aquila, Attention, Block, RMSNorm


class CachedAquila(nn.Module):
    """An Aquila that reads some tokens a row after `past` others, whose keys and values are in the cache.

    `model(tokens [B, Q], past [B], count [B], *cache)`: row b has `past[b]` tokens in the cache and reads `count[b]`
    more, the rest of its Q being padding on the right. `cache` is each layer's keys, then its values, layer by layer:
    [B, P, kv_heads, head_dim] each. Returns the logits [B, V] after each row's last token.

    With `functional`, new keys and values [B, Q, kv_heads, head_dim] follow the logits, in the cache's order, and P
    need hold the past only. Else they are written into the cache at their positions, for which P must have room.
    Parameters are those of `model`, shared and under the same names.
    """

    def __init__(self, model: Aquila, *, functional: bool) -> None:
        super().__init__()
        self.config: AquilaConfig = model.config
        self.functional = functional
        self.embed, self.blocks, self.norm, self.output = model.embed, model.blocks, model.norm, model.output
        table = RotaryTable(
            self.config.seq_len,
            self.config.head_dim,
            self.config.rope_theta,
            self.config.rotary == "interleaved",
            torch.device("cpu"),
        )
        self.interleaved = table.interleaved
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", table.cos, persistent=False)
        self.register_buffer("sin", table.sin, persistent=False)

    def forward(self, tokens: Tensor, past: Tensor, count: Tensor, *cache: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits after each row's last token; see the class."""
        batch, width = tokens.shape
        kv_heads = self.config.kv_heads
        group = self.config.heads // kv_heads
        places = torch.arange(width, device=tokens.device)
        positions = past.unsqueeze(1) + places  # padding has some, too, where nobody looks
        turn = positions.clamp(max=self.config.seq_len - 1)
        cos, sin = self.cos[turn], self.sin[turn]
        if self.functional:
            known = torch.arange(cache[0].shape[1], device=tokens.device) < past.unsqueeze(1)
            causal = places <= places.unsqueeze(1)
            mask = torch.cat([known.unsqueeze(1).expand(-1, width, -1), causal.expand(batch, -1, -1)], 2)
        else:
            mask = torch.arange(cache[0].shape[1], device=tokens.device) <= positions.unsqueeze(2)
        mask = mask.unsqueeze(1)
        if group > 1:  # query heads that share a KV head become one of `group` times as many queries
            mask = mask.repeat(1, 1, group, 1)
        rows = torch.arange(batch, device=tokens.device).unsqueeze(1)
        x = self.embed(tokens)
        made: list[Tensor] = []
        for number, each in enumerate(self.blocks):
            block = cast(Block, each)
            q, k, v = self._projected(block.attention, _normed(block.attention_norm, x), cos, sin)
            keys, values = cache[2 * number], cache[2 * number + 1]
            if self.functional:
                made += [k, v]
                keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
            else:
                keys[rows, turn] = k
                values[rows, turn] = v
            q = q.view(batch, width, kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
            mixed = F.scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask)
            mixed = mixed.view(batch, kv_heads, group, width, -1).permute(0, 3, 1, 2, 4)
            x = x + block.attention.out(mixed.flatten(2))
            gate, up = block.ffn.gate_up(_normed(block.ffn_norm, x)).chunk(2, dim=-1)
            x = x + block.ffn.down(F.silu(gate) * up)
        last = x[rows.squeeze(1), count - 1]
        logits: Tensor = self.output(_normed(self.norm, last))
        return (logits, *made) if self.functional else logits

    def _projected(self, attention: Attention, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, turned by their positions, and values: [B, Q, ·, head_dim]."""
        heads, kv_heads = attention.heads, attention.kv_heads
        made: Tensor = attention.qkv(x)
        qkv = made.view(*x.shape[:2], heads + 2 * kv_heads, -1)
        turned = self._turned(qkv[:, :, : heads + kv_heads], cos, sin)
        return turned[:, :, :heads], turned[:, :, heads:], qkv[:, :, heads + kv_heads :]

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        wide = x.float()
        if self.interleaved:
            pairs = wide.view(*wide.shape[:3], -1, 2)
            first, second = pairs[..., 0], pairs[..., 1]
        else:
            first, second = wide.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return (torch.stack(turned, -1).flatten(3) if self.interleaved else torch.cat(turned, -1)).to(x.dtype)


def _normed(norm: RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)
