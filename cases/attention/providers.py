"""Ways to compute attention: q [B, H, S, D], k and v [B, K, S, D] with H a multiple of K; returns [B, H, S, D]."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flagperf.kernel import Unsupported


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Compute one head after the other, as the definition says."""
    group = q.shape[1] // k.shape[1]
    heads = [
        naive(q[:, h : h + 1], k[:, h // group, None], v[:, h // group, None], causal=causal) for h in range(q.shape[1])
    ]
    return torch.cat(heads, dim=1)


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
            if "No available kernel" in str(error):
                raise Unsupported(f"torch has no {backend.name} kernel for these inputs on {q.device.type}") from error
            raise


def math(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """torch's own in plain operations."""
    return _sdpa(SDPBackend.MATH, q, k, v, causal)


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """torch's own in tiles, which holds no scores."""
    return _sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, causal)
