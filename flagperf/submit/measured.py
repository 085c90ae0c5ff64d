"""Computes every trial's result again from its journals, and holds it against what is claimed and what can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flagperf.case import Case
from flagperf.collect.contest import compared
from flagperf.collect.journals import HarnessJournal, RankJournal
from flagperf.collect.resources import Span
from flagperf.collect.sweeps import shown
from flagperf.collect.training import window
from flagperf.collect.trials import TrialRecord, read_trial
from flagperf.errors import FlagPerfError
from flagperf.registry import Registries
from flagperf.schema.chip import Chip
from flagperf.schema.event import Key
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Result
from flagperf.schema.submission import DivisionName, Rules
from flagperf.schema.sweep import Point
from flagperf.schema.trial import Run, Trial
from flagperf.submit import strict
from flagperf.submit.bundle import RESULTS
from flagperf.submit.conformance import Source
from flagperf.submit.evidence import Log, check_rank, check_telemetry
from flagperf.submit.findings import Findings

UNCOMPUTABLE = (ValueError, TypeError, KeyError, IndexError, ArithmeticError)
"""What numbers that make no sense can lead to; the result is then refused, not the check broken."""


def complete(logs: Sequence[Log], trial: Trial, file: str, findings: Findings) -> bool:
    """Whether a trial has the journals and steps that were planned, so that its result can be computed at all."""
    if len(logs) != trial.ranks:
        findings.refuse(
            "no_journal", f"Trial {trial.id} hasn't a journal of every rank.", file=file, expected=trial.ranks,
            found=len(logs),
        )  # fmt: skip
        return False
    if trial.kind != "training":
        return True  # its points or queries are counted by themselves
    planned = trial.protocol.warmup + trial.protocol.steps
    for log in logs:
        if (there := len(log.all(Key.STEP))) != planned:
            findings.refuse(
                "steps_missing", "The rank hasn't taken the steps that its protocol says.", file=log.file,
                expected=planned, found=there,
            )  # fmt: skip
            return False
    return True


def measure(
    folder: Path,
    run: Run,
    trial: Trial,
    harness: HarnessJournal,
    ranks: Sequence[Log],
    telemetry: Log | None,
    rules: Rules,
    findings: Findings,
) -> TrialRecord:
    """Compute a trial's result, and hold its journals against it."""
    record = read_trial(folder, run, trial, harness)
    for rank, log in enumerate(ranks):
        check_rank(log, trial, rank, rules.tolerances, findings)
    if telemetry is not None:
        check_telemetry(telemetry, record.telemetry, _span(record, ranks), trial, rules, findings)
    for reason in record.result.reasons:
        findings.refuse(
            f"invalid: {reason.code}", f"Trial {trial.id} is invalid: {reason.message}",
            file=f"runs/{run.id}/trials/{trial.id}", hint=reason.hint,
        )  # fmt: skip
    for reason in record.result.notes:
        findings.note(reason.code, f"Trial {trial.id}: {reason.message}", hint=reason.hint)
    return record


def _span(record: TrialRecord, ranks: Sequence[Log]) -> Span | None:
    """Return the time in which there was measured."""
    if record.served is not None:
        return record.served.span
    if record.trial.swept:
        ends = [line.ns for log in ranks for line in log.all(Key.SAMPLES)]
        begins = [line.ns for log in ranks for line in log.all(Key.SWEEP)]
        return Span(min(begins), max(ends)) if begins and ends else None
    steps = window(record.ranks)
    return Span(steps.start_ns, steps.stop_ns) if steps is not None else None


