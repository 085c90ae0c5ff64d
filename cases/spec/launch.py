"""The case `spec/launch`: what it costs to have the device do next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from flagperf.specification import Load, SpecificationCase

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench


class Launch(SpecificationCase):
    """One value is negated in place: waited for each time, or many in a row before the host waits.

    By the host's clock, which is the one that waits; the device's own time of a call is beside it.
    """

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Launch in the way of the point."""
        one = bench.filled("fp32", 1)

        def alone(number: int) -> None:
            one.neg_()
            bench.synchronize()

        samples = bench.sustain(Load(alone if dims["mode"] == "one by one" else lambda number: one.neg_()))
        if samples.clock == "host":
            return samples
        facts = {"device_seconds": sorted(samples.seconds)[len(samples.seconds) // 2]}
        return msgspec.structs.replace(
            samples, seconds=samples.host_seconds, host_seconds=[], clock="host", facts=facts
        )
