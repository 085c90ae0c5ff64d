"""Ways to compute attention of packed sequences: q [T, H, D], k and v [T, K, D]; returns [T, H, D]."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from . import providers

Sizes = tuple[int, ...]


def one_by_one(dense: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make a provider of packed sequences of one that takes a whole sequence, called for each in turn."""

    def packed(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, *, causal: bool, lengths: Sizes
    ) -> torch.Tensor:
        each = zip(*(torch.split(x.transpose(0, 1)[None], list(lengths), dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([dense(*one, causal=causal) for one in each], dim=2)[0].transpose(0, 1)

    return packed


exact, naive, math, efficient, flash = map(
    one_by_one, (providers.exact, providers.naive, providers.math, providers.efficient, providers.flash)
)


def flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, *, causal: bool, lengths: Sizes
) -> torch.Tensor:
    """FlexAttention over all tokens at once, with a mask that keeps sequences apart."""
    mask = _blocks(lengths, causal, q.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return providers.compiled(q, k, v, mask)[0].transpose(0, 1)


@cache
def _blocks(lengths: Sizes, causal: bool, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def seen(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (owner[q] == owner[k]) & (q >= k) if causal else owner[q] == owner[k]

    return create_block_mask(seen, None, None, len(owner), len(owner), device=device)


def varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, *, causal: bool, lengths: Sizes
) -> torch.Tensor:
    """torch's own for packed sequences."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = map(providers.short, (q, k, v))
    longest, window = max(lengths), (-1, 0) if causal else (-1, -1)
    out = varlen_attn(
        q, k, v, offsets, offsets, longest, longest, window_size=window, enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(out, torch.Tensor)  # a pair only where more is asked for
    return out


def flash_attn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, *, causal: bool, lengths: Sizes
) -> torch.Tensor:
    """The package flash-attn 2.x."""
    from flash_attn import flash_attn_varlen_func

    q, k, v = map(providers.short, (q, k, v))
    longest = max(lengths)
    out: torch.Tensor = flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest, causal=causal)
    return out


def flash_attn_3(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, *, causal: bool, lengths: Sizes
) -> torch.Tensor:
    """The package flash_attn_3, for Hopper."""
    from flash_attn_interface import flash_attn_varlen_func

    q, k, v = map(providers.short, (q, k, v))
    longest = max(lengths)
    out = flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest, causal=causal)
    first: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return first
