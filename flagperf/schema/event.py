"""One line of a journal, and the keys the harness writes.

The line is MLCommons' MLLOG: `:::MLLOG {json}` with namespace, time_ms, event_type, key, value and metadata, so that
any MLLOG reader reads a journal. Keys that MLLOG names (`init_start`, `run_stop`, `seed` …) keep its names.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PREFIX = b":::MLLOG "

EventType = Literal["POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `time_ms` is the wall clock; `metadata.ns` the host's monotonic clock in nanoseconds."""

    namespace: str = ""
    time_ms: int
    event_type: EventType = "POINT_IN_TIME"
    key: str
    value: Any = None
    metadata: dict[str, Any] = {}


class Key:
    """The journal's keys, each written in one place and read in one."""

    # of a rank
    HEADER = "journal"  # {schema, trial, rank, world_size, host, pid}; always a journal's first line
    INIT_START, INIT_STOP = "init_start", "init_stop"
    RUN_START, RUN_STOP = "run_start", "run_stop"
    BUILD = "build"  # {seconds, flops_per_token, hfu_factor, layout, facts}: the engine has built the model
    FIRST_STEP = "first_step"  # {seconds}: since the rank's process was started
    STEP = "step"  # see Step
    EVAL = "eval_accuracy"  # {loss, tokens, bytes, seconds, step}
    MEMORY = "memory"  # see Memory
    HELD = "held"  # {weights, gradients, optimizer, host, allocated}: bytes of state between two steps
    COMMUNICATION = "communication"  # see Communication
    PULSE = "pulse"  # {flops_per_second, when}: a short GEMM, the machine's speed just now
    SWEEP = "sweep"  # {points, providers}: what a sweep is going to measure
    SAMPLES = "samples"  # see flagperf.schema.sweep.Samples
    AGREEMENT = "agreement"  # see flagperf.schema.inference.Agreement
    QUERY = "query"  # see flagperf.schema.inference.Query
    LOAD_START = "load_start"  # see flagperf.schema.inference.LoadStart
    PROBE = "probe"  # see flagperf.schema.inference.Probe
    LOAD = "load"  # see flagperf.schema.inference.Load
    SERVED = "served"  # how an inference engine has served so far, before the load and after it
    ROOFS = "roofs"  # see flagperf.schema.sweep.Roofs
    TOKENS = "tokens_seen"  # {fingerprint, samples}
    ERROR = "error"  # {kind, message, traceback}
    # of the telemetry process
    TELEMETRY = "telemetry"  # one sample, see flagperf.measure.telemetry
    TELEMETRY_COST = "telemetry_cost"
    # of the harness
    TRIAL_START, TRIAL_STOP = "trial_start", "trial_stop"
    ENVIRONMENT = "environment"
    INTERRUPTED = "interrupted"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step of one rank."""

    step: int
    """Counted from 0, warm-up included."""
    measured: bool
    seconds: float
    """From the end of the step before to the end of this one, device work finished: data, compute and journal."""
    data_seconds: float
    """Of these, waiting for the batch."""
    tokens: int
    """That this rank's data-parallel group read: summed over groups it is the global batch."""
    loss: float | None
    """Mean over those tokens, before the update; `None` where it wasn't finite."""
    gradient_norm: float | None = None
    """Global, before clipping."""
    learning_rate: float | None = None
    skipped: bool = False
    """Whether the update was left out because gradients overflowed."""
    loss_scale: float = 1.0
    leader: bool = True
    """Whether this rank speaks for its data-parallel group; of tensor-parallel ranks one does."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Peaks of one rank over the trial, bytes; `None` where the platform can't tell."""

    peak_allocated: int | None
    peak_reserved: int | None = None
    peak_rss: int | None
    pss: int | None = None
    device_used: int | None = None
    allocated_source: str = ""
    """How `peak_allocated` was obtained."""


class Communication(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rank does in a step, seeing it under a profiler: seconds a step, the mean over `steps`."""

    steps: int = 0
    seconds: float | None = None
    """Length of a step: `compute` + `exposed` + `idle`."""
    communication: float | None = None
    """In which at least one collective operation was going on."""
    exposed: float | None = None
    """Of these, in which nothing was computed."""
    compute: float | None = None
    idle: float | None = None
    """In which neither was going on: the host's own work, and waiting for the device."""
    operations: float | None = None
    """Collective operations begun a step."""
    failure: str = ""
    """Why there are no numbers, or no trace."""
