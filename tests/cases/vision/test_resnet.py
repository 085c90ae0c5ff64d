"""ResNet-50's shape, by its published figures."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from flagperf.cases.vision.resnet import ResNet50, fill


def test_parameters_and_work_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = ResNet50().eval()
        assert sum(each.numel() for each in model.parameters()) == 25_557_032
        with FlopCounterMode(display=False) as counter:
            assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert abs(counter.get_total_flops() / 2 - 4.089e9) < 0.002e9  # multiply-adds of v1.5


def test_seeded_weights_tell_images_apart() -> None:
    models = [ResNet50().eval() for _ in range(2)]
    for model in models:
        fill(model, 7)
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = models[0](images)
        assert torch.equal(logits, models[1](images))
    assert logits.isfinite().all() and 0.01 < logits.std() < 100
    assert len(set(logits.argmax(1).tolist())) > 1
