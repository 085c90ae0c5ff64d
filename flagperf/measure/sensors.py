"""The host's sensors: each reads a few of the kernel's files, kept open, and returns fields of a telemetry `Sample`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Sensor = Callable[[], dict[str, Any]]


class Absent(Exception):
    """This host doesn't have what a sensor reads; the message says what."""


def open_sensors(parent: int) -> tuple[dict[str, Sensor], dict[str, str]]:
    """Open every sensor of this host; return those there are, and why the others aren't.

    `parent` is the process whose descendants are watched.
    """
    kinds: dict[str, Callable[[], Sensor]] = {
        "cpu": Cpu,
        "memory": Memory,
        "load": Load,
        "network": Network,
        "disk": Disk,
        "pressure": Pressure,
        "frequency": Frequency,
        "temperature": Temperature,
        "throttling": Throttling,
        "energy": Energy,
        "processes": lambda: Processes(parent),
    }
    sensors: dict[str, Sensor] = {}
    absent: dict[str, str] = {}
    for name, kind in kinds.items():
        try:
            sensors[name] = kind()
        except Absent as why:
            absent[name] = str(why)
        except OSError as error:
            absent[name] = f"{error.filename}: {error.strerror}"
    return sensors, absent


class _File:
    """A file of /proc or /sys, opened once: reading it anew from its start gives its present content."""

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.read()  # a file that opens may still refuse to be read
        except OSError as error:
            os.close(self._descriptor)
            raise OSError(error.errno, error.strerror, str(path)) from None

    def read(self) -> bytes:
        parts = []
        offset = 0
        while part := os.pread(self._descriptor, 1 << 16, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._descriptor)


class _Rates:
    """Turns counters into amounts a second since the reading before; the first reading has none."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._before: tuple[float, list[int]] | None = None

    def of(self, counters: list[int]) -> dict[str, float] | None:
        now = time.monotonic()
        before, self._before = self._before, (now, counters)
        if before is None or now <= before[0]:
            return None
        span = now - before[0]
        return {
            name: round(max(0, new - old) / span, 1)
            for name, new, old in zip(self._names, counters, before[1], strict=True)
        }


def _files(pattern: str, what: str) -> list[_File]:
    """Open every file a pattern finds below /sys; raises Absent where there is none."""
    paths = sorted(Path("/sys").glob(pattern))
    files = []
    for path in paths:
        try:
            files.append(_File(path))
        except OSError:  # one sensor of several may be asleep
            continue
    if not files:
        raise Absent(f"{what} can't be read" if paths else f"this kernel shows no {what}")
    return files


class Cpu:
    """How busy the cores are, and what the hypervisor took."""

    def __init__(self) -> None:
        self._file = _File("/proc/stat")
        self._before: list[list[int]] = []

    def __call__(self) -> dict[str, Any]:
        now = []
        for line in self._file.read().splitlines():
            if not line.startswith(b"cpu"):
                break
            now.append([int(field) for field in line.split()[1:9]])
        before, self._before = self._before, now
        if len(before) != len(now):  # the first reading, or a core was taken away
            return {}
        spans = [[new - old for new, old in zip(a, b, strict=True)] for a, b in zip(now, before, strict=True)]
        total = sum(spans[0])
        busy = [_busy(span) for span in spans]
        return {
            "cpu_percent": busy[0],
            "core_percent": busy[1:],
            "steal_percent": round(100 * spans[0][7] / total, 2) if total else 0.0,
        }


def _busy(span: list[int]) -> float:
    """Return the share of time that wasn't idle (fields 3 and 4: idle, waiting for a disk), percent."""
    total = sum(span)
    return round(100 * (1 - (span[3] + span[4]) / total), 1) if total > 0 else 0.0


class Memory:
    """Memory and swap in use, bytes."""

    def __init__(self) -> None:
        self._file = _File("/proc/meminfo")

    def __call__(self) -> dict[str, Any]:
        kibibytes = {}
        for line in self._file.read().splitlines():
            name, _, rest = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree"):
                kibibytes[name] = int(rest.split()[0])
        available = kibibytes[b"MemAvailable"]
        return {
            "memory_used": (kibibytes[b"MemTotal"] - available) * 1024,
            "memory_available": available * 1024,
            "swap_used": (kibibytes[b"SwapTotal"] - kibibytes[b"SwapFree"]) * 1024,
        }


