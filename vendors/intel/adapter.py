"""Intel GPUs, read through `xpu-smi`, or the `xpumcli` of its daemon."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.fields import also
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings

_NAMES = also(
    {
        "index": ("deviceid", "device_id"),
        "memory_total_mib": ("memory_physical_size", "memory physical size"),
        "memory_used_mib": ("gpu memory used", "memory used"),
        "utilisation_pct": ("gpu utilization",),
        "power_w": ("gpu power",),
        "temperature_c": ("gpu core temperature",),
        "clock_mhz": ("gpu frequency"),
        "bus_id": ("pci_bdf_address", "pci bdf address"),
    }
)
_DEVICE = r"(\d{1,4})\s*\|\s*(?=Device Type)"


class Intel(Accelerator):
    """Intel GPUs: `discovery` names them, `dump` measures them."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `discovery`, as JSON or a table, or the first row of each in `dump`."""
        return smi_readings(text, command, _NAMES, _DEVICE)
