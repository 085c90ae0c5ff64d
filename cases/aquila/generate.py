"""The case `aquila/generate`: its settings, and what its rank does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from flagperf.case import Case, Progress
from flagperf.data import DataSettings, made_ready
from flagperf.errors import UsageError
from flagperf.schema.estimate import Estimate
from flagperf.schema.inference import LoadSettings, ServerSettings
from flagperf.schema.ledger import WHOLE, Ledger
from flagperf.schema.trial import Trial
from flagperf.settings import typed

from . import formulas, huggingface
from .config import AquilaConfig

if TYPE_CHECKING:
    from flagperf.context import RankContext


RANDOM, TRAINED = "random", "trained"


class GenerateSettings(ServerSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that may be set with `--set`."""

    model: AquilaConfig
    data: DataSettings
    """Text that prompts are passages of, and that the tokenizer is from."""
    load: LoadSettings
    weights: str = RANDOM
    """`random` (seeded), `trained` (by the case `aquila/pretrain` for `training` steps), or a folder in Hugging Face's
    format: its shape then goes before `model`, but for `seq_len`, which contexts keep to, and its tokenizer before the
    text's."""
    training: Annotated[int, msgspec.Meta(ge=1)] = 300
    """Steps, for `weights=trained`."""
    prefix_cache: bool = False
    held_out: int = 64
    """Passages whose next token is to be found, for the accuracy; 0 leaves it out."""


class AquilaGenerate(Case):
    """Greedy generation by an Aquila model."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.settings = typed(trial.settings, GenerateSettings)

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete."""
        checked = typed(settings, GenerateSettings)
        own_words = False
        if checked.weights not in (RANDOM, TRAINED):
            folder = Path(checked.weights).expanduser().absolute()
            model = huggingface.shape(folder, checked.model.seq_len)
            huggingface.files(folder, model)
            own_words = (folder / huggingface.TOKENIZER).is_file()
            checked = msgspec.structs.replace(checked, weights=str(folder), model=model)
        if checked.data.vocab_size > checked.model.vocab_size and not own_words:
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
        """Make the text ready that prompts are of, and weights that are to be trained."""
        settings = self.settings
        told: dict[str, Any] = {"data": made_ready(settings.data, progress)}
        if settings.weights == TRAINED:
            from .trained import trained

            told["weights"] = str(trained(settings.model, settings.data, settings.training, self.trial, progress))
        return told | {"parameters": formulas.parameters(settings.model)}

    def run(self, context: RankContext) -> None:
        """Put the engine under the scenario's load."""
        from flagperf.inference.protocol import run_generation

        from .generation import AquilaGeneration

        task = AquilaGeneration(self.settings, self.trial)
        run_generation(context, task, task.requests(), task.held_out())
