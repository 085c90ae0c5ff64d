"""What processes tell of their simulated devices, in a file each: memory, work done, and whether the device is lost.

A file `PID-INDEX` is `Counters` of `device/state.h`: a mark and eight signed 64-bit integers.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flagperf.schema.reading import DeviceProcess, Reading

from .settings import Settings

_LAYOUT = struct.Struct("=8s8q")
_MARK = b"simchip1"
IDLE_WATTS, BUSY_WATTS = 75.0, 300.0
IDLE_CELSIUS, BUSY_CELSIUS = 35.0, 80.0
"""What an idle device and a busy one would draw and how warm they would be; between them by the utilisation."""


class Use(NamedTuple):
    """One process's use of one device; bytes and nanoseconds."""

    pid: int
    device: int
    total: int
    allocated: int
    reserved: int
    busy_ns: int
    operators: int
    lost: int


class Meter:
    """Reads the devices; utilisation is the mean since the reading before, so that the first has none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._before: tuple[float, Mapping[tuple[int, int], int]] | None = None

    def read(self) -> list[Reading]:
        """Return the state of each device now."""
        moment, uses = time.monotonic(), read_uses(self.settings.folder)
        before, self._before = self._before, (moment, {(use.pid, use.device): use.busy_ns for use in uses})
        return [
            self._reading(i, [u for u in uses if u.device == i], moment, before) for i in range(self.settings.devices)
        ]

    def _reading(
        self, index: int, uses: list[Use], moment: float, before: tuple[float, Mapping[tuple[int, int], int]] | None
    ) -> Reading:
        share: float | None = None if uses else 0.0
        if before is not None and moment > before[0]:
            busy = sum(use.busy_ns - before[1].get((use.pid, index), 0) for use in uses)
            share = min(1.0, busy / 1e9 / (moment - before[0]))
        lost = any(use.lost for use in uses)
        return Reading(
            index=index,
            name=self.settings.name,
            memory_total_mib=float(self.settings.memory_mib),
            memory_used_mib=sum(use.reserved for use in uses) / 2**20,
            utilisation_pct=None if share is None else 100 * share,
            power_w=None if share is None else IDLE_WATTS + share * (BUSY_WATTS - IDLE_WATTS),
            temperature_c=None if share is None else IDLE_CELSIUS + share * (BUSY_CELSIUS - IDLE_CELSIUS),
            power_limit_w=BUSY_WATTS,
            faulty="the device is lost" if lost else None,
            processes=[DeviceProcess(pid=use.pid, memory_mib=use.reserved / 2**20) for use in uses],
            facts={"simulated": True},
        )


def read_uses(folder: Path) -> list[Use]:
    """Return the uses of all devices by processes that live; the files of those that don't are removed."""
    uses = []
    for path in sorted(folder.glob("*-*")):
        try:
            data = path.read_bytes()
            if len(data) != _LAYOUT.size or not data.startswith(_MARK):
                continue
            use = Use(*_LAYOUT.unpack(data)[1:])
            if _alive(use.pid):
                uses.append(use)
            else:
                path.unlink()
        except FileNotFoundError:  # another reader was quicker
            continue
    return uses


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
