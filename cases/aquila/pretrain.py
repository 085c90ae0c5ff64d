"""The case `aquila/pretrain`: its settings, its size, and what a rank does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from flagperf.case import Case, Progress
from flagperf.data import made_ready
from flagperf.errors import UsageError
from flagperf.schema.estimate import Estimate
from flagperf.schema.ledger import WHOLE, Ledger
from flagperf.schema.trial import Trial
from flagperf.settings import typed

from . import memory
from .settings import PretrainSettings

if TYPE_CHECKING:
    from flagperf.context import RankContext


class AquilaPretrain(Case):
    """Next-token training of an Aquila model."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.settings = typed(trial.settings, PretrainSettings)

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete."""
        checked = typed(settings, PretrainSettings)
        if checked.data.vocab_size > checked.model.vocab_size:
            raise UsageError(
                f"data.vocab_size is {checked.data.vocab_size}, more than model.vocab_size {checked.model.vocab_size}.",
                "Set them alike, for example --set model.vocab_size=8192 --set data.vocab_size=8192.",
            )
        plain: dict[str, Any] = msgspec.to_builtins(checked)
        return plain

    def estimate(self, ledger: Ledger = WHOLE) -> Estimate:
        """Predict parameters, FLOPs and memory a rank."""
        return memory.estimate(self.settings.model, self.trial, ledger)

    def check_layout(self) -> None:
        """Refuse tensor- and pipeline-parallel sizes that the model can't be divided by."""
        model, layout = self.settings.model, self.trial.layout
        parts = {"heads": model.heads, "kv_heads": model.kv_heads, "ffn": model.ffn, "vocab_size": model.vocab_size}
        if layout.sp:
            parts["seq_len"] = model.seq_len
        _divides("tp", layout.tp, parts)
        _divides("pp", layout.pp, {"layers": model.layers})

    def prepare(self, progress: Progress) -> dict[str, Any]:
        """Make the tokens ready."""
        return {"data": made_ready(self.settings.data, progress)}

    def run(self, context: RankContext) -> None:
        """Train."""
        from flagperf.training import run_training

        from .task import AquilaTask

        run_training(context, AquilaTask(self.settings, self.trial))


def _divides(key: str, size: int, parts: dict[str, int]) -> None:
    if odd := [f"{name} {count}" for name, count in parts.items() if count % size]:
        good = [n for n in range(1, min(parts.values()) + 1) if all(count % n == 0 for count in parts.values())]
        raise UsageError(
            f"{key}={size} doesn't divide the model's {', '.join(odd)}.",
            f"The nearest it can be is {key}={min(good, key=lambda n: abs(n - size))}.",
        )
