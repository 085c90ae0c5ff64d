"""What makes a measurement on this machine noisy, or a run on it fail, and what to do about each."""

from __future__ import annotations

from pathlib import Path

from flagperf.measure.environment import FOREIGN_LIMIT, STEAL_LIMIT, Environment
from flagperf.measure.host import Host
from flagperf.schema.output import Check

_GIB = 2**30
_LEAST_DISK = 5 * _GIB


def checks(host: Host, now: Environment, compilers: list[dict[str, str | None]]) -> list[Check]:
    """Look at what can make a measurement noisy or a run fail."""
    found = [_foreign(now), _governor(host), _turbo(host), _hugepages(host), _virtual(host, now), _cgroup(host)]
    compiler = next((tool for tool in compilers if tool["path"] and tool["name"] != "ninja"), None)
    found.append(
        Check(name="compiler", status="ok", finding=str(compiler["version"]))
        if compiler
        else Check(
            name="compiler",
            status="info",
            finding="no C++ compiler, which torch.compile needs",
            advice="Install one, e.g. `apt-get install g++`; everything else runs without.",
        )
    )
    few = now.disk_free is not None and now.disk_free < _LEAST_DISK
    found.append(
        Check(
            name="disk",
            status="warn" if few else "ok",
            finding=f"{(now.disk_free or 0) / _GIB:.1f} GiB free in {Path.cwd()}",
            advice="Data and runs may need more; put them elsewhere with --out and FLAGPERF_CACHE." if few else "",
        )
    )
    if now.swap_used:
        found.append(
            Check(
                name="swap",
                status="warn",
                finding=f"{now.swap_used / _GIB:.1f} GiB swapped out",
                advice="Ranks that are swapped stall; free some memory.",
            )
        )
    return found


def _foreign(now: Environment) -> Check:
    load = f"load {now.load[0]:.2f} on {now.cores} cores"
    if now.foreign_percent <= FOREIGN_LIMIT:
        finding = f"others use {now.foreign_percent:.0f} % of a core, {load}"
        return Check(name="foreign load", status="ok", finding=finding)
    names = ", ".join(f"{process.name} (pid {process.pid}) {process.percent:.0f} %" for process in now.foreign[:3])
    return Check(
        name="foreign load",
        status="warn",
        finding=f"others use {now.foreign_percent:.0f} % of a core: {names}; {load}",
        advice="Stop them while measuring, or expect wide intervals.",
    )


def _governor(host: Host) -> Check:
    if host.governor is None:
        finding = "the kernel doesn't say (usual in a virtual machine)"
        return Check(name="frequency governor", status="info", finding=finding)
    if host.governor == "performance":
        return Check(name="frequency governor", status="ok", finding=host.governor)
    return Check(
        name="frequency governor",
        status="warn",
        finding=f"{host.governor}: cores slow down when they wait",
        advice="`sudo cpupower frequency-set -g performance`",
    )


def _turbo(host: Host) -> Check:
    if host.turbo is None:
        return Check(name="turbo", status="info", finding="the kernel doesn't say")
    if not host.turbo:
        return Check(name="turbo", status="ok", finding="off: the clock doesn't depend on the temperature")
    return Check(
        name="turbo",
        status="info",
        finding="on: the clock falls as the chip warms up",
        advice="Leave it on for the machine's best figure; switch it off to compare small differences.",
    )


def _hugepages(host: Host) -> Check:
    setting = host.transparent_hugepages or "the kernel doesn't say"
    advice = "Compare only results with the same setting." if setting == "always" else ""
    return Check(name="transparent huge pages", status="info", finding=setting, advice=advice)


def _virtual(host: Host, now: Environment) -> Check:
    where = host.virtualization or "the machine doesn't say"
    if where == "none":
        return Check(name="virtualization", status="ok", finding="bare metal")
    steal = "" if now.steal_percent is None else f", {now.steal_percent:.1f} % of the CPU time taken by the hypervisor"
    return Check(
        name="virtualization",
        status="warn" if (now.steal_percent or 0) > STEAL_LIMIT else "info",
        finding=where + steal,
        advice="Neighbours may slow it down unseen: the pulses in each trial show it." if "virtual" in where else "",
    )


def _cgroup(host: Host) -> Check:
    limits = host.cgroup
    if limits is None or (limits.cores is None and limits.memory is None):
        return Check(name="cgroup limits", status="ok", finding="none")
    said = []
    if limits.cores is not None:
        said.append(f"{limits.cores:g} cores' worth of time")
    if limits.memory is not None:
        said.append(f"{limits.memory / _GIB:.1f} GiB of memory")
    throttles = limits.cores is not None and limits.cores < len(host.allowed_cores)
    return Check(
        name="cgroup limits",
        status="warn" if throttles else "info",
        finding=" and ".join(said),
        advice="A quota stops all threads for part of each period: use a cpuset instead." if throttles else "",
    )
