"""NVML through pynvml, the binding that NVIDIA publishes as nvidia-ml-py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec

from flagperf.deadlines import Deadlines
from flagperf.schema.reading import DeviceProcess, Reading, Readings

_SOURCE = "NVML"
_START_TIMEOUT, _CALL_TIMEOUT = 20.0, 2.0
"""Seconds: a driver that nothing has used yet wakes every card first; a card that is awake answers at once."""


def read_nvml() -> Readings | None:
    """Return what NVML says of each device; None without pynvml. One that is lost is faulty, and the others go on."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    return _library(nvml).read()


@functools.cache
def _library(nvml: Any) -> _Library:
    return _Library(nvml)


class _Library:
    """NVML, loaded once in a process: telemetry asks every second."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._starts, self._calls = Deadlines[str, Readings | int](), Deadlines[int, Reading]()
        self._events: Any = None
        self._driver: str | None = None
        self._started = False

    def read(self) -> Readings:
        """Read every device at the same time; one that doesn't answer holds up no other."""
        said = self._starts.call({"start": self._start}, _START_TIMEOUT).get("start")
        if said is None:
            return Readings(error=f"NVML: no answer within {_START_TIMEOUT:g} s", source=_SOURCE)
        if isinstance(said, Readings):
            return said
        xids = self._xids()
        asked = {index: functools.partial(_device, self._nvml, index) for index in range(said)}
        answers = self._calls.call(asked, _CALL_TIMEOUT)
        silent = f"NVML: no answer within {_CALL_TIMEOUT:g} s"
        devices = [answers.get(index) or Reading(index=index, faulty=silent) for index in asked]
        devices = [msgspec.structs.replace(one, xid=xids.get(one.index)) for one in devices]
        return Readings(devices=devices, driver=self._driver, source=_SOURCE)

    def _start(self) -> Readings | int:
        """Start NVML where it isn't, and return the number of devices; a failure is told and tried again."""
        nvml = self._nvml
        try:
            if not self._started:
                nvml.nvmlInit()
                self._driver, self._started = _text(nvml.nvmlSystemGetDriverVersion()), True
                self._listen(nvml.nvmlDeviceGetCount())
            return int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            return Readings(error=f"NVML: {error}", source=_SOURCE)

    def _listen(self, count: int) -> None:
        """Have the driver keep its error events (XID) for us, of the devices that have them."""
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:  # not with this driver, or not in this container
            return
        for index in range(count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
            except nvml.NVMLError:  # this one hasn't; the others may
                continue

    def _xids(self) -> dict[int, list[int]]:
        """Return the error events since the last call, by device."""
        found: dict[int, list[int]] = {}
        while self._events is not None:
            try:
                event = self._nvml.nvmlEventSetWait(self._events, 0)
                found.setdefault(self._nvml.nvmlDeviceGetIndex(event.device), []).append(event.eventData)
            except self._nvml.NVMLError:  # there is no more, which is told as a time-out
                break
        return found


def _device(nvml: Any, index: int) -> Reading:
    """Return what NVML says of one device; what it doesn't support is unknown."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError as error:
        return Reading(index=index, faulty=f"NVML: {error}")
    lost: list[str] = []

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(handle, *arguments)
        except nvml.NVMLError_GpuIsLost as error:
            lost.append(f"NVML: {error}")
        except nvml.NVMLError:  # not on this card, or not with this driver
            pass
        return None

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    load = ask(nvml.nvmlDeviceGetUtilizationRates)
    power = ask(nvml.nvmlDeviceGetPowerUsage)
    limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
    energy = ask(nvml.nvmlDeviceGetTotalEnergyConsumption)
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    pci = ask(nvml.nvmlDeviceGetPciInfo)
    running = ask(nvml.nvmlDeviceGetComputeRunningProcesses)
    return Reading(
        index=index,
        name=name,
        memory_total_mib=memory and memory.total / 2**20,
        memory_used_mib=memory and memory.used / 2**20,
        utilisation_pct=load and load.gpu,
        power_w=power and power / 1000,
        energy_j=None if energy is None else energy / 1000,
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_limit_w=limit and limit / 1000,
        clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        uuid=_text(ask(nvml.nvmlDeviceGetUUID)),
        bus_id=_text(pci and pci.busId),
        ecc_uncorrected=ask(
            nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        throttled=None if reasons is None else _reasons(nvml, reasons),
        processes=None
        if running is None
        else [
            DeviceProcess(pid=each.pid, memory_mib=each.usedGpuMemory and each.usedGpuMemory / 2**20)
            for each in running
        ],
        faulty=lost[0] if lost else None,
    )


def _reasons(nvml: Any, bits: int) -> list[str]:
    """Return why clocks are held down; idleness and the user's own settings are no throttling."""
    named = {
        "hardware slowdown": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "hardware thermal slowdown": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hardware power brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "software thermal slowdown": nvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "software power cap": nvml.nvmlClocksThrottleReasonSwPowerCap,
    }
    return [name for name, bit in named.items() if bits & bit]


def _text(value: Any) -> str | None:
    """Return text from what older bindings give as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
