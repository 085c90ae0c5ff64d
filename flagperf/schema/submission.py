"""Submissions: the rules they are held to, the system they were measured on, the bundle, and the verdict."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flagperf.schema.result import Result

DivisionName = Literal["closed", "open"]


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a value may be; what isn't said isn't limited."""

    least: float | None = None
    most: float | None = None
    times: bool = False
    """Whether `least` and `most` are multiples of the case's own value."""
    values: list[Any] | None = None
    """The only ones, where there is a list."""
    why: str = ""


class Division(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one division lets a submitter choose of one kind of case; everything else is as the case says."""

    summary: str
    trials: int
    """Least number of trials an arm."""
    change: dict[str, Bound] = {}
    """By path in a trial, or a shell pattern of paths: `layout.tp`, `settings.model.*`."""


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds in one division for cases of every kind."""

    change: dict[str, Bound] = {}
    """Likewise."""
    machine: dict[str, Bound] = {}
    """Bounds of what the environment snapshots tell: `foreign_percent`."""
    variables: list[str] = []
    """Patterns of environment variables that may be set."""
    released_code: bool = False
    """Whether code must be as committed, and the case's the one that the checking FlagPerf has."""


class KindRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules of one kind of case."""

    divisions: dict[DivisionName, Division]
    precision: list[list[str]] = []
    """Classes of data types: a trial's is of the same class as its preset's. A sweep's are an axis of its settings."""
    cases: dict[str, dict[str, Bound]] = {}
    """What else may be changed of one case, by its name, in any division."""


class Tolerances(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far apart two accounts of the same thing may be."""

    clock_seconds: float
    """Two clocks on the same span: this much …"""
    clock_share: float
    """… and this share of the span."""
    telemetry_gap: float
    """Longest gap between samples in the measured window, in intervals …"""
    telemetry_seconds: float
    """… plus this many seconds."""
    metric: float
    """Relative difference of a metric computed again, which only rounding may make."""
    memory: float
    """Relative difference of the memory that the form tells to what was seen."""
    roof: float
    """How many times a roof that was measured a point may reach: the machine may have been busy just then."""
    rated: float
    """How many times the figure in the table of chips."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of the rules."""

    version: str
    summary: str
    summary_zh: str
    licences: list[str]
    """SPDX identifiers that a submission may be under."""
    conditions: dict[DivisionName, Conditions]
    kinds: dict[str, KindRules]
    """By the kind of the case; several that have the same rules with a comma between."""
    sensors: dict[str, Bound] = {}
    """What a reading can be at all, by the last part of the sensor's name."""
    tolerances: Tolerances

    def of(self, kind: str) -> KindRules | None:
        """Return the rules of a kind of case; None where there are none."""
        return next((own for names, own in self.kinds.items() if kind in names.split(", ")), None)


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the alike hosts."""

    count: int
    cpu: str
    sockets: int
    cores: int
    """Logical cores that ranks could use."""
    memory_gib: float
    storage: str
    os: str
    kernel: str
    network: str
    """Between hosts, or `none`."""


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What computes: the accelerator, or the processor where there is none."""

    name: str
    count_per_host: int
    memory_gib: float
    interconnect: str
    """Between the devices of a host, or `none`."""
    driver: str
    firmware: str
    clocks: Literal["as shipped"]
    """The only thing they may be; what telemetry tells is held against it."""
    boost_clock_mhz: float | None = None
    power_limit_w: float | None = None


class Software(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the numbers were made with."""

    python: str
    packages: dict[str, str]


class SystemDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form that comes with a submission: who submits, and on what it was measured."""

    schema: Literal[1]
    name: str
    """Of the system, as it is sold."""
    status: Literal["available", "preview", "research"]
    submitter: str
    contact: str
    licence: str
    """SPDX identifier."""
    host: Host
    accelerator: Accelerator
    software: Software
    cooling: str
    notes: str = ""


class BundledFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a bundle."""

    path: str
    size: int
    sha256: str


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link of the chain: SHA-256 of the link before, the journal's path and its own SHA-256."""

    path: str
    sha256: str


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle's table of contents."""

    schema: Literal[1] = 1
    rules: str
    division: DivisionName
    vendor: str
    flagperf: str
    runs: list[str]
    files: list[BundledFile]
    """Every file but this one and the signature, in the order they have in the archive."""
    chain: list[Link]
    """Journals in the order of runs and trials: none can be left out, added or swapped without all that follow."""
    seal: str = ""
    """SHA-256 of this manifest with an empty seal."""


class ClaimedResults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The results as the submitter's FlagPerf made them of the journals."""

    schema: Literal[1] = 1
    results: list[Result]


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A detached signature of the manifest's bytes; keys and signature in lower-case hex."""

    algorithm: Literal["ed25519"]
    public_key: str
    signature: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is refused for, or what a reader must know of it: where, what was expected, what was found."""

    code: str
    message: str
    file: str = ""
    line: int | None = None
    expected: str = ""
    found: str = ""
    hint: str = ""


class CheckedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One trial's result, computed again from its journals."""

    run: str
    trial: str
    case: str
    preset: str
    engine: str
    layout: str
    attempts: int
    metrics: dict[str, float]


class SubmitCheckOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf submit check --json`."""

    bundle: str
    verdict: Literal["accepted", "rejected"]
    reasons: list[Finding]
    """Every one that could be found, not the first."""
    notes: list[Finding] = []
    rules: str = ""
    division: str = ""
    vendor: str = ""
    system: str = ""
    seal: str = ""
    signed_by: str = ""
    """Public key that the signature is good for; empty if it isn't signed."""
    results: list[CheckedResult] = []


class SubmitPackOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf submit pack --json`."""

    bundle: str
    sha256: str
    size: int
    seal: str
    signed_by: str
    files: list[BundledFile]
    left_out: list[str]
    """Files of the runs that don't go in."""


class SubmitSystemOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf submit system --json`."""

    system: str
    open: list[str]
    """Fields that are left to fill in by hand."""


class SubmitKeygenOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf submit keygen --json`."""

    private: str
    public: str
    public_key: str
