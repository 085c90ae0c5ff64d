"""The operations of the model that are worth a backward of their own.

Eager autograd walks memory once an operation and keeps every intermediate; each function here keeps only what its
backward needs and makes fewer passes. Each has a plain twin (`*_plain`): the definition, which the tests hold the
function to and which torch.compile gets to see, since it fuses plain formulas better than it could fuse these.
Everything runs on any torch device; narrow types (bf16, fp16) are computed in fp32 inside norms, rotation and loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .formulas import loss_chunk


class RotaryTable:
    """Cosines and sines of every position's angles, [seq_len, 1, head_dim / 2] each, fp32.

    Deliberately not a tuple of tensors: FSDP casts tensor arguments to the compute type, and these must stay fp32.
    """

    def __init__(self, seq_len: int, head_dim: int, theta: float, interleaved: bool, device: torch.device) -> None:
        pair = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float64, device="cpu"), theta ** (-pair / head_dim))
        self.cos = angles.cos().float().unsqueeze(1).to(device)
        self.sin = angles.sin().float().unsqueeze(1).to(device)
        self.interleaved = interleaved

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the first and the second elements of the pairs that turn together, each [..., head_dim / 2]."""
        if self.interleaved:
            return x[..., 0::2], x[..., 1::2]
        first, second = x.chunk(2, dim=-1)
        return first, second


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# RMSNorm


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, computed in fp32 or wider, returned as `dtype`."""
    wide = x.to(_wide(x.dtype))
    mean = wide.square().mean(-1, keepdim=True)
    normed: Tensor = wide * torch.rsqrt(mean + eps) * weight
    return normed.to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.to(_wide(x.dtype))
        scale: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        wide, grad, gain = (t.to(scale.dtype) for t in (x, grads[0], weight))
        product = (grad * wide).flatten(0, -2)
        weight_grad = scale.view(1, -1).mm(product).view(-1)
        along = product.mv(gain).view_as(scale) * scale.pow(3).div_(-x.shape[-1])
        x_grad = (grad * gain).mul_(scale).addcmul_(wide, along)
        return x_grad.to(x.dtype), weight_grad.to(weight.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm over the last dimension of x; keeps x and one number a row for the backward."""
    if torch.compiler.is_compiling():
        return rms_norm_plain(x, weight, eps, dtype)
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return out


# Splitting of the fused projection, with rotary positions


