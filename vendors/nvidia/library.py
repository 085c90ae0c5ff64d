"""NVML through pynvml, the binding that NVIDIA publishes as nvidia-ml-py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
        self._starts, self._calls = Deadlines[str, str](), Deadlines[int, Reading]()
        self._events: Any = None
        self._driver: str | None = None
        self._count: int | None = None
        """Devices there were when NVML was started: one that is lost meanwhile counts still."""
        self._identities: dict[int, _Identity] = {}

    def read(self) -> Readings:
        """Read every device at the same time; one that doesn't answer holds up no other."""
        if self._count is None:
            failure = self._starts.call({"start": self._start}, _START_TIMEOUT)
            if "start" not in failure or failure["start"]:
                why = failure.get("start") or f"no answer within {_START_TIMEOUT:g} s"
                return Readings(error=f"NVML: {why}", source=_SOURCE)
        asked = {index: functools.partial(self._device, index) for index in range(self._count or 0)}
        answers = self._calls.call(asked, _CALL_TIMEOUT)
        silent = f"NVML: no answer within {_CALL_TIMEOUT:g} s"
        devices = [answers.get(index) or Reading(index=index, faulty=silent) for index in asked]
        for index, xid in self._xids().items():
            devices[index] = msgspec.structs.replace(devices[index], xid=xid)
        return Readings(devices=devices, driver=self._driver, source=_SOURCE)

    def _start(self) -> str:
        """Start NVML; return why it can't be, which is tried again the next time."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            self._driver, count = _text(nvml.nvmlSystemGetDriverVersion()), nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            return str(error)
        self._listen(count)
        self._count = count
        return ""

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

    def _device(self, index: int) -> Reading:
        """Return what NVML says of one device, whose identity is asked for once."""
        try:
            if index not in self._identities:
                self._identities[index] = _identity(self._nvml, index)
        except self._nvml.NVMLError as error:
            return Reading(index=index, faulty=f"NVML: {error}")
        return _reading(self._nvml, index, self._identities[index])


class _Identity(NamedTuple):
    """What doesn't change of a device."""

    handle: Any
    name: str | None
    uuid: str | None
    bus_id: str | None


def _identity(nvml: Any, index: int) -> _Identity:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name, uuid, pci = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetPciInfo(handle)
    return _Identity(handle, _text(name), _text(uuid), _text(pci.busId))


def _reading(nvml: Any, index: int, device: _Identity) -> Reading:
    """Return a device's state; what it doesn't support is unknown."""
    lost: list[str] = []

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(device.handle, *arguments)
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
    running = ask(nvml.nvmlDeviceGetComputeRunningProcesses)
    return Reading(
        index=index,
        name=device.name,
        memory_total_mib=memory and memory.total / 2**20,
        memory_used_mib=memory and memory.used / 2**20,
        utilisation_pct=load and load.gpu,
        power_w=power and power / 1000,
        energy_j=None if energy is None else energy / 1000,
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_limit_w=limit and limit / 1000,
        clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        uuid=device.uuid,
        bus_id=device.bus_id,
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
