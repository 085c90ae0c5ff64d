"""AMD, read through amdsmi where it is, else through `amd-smi` or the older `rocm-smi`."""

from __future__ import annotations

from collections.abc import Iterator

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also, first_with_devices, is_name, readings
from flagperf.parsing.records import (
    column_records,
    csv_records,
    indexed_records,
    json_record,
    load_json,
    numbered_objects,
    objects,
    section_records,
)
from flagperf.parsing.text import driver_version
from flagperf.schema.reading import Readings

from .library import read_amdsmi

_NAMES = also(
    {
        "index": ("device",),
        "name": ("asic/market_name", "market_name", "card series", "card model"),
        "memory_total_mib": ("mem_usage/total_vram", "vram/size", "vram total memory", "vram_total"),
        "memory_used_mib": ("mem_usage/used_vram", "vram total used memory", "vram_used"),
        "memory_pair": ("vram_usage",),
        "utilisation_pct": ("usage/gfx_activity", "gfx_activity", "gpu use", "gfx_util", "gfx%", "gpu%"),
        "power_w": (
            *("power/socket_power", "socket_power", "average graphics package power"),
            *("current socket graphics package power", "power", "avgpwr", "power_usage"),
        ),
        "power_limit_w": ("limit/power_cap", "power_cap", "pwrcap"),
        "temperature_c": (
            *("temperature/edge", "temperature (sensor edge)", "temperature/hotspot", "temperature (sensor junction)"),
            *("gpu_temp", "gpu_t", "temp", "temp (dieedge)", "hotspot_temperature"),
        ),
        "clock_mhz": ("clock/gfx_0/clk", "gfx_clock", "gfx_clk"),
        "memory_clock_mhz": ("clock/mem_0/clk", "mem_clock"),
        "uuid": ("unique id",),
    }
)


class Amd(Accelerator):
    """Instinct and Radeon cards."""

    def read_library(self) -> Readings | None:
        """Return what amdsmi says, where it is installed."""
        return read_amdsmi()

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of either tool's JSON, CSV, sections, lines by device, or table."""
        return first_with_devices(text, self._layouts(text, command))

    def _layouts(self, text: str, command: str) -> Iterator[Readings]:
        known, driver, loaded = is_name(_NAMES).__contains__, driver_version(text), load_json(text)
        yield readings(numbered_objects(loaded), _NAMES, driver)
        yield readings([json_record(one) for one in objects(loaded, "gpu_data") if "gpu" in one], _NAMES, driver)
        yield readings(csv_records(text, known, command), _NAMES, driver)
        yield readings(section_records(text, r"GPU:\s*(\d{1,4})\s*$"), _NAMES, driver)
        yield readings(indexed_records(text), _NAMES, driver)
        yield readings(column_records(text, known), _NAMES, driver)
