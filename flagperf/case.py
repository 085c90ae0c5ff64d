"""The case contract: a standardized workload with fixed rules.

A case is a manifest (`*.toml`, see `CaseManifest`) and an entry class derived from `Case`. Its module must import
without torch: everything but `run` is called while planning, on machines that may not have it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from flagperf.schema.estimate import Estimate
from flagperf.schema.ledger import WHOLE, Ledger
from flagperf.schema.trial import Trial
from flagperf.settings import typed

if TYPE_CHECKING:
    from flagperf.context import RankContext

Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share done, 0 to 1, or None where it isn't known."""


class Case(ABC):
    """One trial's view of a case."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    @classmethod
    @abstractmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete and in plain JSON; raise UsageError for a bad or unknown one."""

    @abstractmethod
    def estimate(self, ledger: Ledger = WHOLE) -> Estimate | None:
        """Predict the trial's size and work by formula; `ledger` is the engine's. None where it has no one size."""

    def size(self) -> int:
        """Return how many points a sweep measures; 0 for what is no sweep."""
        return 0

    def check_layout(self) -> None:
        """Raise UsageError, with the nearest layout that can, where the trial's can't hold the model."""
        return

    def prepare(self, progress: Progress) -> dict[str, Any]:
        """Make ready on this host what trials need (data, tokenizer), once; return what a reader should know of it."""
        return {}

    @abstractmethod
    def run(self, context: RankContext) -> None:
        """Do the work of one rank and journal it; errors propagate."""


class InferenceCase(Case):
    """A case whose engines answer queries. `Settings` is what may be set of it, its load among that as `load`."""

    Settings: ClassVar[type[msgspec.Struct]]

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.settings: Any = typed(trial.settings, self.Settings)

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete."""
        plain: dict[str, Any] = msgspec.to_builtins(typed(settings, cls.Settings))
        return plain

    def estimate(self, ledger: Ledger = WHOLE) -> Estimate | None:
        """Return nothing: the size of an inference trial follows from its load."""
        return None
