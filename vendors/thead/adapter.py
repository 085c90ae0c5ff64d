"""T-Head PPU, read through `ppu-smi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings

_NAMES = also({"utilisation_pct": ("utilization.ppu",), "temperature_c": ("temperature.ppu",)})


class Thead(Accelerator):
    """The PPU, whose tool follows `nvidia-smi`."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `ppu-smi`, its queries and its lists."""
        return smi_readings(text, command, _NAMES)
