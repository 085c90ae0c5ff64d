"""ResNet-50 in plain torch (He et al., 1512.03385), with the stride in the 3 × 3 convolution, known as v1.5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = (3, 4, 6, 3)
"""Blocks in each stage."""
CLASSES = 1000
_GAIN = 2**0.5


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions, the last four times as wide, added to what came in."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = 4 * width
        self.narrow = _convolution(channels, width, 1)
        self.spatial = _convolution(width, width, 3, stride)
        self.widen = _convolution(width, wide, 1)
        self.skip = _convolution(channels, wide, 1, stride) if stride > 1 or channels != wide else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.widen(self.spatial(self.narrow(x).relu()).relu())
        out: Tensor = (inner + self.skip(x)).relu()
        return out


class ResNet50(nn.Module):
    """Logits [B, 1000] of images [B, 3, H, W], H and W multiples of 32; 25,557,032 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        channels = 64
        for stage, count in enumerate(STAGES):
            width = 64 * 2**stage
            for place in range(count):
                blocks.append(Bottleneck(channels, width, 2 if stage and place == 0 else 1))
                channels = 4 * width
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = self.stages(self.stem(images)).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits


def _convolution(channels: int, out: int, size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Give a model seeded weights of the size that keeps activations in range (He et al., 1502.01852)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            inputs = module.weight[0].numel()
            module.weight.normal_(0.0, _GAIN / inputs**0.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.uniform_(0.3, 0.7, generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.bias.normal_(0.0, 0.01, generator=generator)
