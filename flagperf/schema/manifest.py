"""Manifests: what a case, engine, vendor or launcher says of itself in TOML, read without importing its code."""

from __future__ import annotations

from typing import Any

import msgspec
from packaging.specifiers import SpecifierSet

from flagperf.schema.contest import Claim
from flagperf.schema.inference import Scenario, Task
from flagperf.schema.ledger import WHOLE, Ledger
from flagperf.schema.protocol import Protocol


class Requirement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution an entry needs, and the command that gets it."""

    distribution: str
    versions: str = ""
    """Those it works with, as PEP 440 writes it: `>=2.6`, `==1.0.1`; empty for any."""
    install: str
    names: list[str] = []
    """Of distributions that serve as well: builds for other hardware."""
    elsewhere: str = ""
    """Environment variable that names another Python, which has it: then it isn't looked for in this one."""

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
    """Refused where every one of these keys has at least this value …"""
    most: dict[str, int] = {}
    """… and every one of these at most this value."""
    why: str
    instead: str
    """The nearest layout that it can do, as a person would write it."""


class EngineManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine: what runs a case's model."""

    kind: str
    """The kind of case it runs: `training` or `inference`."""
    layout: dict[str, LayoutRule] = {}
    """What it takes for each layout key but `micro`; a key that isn't here keeps its default."""
    refused: list[Refusal] = []
    search: dict[str, list[int]] = {}
    """Layout keys that are tried for its best layout, each with the values to try."""
    dtypes: list[str] = msgspec.field(default_factory=lambda: ["fp32", "bf16"])
    max_ranks: int | None = None
    tasks: list[Task] = []
    """Of an inference engine: what it can do."""
    collectives: list[str] = []
    """Operations of torch.distributed it can't do without: `all_reduce`, `reduce_scatter` …"""
    memory: Ledger = WHOLE
    """What its ranks hold."""


class ContestManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A contest that a case declares: two engines that are to be compared by the case's rules."""

    title: str
    title_zh: str
    summary: str
    candidate: str
    """As `--engine` takes it: `bmtrain:zero=3`."""
    baseline: str
    protocol: dict[str, Any] = {}
    """Overrides of the preset's protocol."""


class SurveyManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A survey that a case declares: its throughput over rank counts and layouts."""

    title: str
    title_zh: str
    summary: str
    engines: list[str]
    """As `--engine` takes them: the first is scaled, the layouts of all that are installed are searched."""
    base: str = ""
    """Engine that takes the first's place on one rank, where nothing is to be communicated; empty: itself."""
    budget: float
    """Seconds for the search unless the user says."""
    protocol: dict[str, Any] = {}
    """Overrides of the preset's protocol."""


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


class ProviderManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider: one way to compute what a kernel case asks for."""

    title: str
    title_zh: str = ""
    entry: str
    """`module:function`; a leading dot is relative to the manifest's package."""
    requires: list[Requirement] = []
    device_types: list[str] = []
    """torch's device types it works on; empty for any."""
    default: bool = True
    """Measured unless the user says which ones are to be."""
    optional_on: list[str] = []
    """torch's device types on which it's measured only if asked for: it takes long there."""


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
    task: Task | None = None
    """Of an inference case: what its engines must be able to do."""
    scenarios: list[Scenario] = []
    """Of an inference case: those that it can be put under …"""
    scenario: list[Scenario] = []
    """… and those that it is unless the user says."""
    operation: str = ""
    """Of a kernel case: what it computes, as vendors call it that bring kernels of their own: `attention` …"""
    providers: dict[str, ProviderManifest] = {}
    """Of a sweep, the baseline first."""
    like: str = ""
    """A manifest in the same folder which says what this one doesn't: keys of tables one by one, presets as a whole."""
    members: str = ""
    """A group of its settings of which every entry makes a case of its own, beside this one: of `operators/*`, whose
    members are `operators`, the entry `softmax` makes `operators/softmax`, which differs in having that entry only."""
    family: str = ""
    """Of such a case: the one that it's a member of."""
    contests: dict[str, ContestManifest] = {}
    """By the name that `flagperf run` takes in place of the case's."""
    surveys: dict[str, SurveyManifest] = {}
    """Likewise."""
    claims: list[Claim] = []
    """What has been published on engines that run this case."""


