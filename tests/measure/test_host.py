"""Host facts, from made-up kernels' files and from this machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.measure.host import parse_cores, read_host, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two sockets, one NUMA node each, two physical cores a socket with two hyper-threads; a cgroup v2 container."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Chip 9000\nflags\t\t: fpu avx2 avx512f amx_bf16 hypervisor\n",
        "proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 512 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nHugePages: 3\n",
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/pod/memory.max": "max\n",
        "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pod/box/memory.max": "1073741824\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
        "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3900000\n",
        "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
        "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "48K\n",
        "sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list": "0,4\n",
        "sys/devices/system/node/node0/cpulist": "0,2,4,6\n",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       512 kB\n",
        "sys/devices/system/node/node1/cpulist": "1,3,5,7\n",
    }
    for cpu in range(8):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = f"{cpu % 2}\n"
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"] = f"{cpu // 2 % 2}\n"
    return write(tmp_path, files)


def test_reads_a_machine_with_sockets_hyperthreads_and_limits(machine: Path) -> None:
    host = read_host(machine, allowed=list(range(8)))
    assert host.cpu_model == "Chip 9000"
    assert host.isa == ["avx2", "avx512f", "amx_bf16"]
    assert (host.sockets, host.physical_cores) == (2, 4)
    # Node 0 first; in it the hyper-threads of one physical core side by side.
    assert host.allowed_cores == [0, 4, 2, 6, 1, 5, 3, 7]
    assert [(node.node, node.cores, node.memory_total) for node in host.numa] == [
        (0, [0, 2, 4, 6], 512 * 1024),
        (1, [1, 3, 5, 7], None),
    ]
    assert host.cgroup is not None
    assert (host.cgroup.version, host.cgroup.cores, host.cgroup.memory) == (2, 2.5, 2**30)
    assert host.effective_cores == 2.5
    assert usable_cores(host) == 2
    assert (host.caches[0].bytes, host.caches[0].shared_by, host.caches[0].kind) == (48 * 1024, 2, "data")
    assert (host.governor, host.turbo, host.frequency_maximum) == ("powersave", True, 3900.0)
    assert (host.transparent_hugepages, host.clock_source, host.virtualization) == ("madvise", "tsc", "virtual machine")
    assert (host.memory_total, host.memory_available) == (2**20, 2**19)


def test_reads_cgroup_v1_limits(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1 kB\n",
            "proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    limits = read_host(tmp_path, allowed=[0, 1, 2]).cgroup
    assert limits is not None
    assert (limits.version, limits.cores, limits.memory) == (1, 1.5, None)


def test_a_host_without_the_files_has_unknowns_not_guesses(tmp_path: Path) -> None:
    host = read_host(tmp_path, allowed=[3])
    assert host.allowed_cores == [3]
    assert host.effective_cores == 1.0
    assert (host.governor, host.turbo, host.clock_source, host.cgroup, host.numa) == (None, None, None, None, [])
    assert host.memory_total  # psutil knows


def test_this_machine() -> None:
    host = read_host()
    assert sorted(host.allowed_cores) == sorted(os.sched_getaffinity(0))
    assert host.memory_total is not None
    assert abs(host.memory_total - os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < host.memory_total * 0.05
    assert 0 < host.effective_cores <= len(host.allowed_cores)


@given(st.sets(st.integers(0, 300), max_size=40))
def test_core_lists_are_read_as_the_kernel_writes_them(cores: set[int]) -> None:
    spans: list[list[int]] = []
    for core in sorted(cores):
        if spans and spans[-1][1] == core - 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    assert parse_cores(text + "\n") == sorted(cores)