def check_work(trial: Trial, logs: Sequence[Log], registries: Registries, findings: Findings) -> None:
    """Hold FLOPs, tokens and samples against the case's own formulas."""
    case: type[Case] = registries.cases.load(trial.case)
    try:
        estimate = case(trial).estimate()
    except (FlagPerfError, *UNCOMPUTABLE) as error:
        findings.refuse("impossible", f"The case can't be what trial {trial.id} says: {error}")
        return
    if estimate is None:
        return  # points and queries say their own work
    for log in logs:
        if (built := log.first(Key.BUILD)) is None:
            continue
        flops = built.told.get("flops_per_token")
        if not isinstance(flops, float) or not math.isclose(flops, estimate.flops_per_token, rel_tol=1e-9):
            findings.refuse(
                "flops", "The FLOPs a token aren't those of the case's formula.", file=log.file, line=built.number,
                expected=estimate.flops_per_token, found=flops,
            )  # fmt: skip
        factor = built.told.get("hfu_factor")
        if not isinstance(factor, float) or not 1 <= factor <= (2 if trial.layout.recompute else 1):
            findings.refuse(
                "flops", "The factor of recomputation can't be.", file=log.file, line=built.number,
                expected="1 to 2" if trial.layout.recompute else "1", found=factor,
            )  # fmt: skip
    steps = [[line for line in log.all(Key.STEP) if line.told.get("leader", True)] for log in logs]
    for lines in zip(*(each for each in steps if each), strict=False):
        tokens = sum(line.told["tokens"] for line in lines)
        if tokens != estimate.tokens_per_step:
            findings.refuse(
                "tokens", f"The ranks of trial {trial.id} didn't read the tokens of a global batch.",
                file=logs[0].file, line=lines[0].number, expected=estimate.tokens_per_step, found=tokens,
            )  # fmt: skip
            break
    protocol = trial.protocol
    planned = protocol.global_batch * (protocol.warmup + protocol.steps)
    samples = sum(line.told.get("samples", 0) for log in logs for line in log.all(Key.TOKENS))
    if samples != planned:
        findings.refuse(
            "tokens", f"The fingerprint of trial {trial.id} isn't of all samples.", file=logs[0].file, expected=planned,
            found=samples,
        )  # fmt: skip


def check_peak(
    trial: Trial, result: Result, chip: Chip | None, source: Source, division: DivisionName, findings: Findings
) -> None:
    """Hold the throughput against the peak in the table of chips, and the trial's rated peak, too."""
    rated = chip.flops(trial.dtype) if chip else None
    if trial.rated_flops is not None and trial.rated_flops != rated:
        # In the open division a chip may be so new, or simulated, that the table hasn't got it.
        tell = findings.note if division == "open" and rated is None else findings.refuse
        tell(
            "peak", f"The rated peak of trial {trial.id} isn't the one in the table of chips.", file=source.file,
            expected=rated if rated else "none: the table has no such chip or type", found=trial.rated_flops,
        )  # fmt: skip
    if trial.kind != "training":
        return
    flops = result.facts.get("build", {}).get("flops_per_token")
    if rated and isinstance(flops, float) and "tokens_per_second" in result.metrics:
        share = result.metrics["tokens_per_second"].value * flops / (rated * trial.ranks)
        if share > 1:
            findings.refuse(
                "mfu_above_one", f"Trial {trial.id} is faster than the peak in the table of chips allows.",
                file=source.file, expected="an MFU of at most 1", found=share,
            )  # fmt: skip
    if not any(name in result.metrics for name in ("mfu", "mfu_rated")) and result.verdict == "valid":
        findings.refuse("no_peak", f"Trial {trial.id} has no MFU: no peak was measured.", file=source.file)


def check_gate(source: Source, records: Sequence[TrialRecord], findings: Findings) -> None:
    """Same seed, same tokens, same losses: the arms of a run did the same work."""
    curves = {(source.run.id, record.trial.id): _curve(record.ranks) for record in records}
    try:
        comparisons = compared(source.run, [record.result for record in records], curves)
    except (FlagPerfError, *UNCOMPUTABLE) as error:
        findings.refuse("uncomparable", f"The arms can't be compared: {error}", file=source.file)
        return
    for comparison in comparisons:
        for note in comparison.notes:
            if note.code in ("tokens_differ", "losses_differ"):
                findings.refuse(
                    note.code, f"{comparison.candidate} against {comparison.baseline}: {note.message}",
                    file=source.file, hint=note.hint,
                )  # fmt: skip


def _curve(ranks: Sequence[RankJournal]) -> dict[int, float]:
    """Return the loss by step, the mean over the global batch."""
    nats: dict[int, float] = {}
    tokens: dict[int, float] = {}
    for rank in ranks:
        leading = rank.steps.take(rank.steps.leader & (rank.steps.tokens > 0) & np.isfinite(rank.steps.loss))
        for step, loss, count in zip(
            leading.step.tolist(), leading.loss.tolist(), leading.tokens.tolist(), strict=True
        ):
            nats[step] = nats.get(step, 0.0) + loss * count
            tokens[step] = tokens.get(step, 0.0) + count
    return {step: nats[step] / tokens[step] for step in nats}


