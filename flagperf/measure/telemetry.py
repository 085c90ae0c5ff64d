"""Watches the machine while a trial runs: `python -m flagperf.measure.telemetry --out FILE --parent PID`.

A process of its own, so that nothing of it runs in a rank. It wakes at multiples of the interval on the monotonic
clock, reads the kernel's files through descriptors kept open, and appends one `Sample` to a journal. It ends on
SIGTERM, SIGINT or when the parent is gone, and then says what it cost.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flagperf.errors import FlagPerfError
from flagperf.journal import Journal
from flagperf.measure.sampler import Counts, DeviceSampler
from flagperf.measure.sensors import open_sensors
from flagperf.processes import die_with_parent
from flagperf.schema.event import Key
from flagperf.tools import kill_tools

if TYPE_CHECKING:
    from flagperf.vendor import Vendor


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tick. Rates are means since the tick before, so that the first sample has none; bytes, MHz, percent."""

    tick: int
    """Multiple of the interval on the monotonic clock."""
    cpu_percent: float | None = None
    """All cores together: 100 is all of them busy."""
    core_percent: list[float] | None = None
    steal_percent: float | None = None
    load: float | None = None
    frequency: list[float] | None = None
    memory_used: int | None = None
    memory_available: int | None = None
    swap_used: int | None = None
    network: dict[str, float] | None = None
    """{received_bytes, received_packets, sent_bytes, sent_packets} a second, without the loopback."""
    loopback: dict[str, float] | None = None
    disk: dict[str, float] | None = None
    """{read_bytes, written_bytes} a second, whole disks."""
    pressure: dict[str, float] | None = None
    """{cpu, memory, io}: percent of the time some task waited for it (PSI)."""
    temperature: float | None = None
    throttled: int | None = None
    energy_joules: dict[str, float] | None = None
    """Joules by RAPL domain since the first sample; the domains don't overlap."""
    processes: list[dict[str, Any]] | None = None
    """{pid, name, rss, cpu_percent} of each descendant of the parent; percent of one core."""
    devices: list[dict[str, Any]] | None = None
    """What the vendor's adapter returned, each with its `ns` on the monotonic clock."""
    unavailable: dict[str, str] | None = None
    """Sensors that can't be read, and why: said once, when it is found out."""


class Telemetry:
    """Samples into a journal until it's told to stop."""

    def __init__(self, journal: Journal, interval: float, parent: int, devices: DeviceSampler | None = None) -> None:
        self._journal, self._interval, self._devices = journal, interval, devices
        self._sensors, self._unsaid = open_sensors(parent)
        self._said: dict[str, str] = {}
        self.samples = self.missed = self.unwritten = 0
        self._counts = {name: Counts() for name in self._sensors}

    @property
    def sources(self) -> dict[str, Counts]:
        """How often each source was read, failed and was missed; a tick that was slept through is missed by all."""
        return self._counts | (self._devices.counts if self._devices else {})

    @property
    def failed(self) -> int:
        """How many readings failed, of all sources together."""
        return sum(counts.failed for counts in self.sources.values())

    def unavailable(self, sensor: str, why: str) -> None:
        """Have the next sample say that a sensor can't be read."""
        self._unsaid[sensor] = why

    def run(self, stopped: Callable[[float], bool]) -> None:
        """Sample at every multiple of the interval; `stopped(seconds)` sleeps and says whether it's time to end."""
        tick = int(time.monotonic() / self._interval)
        self.sample(tick)
        while not stopped(max(0.0, (tick + 1) * self._interval - time.monotonic())):
            due = int(time.monotonic() / self._interval)
            if due > tick:  # else it was woken a moment early
                self.missed += due - tick - 1
                tick = due
                self.sample(tick)
        self.sample(tick, last=True)  # what is measured up to its end lies between two samples

    def sample(self, tick: int, last: bool = False) -> None:
        """Read every sensor and append one sample."""
        values: dict[str, Any] = {}
        problems, self._unsaid = self._unsaid, {}
        for name, read in self._sensors.items():
            try:
                values.update(read())
                self._counts[name].read += 1
            except (OSError, ValueError, LookupError) as error:  # gone, or not what was foreseen; the others go on
                problems[name] = f"{type(error).__name__}: {error}"
                self._counts[name].failed += 1
        if self._devices is not None:
            devices, problem = self._devices.finish() if last else self._devices.take()
            values["devices"] = devices or None
            if problem:
                problems["devices"] = problem
        news = {name: why for name, why in problems.items() if self._said.get(name) != why}
        try:
            self._journal.write(Key.TELEMETRY, Sample(tick=tick, **values, unavailable=news or None))
        except OSError as error:  # a full disk may have room again; what is lost till then is told at the end
            if not self.unwritten:
                print(f"{self._journal.path}: {error}", file=sys.stderr, flush=True)
            self.unwritten += 1
        else:
            self.samples += 1
            self._said |= news


