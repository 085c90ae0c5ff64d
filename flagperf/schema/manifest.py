"""Manifests: what a case, engine, vendor or launcher says of itself in TOML, read without importing its code."""

from __future__ import annotations

from typing import Any

import msgspec
from packaging.specifiers import SpecifierSet


class Requirement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution an entry needs, and the command that gets it."""

    distribution: str
    versions: str = ""
    """Those it works with, as PEP 440 writes it: `>=2.6`, `==1.0.1`; empty for any."""
    install: str

    def __post_init__(self) -> None:
        SpecifierSet(self.versions)  # raises ValueError, which makes the manifest one that can't be read


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every manifest has. `entry` is `module:Class`; a leading dot is relative to the manifest's package."""

    name: str
    title: str
    title_zh: str = ""
    summary: str
    entry: str
    requires: list[Requirement] = []


class LayoutRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The values an engine takes for one layout key, and why no others."""

    values: list[int]
    default: int | None = None
    why: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A combination of layout keys that an engine can't do though it takes each by itself."""

    least: dict[str, int]
    """Refused where every one of these keys has at least this value."""
    why: str
    instead: str
    """The nearest layout that it can do, as a person would write it."""


class EngineManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine: what runs a case's model."""

    kind: str
    """The kind of case it runs: `training`, …"""
    layout: dict[str, LayoutRule] = {}
    """What it takes for each layout key but `micro`; a key that isn't here keeps its default."""
    refused: list[Refusal] = []
    dtypes: list[str] = msgspec.field(default_factory=lambda: ["fp32", "bf16"])
    max_ranks: int | None = None
    collectives: list[str] = []
    """Operations of torch.distributed it can't do without: `all_reduce`, `reduce_scatter` …"""


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a case is measured, as data."""

    warmup: int
    """Steps before the clock starts."""
    steps: int
    """Measured steps."""
    trials: int
    """Fresh processes an engine; statistics go over these."""
    seed: int
    """Of the first trial; trial t uses seed + t, for every engine alike."""
    validation: int
    """Held-out sequences the model is judged on at the end."""
    global_batch: int
    """Sequences an optimizer step, over all ranks."""
    minimum_effect: float = 0.03
    """A smaller difference counts as none."""
    loss_band: float = 0.01
    """Largest relative difference of two engines' losses, at any step and in validation, for the same seed."""
    timeout: float = 1800.0
    """Seconds a trial may take before it is taken for hung."""
    telemetry: float = 1.0
    """Seconds between samples of the machine."""
    region: str = ""
    """What is on the clock, in words."""
    region_zh: str = ""


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named size of a case."""

    summary: str
    protocol: dict[str, Any] = {}
    """Overrides of the case's protocol."""
    settings: dict[str, Any] = {}
    """Overrides of the case's settings, merged key by key."""
    micro: int = 1
    """Sequences a micro-batch unless the layout says."""
    dtype: str = "fp32"


class CaseManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A case: a standardized workload with fixed rules."""

    kind: str
    protocol: Protocol
    settings: dict[str, Any] = {}
    """The case's own parameters, checked by the case's code."""
    presets: dict[str, Preset]
    dtypes: list[str]
    metrics: list[str]
    """Names from the catalogue, the leading one first."""
    target: str = ""
    """The quality target in words, or empty."""


class VendorManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vendor: all that the harness knows of one chip maker's stack."""

    device_type: str
    """torch's device type: `cpu`, `cuda`, `npu` …"""
    backend: str
    """torch.distributed backend for its tensors."""
    visible_devices: str = ""
    """Environment variable that limits which devices a process sees."""
    plugin: str = ""
    """Module to import so that torch knows the device; empty where torch has it."""
    rated: dict[str, float] = {}
    """The maker's dense peak by dtype, FLOP/s a device, where an honest data sheet has one."""
    rated_source: str = ""
    lacking: dict[str, str] = {}
    """Operations that the backend can't do for these devices, each with the reason."""
    environment: dict[str, str] = {}
    """Set for every rank, each with its reason in the adapter's README."""


class LauncherManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A launcher: how ranks are started."""
