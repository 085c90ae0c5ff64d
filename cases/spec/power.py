"""The case `spec/power`: what a device draws when it does nothing, and when it multiplies matrices."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from flagperf.kernel import Unsupported
from flagperf.specification import SpecificationCase

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench


class Power(SpecificationCase):
    """Watts as the vendor's adapter reads them; of a CPU as RAPL counts its energy. The median of the readings."""

    def figure(self, dims: dict[str, Any]) -> str:
        """Return what the device is rated to draw at most."""
        return "tdp_w" if dims["state"] == "load" else ""

    def probe(self, bench: Bench, dims: dict[str, Any]) -> Samples:
        """Read the power while the device is in the state of the point."""
        from flagperf.measure.sensors import Absent
        from flagperf.measure.watts import device_watts, host_watts, watts_during

        from .products import Products

        loaded = dims["state"] == "load"
        load = Products(bench, dims["dtype"]).load((dims["edge"],) * 3)

        def work() -> None:
            if loaded:
                load.call(0)
                bench.synchronize()
            else:
                time.sleep(0.05)

        try:
            read = host_watts() if bench.device.type == "cpu" else device_watts(bench.vendor().sample, bench.place)
            bench.together()
            watts = watts_during(read, work, bench.protocol.seconds)
        except (Absent, OSError) as error:
            raise Unsupported(f"no power can be read: {error}") from error
        if not watts:
            raise Unsupported(f"{bench.context.trial.vendor} tells no power of this device")
        values = {"power_load" if loaded else "power_idle": median(watts)}
        return bench.samples(values=values, facts={"watts": watts})
