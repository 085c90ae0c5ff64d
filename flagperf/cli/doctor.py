"""`flagperf doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flagperf.measure.environment import Environment
    from flagperf.measure.host import Host
    from flagperf.schema.machine import Availability, Device

_GIB = 2**30
_COLOURS = {"ok": "green", "info": "cyan", "warn": "yellow"}


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
    from flagperf.measure.noise import checks
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
        "checks": checks(host, now, compilers),
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


def _torch() -> dict[str, Any]:
    """Import torch and say what it can do here; whatever fails is said, too."""
    try:
        import torch
        import torch.distributed as dist

        ones = torch.ones(64, 64)
        right = bool((ones @ ones == 64).all())
        return {
            "version": str(torch.__version__),
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
