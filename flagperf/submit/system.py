"""The form that describes the system: filled in from the machine as far as that goes, the rest by hand."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flagperf.errors import FlagPerfError, UsageError
from flagperf.schema.machine import Device
from flagperf.schema.submission import SystemDescription
from flagperf.submit import strict

MARK = "FILL IN: "
"""What a field begins with that a person is to fill in."""

_HEAD = """\
# The system that a FlagPerf submission was measured on. What this machine could tell is filled in: check it too.
# Replace every value that begins with "FILL IN:"; `flagperf submit pack` refuses the form while one is left.
"""


def form(devices: Sequence[Device]) -> tuple[str, list[str]]:
    """Return the form as YAML, filled in for this machine and these devices, and the fields left to a person."""
    from flagperf.measure.environment import packages
    from flagperf.measure.host import read_host

    host = read_host()
    first = devices[0] if devices else None
    alike = [device for device in devices if first and device.name == first.name]
    values: dict[str, Any] = {
        "schema": 1,
        "name": _mark("name of the system as it is sold, such as Example Server 8"),
        "status": _mark("available, preview or research"),
        "submitter": _mark("your organisation"),
        "contact": _mark("an address for questions"),
        "licence": _mark("SPDX identifier of the licence of this submission, such as Apache-2.0"),
        "host": {
            "count": 1,
            "cpu": host.cpu_model or _mark("processor"),
            "sockets": host.sockets or _mark("number of processors"),
            "cores": len(host.allowed_cores),
            "memory_gib": _gib(host.memory_total) or _mark("GiB a host"),
            "storage": _mark("disks that hold the data, or a shared file system"),
            "os": _os(),
            "kernel": f"{platform.system()} {platform.release()}",
            "network": _mark("between hosts, such as 8 × 400 Gbit/s RoCE, or none"),
        },
        "accelerator": {
            "name": first.name if first else _mark("name of the accelerator"),
            "count_per_host": len(alike) or _mark("devices a host"),
            "memory_gib": _memory(first) or _mark("GiB a device"),
            "interconnect": _mark("between the devices of a host, or none"),
            "driver": (first.driver if first else None) or _mark("version of the driver, or none"),
            "firmware": _mark("version of the firmware, or none"),
            "clocks": "as shipped",
            "boost_clock_mhz": None,
            "power_limit_w": None,
        },
        "software": {"python": platform.python_version(), "packages": packages()},
        "cooling": _mark("air, liquid or immersion"),
        "notes": "",
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return _HEAD + text, [".".join(map(str, path)) for path, _ in _marks(values, ())]


def read(path: Path) -> tuple[bytes, SystemDescription]:
    """Return a form's bytes and content; raise UsageError with lines for one that isn't filled in or can't be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "Make one: flagperf submit system -o SYSTEM.yaml"
        raise UsageError(f"The system description {path} can't be read: {error.strerror}.", hint) from error
    try:
        document = strict.yaml_document(data)
        if left := [f"line {document.lines[place]}: {where(place)}" for place, _ in _marks(document.value, ())]:
            raise UsageError(
                f"{path} isn't filled in: {'; '.join(left)}.", f'Replace every value that begins with "{MARK.strip()}".'
            )
        return data, strict.typed(document, SystemDescription)
    except strict.Malformed as error:
        line = f", line {error.line}" if error.line else ""
        raise FlagPerfError(
            f"{path}{line}: {error}.", "`flagperf submit system` writes a form with every field there is."
        ) from error


def parse(data: bytes) -> tuple[SystemDescription, dict[strict.Path, int]]:
    """Read a form from a bundle; raise Malformed."""
    document = strict.yaml_document(data)
    for place, value in _marks(document.value, ()):
        raise strict.Malformed(f"{where(place)} isn't filled in: {value}", document.lines[place])
    return strict.typed(document, SystemDescription), document.lines


def where(place: strict.Path) -> str:
    """Write a place in a document as a person would."""
    return ".".join(map(str, place))


def _mark(what: str) -> str:
    return MARK + what


def _marks(value: Any, place: strict.Path) -> list[tuple[strict.Path, str]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _marks(inner, (*place, key))]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in _marks(inner, (*place, index))]
    return [(place, value)] if isinstance(value, str) and value.startswith(MARK.strip()) else []


def _gib(size: int | None) -> float | None:
    return round(size / 2**30, 1) if size else None


def _memory(device: Device | None) -> float | None:
    if device is None or device.memory_total_mib is None:
        return None
    return round(device.memory_total_mib / 1024, 1)


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system() or _mark("operating system")


def write(path: Path, text: str) -> None:
    """Write a form; one that is there already may have been filled in, and is kept."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already.", "Name another file with -o.") from None
    except OSError as error:
        raise FlagPerfError(f"Can't write {path}: {error.strerror}.", "Name another file with -o.") from error
