"""Attention by torch_npu's fused operators, as Huawei documents them for Ascend Extension for PyTorch 6.0 and later.

Not run here: no chip was at hand. Tensors as in the cases `attention/*`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_COMPRESSED = 2048
"""Rows and columns of the one causal mask that serves every length, with `sparse_mode` 3."""


@cache
def _above(device: torch.device) -> torch.Tensor:
    return torch.ones(_COMPRESSED, _COMPRESSED, dtype=torch.bool, device=device).triu(1)


def _masked(q: torch.Tensor, causal: bool) -> dict[str, Any]:
    masked = {"atten_mask": _above(q.device), "sparse_mode": 3} if causal else {}
    return {"scale": q.shape[-1] ** -0.5, **masked}


def fusion_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Compute whole sequences, q [B, H, S, D]; the operator has gradients."""
    import torch_npu

    out: torch.Tensor = torch_npu.npu_fusion_attention(q, k, v, q.shape[1], "BNSD", **_masked(q, causal))[0]
    return out


def fusion_attention_packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    *,
    causal: bool,
    lengths: tuple[int, ...],
) -> torch.Tensor:
    """Compute packed sequences, q [T, H, D]; the operator is told on the host where each ends."""
    import torch_npu

    ends = [sum(lengths[: place + 1]) for place in range(len(lengths))]
    out: torch.Tensor = torch_npu.npu_fusion_attention(
        q, k, v, q.shape[1], "TND", actual_seq_qlen=ends, actual_seq_kvlen=ends, **_masked(q, causal)
    )[0]
    return out


def incre_flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Compute one new token, q [B, H, 1, D], against a cache."""
    import torch_npu

    out: torch.Tensor = torch_npu.npu_incre_flash_attention(
        q,
        k,
        v,
        num_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        scale_value=q.shape[-1] ** -0.5,
        input_layout="BNSD",
    )
    return out
