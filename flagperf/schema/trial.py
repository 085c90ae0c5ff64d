"""A run and its trials, as planned: written to the run directory before anything starts."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flagperf.schema import SCHEMA_VERSION
from flagperf.schema.contest import Arm, Contest
from flagperf.schema.inference import Scenario
from flagperf.schema.layout import Layout
from flagperf.schema.link import Link
from flagperf.schema.protocol import Protocol
from flagperf.schema.survey import Survey

Purpose = Literal["measure", "search"]
"""`search`: a short trial that shows whether a layout fits and roughly how fast it is; it enters no comparison."""


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """Where ranks run when there is more than one host."""

    count: int = 1
    index: int = 0
    rendezvous: str = ""
    """HOST:PORT of the first node; empty on a single one."""

    @property
    def suffix(self) -> str:
        """What this node's own files have in their names, so that nodes can share a folder: nothing on the first."""
        return f"-node{self.index}" if self.index else ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One case × preset × vendor × engine × layout × seed, run once in fresh processes. All a rank needs to know."""

    id: str
    """Unique in its run, and the name of its folder: `003-fsdp`."""
    case: str
    kind: str = "training"
    """Of the case: `training`, `inference`, `kernel`, `specification`, `collective`; the last three are sweeps."""
    preset: str
    vendor: str
    engine: str
    """Of a sweep: the providers that it measures side by side, the baseline first, joined by `+`."""
    ranks: int
    layout: Layout
    dtype: str
    """Of a sweep: those of its points, joined by `+`; empty where none is said."""
    seed: int
    trial: int
    """Which repetition of its arm this is, from 0; trials with the same number are compared as a pair."""
    purpose: Purpose = "measure"
    scenario: Scenario = ""
    """Of an inference trial: how load comes."""
    scale: float = 1.0
    """What the scenario's durations and counts are multiplied by: less than 1 is a try-out."""
    protocol: Protocol
    settings: dict[str, Any]
    metrics: list[str]
    threads: int
    """Compute threads a rank."""
    slots: int = 0
    """Ranks that a host's cores are divided among, where that is more than run on it: a rank alone then has the cores
    that it has beside the others."""
    peak_flops: float | None = None
    """Measured GEMM peak of what one rank computes on, FLOP/s, dense, in `dtype`; the base of MFU."""
    rated_flops: float | None = None
    """The same from the maker's data sheet, where there is an honest one."""
    memory_limit: int | None = None
    """Bytes a rank may allocate."""
    link: Link | None = None
    """What the links between ranks are made to be; None leaves them as they are."""
    plugins: list[str] = []
    """Folders searched for cases, engines, vendors and launchers besides those that are installed."""

    @property
    def arm(self) -> str:
        """What is compared: the engine with its layout."""
        return str(Arm(self.engine, self.layout))

    @property
    def swept(self) -> bool:
        """Whether it measures many points rather than running one model."""
        return self.kind not in ("training", "inference")

    @property
    def providers(self) -> list[str]:
        """What a sweep measures side by side, the baseline first."""
        return self.engine.split("+")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Trials planned together, in the order they are run."""

    schema: int = SCHEMA_VERSION
    id: str
    created: str
    """ISO 8601, UTC."""
    command: list[str]
    """The command line that made it."""
    flagperf: str
    """Version."""
    commit: str | None
    launcher: str
    trials: list[Trial]
    baseline: str
    """Arm the others are compared with."""
    contest: Contest | None = None
    """Where two engines are compared by questions rather than every arm with the baseline."""
    survey: Survey | None = None
    """Where throughput is measured over rank counts and layouts."""


class RankExit(msgspec.Struct, frozen=True, kw_only=True):
    """How one rank ended: its exit code, negative for a signal."""

    rank: int
    exit_code: int
    message: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial ended, as its launcher saw it."""

    status: str
    """`finished`, `failed`, `timeout`, `interrupted` or `not started`."""
    seconds: float
    exits: list[RankExit] = []
    """Ranks that didn't end with 0."""
    message: str = ""
    stderr_tail: str = ""
