"""Cambricon MLU, read through `cnmon`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings


class Cambricon(Accelerator):
    """MLU cards; of one with two dies each is a device."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `cnmon`'s table."""
        return smi_readings(text, command)
