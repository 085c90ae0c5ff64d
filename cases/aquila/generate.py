"""The case `aquila/generate`: its settings, and what its rank does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from flagperf.case import Case, Progress
from flagperf.data import DataSettings, made_ready
from flagperf.errors import UsageError
from flagperf.schema.estimate import Estimate
from flagperf.schema.inference import LoadSettings
from flagperf.schema.ledger import WHOLE, Ledger
from flagperf.schema.trial import Trial
from flagperf.settings import typed

from . import formulas
from .config import AquilaConfig

if TYPE_CHECKING:
    from flagperf.context import RankContext


class GenerateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that may be set with `--set`."""

    model: AquilaConfig
    data: DataSettings
    """Text that prompts are passages of, and that the tokenizer is from."""
    load: LoadSettings
    weights: str = "random"
    """`random` (seeded), `trained` (by the case `aquila/pretrain` for `training` steps), or a folder in Hugging Face's
    format, whose shape then goes before `model`."""
    training: int = 300
    """Steps, for `weights=trained`."""
    quantized: Literal["", "int8"] = ""
    prefix_cache: bool = False
    held_out: int = 64
    """Passages whose next token is to be found, for the accuracy; 0 leaves it out."""
    url: str = ""
    """Of an OpenAI-compatible server, for the engine `endpoint`: http://host:port/v1"""
    served: str = ""
    """What the server calls the model; empty asks it."""


class AquilaGenerate(Case):
    """Greedy generation by an Aquila model."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.settings = typed(trial.settings, GenerateSettings)

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete."""
        checked = typed(settings, GenerateSettings)
        if checked.data.vocab_size > checked.model.vocab_size:
            raise UsageError(
                f"data.vocab_size is {checked.data.vocab_size}, more than model.vocab_size {checked.model.vocab_size}.",
                "Set them alike, for example --set model.vocab_size=8192 --set data.vocab_size=8192.",
            )
        plain: dict[str, Any] = msgspec.to_builtins(checked)
        return plain

    def estimate(self, ledger: Ledger = WHOLE) -> Estimate | None:
        """Return nothing: the size of an inference trial follows from its load."""
        return None

    def prepare(self, progress: Progress) -> dict[str, Any]:
        """Make the text ready that prompts are of."""
        ready = made_ready(self.settings.data, progress)
        return {"data": ready, "parameters": formulas.parameters(self.settings.model)}

    def run(self, context: RankContext) -> None:
        """Put the engine under the scenario's load."""
        from flagperf.inference.protocol import run_generation

        from .generation import AquilaGeneration

        task = AquilaGeneration(self.settings, self.trial)
        run_generation(context, task, task.requests(), task.held_out())
