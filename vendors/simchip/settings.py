"""What a simulated device is like: every setting, each in an environment variable that begins with `SIMCHIP_`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from flagperf.errors import UsageError

MOST_DEVICES = 16
_PREFIX = "SIMCHIP_"


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong, as `SIMCHIP_FAULTS` writes it: `lost device=1 after=500`; several with `;` between.

    It begins when the device has run `after` operators and has been in use for `seconds`, and then stays.
    """

    kind: Literal["out_of_memory", "wrong", "lost"]
    """No memory is given any more; an operator's results are wrong; everything asked of the device fails."""
    device: int = -1
    """Which device; -1 for each."""
    after: int = 0
    seconds: float = 0.0
    operator: str = "mm"
    """Which operator is wrong, as ATen calls it."""
    factor: float = 1.5
    """What the results of a wrong operator are multiplied by."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices of this host. A rate of 0 is the host's own speed."""

    devices: int = 0
    memory_mib: int = 8192
    """Of each device, and for each process: two processes on one device don't share it."""
    delay: float = 0.0
    """Seconds that every operator takes."""
    flops: float = 0.0
    """FLOP/s of matrix products, which take this in addition to the delay."""
    bytes: float = 0.0
    """Bytes a second of copies within a device and between it and the host."""
    link: float = 0.0
    """Bytes a second of collective operations, by the bytes of their results on one rank."""
    faults: list[Fault] = []
    state: str = ""
    """Folder in which processes tell what their devices do; empty for one of this user's among temporary files."""

    def __post_init__(self) -> None:
        if not 0 <= self.devices <= MOST_DEVICES:
            raise ValueError(f"devices is {self.devices}; it is 0 to {MOST_DEVICES}")
        for name in ("memory_mib", "delay", "flops", "bytes", "link"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it can't be negative")

    @property
    def folder(self) -> Path:
        """Where processes tell what their devices do."""
        return Path(self.state) if self.state else Path(tempfile.gettempdir()) / f"flagperf-simchip-{os.getuid()}"

    @property
    def name(self) -> str:
        """What the device is called: its speeds are part of it, since results of two speeds aren't of one device."""
        units = {"delay": "s an operator", "flops": "FLOP/s", "bytes": "B/s", "link": "B/s linked"}
        speeds = [f"{getattr(self, key):g} {unit}" for key, unit in units.items() if getattr(self, key)]
        return f"simchip ({', '.join(['simulated', *speeds])})"


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that the environment holds; raise UsageError for those it can't mean."""
    values: dict[str, Any] = {
        field: environ[_PREFIX + field.upper()]
        for field in Settings.__struct_fields__
        if environ.get(_PREFIX + field.upper())
    }
    try:
        values["faults"] = [_fault(words) for words in values.get("faults", "").split(";") if words.strip()]
        return msgspec.convert(values, Settings, strict=False)
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise UsageError(
            f"The settings of the simulated device can't be used: {error}",
            f"They are {', '.join(_PREFIX + field.upper() for field in Settings.__struct_fields__)}; "
            "faults look like SIMCHIP_FAULTS='lost device=1 after=500; wrong operator=mm factor=1.1'.",
        ) from error


def _fault(words: str) -> Fault:
    kind, *others = words.split()
    pairs = [word.partition("=") for word in others]
    return msgspec.convert({"kind": kind, **{key: value for key, _, value in pairs}}, Fault, strict=False)
