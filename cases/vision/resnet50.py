"""The case `vision/resnet50`: its settings, and what its rank does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from flagperf.case import InferenceCase
from flagperf.schema.inference import LoadSettings

if TYPE_CHECKING:
    from flagperf.context import RankContext


class ResNetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that may be set with `--set`."""

    load: LoadSettings
    size: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)] = 224
    """Pixels an edge of an image."""


class ResNet50Case(InferenceCase):
    """Classification of images by ResNet-50."""

    Settings = ResNetSettings

    def run(self, context: RankContext) -> None:
        """Put the engine under the scenario's load."""
        from flagperf.inference.protocol import run_classification

        from .images import Images

        run_classification(context, Images(self.settings, self.trial))