def split_rotate_plain(qkv: Tensor, table: RotaryTable, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned by their position, and values, [B, ·, S, D]; from qkv [B, S, (heads + 2·kv_heads)·D]."""
    batch, seq, _ = qkv.shape
    q, k, v = qkv.view(batch, seq, heads + 2 * kv_heads, -1).split_with_sizes((heads, kv_heads, kv_heads), dim=2)

    def turn(x: Tensor) -> Tensor:
        first, second = table.pairs(x.to(_wide(x.dtype)))
        turned = (first * table.cos - second * table.sin, second * table.cos + first * table.sin)
        return (torch.stack(turned, -1).flatten(-2) if table.interleaved else torch.cat(turned, -1)).to(x.dtype)

    return turn(q).transpose(1, 2), turn(k).transpose(1, 2), v.transpose(1, 2)


def _rotate_into(out: Tensor, x: Tensor, table: RotaryTable, sign: float) -> None:
    """Write x [B, S, heads, D], turned by sign · its angles, into out of the same shape."""
    wide = x.to(_wide(x.dtype))
    target = out if out.dtype == wide.dtype else torch.empty_like(wide)
    if table.interleaved and x.device.type == "cpu" and wide.dtype == torch.float32:
        # One vectorised pass; the strided arithmetic below is six times slower on a CPU, but some chips lack complex.
        turn = torch.complex(table.cos, table.sin * sign)
        source, result = (torch.view_as_complex(t.view(*t.shape[:-1], -1, 2)) for t in (wide, target))
        torch.mul(source, turn, out=result)
    else:
        (first, second), (out_first, out_second) = table.pairs(wide), table.pairs(target)
        torch.mul(first, table.cos, out=out_first).addcmul_(second, table.sin, value=-sign)
        torch.mul(second, table.cos, out=out_second).addcmul_(first, table.sin, value=sign)
    if target is not out:
        out.copy_(target)


class _SplitRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: RotaryTable, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, seq, _ = qkv.shape
        ctx.table, ctx.sizes = table, (heads, kv_heads, kv_heads)
        parts = qkv.view(batch, seq, heads + 2 * kv_heads, -1).split_with_sizes(ctx.sizes, dim=2)
        # Written to memory of their own, v too, so that the projection's output can be freed.
        q, k, v = (part.new_empty(part.shape) for part in parts)
        _rotate_into(q, parts[0], table, 1.0)
        _rotate_into(k, parts[1], table, 1.0)
        v.copy_(parts[2])
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        batch, _, seq, head_dim = grads[0].shape
        grad = grads[0].new_empty(batch, seq, sum(ctx.sizes), head_dim)
        q, k, v = grad.split_with_sizes(ctx.sizes, dim=2)
        _rotate_into(q, grads[0].transpose(1, 2), ctx.table, -1.0)
        _rotate_into(k, grads[1].transpose(1, 2), ctx.table, -1.0)
        v.copy_(grads[2].transpose(1, 2))
        return grad.view(batch, seq, -1), None, None, None


def split_rotate(qkv: Tensor, table: RotaryTable, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv [B, S, (heads + 2·kv_heads)·D] into q, k, v [B, ·, S, D], q and k turned by their position."""
    if torch.compiler.is_compiling():
        return split_rotate_plain(qkv, table, heads, kv_heads)
    q, k, v = _SplitRotate.apply(qkv, table, heads, kv_heads)  # type: ignore[no-untyped-call]
    return q, k, v


# The first half of SwiGLU


def swiglu_plain(x: Tensor, weight: Tensor) -> Tensor:
    """silu(x · gateᵀ) · (x · upᵀ), x [..., d], weight [2F, d] with the gate's rows first; [..., F]."""
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # Two products rather than one of twice the width: the halves come out contiguous.
        rows = x.flatten(0, -2)
        gate, up = (rows.mm(half.t()) for half in weight.chunk(2))
        ctx.save_for_backward(x, weight, gate, up)
        return F.silu(gate).mul_(up).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, gate, up = ctx.saved_tensors
        rows, grad = x.flatten(0, -2), grads[0].flatten(0, -2)
        weight_grad = torch.empty_like(weight)
        (gate_weight, up_weight), (gate_weight_grad, up_weight_grad) = weight.chunk(2), weight_grad.chunk(2)
        up_grad = F.silu(gate).mul_(grad)
        x_grad = up_grad.mm(up_weight)
        torch.mm(up_grad.t(), rows, out=up_weight_grad)
        gate_grad = torch.mul(grad, up, out=up_grad)
        gate_grad = torch.ops.aten.silu_backward(gate_grad, gate)
        x_grad.addmm_(gate_grad, gate_weight)
        torch.mm(gate_grad.t(), rows, out=gate_weight_grad)
        return x_grad.view_as(x), weight_grad


def swiglu(x: Tensor, weight: Tensor) -> Tensor:
    """SwiGLU up to its down projection; keeps gate and up, but neither the activation nor a copy of the two."""
    weight = weight.to(x.dtype)
    if torch.compiler.is_compiling():
        return swiglu_plain(x, weight)
    out: Tensor = _SwiGLU.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


# Output projection with the loss


def linear_cross_entropy_plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of x · weightᵀ against targets, the logits made whole and in fp32."""
    return F.cross_entropy(F.linear(x, weight.to(x.dtype)).to(_wide(x.dtype)), targets)


def _cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, x_grad: Tensor | None, weight_grad: Tensor | None
) -> Tensor:
    """Sum of the rows' cross-entropies, chunk by chunk; gradients of that sum into the two tensors where given."""
    narrow = weight.to(x.dtype)
    chunk = loss_chunk(x.shape[0], x.shape[1], weight.shape[0])
    logits = x.new_empty(chunk, weight.shape[0])
    log_p = x.new_empty(logits.shape, dtype=_wide(x.dtype))
    total = x.new_zeros((), dtype=log_p.dtype)
    for start in range(0, x.shape[0], chunk):
        rows, labels = x[start : start + chunk], targets[start : start + chunk].unsqueeze(1)
        scores = torch.mm(rows, narrow.t(), out=logits[: rows.shape[0]])
        log_probs = torch.log_softmax(scores.to(log_p.dtype), -1, out=log_p[: rows.shape[0]])
        total -= log_probs.gather(1, labels).sum()
        if x_grad is None or weight_grad is None:
            continue
        score_grad = log_probs.exp_().scatter_add_(1, labels, log_p.new_full(labels.shape, -1.0)).to(x.dtype)
        torch.mm(score_grad, narrow, out=x_grad[start : start + chunk])
        if weight_grad.dtype == x.dtype:
            weight_grad.addmm_(score_grad.t(), rows, beta=int(start > 0))
        else:
            weight_grad.add_(score_grad.t().mm(rows))
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        x_grad = torch.empty_like(x)
        wide = _wide(weight.dtype)
        # Unfilled where the first chunk overwrites it (beta = 0), zeroed where every chunk is added to it.
        weight_grad = (torch.empty_like if wide == x.dtype else torch.zeros_like)(weight, dtype=wide)
        total = _cross_entropy(x, weight, targets, x_grad, weight_grad)
        ctx.save_for_backward(x_grad, weight_grad)
        ctx.rows, ctx.dtype = x.shape[0], weight.dtype
        return total / x.shape[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        # The mean's 1/rows comes here, in one multiplication with the loss's own gradient, so that the narrow
        # products above work on probabilities and not on numbers that a 16-bit type rounds to nothing.
        x_grad, weight_grad = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return (x_grad.to(scale.dtype) * scale).to(x_grad.dtype), (weight_grad * scale).to(ctx.dtype), None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of x [N, d] · weightᵀ [d, V] against targets [N]: a scalar in fp32 (or x's type if wider).

    Logits exist for `loss_chunk` rows at a time. Where a gradient will be wanted it's computed in the same pass,
    the weight's accumulated in fp32; a second derivative isn't defined.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets)  # type: ignore[no-untyped-call]
        return loss
    return _cross_entropy(x, weight, targets, None, None) / x.shape[0]