class Markers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shows that a vendor's hardware or software is on a host, and what tells it from its rivals.

    Patterns are those of shell globs. Looking for markers starts no tool, imports nothing and opens no device.
    """

    pci: list[str] = []
    """PCI ids `vendor:device` in lower-case hex, of displays and accelerators only: `10de:*`. The surest marker."""
    nodes: list[str] = []
    """Device nodes: `/dev/nvidia[0-9]*`."""
    files: list[str] = []
    """What only this vendor's software puts on a host: `/opt/dtk*`. Tells rivals apart; doesn't show a device."""
    environment: list[str] = []
    """Variables that say by being set that there are devices: for simulated ones."""
    distributions: dict[str, str] = {}
    """Installed distributions by name, each with a pattern of its version: `torch = "*+corex*"`.

    Where a rival's pattern matches the installed torch and this vendor's doesn't, torch can't drive these devices.
    """
    names: list[str] = []
    """What its products are called, whatever the case: `nvidia *`. A device that a rival's pattern matches better,
    or that is found by nothing but a tool that rivals have too and isn't called so, isn't this vendor's."""


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command line that prints readings, run without a shell."""

    command: list[str]
    timeout: float = 10.0
    """Seconds after which it's killed with all that it started."""
    adds: bool = False
    """Asked as well, for what the others leave unknown. Of those that don't add, the first with an answer is taken."""


class Variable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment variable for every rank, and why."""

    value: str
    why: str
    why_zh: str = ""


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a container needs to see the devices."""

    image: str = ""
    """Where the maker publishes one; empty if none is known."""
    options: list[str] = []
    """For `docker run`."""
    source: str = ""


class KernelProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution with kernels for these devices."""

    distribution: str
    module: str
    operations: list[str]
    """`attention`, `rms_norm` …"""
    install: str = ""
    """How to get it."""
    provider: str = ""
    """What it is called among the providers of a case; the distribution's name if nothing is said."""
    entry: str = ""
    """`module:function` that cases of these operations call, relative to the adapter's package with a leading dot;
    empty where none has been written yet: the distribution is then only told of."""


class CaseOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a vendor chooses for one case, within the case's rules; what a user says goes before it."""

    micro: int | None = None
    """Sequences a micro-batch, where the layout doesn't say."""
    dtype: str | None = None
    """Where the user doesn't say."""
    environment: dict[str, Variable] = {}
    why: str


class VendorManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vendor: all that the harness knows of one chip maker's stack and that can be said as data."""

    device_type: str
    """torch's device type: `cpu`, `cuda`, `npu` …"""
    backend: str
    """torch.distributed backend for its tensors."""
    sockets: bool = False
    """Whether the backend goes over the host's network alone, whose links can be shaped."""
    visible_devices: str = ""
    """Environment variable that limits which devices a process sees; empty where none is known."""
    plugin: str = ""
    """Module to import so that torch knows the device; empty where torch has it."""
    install: str = ""
    """How to get a torch for these devices: a command, or a page of the maker's."""
    markers: Markers = Markers()
    tools: list[Tool] = []
    """In order of preference."""
    lacking: dict[str, str] = {}
    """Operations that the backend can't do for these devices, each with the reason."""
    limits: dict[str, str] = {}
    """Data types that the devices can't compute in (`fp64`, `bf16` …), each with the reason."""
    environment: dict[str, Variable] = {}
    container: Container = Container()
    kernels: list[KernelProvider] = []
    cases: dict[str, CaseOverride] = {}
    """By the name of the case."""

    def variables(self, case: str) -> dict[str, str]:
        """Return the environment of every rank of a case."""
        own = self.cases[case].environment if case in self.cases else {}
        return {name: variable.value for name, variable in {**self.environment, **own}.items()}


class LauncherManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A launcher: how ranks are started."""

    links: bool = False
    """Whether it can shape the links between ranks."""
