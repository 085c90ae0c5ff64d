"""What this host is: cores, caches, memory, limits. Read from the kernel's files, quickly, without torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec

ISA_FLAGS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16",
    "asimd", "asimddp", "sve", "sve2", "bf16", "i8mm", "svebf16", "sme",
    "lsx", "lasx", "v",
)  # fmt: skip
"""Of the instruction sets a CPU lists, those that decide how fast it multiplies matrices."""

_UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2^63 for "no limit"."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """One level of cache, as the first allowed core sees it."""

    level: int
    kind: str
    """`data`, `instruction` or `unified`."""
    bytes: int
    shared_by: int
    """Logical cores that share one instance."""


class NumaNode(msgspec.Struct, frozen=True, kw_only=True):
    """Memory and the logical cores near it."""

    node: int
    cores: list[int]
    memory_total: int | None = None


class CgroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a container or a batch system grants; `None` is no limit."""

    version: int
    cores: float | None = None
    memory: int | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about this host. Bytes and MHz; `None` is what the platform doesn't say."""

    cpu_model: str
    architecture: str
    logical_cores: int
    allowed_cores: list[int]
    """Logical cores this process may run on, those of one NUMA node and one physical core side by side."""
    effective_cores: float
    """How many cores' worth of time this process can get: the allowed ones or the cgroup's quota."""
    sockets: int | None = None
    physical_cores: int | None = None
    isa: list[str] = []
    caches: list[Cache] = []
    numa: list[NumaNode] = []
    cgroup: CgroupLimits | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    swap_total: int | None = None
    virtualization: str | None = None
    """`none`, or what the hint is: a hypervisor's or a container's name."""
    governor: str | None = None
    turbo: bool | None = None
    frequency_minimum: float | None = None
    frequency_maximum: float | None = None
    frequency_now: float | None = None
    clock_source: str | None = None
    transparent_hugepages: str | None = None


