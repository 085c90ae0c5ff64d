"""Kunlunxin XPU, read through `xpu-smi`, or the `xpu_smi` of older stacks."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also, is_name, readings
from flagperf.parsing.records import bordered_records
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings

_OLD = also(
    {
        "index": ("devid",),
        "name": ("model",),
        "utilisation_pct": ("userate",),
        "memory_pair": ("memory",),
        "bus_id": ("pci addr",),
    }
)


class Kunlunxin(Accelerator):
    """Kunlun cards. L3 is on the chip and isn't counted as memory."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `xpu-smi`'s table, or of the older tool's, which has a line a device."""
        new = smi_readings(text, command)
        old = readings(bordered_records(text, is_name(_OLD).__contains__), _OLD)
        return new if new.devices or not old.devices else old