class Load:
    """The load average over a minute."""

    def __init__(self) -> None:
        self._file = _File("/proc/loadavg")

    def __call__(self) -> dict[str, Any]:
        return {"load": float(self._file.read().split()[0])}


class Network:
    """What came and went over the network's real interfaces, and over the loopback, where local ranks talk."""

    def __init__(self) -> None:
        self._file = _File("/proc/net/dev")
        names = ("received_bytes", "received_packets", "sent_bytes", "sent_packets")
        self._outer, self._inner = _Rates(names), _Rates(names)
        self._known: set[bytes] = set()
        self._real: set[bytes] = set()

    def __call__(self) -> dict[str, Any]:
        counters = {}
        for line in self._file.read().splitlines()[2:]:
            name, _, rest = line.partition(b":")
            fields = rest.split()
            counters[name.strip()] = [int(fields[field]) for field in (0, 1, 8, 9)]
        if counters.keys() != self._known:
            self._known = set(counters)
            # Bridges and virtual pairs would count the same bytes again: only hardware counts where there is any.
            self._real = {path.parent.name.encode() for path in Path("/sys/class/net").glob("*/device")} & self._known
        inner = counters.pop(b"lo", [0, 0, 0, 0])
        chosen = [counters[name] for name in self._real] or list(counters.values())
        outer = [sum(column) for column in zip(*chosen, strict=True)] or [0, 0, 0, 0]
        return {"network": self._outer.of(outer), "loopback": self._inner.of(inner)}


class Disk:
    """What was read from and written to whole disks."""

    def __init__(self) -> None:
        self._file = _File("/proc/diskstats")
        # Partitions, and devices made of others, would count the same bytes again.
        made = ("loop", "ram", "zram", "dm-", "md")
        blocks = Path("/sys/block")
        names = [path.name for path in blocks.iterdir()] if blocks.is_dir() else []
        self._disks = {name.encode() for name in names if not name.startswith(made)}
        if not self._disks:
            raise Absent("this kernel shows no disks")
        self._rates = _Rates(("read_bytes", "written_bytes"))

    def __call__(self) -> dict[str, Any]:
        read = written = 0
        for line in self._file.read().splitlines():
            fields = line.split()
            if fields[2] in self._disks:
                read, written = read + int(fields[5]), written + int(fields[9])
        return {"disk": self._rates.of([read * 512, written * 512])}  # the kernel counts in units of 512 bytes


class Pressure:
    """Percent of the time in which some task waited for the CPU, for memory or for a disk."""

    def __init__(self) -> None:
        if not Path("/proc/pressure").is_dir():
            raise Absent("this kernel has no pressure stall information")
        self._files = {name: _File(f"/proc/pressure/{name}") for name in ("cpu", "memory", "io")}
        self._rates = _Rates(tuple(self._files))

    def __call__(self) -> dict[str, Any]:
        waited = [int(file.read().split(b"\n", 1)[0].rpartition(b"=")[2]) for file in self._files.values()]
        rates = self._rates.of(waited)  # microseconds a second
        return {"pressure": rates and {name: round(rate / 1e4, 2) for name, rate in rates.items()}}


class Frequency:
    """Each core's clock, MHz."""

    def __init__(self) -> None:
        self._files = _files("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", "core frequency")

    def __call__(self) -> dict[str, Any]:
        return {"frequency": [int(file.read()) / 1000 for file in self._files]}


class Temperature:
    """The hottest sensor, degrees Celsius."""

    def __init__(self) -> None:
        self._files = _files("class/thermal/thermal_zone*/temp", "temperature")

    def __call__(self) -> dict[str, Any]:
        return {"temperature": max(int(file.read()) for file in self._files) / 1000}


