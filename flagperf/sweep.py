"""The contract of sweeps: cases that measure many points, declared as axes with their values.

A sweep's settings hold `sweep`, the axes; their product is its points. The axis `shape` takes names of `shapes`, each a
group of dimensions. Everything but `run` is called while planning, without torch.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from flagperf.case import Case, Progress
from flagperf.errors import UnknownName, UsageError
from flagperf.schema.estimate import Estimate
from flagperf.schema.ledger import WHOLE, Ledger
from flagperf.schema.sweep import At, Label
from flagperf.schema.trial import Trial
from flagperf.settings import typed

if TYPE_CHECKING:
    from flagperf.context import RankContext


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every sweep can be told; a case with more of its own derives from it."""

    sweep: dict[str, list[Label]]
    """The axes; later ones change faster."""
    shapes: dict[str, dict[str, int]] = {}
    """Named dimensions for the axis `shape`."""


class SweepCase(Case):
    """A case of many points."""

    Settings: ClassVar[type[SweepSettings]] = SweepSettings

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.settings: Any = typed(trial.settings, self.Settings)

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete; refuse an axis without values and a shape that isn't there."""
        checked = typed(settings, cls.Settings)
        for axis, values in checked.sweep.items():
            if not values:
                raise UsageError(
                    f"The axis {axis!r} of the sweep has no values.", f"For example --set sweep.{axis}=[1]"
                )
            if len(values) != len(set(values)):
                raise UsageError(f"The axis {axis!r} of the sweep has a value twice: {values}.")
        for name in checked.sweep.get("shape", []):
            if name not in checked.shapes:
                raise UnknownName("shape", str(name), checked.shapes)
        plain: dict[str, Any] = msgspec.to_builtins(checked)
        return plain

    def estimate(self, ledger: Ledger = WHOLE) -> Estimate | None:
        """Return nothing: a sweep has no one size."""
        return None

    @property
    def patience(self) -> float | None:
        """Return the seconds that an operation between ranks may take; None for what torch thinks right."""
        return None

    def size(self) -> int:
        """Return how many points there are."""
        return len(self.points())

    def points(self) -> list[At]:
        """Return all points, in the order they are measured."""
        return self.product(self.settings.sweep)

    @staticmethod
    def product(axes: dict[str, list[Label]]) -> list[At]:
        """Return each combination of the axes' values."""
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def dims(self, at: At) -> dict[str, Any]:
        """Return a point's axes with the dimensions of its shape in place of the name."""
        shape = self.settings.shapes[str(at["shape"])] if "shape" in at else {}
        return {**shape, **{axis: value for axis, value in at.items() if axis != "shape"}}

    def amounts(self, at: At) -> dict[str, float]:
        """Return what formulas say, without torch, that a call does at a point: fields of `Samples` by their names."""
        return {}

    def tolerance(self, at: At) -> tuple[float, float] | None:
        """Return the absolute and relative tolerance of a point's results; None where there is no reference."""
        return None

    def prepare(self, progress: Progress) -> dict[str, Any]:
        """Sweeps make their own inputs."""
        return {}

    def run(self, context: RankContext) -> None:
        """Measure on one rank, connected to the others where there are any."""
        from flagperf.schema.event import Key

        runtime = context.runtime
        with context.connected(self.patience, host=True):
            context.journal.write(Key.BUILD, {"facts": runtime.facts()})
            context.journal.write(Key.INIT_STOP)
            context.journal.write(Key.RUN_START)
            self.measure(context)

    def measure(self, context: RankContext) -> None:
        """Measure every point on one rank and journal its `Samples`; errors of the whole propagate."""
        raise NotImplementedError
