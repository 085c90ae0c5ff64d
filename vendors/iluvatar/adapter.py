"""Iluvatar CoreX, read through `ixsmi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings


class Iluvatar(Accelerator):
    """Cards with one or two dies; each die is a device, and of two only one tells the board's power."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `ixsmi`, its queries and its lists."""
        return smi_readings(text, command)