def read_host(root: Path = Path("/"), allowed: list[int] | None = None) -> Host:
    """Read this host's facts; `root` is where /proc and /sys are found, `allowed` the cores this process may use."""
    cpus = root / "sys/devices/system/cpu"
    info = _cpuinfo(root)
    allowed = allowed or allowed_cores()
    order, physical, sockets, numa = _topology(root, allowed)
    cgroup = _cgroup(root)
    quota = cgroup.cores if cgroup else None
    memory = meminfo(root)
    frequency = cpus / f"cpu{order[0]}/cpufreq"
    return Host(
        cpu_model=cpu_model(root),
        architecture=platform.machine(),
        logical_cores=os.cpu_count() or len(allowed),
        allowed_cores=order,
        effective_cores=min(float(len(allowed)), quota) if quota else float(len(allowed)),
        sockets=sockets,
        physical_cores=physical,
        isa=[flag for flag in ISA_FLAGS if flag in _isa(info)],
        caches=_caches(cpus / f"cpu{order[0]}/cache"),
        numa=numa,
        cgroup=cgroup,
        memory_total=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        swap_total=memory.get("SwapTotal"),
        virtualization=_virtualization(root, info),
        governor=read_text(frequency / "scaling_governor"),
        turbo=_turbo(cpus),
        frequency_minimum=_megahertz(frequency / "cpuinfo_min_freq"),
        frequency_maximum=_megahertz(frequency / "cpuinfo_max_freq"),
        frequency_now=_megahertz(frequency / "scaling_cur_freq") or _number(info.get("cpu MHz")),
        clock_source=read_text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        transparent_hugepages=_chosen(read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    )


def cpu_model(root: Path = Path("/")) -> str:
    """Return the CPU's name as the kernel tells it, or what can be said instead."""
    info = _cpuinfo(root)
    for name in ("model name", "Model Name", "cpu model", "Model", "Hardware"):
        if info.get(name):
            return info[name]
    if "CPU part" in info:
        return f"{platform.machine()} implementer {info.get('CPU implementer', '?')} part {info['CPU part']}"
    return platform.processor() or f"{platform.machine()} CPU"


def allowed_cores() -> list[int]:
    """Return the logical cores this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores(host: Host) -> int:
    """Return how many cores can be kept busy at once: the allowed ones, less where a cgroup grants less."""
    return max(1, min(len(host.allowed_cores), int(host.effective_cores)))


def read_text(path: Path) -> str | None:
    """Return a small file's stripped text, or None where it can't be read or is empty."""
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n\t") or None
    except OSError:  # absent on this kernel, hidden by a container, or a sensor that is asleep
        return None


def read_int(path: Path) -> int | None:
    """Return a file's whole number, or None."""
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def parse_cores(text: str | None) -> list[int]:
    """Read the kernel's core lists: `0-3,8` is 0, 1, 2, 3 and 8."""
    cores: list[int] = []
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            cores.extend(range(int(first), int(last or first) + 1))
    return cores


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """Return memory sizes by the kernel's names, bytes."""
    text = read_text(root / "proc/meminfo")
    if text is None:
        import psutil

        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return {
            "MemTotal": memory.total,
            "MemAvailable": memory.available,
            "SwapTotal": swap.total,
            "SwapFree": swap.free,
        }
    sizes = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdigit():
            sizes[name] = int(number[0]) * (1024 if len(number) > 1 else 1)
    return sizes


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return the first core's entries of /proc/cpuinfo, and those that stand for all."""
    entries: dict[str, str] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    return entries


def _isa(info: dict[str, str]) -> set[str]:
    if "flags" in info or "Features" in info:
        return set((info.get("flags") or info["Features"]).split())
    return set(info.get("isa", "").partition("_")[0][4:])  # RISC-V: rv64imafdcv


def _topology(root: Path, allowed: list[int]) -> tuple[list[int], int | None, int | None, list[NumaNode]]:
    """Return the allowed cores in order, the numbers of physical cores and of sockets, and the NUMA nodes."""
    numa = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        total = [
            int(line.split()[-2]) * 1024
            for line in (read_text(folder / "meminfo") or "").splitlines()
            if "MemTotal" in line
        ]
        cores = parse_cores(read_text(folder / "cpulist"))
        numa.append(NumaNode(node=int(folder.name[4:]), cores=cores, memory_total=total[0] if total else None))
    numa.sort(key=lambda node: node.node)
    node_of = {core: node.node for node in numa for core in node.cores}

    place: dict[int, tuple[int, int]] = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        socket = read_int(folder / "topology/physical_package_id")
        core = read_int(folder / "topology/core_id")
        if core is not None:
            place[int(folder.name[3:])] = (socket or 0, core)
    order = sorted(allowed, key=lambda core: (node_of.get(core, 0), place.get(core, (0, core)), core))
    if place:
        return order, len(set(place.values())), len({socket for socket, _ in place.values()}), numa
    import psutil

    return order, psutil.cpu_count(logical=False), None, numa


def _caches(folder: Path) -> list[Cache]:
    caches = []
    for index in sorted(folder.glob("index[0-9]*")):
        level, kind, size = read_int(index / "level"), read_text(index / "type"), read_text(index / "size")
        if level is None or kind is None or size is None:
            continue
        shared = parse_cores(read_text(index / "shared_cpu_list"))
        factor = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(size[-1], 1)
        number = int(size.rstrip("KMG"))
        caches.append(Cache(level=level, kind=kind.lower(), bytes=number * factor, shared_by=max(1, len(shared))))
    return caches


def _cgroup(root: Path) -> CgroupLimits | None:
    """Return the tightest limits on the way from this process's group up to the root."""
    text = read_text(root / "proc/self/cgroup")
    if text is None:
        return None
    groups = {
        name: path for _, names, path in (line.split(":", 2) for line in text.splitlines()) for name in names.split(",")
    }
    mount = root / "sys/fs/cgroup"
    if (mount / "cgroup.controllers").exists():
        cores, memory = [], []
        for folder in _upwards(mount, groups.get("", "/")):
            quota, _, period = (read_text(folder / "cpu.max") or "max").partition(" ")
            if quota.isdigit() and period.isdigit():
                cores.append(int(quota) / int(period))
            if (limit := read_int(folder / "memory.max")) is not None:
                memory.append(limit)
        return CgroupLimits(version=2, cores=min(cores, default=None), memory=min(memory, default=None))
    cores, memory = [], []
    for folder in _upwards(mount / "cpu", groups.get("cpu", "/")):
        allowance, span = read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")
        if allowance and span and allowance > 0:
            cores.append(allowance / span)
    for folder in _upwards(mount / "memory", groups.get("memory", "/")):
        limit = read_int(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            memory.append(limit)
    return CgroupLimits(version=1, cores=min(cores, default=None), memory=min(memory, default=None))


def _upwards(mount: Path, group: str) -> list[Path]:
    """Return a group's folder and those above it; in a container the path may begin above the mount."""
    folder = mount / group.strip("/")
    return [folder, *[parent for parent in folder.parents if parent == mount or mount in parent.parents]]


def _virtualization(root: Path, info: dict[str, str]) -> str | None:
    layers = []
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        layers.append("container")
    if "hypervisor" in _isa(info):
        maker = read_text(root / "sys/hypervisor/type") or read_text(root / "sys/class/dmi/id/sys_vendor")
        layers.append(f"virtual machine ({maker})" if maker else "virtual machine")
    if layers:
        return " in a ".join(layers)
    return "none" if "flags" in info else None  # only x86 says whether it is virtual


def _turbo(cpus: Path) -> bool | None:
    if (off := read_int(cpus / "intel_pstate/no_turbo")) is not None:
        return not off
    boost = read_int(cpus / "cpufreq/boost")
    return None if boost is None else bool(boost)


def _megahertz(path: Path) -> float | None:
    value = read_int(path)
    return None if value is None else value / 1000


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _chosen(text: str | None) -> str | None:
    """Return the bracketed word of `always [madvise] never`."""
    if text and "[" in text:
        return text[text.index("[") + 1 : text.index("]")]
    return text
