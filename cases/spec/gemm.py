"""The case `spec/gemm`: the most a device multiplies matrices at, in each data type, and whether it keeps it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flagperf.specification import SpecificationCase
from flagperf.sweep import SweepSettings

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench


class GemmSettings(SweepSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the best size is looked for."""

    search: float = 5.0
    """Seconds of looking, about, a data type."""
    smallest: int = 512
    largest: int = 16384
    """Edges of the cubes that the search starts with, each twice the one before."""


class Gemm(SpecificationCase):
    """[m, k] @ [k, n] of random numbers: sizes are searched for the fastest, which is then kept up."""

    Settings: ClassVar[type[SweepSettings]] = GemmSettings

    def figure(self, dims: dict[str, Any]) -> str:
        """Return the dense peak of the data type."""
        return "int8_tops" if dims["dtype"] == "int8" else f"{dims['dtype']}_tflops"

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Find the best of sizes and of the right matrix's layouts, and stay with it."""
        from .products import Products

        products = Products(bench, dims["dtype"])
        edges = [self.settings.smallest]
        while 2 * edges[-1] <= self.settings.largest:
            edges.append(2 * edges[-1])
        sizes = bench.search(products.load, [(edge,) * 3 for edge in edges], 64, self.settings.search)
        best = bench.fastest([products.load(size, layout) for size in sizes[:3] for layout in products.layouts])
        facts = {**best.facts, "sizes_tried": len(sizes), "result": products.result}
        samples = bench.sustain(best._replace(facts=facts))
        return products.judged(samples)
