"""The case `encoder/classify`: its settings, and what its rank does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from flagperf.case import InferenceCase
from flagperf.schema.inference import LoadSettings

from .config import EncoderConfig

if TYPE_CHECKING:
    from flagperf.context import RankContext


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that may be set with `--set`."""

    model: EncoderConfig
    load: LoadSettings


class EncoderClassify(InferenceCase):
    """Classification of sentences by a BERT-shaped encoder."""

    Settings = EncoderSettings

    def run(self, context: RankContext) -> None:
        """Put the engine under the scenario's load."""
        from flagperf.inference.protocol import run_classification

        from .sentences import Sentences

        run_classification(context, Sentences(self.settings, self.trial))
