"""The case `parallel/collectives`: operations between ranks, timed by size and checked to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flagperf.errors import UnknownName, UsageError
from flagperf.schema.sweep import At
from flagperf.sweep import SweepCase, SweepSettings

from .operations import OPERATIONS, Place, message

if TYPE_CHECKING:
    from flagperf.context import RankContext

_AXES = ("operation", "dtype", "place", "size")
_LARGEST = 1 << 40
_BYTES = {"fp64": 8, "int64": 8, "fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Of an element."""


class CollectiveSettings(SweepSettings, frozen=True, kw_only=True):
    """The axes `operation` and `size`, in bytes, must be there; `dtype` and `place` may be."""

    patience: float = 120.0
    """Seconds after which an operation that doesn't end means that a rank or a link is gone."""


class Collectives(SweepCase):
    """Operations between all ranks of a trial."""

    Settings = CollectiveSettings

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete; refuse axes, operations and sizes that aren't there."""
        plain = super().check(settings)
        axes = plain["sweep"]
        for axis in axes:
            if axis not in _AXES:
                raise UnknownName("axis of collectives", axis, _AXES)
        if missing := [axis for axis in ("operation", "size") if axis not in axes]:
            raise UsageError(f"The sweep has no {missing[0]}.", "For example --set sweep.size=[8,1048576]")
        for operation in axes["operation"]:
            if operation not in OPERATIONS:
                raise UnknownName("collective operation", str(operation), OPERATIONS)
        for place in axes.get("place", []):
            if place not in ("out", "in"):
                raise UnknownName("place", str(place), ("out", "in"))
        for size in axes["size"]:
            if type(size) is not int or not 0 < size <= _LARGEST:
                raise UsageError(f"A size is {size!r}; it is bytes, from 1 to {_LARGEST}.")
        if not plain["patience"] > 0:
            raise UsageError(f"patience is {plain['patience']}; it is seconds, more than 0.")
        if not any(_done(at) for at in SweepCase.product(axes)):
            raise UsageError(
                f"None of {', '.join(axes['operation'])} is done with place={','.join(axes['place'])}.",
                "; ".join(f"{name}: {', '.join(OPERATIONS[name].places)}" for name in axes["operation"]),
            )
        plain["sweep"] = {axis: axes[axis] for axis in _AXES if axis in axes}  # sizes change fastest
        return plain

    def check_layout(self) -> None:
        """Raise UsageError for a single rank, which has nobody to talk to."""
        if self.trial.ranks < 2:
            raise UsageError(
                f"{self.trial.case} is about what ranks send each other; here is one.",
                "Give --ranks 2 or more; with --oversubscribe they share a device or core.",
            )

    @property
    def patience(self) -> float:
        """Return how many seconds an operation may take."""
        return float(self.settings.patience)

    def points(self) -> list[At]:
        """Return the points at which an operation can be done as asked for: few can in place."""
        return [at for at in super().points() if _done(at)]

    def place(self, at: At) -> Place:
        """Return where an operation's result goes at a point."""
        usual = OPERATIONS[str(at["operation"])].places[0]
        return "in" if at.get("place", usual) == "in" else "out"

    def amounts(self, at: At) -> dict[str, float]:
        """Return the bytes of the message, and those that every link must carry."""
        size = _BYTES[str(at.get("dtype", "fp32"))]
        about = message(str(at["operation"]), self.place(at), self.trial.ranks, int(at["size"]), size)
        return {"bytes": about.bytes, "bus_bytes": about.bus_bytes}

    def tolerance(self, at: At) -> tuple[float, float]:
        """Return none at all: every element is right to the last bit."""
        return 0.0, 0.0

    def measure(self, context: RankContext) -> None:
        """Measure every point with every provider."""
        from .measuring import measure_collectives

        measure_collectives(context, self)


def _done(at: At) -> bool:
    return "place" not in at or at["place"] in OPERATIONS[str(at["operation"])].places
