"""`flagperf doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flagperf.measure.environment import Environment
    from flagperf.measure.host import Host
    from flagperf.schema.machine import Availability, Device

_GIB = 2**30
_LEAST_DISK = 5 * _GIB
_COLOURS = {"ok": "green", "info": "cyan", "warn": "yellow"}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at: how it is, and what to do if that isn't well."""

    name: str
    status: Literal["ok", "info", "warn"]
    finding: str
    advice: str = ""


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Import torch too, and try what it can do.")] = False,
    json: common.JSON = False,
) -> None:
    """Say what this machine has, what can be run on it, and what would make its numbers noisy.

    Exit status 1 if no vendor's devices can be used.

    Example: flagperf doctor --json
    """
    import tempfile

    import flagperf
    from flagperf.cli.devices import find
    from flagperf.measure.environment import snapshot
    from flagperf.measure.host import read_host
    from flagperf.registry import availability

    registries = common.registries()
    host, now = read_host(), snapshot(Path.cwd(), window=1.0)
    vendors, compilers = find(registries), _compilers()
    report: dict[str, Any] = {
        "flagperf": flagperf.__version__,
        "commit": now.commit,
        "python": {"version": now.python, "executable": sys.executable},
        "packages": now.packages,
        "host": host,
        "environment": now,
        "vendors": [state for state, _ in vendors],
        "devices": [device for _, devices in vendors for device in devices],
        "engines": [availability(manifest) for manifest in registries.engines.all()],
        "launchers": [availability(manifest) for manifest in registries.launchers.all()],
        "broken": {**registries.engines.broken, **registries.launchers.broken, **registries.cases.broken},
        "compilers": compilers,
        "disk": {"folder": str(Path.cwd()), "free": now.disk_free, "temporary": tempfile.gettempdir()},
        "caches": _caches(),
        "checks": _checks(host, now, compilers),
    }
    if deep:
        report["torch"] = _torch()
    if json:
        common.print_json(report)
    else:
        _print(report, host, now)
    if not any(state.available for state, _ in vendors):
        raise typer.Exit(1)


def _compilers() -> list[dict[str, str | None]]:
    """Return the compilers that torch.compile and extensions look for."""
    import os
    import shutil
    import subprocess

    found: list[dict[str, str | None]] = []
    for name in dict.fromkeys((os.environ.get("CXX") or "g++", "g++", "clang++", "ninja")):
        path, version = shutil.which(name), None
        if path:
            try:
                done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
                version = done.stdout.partition("\n")[0].strip() or None
            except (OSError, subprocess.TimeoutExpired) as error:
                version = f"doesn't run: {error}"
        found.append({"name": name, "path": path, "version": version})
    return found


