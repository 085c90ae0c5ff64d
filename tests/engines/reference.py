"""The recipe as its definition says it, in float64 and in one process: what every engine is held to.

Nothing of the engines is used: the whole global batch at once, the norm of all gradients, and AdamW (Loshchilov &
Hutter, 1711.05101, algorithm 2) written out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flagperf.cases.aquila.task import AquilaTask


@dataclass
class Reference:
    """What was before the first step and after each: weights by name, loss and norm of each step."""

    start: dict[str, torch.Tensor]
    weights: list[dict[str, torch.Tensor]]
    losses: list[float]
    norms: list[float]
    digest: int


def train(task: AquilaTask, rates: Sequence[float], *, clipped: bool = True, decayed_norms: bool = False) -> Reference:
    """Train as the recipe says; `clipped` and `decayed_norms` are there to break it, and see that it's noticed."""
    model = task.model(recompute=False).double()
    for name, parameter in model.named_parameters():
        parameter.data = task.initial_weight(name, parameter.shape).double()
    s = task.optimizer
    parameters = dict(model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    told = Reference(_copy(model), [], [], [], 0)
    for step, rate in enumerate(rates):
        batch = task.batch(step, 0, task.global_batch)
        told.digest += task.digest(step, 0, batch)
        loss = model(*batch)
        names, gradients = list(parameters), torch.autograd.grad(loss, list(parameters.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, s.clip / (norm + 1e-6)) if clipped else 1.0
        told.losses.append(float(loss.detach()))
        told.norms.append(norm)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                p, g = parameters[name], gradient * scale
                first[name] = s.beta1 * first[name] + (1 - s.beta1) * g
                second[name] = s.beta2 * second[name] + (1 - s.beta2) * g * g
                mean = first[name] / (1 - s.beta1 ** (step + 1))
                spread = (second[name] / (1 - s.beta2 ** (step + 1))).sqrt()
                decay = s.weight_decay if p.dim() >= 2 or decayed_norms else 0.0
                p -= rate * (mean / (spread + s.epsilon) + decay * p)
        told.weights.append(_copy(model))
    return told


def _copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
