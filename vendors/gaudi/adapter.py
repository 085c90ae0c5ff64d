"""Intel Gaudi, read through `hl-smi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings

_NAMES = also(
    {
        "index": ("module_id",),
        "utilisation_pct": ("utilization.aip",),
        "temperature_c": ("temperature.aip",),
        "bus_id": ("bus_id",),
    }
)


class Gaudi(Accelerator):
    """Gaudi cards, called AIP by their tool."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `hl-smi` and its queries."""
        return smi_readings(text, command, _NAMES)
