"""The objects that commands print with `--json`, and their JSON schemas in docs/schema.

`python -m flagperf.schema.output docs/schema` writes the schemas anew; a test sees to it that they are current and
that what commands print keeps to them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from flagperf.schema.conformance import ConformanceOutput, VendorNewOutput
from flagperf.schema.event import Event
from flagperf.schema.explanation import ExplainOutput
from flagperf.schema.machine import Availability, Device
from flagperf.schema.result import Comparison, Result, RunOutput
from flagperf.schema.submission import (
    BundleManifest,
    ClaimedResults,
    Rules,
    Signature,
    SubmitCheckOutput,
    SubmitKeygenOutput,
    SubmitPackOutput,
    SubmitSystemOutput,
    SystemDescription,
)
from flagperf.schema.trial import Run, Trial


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that makes a measurement noisy or not."""

    name: str
    status: Literal["ok", "warn", "info"]
    finding: str
    advice: str = ""


class DoctorOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf doctor --json`."""

    flagperf: str
    commit: str | None
    python: dict[str, Any]
    packages: dict[str, str]
    host: dict[str, Any]
    environment: dict[str, Any]
    vendors: list[Availability]
    devices: list[Device]
    engines: list[Availability]
    launchers: list[Availability]
    broken: dict[str, str]
    """Plug-ins that can't be read: where → why."""
    compilers: list[dict[str, Any]]
    caches: list[dict[str, Any]]
    disk: dict[str, Any]
    checks: list[Check]


class DevicesOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf devices --json`."""

    devices: list[Device]
    vendors: list[Availability]


class ListOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`flagperf list … --json`: the one key that was asked for."""

    cases: list[dict[str, str | None]] | None = None
    presets: list[dict[str, str | None]] | None = None
    contests: list[dict[str, str | None]] | None = None
    surveys: list[dict[str, str | None]] | None = None
    engines: list[dict[str, str | None]] | None = None
    vendors: list[dict[str, str | None]] | None = None
    launchers: list[dict[str, str | None]] | None = None
    metrics: list[dict[str, str | None]] | None = None


class ShownPreset(msgspec.Struct, frozen=True, kw_only=True):
    """A preset as it would run."""

    summary: str
    dtype: str
    protocol: dict[str, Any]
    settings: dict[str, Any]
    estimate: dict[str, Any] | None
    points: int = 0


class ShowOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf show CASE --json`."""

    name: str
    kind: str
    title: str
    summary: str
    metrics: list[str]
    dtypes: list[str]
    target: str
    protocol: dict[str, Any]
    presets: dict[str, ShownPreset]


class PlannedTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that would be run, with what it would cost."""

    id: str
    case: str
    preset: str
    vendor: str
    engine: str
    ranks: int
    threads: int
    layout: str
    dtype: str
    seed: int
    trial: int
    steps: int
    points: int = 0
    """Of a sweep; its size and time aren't estimated."""
    parameters: int | None
    estimated_bytes_per_rank: int | None
    estimated_host_bytes_per_rank: int | None
    estimated_flops: float | None
    estimated_seconds: float | None
    command: list[str]
    environment: dict[str, str]


class DryRunOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf run … --dry-run --json`."""

    plan: Run
    trials: list[PlannedTrial]


class ResultsOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf results --json`."""

    results: list[Result]


class CompareOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf compare --json`."""

    comparisons: list[Comparison]


class ReportOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf report --json`."""

    report: str
    runs: list[str]


class DataPrepareOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf data prepare --json`."""

    path: str
    meta: dict[str, Any]


class DataVerifyOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf data verify --json`."""

    path: str
    valid: bool


class DataListOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf data list --json`."""

    corpora: list[dict[str, Any]]


class ParsedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool's output says of a device; null is what it doesn't say."""

    index: int
    name: str | None
    memory_total_mib: float | None
    memory_used_mib: float | None
    utilisation_pct: float | None
    power_w: float | None
    temperature_c: float | None


class VendorParseOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`flagperf vendor parse --json`. `error` is what the tool complains of."""

    devices: list[ParsedDevice]
    error: str | None


DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    "doctor": DoctorOutput,
    "devices": DevicesOutput,
    "list": ListOutput,
    "show": ShowOutput,
    "run": RunOutput,
    "run-dry": DryRunOutput,
    "results": ResultsOutput,
    "compare": CompareOutput,
    "report": ReportOutput,
    "import": RunOutput,
    "data-prepare": DataPrepareOutput,
    "data-verify": DataVerifyOutput,
    "data-list": DataListOutput,
    "vendor-parse": VendorParseOutput,
    "vendor-check": ConformanceOutput,
    "vendor-explain": ExplainOutput,
    "vendor-new": VendorNewOutput,
    "submit-system": SubmitSystemOutput,
    "submit-pack": SubmitPackOutput,
    "submit-check": SubmitCheckOutput,
    "submit-keygen": SubmitKeygenOutput,
    "file-submission-manifest": BundleManifest,
    "file-submission-results": ClaimedResults,
    "file-submission-rules": Rules,
    "file-submission-signature": Signature,
    "file-submission-system": SystemDescription,
    "file-run": Run,
    "file-trial": Trial,
    "file-journal-event": Event,
}
"""What is described in docs/schema: a command's output, or a file of a run's folder or of a submission."""


def schema(name: str) -> bytes:
    """Return one document's JSON schema, ready to be written."""
    plain = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(DOCUMENTS[name])}
    return msgspec.json.format(msgspec.json.encode(plain, order="deterministic"), indent=2) + b"\n"


if __name__ == "__main__":
    for document in DOCUMENTS:
        (Path(sys.argv[1]) / f"{document}.json").write_bytes(schema(document))
