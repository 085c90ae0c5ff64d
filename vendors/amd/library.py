"""AMD's own library, through the binding amdsmi that comes with ROCm and is on PyPI."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flagperf.deadlines import Deadlines
from flagperf.schema.reading import Reading, Readings

_SOURCE = "amdsmi"
_START_TIMEOUT, _CALL_TIMEOUT = 20.0, 2.0
"""Seconds, as for NVML."""


def read_amdsmi() -> Readings | None:
    """Return what amdsmi says of each device; None where it isn't installed or has no library to load."""
    try:
        import amdsmi
    except (ImportError, OSError, KeyError, AttributeError):  # the binding loads its library when imported
        return None
    return _library(amdsmi).read()


@functools.cache
def _library(amdsmi: Any) -> _Library:
    return _Library(amdsmi)


class _Library:
    """amdsmi, loaded once in a process."""

    def __init__(self, amdsmi: Any) -> None:
        self._amdsmi = amdsmi
        self._starts, self._calls = Deadlines[str, str](), Deadlines[int, Reading]()
        self._handles: list[Any] | None = None

    def read(self) -> Readings:
        """Read every device at the same time; one that doesn't answer holds up no other."""
        if self._handles is None:
            failure = self._starts.call({"start": self._start}, _START_TIMEOUT)
            if self._handles is None:
                why = failure.get("start") or f"no answer within {_START_TIMEOUT:g} s"
                return Readings(error=f"amdsmi: {why}", source=_SOURCE)
        asked = {
            index: functools.partial(_device, self._amdsmi, index, handle) for index, handle in enumerate(self._handles)
        }
        answers = self._calls.call(asked, _CALL_TIMEOUT)
        silent = f"amdsmi: no answer within {_CALL_TIMEOUT:g} s"
        devices = [answers.get(index) or Reading(index=index, faulty=silent) for index in asked]
        return Readings(devices=devices, source=_SOURCE)

    def _start(self) -> str:
        """Load the library and find the devices; return why it can't be, which is tried again the next time."""
        try:
            self._amdsmi.amdsmi_init()
            self._handles = self._amdsmi.amdsmi_get_processor_handles()
        except self._amdsmi.AmdSmiException as error:
            return str(error)
        return ""


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
