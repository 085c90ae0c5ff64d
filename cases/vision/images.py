"""Classification of images as an engine sees it."""

from __future__ import annotations

from typing import Any

import torch

from flagperf.inference.classification import ClassificationTask
from flagperf.schema.trial import Trial

from .resnet import ResNet50, fill


class Images(ClassificationTask):
    """ResNet-50 with seeded weights, and seeded images of unit variance."""

    def __init__(self, settings: Any, trial: Trial) -> None:
        super().__init__(settings.load, trial)
        self.size = settings.size

    def module(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return the model."""
        model = ResNet50()
        fill(model, self.seed)
        return model.to(dtype)

    def inputs(self) -> torch.Tensor:
        """Return images [count, 3, size, size]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.load.count, 3, self.size, self.size, generator=generator).to(self.dtype)
