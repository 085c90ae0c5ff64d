"""Scaling efficiency, and what a step is made of: from the results of a survey's measured trials."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import msgspec

from flagperf.collect.compare import Curves, compare_results, pairs
from flagperf.schema.result import SIMULATED, Reason, Result, Scaled, Split
from flagperf.schema.survey import Scale
from flagperf.schema.trial import Run
from flagperf.statistics import compare_pairs

LEADING = "tokens_per_second"
_MEMORY = "memory_peak_allocated"
_APART = {"tokens_differ", "losses_differ"}
"""Notes on comparisons whose speeds mean nothing."""
_TRACE = "trials/{id}/output/rank0.trace.json.gz"


def scaling(run: Run, results: Sequence[Result], curves: Curves | None = None) -> list[Scaled]:
    """Return the points of a survey's scaling curves, the base first; `results` are the run's."""
    if run.survey is None:
        return []
    rows = [(scale, _of(run, scale, results)) for scale in run.survey.scales]
    return [_scaled(run, scale, own, rows[0], curves or {}) for scale, own in rows]


def split(results: Sequence[Result]) -> Split | None:
    """Return what became of a step, the median trial's, by its share of communication that nothing covers."""
    found = []
    for result in results:
        rows = result.facts.get("steps_profiled")
        if not isinstance(rows, list) or not rows:
            continue
        try:
            seconds, compute, exposed, whole, idle = (
                fmean(float(row[name]) for row in rows)
                for name in ("seconds", "compute", "exposed", "communication", "idle")
            )
        except (KeyError, TypeError, ValueError):  # written by something else
            continue
        hidden, trace = max(0.0, whole - exposed), _TRACE.format(id=result.id)
        found.append(Split(seconds=seconds, compute=compute, exposed=exposed, hidden=hidden, idle=idle, trace=trace))
    ordered = sorted(found, key=lambda each: each.exposed / each.seconds if each.seconds > 0 else 0.0)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def _of(run: Run, scale: Scale, results: Sequence[Result]) -> list[Result]:
    """Return the results of a point's trials, which the plan tells: a result alone doesn't say its batch."""
    planned = {
        trial.id
        for trial in run.trials
        if trial.purpose == "measure"
        and (trial.ranks, trial.protocol.global_batch) == (scale.ranks, scale.global_batch)
        and (trial.engine, trial.layout) == (scale.arm.engine, scale.arm.layout)
    }
    return [result for result in results if result.run == run.id and result.id in planned]


def _scaled(
    run: Run, scale: Scale, own: Sequence[Result], base: tuple[Scale, Sequence[Result]], curves: Curves
) -> Scaled:
    good, reference = ([r for r in each if r.verdict == "valid"] for each in (own, base[1]))
    threads = next((trial.threads for trial in run.trials if trial.id in {result.id for result in own}), 0)
    point = Scaled(
        kind=scale.kind,
        arm=scale.arm,
        ranks=scale.ranks,
        threads=threads,
        global_batch=scale.global_batch,
        trials=[result.id for result in own],
        valid=len(good),
        tokens_per_second=_median(good, LEADING),
        memory_mib=_median(good, _MEMORY),
        split=split(good),
        notes=_notes(own),
    )
    if scale.kind == "base":
        told = point.tokens_per_second is not None
        return msgspec.structs.replace(point, efficiency=1.0, pairs=len(good)) if told else point
    if scale.kind == "strong":  # the same batches: they must have learnt the same
        gate = [
            note
            for each in compare_results((str(scale.arm), own), (str(base[0].arm), base[1]), [LEADING], curves=curves)
            for note in each.notes
            if note.code in _APART
        ]
        if gate:
            return msgspec.structs.replace(point, notes=[*gate, *point.notes])
    both = [p for p in pairs(good, reference) if all(LEADING in result.metrics for result in p)]
    speeds = [[result.metrics[LEADING].value for result in side] for side in zip(*both, strict=True)] or [[], []]
    ratio = compare_pairs(speeds[0], speeds[1], "higher", run.survey.protocol.minimum_effect if run.survey else 0.03)
    if ratio.ratio is None:
        why = Reason("no_pair", "No valid trial of it has a valid one of the base beside it.")
        return msgspec.structs.replace(point, notes=[why, *point.notes])
    fewer = base[0].ranks / scale.ranks
    return msgspec.structs.replace(
        point,
        efficiency=ratio.ratio * fewer,
        low=None if ratio.low is None else ratio.low * fewer,
        high=None if ratio.high is None else ratio.high * fewer,
        pairs=ratio.pairs,
    )


def _median(results: Sequence[Result], name: str) -> float | None:
    values = [result.metrics[name].value for result in results if name in result.metrics]
    return median(values) if values else None


def _notes(results: Sequence[Result]) -> list[Reason]:
    """Return why trials are left out, and what must be known of speeds: shared cores, devices that don't exist."""
    lost = [result for result in results if result.verdict == "invalid"]
    known = {n.code: n for result in results for n in result.notes if n.code in ("oversubscribed", SIMULATED)}
    notes = [Reason(why.code, f"{r.id} is left out: {why.message}", why.hint) for r in lost for why in r.reasons[:1]]
    return [*notes, *known.values()]
