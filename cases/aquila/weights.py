"""Canonical initial weights: the same numbers in every engine, sharding and world size.

Each parameter has a random generator of its own, seeded from the run's seed and the parameter's name. So a rank may
make only the parameters it needs, in any order, and any engine starts from the weights that all others start from.
Names and shapes are those of `model.Aquila`; an engine that splits or permutes a matrix slices the canonical one.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from .config import AquilaConfig

RESIDUAL_OUTPUTS = ("attention.out.weight", "ffn.down.weight")


def initial_weight(config: AquilaConfig, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initial value of the parameter `name`, fp32 on the CPU.

    Norms start at one, matrices from normal(0, init_std); the two of each block that write to the residual stream
    from a standard deviation smaller by sqrt(2 · layers), so that its variance doesn't grow with depth (GPT-2,
    section 2.3). Numbers are those of torch's CPU generator: the same on every machine with the same torch.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # manual_seed takes a signed 64-bit number.
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    std = config.init_std
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.layers)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def fill(model: nn.Module, config: AquilaConfig, seed: int) -> None:
    """Give every parameter of an unsharded model its canonical initial weight, in its own type and on its device."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_weight(config, name, tuple(parameter.shape), seed))
