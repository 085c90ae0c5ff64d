"""Hygon DCU, read through `hy-smi`, or the `rocm-smi` of older stacks."""

from __future__ import annotations

from collections.abc import Iterator

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also, first_with_devices, is_name, readings
from flagperf.parsing.records import column_records, csv_records, indexed_records, load_json, numbered_objects
from flagperf.parsing.text import driver_version
from flagperf.schema.reading import Readings

_NAMES = also(
    {
        "index": ("hcu", "dcu", "device"),
        "name": ("card series", "card model"),
        "memory_total_mib": ("vram total memory",),
        "memory_used_mib": ("vram total used memory",),
        "utilisation_pct": ("hcu use", "dcu use", "hcu%", "dcu%"),
        "power_w": ("average graphics package power", "avgpwr"),
        "power_limit_w": ("max graphics package power", "pwrcap"),
        "temperature_c": ("temperature (sensor edge)", "temperature (sensor junction)", "temp"),
        "uuid": ("unique id",),
    }
)


class Hygon(Accelerator):
    """DCU cards, which the newer tool calls HCU."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of the tool's JSON, CSV, lines by device, or table."""
        return first_with_devices(text, self._layouts(text, command))

    def _layouts(self, text: str, command: str) -> Iterator[Readings]:
        known, driver = is_name(_NAMES).__contains__, driver_version(text)
        yield readings(numbered_objects(load_json(text)), _NAMES, driver)
        yield readings(csv_records(text, known, command), _NAMES, driver)
        yield readings(indexed_records(text), _NAMES, driver)
        yield readings(column_records(text, known), _NAMES, driver)
