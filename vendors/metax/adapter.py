"""MetaX, read through `mx-smi`, or the `ht-smi` of an OEM."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings


class Metax(Accelerator):
    """MetaX cards."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of the tool's table."""
        return smi_readings(text, command)
