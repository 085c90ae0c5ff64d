"""One trial's journals → its result, and the columns it rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from flagperf.collect import verdict
from flagperf.collect.devices import device_energies
from flagperf.collect.inference import Served, inference_metrics, inference_points
from flagperf.collect.journals import (
    HarnessJournal,
    RankJournal,
    Telemetry,
    number,
    read_harness,
    read_rank,
    read_telemetry,
)
from flagperf.collect.resources import Span
from flagperf.collect.sweeps import sweep_metrics, sweep_points
from flagperf.collect.training import peak_flops, profiled, training_metrics, window
from flagperf.schema.event import Key
from flagperf.schema.result import Reason, Result
from flagperf.schema.sweep import Point, PointVerdict
from flagperf.schema.trial import Run, Trial


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as it was read: the result, and the raw columns a report draws."""

    trial: Trial
    result: Result
    ranks: list[RankJournal]
    telemetry: Telemetry
    served: Served | None = None
    """Of an inference trial."""


def read_trial(run_dir: Path, run: Run, trial: Trial, harness: HarnessJournal | None = None) -> TrialRecord:
    """Read a trial of a run, whatever state it is in; what is wrong with it is in the result.

    `harness` is the run's own journal where it has been read already.
    """
    if harness is None:
        harness = read_harness(run_dir)
    folder = run_dir / "trials" / trial.id
    trial = _as_launched(folder / "trial.json", trial)
    ranks = [read_rank(folder / f"rank{rank}.journal", rank) for rank in range(trial.ranks)]
    telemetry = read_telemetry(folder / "telemetry.journal")
    steps = window(ranks)
    span = Span(steps.start_ns, steps.stop_ns) if steps is not None else None
    points: list[Point] = []
    served = None
    if trial.swept:
        points = sweep_points(trial, ranks)
        metrics = sweep_metrics(trial, points)
    elif trial.kind == "inference":
        served = Served(ranks[0])
        span, points = served.span, inference_points(trial, served)
        metrics = inference_metrics(trial, ranks, served, points, telemetry)
    else:
        metrics = training_metrics(trial, ranks, steps, telemetry)
    reasons = verdict.reasons(trial, harness, ranks, steps, metrics, points, served)
    attempts = 1 + sum(1 for _ in folder.parent.glob(f"{trial.id}.attempt*"))
    result = Result(
        case=trial.case,
        preset=trial.preset,
        vendor=trial.vendor,
        engine=trial.engine,
        ranks=trial.ranks,
        layout=str(trial.layout),
        dtype=trial.dtype,
        seed=trial.seed,
        trial=trial.trial,
        scenario=trial.scenario,
        purpose=trial.purpose,
        verdict="invalid" if reasons else "valid",
        reasons=reasons,
        metrics={name: metrics[name] for name in trial.metrics or metrics if name in metrics},
        run=run.id,
        id=trial.id,
        points=_counted(trial, points, reasons),
        notes=verdict.notes(trial, harness, ranks, steps, span, telemetry, points, served),
        facts={
            **_facts(trial, ranks),
            "device_energy": _device_energy(ranks, span, telemetry),
            "attempts": attempts,
            "seconds": harness.seconds.get(trial.id),
            "steps_profiled": profiled(ranks),
            "prepared": harness.prepared.get(trial.id, {}),
            "environment": _environment(trial, harness.environments.get(trial.id, {})),
        },
    )
    return TrialRecord(trial=trial, result=result, ranks=ranks, telemetry=telemetry, served=served)


def _counted(trial: Trial, points: list[Point], reasons: Sequence[Reason]) -> list[Point]:
    """Return the points; none counts where something is wrong with an engine's trial as a whole.

    Queries that failed are told by the numbers of clients at which they did.
    """
    whole = [reason for reason in reasons if reason.code != "queries_failed"]
    if not trial.scenario or not whole:
        return points
    verdict: PointVerdict = "wrong" if any(reason.code == "tokens_differ" for reason in whole) else "failed"
    why = whole[0].message
    return [
        msgspec.structs.replace(point, verdict=verdict, why=why) if point.verdict == "valid" else point
        for point in points
    ]


def _as_launched(path: Path, planned: Trial) -> Trial:
    """Return the trial as its ranks got it, which has the measured peak; as planned where that can't be read."""
    try:
        launched = msgspec.json.decode(path.read_bytes(), type=Trial)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return planned  # never launched, or damaged: without its peak there is no MFU, and that is seen
    return launched if (launched.id, launched.ranks) == (planned.id, planned.ranks) else planned


def _facts(trial: Trial, ranks: Sequence[RankJournal]) -> dict[str, Any]:
    built = ranks[0].last(Key.BUILD)
    memory = ranks[0].last(Key.MEMORY)
    return {
        "build": {key: built[key] for key in sorted(built) if key != "seconds"},
        "build_seconds": number(built.get("seconds")),
        "tokens_fingerprint": fingerprint(ranks),
        "samples": int(sum(x for rank in ranks for x in rank.numbers(Key.TOKENS, "samples"))),
        "peak_flops_per_rank": (peak / trial.ranks) if (peak := peak_flops(trial, ranks)) else None,
        "allocated_source": str(memory.get("allocated_source") or ""),
        "threads": trial.threads,
        "settings_digest": settings_digest(trial),
        "loss_band": trial.protocol.loss_band,
        "minimum_effect": trial.protocol.minimum_effect,
        **({"metrics": trial.metrics} if trial.swept or trial.scenario else {}),
    }


def _device_energy(ranks: Sequence[RankJournal], span: Span | None, telemetry: Telemetry) -> list[dict[str, Any]]:
    """Return each device's energy over what was measured, with how it was obtained and how much of it it covers."""
    if span is None:
        return []
    return [asdict(each) for each in device_energies(ranks, telemetry, *span)]


def settings_digest(trial: Trial) -> str:
    """Return a digest of what a trial's settings make of its case: results with different ones aren't comparable."""
    protocol = trial.protocol
    size = (protocol.warmup, protocol.steps, protocol.global_batch, protocol.validation)
    shortened = () if trial.scale == 1.0 else (trial.scale,)
    told = (trial.settings, size, *shortened)
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()[:16]


def fingerprint(ranks: Sequence[RankJournal]) -> str | None:
    """Return the fingerprint of all tokens that were read: the sum modulo 2^128 of what each leader says."""
    total, seen = 0, False
    for rank in ranks:
        text = rank.last(Key.TOKENS).get("fingerprint")
        try:
            total, seen = total + int(str(text), 16), seen or text is not None
        except ValueError:
            if text is not None:
                return None
    return f"{total % 2**128:032x}" if seen else None


def _environment(trial: Trial, moments: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what decides whether two results were measured under the same conditions."""
    seen = moments.get("before") or moments.get("after") or {}
    return {"link": str(trial.link or "the machine's own")} | {
        key: seen[key]
        for key in ("cpu", "cores", "python", "kernel", "packages", "governor", "flagperf", "commit")
        if key in seen
    }
