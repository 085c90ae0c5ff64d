"""The compute part of `bmtrain.C` in torch, on any device.

What each computes is what the compiled one does, with two differences: casts round to nearest where the compiled one to
bf16 truncates, and arithmetic inside is fp32 throughout. AdamOptimizer's moments are as BMTrain has them: in fp16 the
first is fp16 and both are multiplied by the loss scale; in bf16 they are fp32 and unscaled. Decay is AdamW's.
Matrices are [m, n], row by row; `ignore_index` marks rows without a target.
"""

from __future__ import annotations

from typing import Any

import torch

from .collectives import Address

_Step = tuple[float, float, float, float, float, float, float, float]
"""beta1, beta2, epsilon, learning rate, loss scale, decay, and the two bias corrections."""


def has_nan_inf(count: int, values: Address, scratch: Address, found: Address, stream: Any) -> None:
    """Set the byte `found` if a value isn't finite; otherwise leave it."""
    found.tensor[:1].logical_or_(values.elements(count).isfinite().all().logical_not_())


def cast(count: int, source: Address, target: Address) -> None:
    """Copy fp32 numbers to a 16-bit type, rounding to nearest."""
    target.elements(count).copy_(source.elements(count))


def adam_scaled(
    count: int, master: Address, weights: Address, gradients: Address, mean: Address, square: Address, *rest: Any
) -> None:
    """Take AdamW's step with moments that carry the loss scale, the first of them fp16."""
    beta1, beta2, epsilon, rate, scale, decay, correction1, correction2 = rest[:8]
    gradient = gradients.elements(count).float()
    m = mean.elements(count).float().mul_(beta1).add_(gradient, alpha=1 - beta1)
    v = square.elements(count).mul_(beta2).addcmul_(gradient, gradient, value=(1 - beta2) / scale)
    denominator = (v * (scale / correction2)).sqrt_().add_(epsilon * scale)
    p = master.elements(count).mul_(1 - rate * decay).addcdiv_(m, denominator, value=-rate / correction1)
    weights.elements(count).copy_(p)
    mean.elements(count).copy_(m)


def adam(
    count: int, master: Address, weights: Address, gradients: Address, mean: Address, square: Address, *rest: Any
) -> None:
    """Take AdamW's step with fp32 moments of unscaled gradients."""
    _adam(count, master, weights, gradients, mean, square, rest[:8])


def adam_on_host(
    count: int, master: Address, weights: Address, delta: Address | int, gradients: Address, mean: Address,
    square: Address, *rest: Any,
) -> None:  # fmt: skip
    """Take AdamW's step on the host; into `delta`, where given, what Adam and decay subtract for each unit of rate.

    Four numbers: its mean, its variance, its sum and the sum of its squares.
    """
    if isinstance(delta, Address):
        decayed = master.elements(count) * rest[5]
        direction = _adam(count, master, weights, gradients, mean, square, rest[:8]).add_(decayed)
        total, squares = direction.sum(), direction.square().sum()
        average = total / count
        delta.elements(4).copy_(torch.stack([average, squares / count - average.square(), total, squares]))
    else:
        _adam(count, master, weights, gradients, mean, square, rest[:8])


def _adam(
    count: int, master: Address, weights: Address, gradients: Address, mean: Address, square: Address, step: _Step
) -> torch.Tensor:
    """Take the step; return the bias-corrected mean over the root of the square."""
    beta1, beta2, epsilon, rate, scale, decay, correction1, correction2 = step
    gradient = gradients.elements(count).float()
    if scale != 1:
        gradient.div_(scale)
    m = mean.elements(count).mul_(beta1).add_(gradient, alpha=1 - beta1)
    v = square.elements(count).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    direction = torch.div(v, correction2, out=gradient).sqrt_().add_(epsilon).reciprocal_().mul_(m).div_(correction1)
    p = master.elements(count).mul_(1 - rate * decay).sub_(direction, alpha=rate)
    weights.elements(count).copy_(p)
    return direction


def cross_entropy_forward(
    m: int, n: int, logits: Address, targets: Address, softmax: Address, losses: Address, ignore_index: int, stream: Any
) -> None:
    """Write each row's probabilities and its loss in fp32, 0 where there is no target."""
    scores = logits.elements(m * n).view(m, n).float()
    labels = targets.elements(m).long()
    log_probabilities = torch.log_softmax(scores, -1)
    kept = labels != ignore_index
    chosen = log_probabilities.gather(1, labels.where(kept, 0).unsqueeze(1)).squeeze(1)
    losses.elements(m).copy_(chosen.neg_().where(kept, 0.0))
    softmax.elements(m * n).view(m, n).copy_(log_probabilities.exp_())


def cross_entropy_backward(
    m: int, n: int, gradients: Address, targets: Address, softmax: Address, ignore_index: int, stream: Any
) -> None:
    """Turn the probabilities into the logits' gradient, in place."""
    whole = softmax.elements(m * n).view(m, n)
    labels = targets.elements(m).long()
    kept = labels != ignore_index
    gradient = gradients.elements(m).where(kept, 0.0).unsqueeze(1)
    wide = whole.float().mul_(gradient)
    whole.copy_(wide.scatter_add_(1, labels.where(kept, 0).unsqueeze(1), -gradient))


def fused_sumexp(m: int, n: int, logits: Address, largest: Address, sums: Address, stream: Any) -> None:
    """Write each row's sum of exp(logit - largest), fp32."""
    shifted = logits.elements(m * n).view(m, n).float().sub_(largest.elements(m).unsqueeze(1))
    sums.elements(m).copy_(shifted.exp_().sum(1))


def fused_softmax(m: int, n: int, logits: Address, largest: Address, sums: Address, stream: Any) -> None:
    """Turn each row into exp(logit - largest) / sum, in place."""
    whole = logits.elements(m * n).view(m, n)
    shifted = whole.float().sub_(largest.elements(m).unsqueeze(1)).exp_()
    whole.copy_(shifted.div_(sums.elements(m).unsqueeze(1)))


def functions() -> dict[str, Any]:
    """Return the functions by the names that BMTrain calls them by; torch knows the types by itself."""
    found: dict[str, Any] = {"to_fp16_from_fp32": cast, "to_bf16_from_fp32": cast, "is_bf16_supported": lambda: True}
    for name in ("fp16", "bf16"):
        found[f"has_nan_inf_{name}_launcher"] = has_nan_inf
        found[f"adam_cpu_{name}_launcher"] = adam_on_host
        found[f"cross_entropy_forward_{name}_launcher"] = cross_entropy_forward
        found[f"cross_entropy_backward_inplace_{name}_launcher"] = cross_entropy_backward
        found[f"fused_sumexp_{name}_launcher"] = fused_sumexp
        found[f"fused_softmax_inplace_{name}_launcher"] = fused_softmax
    return {**found, "adam_fp16_launcher": adam_scaled, "adam_bf16_launcher": adam}
