"""The contract of specification cases: what a device can do at most, beside what its maker rates it at.

Every rank measures its own device, all at the same moment. A module must import without torch, as any case's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from flagperf.sweep import SweepCase

if TYPE_CHECKING:
    from flagperf.context import RankContext
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench


class Load(NamedTuple):
    """What is done over and over to see how fast the device is."""

    call: Callable[[int], Any]
    flops: float = 0.0
    bytes: float = 0.0
    facts: dict[str, Any] = {}  # noqa: RUF012  what a reader should know of it: the size that was found …


class SpecificationCase(SweepCase):
    """One limit of a device, under several conditions."""

    def figure(self, dims: dict[str, Any]) -> str:
        """Return the field of the table of chips that rates what is measured at a point; empty where none does."""
        return ""

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Measure a point; raise Unsupported, with the reason, where the device has nothing of the kind."""
        raise NotImplementedError

    def measure(self, context: RankContext) -> None:
        """Measure every point."""
        from flagperf.specifications import measure_specification

        measure_specification(context, self)
