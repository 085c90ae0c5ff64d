"""Devices and the state of the machine."""

from __future__ import annotations

from typing import Any

import msgspec


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator, or the CPU, that a vendor found on this host. `None` is what the source doesn't say."""

    vendor: str
    index: int
    name: str
    memory_total_mib: float | None = None
    memory_used_mib: float | None = None
    driver: str | None = None
    state: str = "ok"
    facts: dict[str, Any] = {}


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """Whether something can be used here, and if not, why and the command that gets it."""

    name: str
    available: bool
    reason: str = ""
    remedy: str = ""
    version: str = ""
    absent: bool = False
    """Whether there's no trace of it, so that nothing is to be mended."""