class Throttling:
    """Times any core was throttled since boot."""

    def __init__(self) -> None:
        self._files = _files("devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count", "throttling counter")

    def __call__(self) -> dict[str, Any]:
        return {"throttled": sum(int(file.read()) for file in self._files)}


class Energy:
    """Joules since the first reading, by RAPL domain: packages and memory, which don't contain one another."""

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._domains: dict[str, tuple[_File, int]] = {}
        self._state: dict[str, tuple[int, int]] = {}
        refused = ""
        for folder in sorted(root.glob("intel-rapl:*")):
            name = (folder / "name").read_text().strip()
            if not name.startswith(("package", "dram")):
                continue  # `core` and `uncore` are in the package, `psys` contains it
            try:
                counter = _File(folder / "energy_uj")
            except PermissionError as error:
                refused = f"{error.filename} is for root only"
                continue
            # Memory domains are all called `dram`: the folder tells whose it is.
            self._domains[f"{name}-{folder.name.split(':')[1]}" if name == "dram" else name] = (
                counter,
                int((folder / "max_energy_range_uj").read_text()),
            )
        if not self._domains:
            raise Absent(refused or "this machine shows no RAPL energy counter")

    def __call__(self) -> dict[str, Any]:
        joules = {}
        for name, (counter, span) in self._domains.items():
            now = int(counter.read())
            last, total = self._state.get(name, (now, 0))
            total += now - last if now >= last else now - last + span  # it wraps around at its range
            self._state[name] = (now, total)
            joules[name] = round(total / 1e6, 3)
        return {"energy_joules": joules}


class Processes:
    """Resident memory and CPU use of each descendant of one process, but for this one."""

    REFRESH = 1.0
    """Seconds between looks for new processes."""

    def __init__(self, parent: int) -> None:
        if not Path("/proc/self/stat").exists():
            raise Absent("this system has no /proc")
        self._parent = parent
        self._page, self._tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
        self._parents: dict[int, int] = {}
        self._files: dict[int, _File] = {}
        self._before: dict[int, tuple[float, int]] = {}
        self._looked = float("-inf")

    def __call__(self) -> dict[str, Any]:
        if time.monotonic() - self._looked >= self.REFRESH:
            self._look()
        found = []
        for pid, file in list(self._files.items()):
            try:
                head, _, tail = file.read().rpartition(b")")
                fields = tail.split()
            except OSError:  # it has ended
                fields = []
            if not fields:
                self._forget(pid)
                continue
            now, spent = time.monotonic(), int(fields[11]) + int(fields[12])
            before = self._before.get(pid)
            self._before[pid] = (now, spent)
            share = None
            if before is not None and now > before[0]:
                share = round(100 * (spent - before[1]) / self._tick / (now - before[0]), 1)
            name = head.partition(b"(")[2].decode("utf-8", "replace")
            found.append({"pid": pid, "name": name, "rss": int(fields[21]) * self._page, "cpu_percent": share})
        return {"processes": found}

    def _look(self) -> None:
        """Find the descendants anew; of a process seen before, its parent is taken for known."""
        self._looked = time.monotonic()
        there = {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()}
        parents = {pid: parent for pid, parent in self._parents.items() if pid in there}
        for pid in there - parents.keys():
            try:
                stat = Path(f"/proc/{pid}/stat").read_bytes()
            except OSError:  # gone again
                continue
            parents[pid] = int(stat.rpartition(b")")[2].split()[1])
        self._parents = parents
        wanted = {pid for pid in parents if pid != os.getpid() and self._descends(pid)}
        for pid in self._files.keys() - wanted:
            self._forget(pid)
        for pid in wanted - self._files.keys():
            try:
                self._files[pid] = _File(f"/proc/{pid}/stat")
            except OSError:
                continue

    def _descends(self, pid: int) -> bool:
        while pid in self._parents:
            pid = self._parents[pid]
            if pid == self._parent:
                return True
        return False

    def _forget(self, pid: int) -> None:
        self._files.pop(pid).close()
        self._before.pop(pid, None)
        self._parents.pop(pid, None)
