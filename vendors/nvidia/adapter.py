"""NVIDIA, read through NVML where pynvml is, else through `nvidia-smi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also, readings
from flagperf.parsing.records import xml_records
from flagperf.parsing.smi import smi_readings
from flagperf.parsing.text import driver_version
from flagperf.schema.reading import Readings

from .library import read_nvml

_NAMES = also(
    {
        "power_w": (
            *("gpu power readings/instantaneous power draw", "gpu power readings/power draw"),
            "gpu power readings/average power draw",
        ),
        "power_limit_w": ("gpu power readings/current power limit", "enforced.power.limit"),
    }
)
_XML = {
    "name": ("product_name",),
    "memory_total_mib": ("fb_memory_usage/total",),
    "memory_used_mib": ("fb_memory_usage/used",),
    "utilisation_pct": ("utilization/gpu_util",),
    "power_w": (
        *("power_readings/power_draw", "gpu_power_readings/power_draw", "gpu_power_readings/instant_power_draw"),
        "gpu_power_readings/average_power_draw",
    ),
    "power_limit_w": ("power_readings/power_limit", "gpu_power_readings/current_power_limit"),
    "temperature_c": ("temperature/gpu_temp",),
    "clock_mhz": ("clocks/sm_clock",),
    "memory_clock_mhz": ("clocks/mem_clock",),
    "uuid": ("uuid",),
    "bus_id": ("pci/pci_bus_id",),
}


class Nvidia(Accelerator):
    """Cards, whole ones: what MIG makes of one isn't listed, and its utilisation is then unknown."""

    def read_library(self) -> Readings | None:
        """Return what NVML says, where pynvml is installed."""
        return read_nvml()

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `nvidia-smi`: its table, queries, `-L`, `-q` or `-q -x`."""
        records = xml_records(text, "gpu", apart=("mig_device", "processes")) if "<nvidia_smi_log" in text else []
        return readings(records, _XML, driver_version(text)) if records else smi_readings(text, command, _NAMES)
