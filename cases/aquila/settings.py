"""What may be set of Aquila pre-training."""

from __future__ import annotations

import msgspec

from flagperf.data import DataSettings

from .config import AquilaConfig


class OptimizerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with linear warm-up and a cosine schedule."""

    learning_rate: float
    """Peak."""
    minimum_ratio: float
    """The schedule ends at this share of the peak."""
    warmup_steps: int
    schedule_steps: int
    """Steps until the minimum is reached; a measured run usually ends long before."""
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip: float


class PretrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that may be set with `--set`."""

    model: AquilaConfig
    data: DataSettings
    optimizer: OptimizerSettings