def check_claims(
    claimed: Sequence[Result], results: Sequence[Result], text: str, tolerance: float, findings: Findings
) -> None:
    """Hold what is claimed against what the journals yield, metric by metric."""
    lines = text.split("\n")
    places = {(result.run, result.id): index for index, result in enumerate(claimed)}
    if len(places) < len(claimed):
        findings.refuse("claim", "A trial is claimed twice.", file=RESULTS)
    mine = {(result.run, result.id): result for result in results}
    for run, trial in sorted(places.keys() ^ mine.keys()):
        what = "isn't claimed" if (run, trial) in mine else "is claimed, but can't be computed"
        findings.refuse("claim", f"Trial {trial} of run {run} {what}.", file=RESULTS)
    for key in sorted(places.keys() & mine.keys()):
        index = places[key]

        def at(*place: str | int, index: int = index) -> int | None:
            return strict.json_line_number(lines, ("results", index, *place))

        told, computed = _plain(claimed[index]), _plain(mine[key])
        for name in sorted(told.keys() | computed.keys()):
            if told.get(name) != computed.get(name):
                findings.refuse(
                    "claim", f"{name} of trial {key[1]} isn't what its journals yield.", file=RESULTS, line=at(name),
                    expected=computed.get(name), found=told.get(name),
                )  # fmt: skip
        _metrics(claimed[index].metrics, mine[key].metrics, key[1], at, tolerance, findings)
        _points(claimed[index].points, mine[key].points, key[1], at, tolerance, findings)


_APART = ("metrics", "points", "notes", "facts", "reasons")


def _plain(result: Result) -> dict[str, Any]:
    """Return what must be the same; notes may say more when they are read elsewhere."""
    plain: dict[str, Any] = msgspec.to_builtins(result)
    return {name: value for name, value in plain.items() if name not in _APART}


def _metrics(
    told: Mapping[str, MetricValue],
    computed: Mapping[str, MetricValue],
    trial: str,
    at: Any,
    tolerance: float,
    findings: Findings,
) -> None:
    for name in sorted(told.keys() | computed.keys()):
        claim, mine = told.get(name), computed.get(name)
        if claim is None or mine is None or not _same(claim, mine, tolerance):
            findings.refuse(
                "claim", f"{name} of trial {trial} isn't what its journals yield.", file=RESULTS,
                line=at("metrics", name, "value"), expected=mine or "nothing", found=claim or "nothing",
            )  # fmt: skip


def _points(
    told: Sequence[Point], computed: Sequence[Point], trial: str, at: Any, tolerance: float, findings: Findings
) -> None:
    if len(told) != len(computed):
        findings.refuse(
            "claim", f"The points of trial {trial} aren't those of its journals.", file=RESULTS, line=at("points"),
            expected=len(computed), found=len(told),
        )  # fmt: skip
    for place, (claim, mine) in enumerate(zip(told, computed, strict=False)):
        if not _close(msgspec.to_builtins(claim), msgspec.to_builtins(mine), tolerance):
            findings.refuse(
                "claim", f"Point {shown(mine.at)} of trial {trial} isn't what its journals yield.", file=RESULTS,
                line=at("points", place), expected=mine, found=claim,
            )  # fmt: skip


def _close(a: Any, b: Any, tolerance: float) -> bool:
    """Whether plain data is the same but for the rounding of numbers."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[name], b[name], tolerance) for name in a)
    return type(a) is type(b) and bool(a == b)


def _same(a: MetricValue, b: MetricValue, tolerance: float) -> bool:
    if (a.unit, a.direction, a.n) != (b.unit, b.direction, b.n):
        return False
    for x, y in ((a.value, b.value), (a.low, b.low), (a.high, b.high)):
        if (x is None) != (y is None) or (
            x is not None and y is not None and not math.isclose(x, y, rel_tol=tolerance)
        ):
            return False
    return True
