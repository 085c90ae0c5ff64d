"""Enflame GCU, read through `efsmi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also, is_name, readings
from flagperf.parsing.records import column_records
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings

_NAMES = also(
    {
        "name": ("product info/dev name", "dev name"),
        "memory_total_mib": ("device mem info/mem size", "mem size"),
        "memory_used_mib": ("device mem info/mem usage", "mem usage"),
        "temperature_c": ("temperature info/gcu temp", "gcu temp"),
        "utilisation_pct": ("device usage info/gcu usage", "gcu usage"),
        "power_w": ("power info/cur power", "cur power"),
    }
)
_WATCHED = {
    "index": ("dev", "idx"),
    "power_w": ("pwr",),
    "temperature_c": ("dtemp",),
    "utilisation_pct": ("dused",),
    "memory_total_mib": ("mem",),
    "memory_clock_mhz": ("mclk",),
}


class Enflame(Accelerator):
    """GCU cards. The table tells the total memory only; what is used is in `-q`."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `efsmi`'s table, of `-q`, or of `dmon`."""
        watched = readings(column_records(text, is_name(_WATCHED).__contains__), _WATCHED)
        return watched if watched.devices else smi_readings(text, command, _NAMES)