class _Stop:
    """Sleeps until a deadline, a signal, or the end of the parent."""

    def __init__(self, parent: int) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        self._parent = parent
        self._reasons = [reading]
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        if hasattr(os, "pidfd_open"):
            try:
                self._reasons.append(os.pidfd_open(parent))
            except ProcessLookupError:
                self._signalled = True

    def __call__(self, seconds: float) -> bool:
        if self._signalled:
            return True
        select.select(self._reasons, [], [], seconds)
        return self._signalled or not _alive(self._parent)

    def _note(self, number: int, frame: object) -> None:
        self._signalled = True


def _alive(pid: int) -> bool:
    """Whether a process is there and hasn't ended; one that nobody has waited for yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    except ProcessLookupError:  # ended between opening and reading
        return False
    return state not in (b"Z", b"X")


def _devices(vendor: str, folders: list[Path], interval: float) -> DeviceSampler:
    """Return what samples a vendor's devices."""
    from flagperf.registry import Registries

    vendors = Registries(folders).vendors
    adapter: Vendor = vendors.adapter(vendor)
    return DeviceSampler(adapter.sample, interval=interval)


def main(arguments: list[str] | None = None) -> int:
    """Sample until told to stop or the parent is gone; what it cost is the journal's last line."""
    parser = argparse.ArgumentParser(prog="python -m flagperf.measure.telemetry", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="journal to append to")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--parent", type=int, required=True, help="process whose descendants are watched")
    parser.add_argument("--vendor", help="whose devices are sampled too")
    parser.add_argument("--plugins", type=Path, action="append", default=[], help="folder with plug-ins")
    options = parser.parse_args(arguments)
    if not 0.01 <= options.interval <= 3600:
        parser.error("--interval is from 0.01 to 3600 seconds")

    began = time.monotonic()
    stopped = _Stop(options.parent)
    die_with_parent()
    header = {"role": "telemetry", "interval": options.interval, "parent": options.parent, "vendor": options.vendor}
    with Journal(options.out, header) as journal:
        devices, problem = None, ""
        if options.vendor:
            try:
                devices = _devices(options.vendor, options.plugins, options.interval)
            except FlagPerfError as error:  # the host's sensors are worth having without the vendor's
                problem = str(error)
        telemetry = Telemetry(journal, options.interval, options.parent, devices)
        if problem:
            telemetry.unavailable("devices", problem)
        telemetry.run(stopped)
        kill_tools()  # one that hangs would outlive us
        journal.write(
            Key.TELEMETRY_COST,
            {
                "cpu_seconds": round(_cpu_seconds(), 6),
                "wall_seconds": round(time.monotonic() - began, 6),
                "samples": telemetry.samples,
                "missed": telemetry.missed,
                "failed": telemetry.failed,
                "unwritten": telemetry.unwritten,
                "sources": telemetry.sources,
            },
        )
    return 0


def _cpu_seconds() -> float:
    """Return the CPU time of this process from its start, the tools that adapters ran included."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
