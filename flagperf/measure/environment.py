"""The state of the machine before and after a trial, and what in it should make a reader doubt a number."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

import flagperf
from flagperf.measure.host import allowed_cores, cpu_model, meminfo, read_int, read_text

PACKAGES = (
    "torch", "numpy", "triton", "transformers", "tokenizers", "deepspeed", "megatron-core", "bmtrain", "flash-attn",
    "torch-npu", "torch-mlu", "torch-musa", "intel-extension-for-pytorch", "nvidia-nccl-cu12", "mkl",
)  # fmt: skip
"""Distributions whose version can move a result."""

_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "PYTORCH_", "TORCH_")
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
_LIMITS = ("RLIMIT_AS", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_STACK", "RLIMIT_CPU")

FOREIGN_LIMIT = 20.0
"""Percent of one core; foreign work above it is called out."""
MEMORY_LIMIT = 0.05
"""Share of the memory; less available is called out."""
STEAL_LIMIT = 2.0
"""Percent of the CPU time; more taken by the hypervisor is called out."""
SWAP_LIMIT = 256
"""Pages swapped in a trial; more is called out."""


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """A process that isn't ours and used the CPU. Its name only: arguments can hold secrets."""

    pid: int
    name: str
    percent: float
    """Of one core."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the software at one moment. Bytes; `None` is what the platform doesn't say."""

    time: str
    """ISO 8601, UTC."""
    python: str
    flagperf: str
    commit: str | None
    """Of the checkout this runs from, with `+dirty` where its tracked files were changed."""
    packages: dict[str, str]
    kernel: str
    cpu: str
    cores: int
    """Logical cores this process may use."""
    load: list[float]
    """Averages over 1, 5 and 15 minutes."""
    foreign: list[Foreign]
    """The largest users of the CPU that aren't ours."""
    foreign_percent: float
    """Of one core, all foreign processes together."""
    steal_percent: float | None
    """Share of the CPU time the hypervisor gave to others."""
    window: float
    """Seconds the last three were watched for."""
    governor: str | None
    clock_source: str | None
    frequency: float | None
    """MHz of the first allowed core."""
    temperature: float | None
    """Hottest sensor, degrees Celsius."""
    throttled: int | None
    """Times any core was throttled since boot."""
    memory_total: int | None
    memory_available: int | None
    swap_used: int | None
    swapped_pages: int | None
    """Pages swapped in and out since boot."""
    disk_free: int | None
    limits: dict[str, int | None]
    """Resource limits of this process; `None` is unlimited."""
    variables: dict[str, str]


def snapshot(folder: Path, run_pids: Iterable[int] = (), window: float = 0.5) -> Environment:
    """Describe the machine now, watching it for `window` seconds.

    `folder` is where free disk space is looked up. Processes in `run_pids`, this one, and all their descendants are
    ours; every other is foreign.
    """
    first, before, stolen = time.monotonic(), _processes(), _cpu_times()
    time.sleep(window)
    after, stolen_after = _processes(), _cpu_times()
    span = time.monotonic() - first
    foreign = _foreign(before, after, {os.getpid(), *run_pids}, span)
    memory, cores = meminfo(), allowed_cores()
    cpu = Path(f"/sys/devices/system/cpu/cpu{cores[0]}/cpufreq")
    megahertz = read_int(cpu / "scaling_cur_freq")
    return Environment(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        python=platform.python_version(),
        flagperf=flagperf.__version__,
        commit=git_commit(),
        packages=packages(),
        kernel=f"{platform.system()} {platform.release()}",
        cpu=cpu_model(),
        cores=len(cores),
        load=[round(value, 2) for value in os.getloadavg()],
        foreign=foreign[:10],
        foreign_percent=round(sum(process.percent for process in foreign), 1),
        steal_percent=_share(stolen, stolen_after),
        window=round(span, 3),
        governor=read_text(cpu / "scaling_governor"),
        clock_source=read_text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        frequency=megahertz / 1000 if megahertz else None,
        temperature=temperature(),
        throttled=throttled(),
        memory_total=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        swap_used=memory["SwapTotal"] - memory["SwapFree"] if "SwapFree" in memory else None,
        swapped_pages=_swapped_pages(),
        disk_free=_disk_free(folder),
        limits=_limits(),
        variables=variables(os.environ.items()),
    )


