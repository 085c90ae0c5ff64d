"""What the harness knows of a vendor and why, as `flagperf vendor explain` tells it."""

from __future__ import annotations

from typing import Literal

import msgspec

from flagperf.schema.chip import Chip
from flagperf.schema.machine import Availability, Device
from flagperf.schema.manifest import CaseOverride, Container

Kind = Literal["PCI id", "device node", "tool", "file", "variable", "distribution", "name"]


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was looked for, and what of it is here."""

    kind: Kind
    pattern: str
    found: list[str] = []
    also: list[str] = []
    """Other vendors that look for the same: it doesn't tell them apart."""


class ExplainedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A command that is asked for readings."""

    command: str
    timeout: float
    adds: bool
    """Asked as well, for what the others leave unknown."""
    path: str | None
    """Where it is on this host."""


class ExplainedVariable(msgspec.Struct, frozen=True, kw_only=True):
    """A variable that ranks are given."""

    name: str
    value: str
    why: str
    why_zh: str
    case: str = ""
    """Of which case; empty for all."""


class ExplainedKernels(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution with kernels."""

    distribution: str
    operations: list[str]
    version: str | None
    """The installed one."""


class ExplainOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf vendor explain --json`."""

    vendor: str
    title: str
    title_zh: str
    summary: str
    path: str
    """The manifest."""
    availability: Availability
    devices: list[Device]
    found: str
    """Why its devices were or weren't looked for."""
    markers: list[Marker]
    tools: list[ExplainedTool]
    device_type: str
    backend: str
    plugin: str
    plugin_installed: bool | None
    """None where none is needed."""
    torch: str | None
    """The installed one's version."""
    visible_devices: str
    visible_now: str | None
    """What that variable is set to."""
    install: str
    environment: list[ExplainedVariable]
    limits: dict[str, str]
    lacking: dict[str, str]
    container: Container
    kernels: list[ExplainedKernels]
    cases: dict[str, CaseOverride]
    chips: list[Chip]
    unknown: list[str]
    """What no source said."""
