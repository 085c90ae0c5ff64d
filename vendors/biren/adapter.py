"""Biren, read through `brsmi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings


class Biren(Accelerator):
    """Biren cards."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `brsmi`'s queries and of a table like `nvidia-smi`'s."""
        return smi_readings(text, command)