def _caches() -> list[dict[str, Any]]:
    """Return what is kept between runs: prepared data, measured peaks."""
    from flagperf import paths

    root = paths.cache()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [{"name": folder.name, "path": str(folder), "bytes": _size(folder)} for folder in folders]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _checks(host: Host, now: Environment, compilers: list[dict[str, str | None]]) -> list[Check]:
    """Look at what can make a measurement noisy or a run fail."""
    checks = [_foreign(now), _governor(host), _turbo(host), _hugepages(host), _virtual(host, now), _cgroup(host)]
    compiler = next((tool for tool in compilers if tool["path"] and tool["name"] != "ninja"), None)
    checks.append(
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
    checks.append(
        Check(
            name="disk",
            status="warn" if few else "ok",
            finding=f"{(now.disk_free or 0) / _GIB:.1f} GiB free in {Path.cwd()}",
            advice="Data and runs may need more; put them elsewhere with --out and FLAGPERF_CACHE." if few else "",
        )
    )
    if now.swap_used:
        checks.append(
            Check(
                name="swap",
                status="warn",
                finding=f"{now.swap_used / _GIB:.1f} GiB swapped out",
                advice="Ranks that are swapped stall; free some memory.",
            )
        )
    return checks


def _foreign(now: Environment) -> Check:
    from flagperf.measure.environment import FOREIGN_LIMIT

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
    from flagperf.measure.environment import STEAL_LIMIT

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


def _torch() -> dict[str, Any]:
    """Import torch and say what it can do here; whatever fails is said, too."""
    try:
        import torch
        import torch.distributed as dist

        ones = torch.ones(64, 64)
        right = bool((ones @ ones == 64).all())
        return {
            "version": torch.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
            "threads": torch.get_num_threads(),
            "accelerator": str(torch.accelerator.current_accelerator() or "none"),
            "backends": [name for name in dist.Backend.backend_list if dist.is_backend_available(name)],
            "matmul": "right" if right else "wrong",
        }
    except Exception as error:  # a broken installation can raise anything, and saying so is what this is for
        return {"error": f"{type(error).__name__}: {error}"}


def _print(report: dict[str, Any], host: Host, now: Environment) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = common.out()

    def section(title: str, rows: Sequence[tuple[str, ...]]) -> None:
        table = Table(show_header=False, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        if rows:
            out.print(f"\n[bold]{title}[/]")
            out.print(table)

    cores = f"{len(host.allowed_cores)} of {host.logical_cores} logical cores allowed"
    if host.physical_cores:
        cores += f", {host.physical_cores} physical"
    memory = f"{(host.memory_available or 0) / _GIB:.1f} of {(host.memory_total or 0) / _GIB:.1f} GiB available"
    caches = [f"L{c.level} {c.kind} {c.bytes / 2**10:,.0f} KiB for {c.shared_by}" for c in host.caches]
    section(
        "Machine",
        [
            ("CPU", f"{escape(host.cpu_model)} ({host.architecture}), {cores}, {len(host.numa) or 1} NUMA nodes"),
            ("instructions", " ".join(host.isa) or "–"),
            ("caches, cores", ", ".join(caches) or "–"),
            ("memory", memory),
            ("kernel", f"{now.kernel}, clock source {now.clock_source or '–'}"),
        ],
    )
    packages = ", ".join(f"{name} {version}" for name, version in now.packages.items() if name != "torch")
    section(
        "Software",
        [
            ("flagperf", f"{report['flagperf']}{' ' + now.commit if now.commit else ''}"),
            ("python", f"{now.python} ({escape(sys.executable)})"),
            ("torch", now.packages.get("torch", "not installed")),
            ("packages", packages or "–"),
            *((f"torch {key}", escape(str(value))) for key, value in report.get("torch", {}).items()),
            *((tool["name"], escape(tool["version"] or "not found")) for tool in report["compilers"]),
        ],
    )
    section("Devices", [_device(device) for device in report["devices"]])
    for title, key in (("Vendors", "vendors"), ("Engines", "engines"), ("Launchers", "launchers")):
        section(title, [_available(state) for state in report[key]])
    section("Can't be read", [(escape(path), escape(why)) for path, why in report["broken"].items()])
    kept = [(cache["name"], f"{cache['bytes'] / 2**20:,.1f} MiB", escape(cache["path"])) for cache in report["caches"]]
    section("Kept between runs", kept)
    section(
        "Fit for measuring?",
        [
            (f"[{_COLOURS[c.status]}]{c.status}[/]", c.name, escape(c.finding), f"[dim]{escape(c.advice)}[/]")
            for c in report["checks"]
        ],
    )


def _device(device: Device) -> tuple[str, ...]:
    from rich.markup import escape

    from flagperf.cli.devices import mebibytes

    memory, driver = f"{mebibytes(device.memory_total_mib)} MiB", f"driver {escape(device.driver or '–')}"
    return f"{device.vendor} {device.index}", escape(device.name), memory, driver, escape(device.state)


def _available(state: Availability) -> tuple[str, str, str]:
    from rich.markup import escape

    if state.available:
        return state.name, "[green]yes[/]", state.version
    return state.name, "[yellow]no[/]", escape(f"{state.reason}{'; ' + state.remedy if state.remedy else ''}")