def differences(before: Environment, after: Environment) -> list[str]:
    """Say in plain sentences what changed during a trial, or was suspicious before or after it."""
    said = []
    for when, state in (("Before", before), ("After", after)):
        if state.foreign_percent > FOREIGN_LIMIT:
            names = ", ".join(f"{p.name} (pid {p.pid}) {p.percent:.0f} %" for p in state.foreign[:3])
            said.append(f"{when} the trial other processes used {state.foreign_percent:.0f} % of a core: {names}.")
        if state.steal_percent is not None and state.steal_percent > STEAL_LIMIT:
            said.append(f"{when} the trial the hypervisor took {state.steal_percent:.1f} % of the CPU time.")
        if state.memory_available is not None and state.memory_total:
            share = state.memory_available / state.memory_total
            if share < MEMORY_LIMIT:
                said.append(f"{when} the trial only {share:.1%} of the memory was available.")
    # Ranks keep at most each allowed core busy; what waits beyond that isn't theirs.
    if after.load[0] > after.cores * 1.25 + 0.5:
        said.append(f"The load rose to {after.load[0]:.1f} on {after.cores} cores: more was running than the ranks.")
    for label, old, new in (
        ("frequency governor", before.governor, after.governor),
        ("clock source", before.clock_source, after.clock_source),
        ("kernel", before.kernel, after.kernel),
        ("commit", before.commit, after.commit),
        ("number of allowed cores", before.cores, after.cores),
    ):
        if old != new:
            said.append(f"The {label} changed from {old} to {new}.")
    for name in sorted(before.packages.keys() | after.packages.keys()):
        old, new = before.packages.get(name), after.packages.get(name)
        if old != new:
            said.append(f"The package {name} changed from {old or 'absent'} to {new or 'absent'}.")
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        said.append(f"Cores were throttled {after.throttled - before.throttled} times.")
    if before.swapped_pages is not None and after.swapped_pages is not None:
        swapped = after.swapped_pages - before.swapped_pages
        if swapped > SWAP_LIMIT:
            said.append(f"The machine swapped {swapped} pages.")
    return said


def packages() -> dict[str, str]:
    """Return the versions of the installed distributions that can move a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def variables(environment: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the environment variables that steer threads, allocators and devices, and no others."""
    return {
        name: value
        for name, value in sorted(environment)
        if (name.startswith(_VARIABLES) or name.endswith("VISIBLE_DEVICES"))
        and not any(word in name for word in _SECRET)
    }


def git_commit() -> str | None:
    """Return the commit this code runs from, with `+dirty` where it was changed since; None where it is no checkout."""
    folder = Path(flagperf.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):  # no git, not our repository, or no commit yet
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        return f"{commit}+dirty"
    return commit


def temperature() -> float | None:
    """Return the hottest sensor the kernel tells of, degrees Celsius."""
    paths = [*Path("/sys/class/thermal").glob("thermal_zone*/temp"), *Path("/sys/class/hwmon").glob("*/temp*_input")]
    values = [value / 1000 for path in paths if (value := read_int(path)) is not None]
    return max(values, default=None)


def throttled() -> int | None:
    """Return how often cores were throttled since boot, all together."""
    paths = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [count for path in paths if (count := read_int(path)) is not None]
    return sum(counts) if counts else None


class _Process(msgspec.Struct, frozen=True):
    parent: int
    name: str
    seconds: float
    """CPU time so far."""


def _processes() -> dict[int, _Process]:
    found = {}
    if not Path("/proc/self/stat").exists():
        import psutil

        for process in psutil.process_iter(["pid", "ppid", "name", "cpu_times"]):
            times = process.info["cpu_times"]
            if times is not None:
                name = process.info["name"] or "?"
                found[process.info["pid"]] = _Process(process.info["ppid"] or 0, name, times.user + times.system)
        return found
    tick = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (text := read_text(folder / "stat")) is not None:
            # The name stands in parentheses and may hold anything, parentheses too.
            head, _, tail = text.rpartition(")")
            fields = tail.split()
            name = head.partition("(")[2]
            found[int(folder.name)] = _Process(int(fields[1]), name, (int(fields[11]) + int(fields[12])) / tick)
    return found


def _foreign(before: dict[int, _Process], after: dict[int, _Process], ours: set[int], span: float) -> list[Foreign]:
    """Return the processes that used the CPU and don't descend from `ours`, the busiest first."""
    found = []
    for pid, process in after.items():
        used = process.seconds - (before[pid].seconds if pid in before else 0.0)
        if used > 0 and not _descends(pid, after, ours):
            found.append(Foreign(pid=pid, name=process.name, percent=round(100 * used / span, 1)))
    return sorted(found, key=lambda process: -process.percent)


def _descends(pid: int, processes: dict[int, _Process], ancestors: set[int]) -> bool:
    while pid not in ancestors:
        if pid not in processes or processes[pid].parent == pid:
            return False
        pid = processes[pid].parent
    return True


def _cpu_times() -> list[int]:
    """Return the kernel's counters of CPU time, in its order: user, nice, system, idle, iowait, irq, softirq, steal."""
    text = read_text(Path("/proc/stat"))
    return [int(field) for field in text.split("\n", 1)[0].split()[1:9]] if text else []


def _share(before: list[int], after: list[int]) -> float | None:
    """Return the hypervisor's share between two readings, percent."""
    if len(before) < 8 or len(after) < 8 or sum(after) <= sum(before):
        return None
    return round(100 * (after[7] - before[7]) / (sum(after) - sum(before)), 2)


def _swapped_pages() -> int | None:
    text = read_text(Path("/proc/vmstat"))
    if text is None:
        return None
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("pswpin ", "pswpout ")))


def _disk_free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except FileNotFoundError:  # a run folder that isn't there yet
        return None


def _limits() -> dict[str, int | None]:
    import resource

    soft = {name: resource.getrlimit(getattr(resource, name))[0] for name in _LIMITS if hasattr(resource, name)}
    return {name[7:].lower(): None if value == resource.RLIM_INFINITY else value for name, value in soft.items()}
