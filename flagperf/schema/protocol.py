"""How a case is measured, as data."""

from __future__ import annotations

from typing import Annotated

import msgspec


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a case is measured, as data."""

    warmup: int
    """Steps before the clock starts; of a sweep, rounds."""
    steps: int
    """Measured steps; of a sweep, the rounds a point is given at least."""
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of a sweep: about how long each provider is measured at a point, if that is more than `steps` rounds."""
    trials: int
    """Fresh processes an engine; statistics go over these."""
    seed: int
    """Of the first trial; trial t uses seed + t, for every engine alike."""
    validation: int = 1
    """Held-out sequences the model is judged on at the end."""
    global_batch: int = 1
    """Sequences an optimizer step, over all ranks."""
    minimum_effect: float = 0.03
    """A smaller difference counts as none."""
    loss_band: float = 0.01
    """Largest relative difference of two engines' losses, at any step and in validation, for the same seed."""
    timeout: float = 1800.0
    """Seconds a trial may take before it is taken for hung."""
    telemetry: float = 1.0
    """Seconds between samples of the machine."""
    profile: Annotated[int, msgspec.Meta(ge=0)] = 2
    """Steps under the profiler when everything else has been measured: they tell the exposed communication."""
    region: str = ""
    """What is on the clock, in words."""
    region_zh: str = ""
