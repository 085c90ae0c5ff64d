"""AMD's own library, through the binding amdsmi that comes with ROCm and is on PyPI."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flagperf.schema.reading import Reading, Readings

_SOURCE = "amdsmi"


def read_amdsmi() -> Readings | None:
    """Return what amdsmi says of each device; None where it isn't installed or has no library to load."""
    try:
        import amdsmi
    except (ImportError, OSError, KeyError, AttributeError):  # the binding loads its library when imported
        return None
    try:
        _start()
        handles = amdsmi.amdsmi_get_processor_handles()
    except amdsmi.AmdSmiException as error:
        return Readings(error=f"amdsmi: {error}", source=_SOURCE)
    return Readings(devices=[_device(amdsmi, *each) for each in enumerate(handles)], source=_SOURCE)


@functools.cache
def _start() -> None:
    """Load the library once in a process."""
    import amdsmi

    amdsmi.amdsmi_init()


def _device(amdsmi: Any, index: int, handle: Any) -> Reading:
    """Return what amdsmi says of one device; what it doesn't support is unknown."""

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(handle, *arguments)
        except amdsmi.AmdSmiException:  # not on this card, or not with this driver
            return None

    asic = ask(amdsmi.amdsmi_get_gpu_asic_info) or {}
    memory = ask(amdsmi.amdsmi_get_gpu_vram_usage) or {}
    power = ask(amdsmi.amdsmi_get_power_info) or {}
    load = ask(amdsmi.amdsmi_get_gpu_activity) or {}
    kinds, now = amdsmi.AmdSmiTemperatureType, amdsmi.AmdSmiTemperatureMetric.CURRENT
    edge = ask(amdsmi.amdsmi_get_temp_metric, kinds.EDGE, now)
    return Reading(
        index=index,
        name=asic.get("market_name") or None,
        memory_total_mib=_number(memory.get("vram_total")),  # megabytes, as the binding documents
        memory_used_mib=_number(memory.get("vram_used")),
        utilisation_pct=_number(load.get("gfx_activity")),
        power_w=_number(power.get("average_socket_power")) or _number(power.get("current_socket_power")),
        temperature_c=_number(ask(amdsmi.amdsmi_get_temp_metric, kinds.HOTSPOT, now) if edge is None else edge),
        uuid=ask(amdsmi.amdsmi_get_gpu_device_uuid),
        bus_id=ask(amdsmi.amdsmi_get_gpu_device_bdf),
    )


def _number(value: Any) -> float | None:
    """Return a number; the binding writes N/A for what a card doesn't have."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
