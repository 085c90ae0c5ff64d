"""NVML through pynvml, the binding that NVIDIA publishes as nvidia-ml-py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flagperf.schema.reading import DeviceProcess, Reading, Readings

_SOURCE = "NVML"


def read_nvml() -> Readings | None:
    """Return what NVML says of each device; None without pynvml. One that is lost is faulty, and the others go on."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        _start()
        driver, count = _text(nvml.nvmlSystemGetDriverVersion()), nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return Readings(error=f"NVML: {error}", source=_SOURCE)
    return Readings(devices=[_device(nvml, index) for index in range(count)], driver=driver, source=_SOURCE)


@functools.cache
def _start() -> None:
    """Load NVML once in a process; telemetry asks every second. A failure isn't kept."""
    import pynvml as nvml

    nvml.nvmlInit()


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
