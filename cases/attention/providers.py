"""Ways to compute attention: q [B, H, S, D], k and v [B, K, T, D] with H a multiple of K; returns [B, H, S, D].

With a causal mask S and T are the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flagperf.kernel import Unsupported


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Compute one head after the other, as the definition says; gradients compute a head's scores again."""
    from torch.utils.checkpoint import checkpoint

    def head(h: int) -> torch.Tensor:
        one = (q[:, h : h + 1], k[:, h // group, None], v[:, h // group, None])
        if not torch.is_grad_enabled():
            return naive(*one, causal=causal)
        whole: torch.Tensor = checkpoint(naive, *one, causal=causal, use_reentrant=False)
        return whole

    group = q.shape[1] // k.shape[1]
    return torch.cat([head(h) for h in range(q.shape[1])], dim=1)


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Hold all scores: the two products with a softmax between them."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    if causal:
        above = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(above, float("-inf"))
    out: torch.Tensor = scores.softmax(-1) @ v
    return out


def _sdpa(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    with sdpa_kernel(backend):
        try:
            grouped = q.shape[1] != k.shape[1]
            out: torch.Tensor = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
            return out
        except RuntimeError as error:
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                raise Unsupported(f"torch has no {backend.name} kernel for these inputs on {q.device.type}") from error
            raise


def math(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """torch's own in plain operations."""
    return _sdpa(SDPBackend.MATH, q, k, v, causal)


def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """torch's own after xFormers, which holds no scores."""
    return _sdpa(SDPBackend.EFFICIENT_ATTENTION, q, k, v, causal)


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """torch's own in tiles, which holds no scores."""
    return _sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, causal)


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """FlexAttention, compiled for the very shapes; its block mask is made once."""
    mask = _causal_blocks(q.shape[-2], q.device) if causal else None
    return compiled(q, k, v, mask)


def compiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
    """Call the compiled FlexAttention; raise Unsupported where it can't be compiled."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        raise Unsupported("FlexAttention has no gradients on a CPU")
    try:
        out: torch.Tensor = _flex_attention()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    except Exception as error:
        from torch._inductor.exc import InvalidCxxCompiler

        if isinstance(error, InvalidCxxCompiler) or "InvalidCxxCompiler" in str(error):
            raise Unsupported("torch.compile finds no C++ compiler") from error
        raise
    return out


@cache
def _flex_attention() -> Any:
    from torch._dynamo import config
    from torch._functorch import config as functorch
    from torch.nn.attention.flex_attention import flex_attention

    # A sweep has many shapes; past this number torch would refuse to compile for another.
    config.recompile_limit = config.accumulated_recompile_limit = 1 << 16
    functorch.donated_buffer = False  # gradients are taken of one graph many times
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@cache
def _causal_blocks(seq: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: q >= k, None, None, seq, seq, device=device)


def flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """The package flash-attn 2.x; it is given the same memory with heads and tokens exchanged."""
    from flash_attn import flash_attn_func

    out: torch.Tensor = flash_attn_func(*_tokens_first(q, k, v), causal=causal)
    return out.transpose(1, 2)


def flash_attn_3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """The package flash_attn_3, for Hopper."""
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(*_tokens_first(q, k, v), causal=causal)
    first: torch.Tensor = out[0] if isinstance(out, tuple) else out  # its first releases add the log of the sums
    return first.transpose(1, 2)


def _tokens_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [short(tensor).transpose(1, 2) for tensor in tensors]


def short(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is; raise Unsupported unless it is fp16 or bf16."""
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        raise Unsupported("it takes fp16 and bf16 only")
    return tensor
