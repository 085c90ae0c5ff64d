"""The case `spec/memory`: bytes a second of arrays larger than the caches, or of ones that fit into each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flagperf.errors import UnknownName
from flagperf.specification import SpecificationCase
from flagperf.sweep import SweepSettings

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench

ARRAYS = {"copy": 2, "triad": 3, "read": 1, "write": 1}
"""Arrays that an operation reads or writes once: a cache's own read before a write isn't counted, as in STREAM."""


class MemorySettings(SweepSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large `memory` is."""

    times: float = 4.0
    """Each array's bytes ÷ those of the last cache; less where an eighth of the free memory is less."""


class Memory(SpecificationCase):
    """copy b = a, triad c = a + 3 b, read (a sum), write (a fill), in fp32, by all compute threads of the rank."""

    Settings: ClassVar[type[SweepSettings]] = MemorySettings

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Refuse operations that aren't there and sizes that aren't KiB."""
        checked = super().check(settings)
        for operation in checked["sweep"].get("operation", []):
            if operation not in ARRAYS:
                raise UnknownName("operation", str(operation), ARRAYS)
        for size in checked["sweep"].get("kib", []):
            if size != "memory" and not (isinstance(size, int) and size >= 1):
                raise UnknownName("size", str(size), ["memory", "a number of KiB"])
        return checked

    def figure(self, dims: dict[str, Any]) -> str:
        """Return the rated bandwidth, which is that of the memory."""
        return "memory_bandwidth_gbs" if dims["kib"] == "memory" else ""

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Run one operation over arrays of one size."""
        from .streams import stream

        arrays = ARRAYS[dims["operation"]]
        if dims["kib"] == "memory":
            least = int(min(self.settings.times * bench.cache(), bench.free() / 8))
        else:
            least = dims["kib"] * 1024 // arrays
        return stream(bench, dims["operation"], max(64, least // 4), dims["kib"] != "memory")
