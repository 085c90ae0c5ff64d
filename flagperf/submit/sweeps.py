"""Holds a sweep's samples against its plan, the case's formulas, the clock, and what its devices can do at most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from flagperf.collect.specifications import chip_of
from flagperf.collect.sweeps import possible, shown, told_roofs
from flagperf.collect.trials import TrialRecord
from flagperf.registry import Registries
from flagperf.schema.chip import Chip
from flagperf.schema.event import Key
from flagperf.schema.manifest import VendorManifest
from flagperf.schema.submission import DivisionName, Rules
from flagperf.schema.sweep import At, Point, Samples
from flagperf.schema.trial import Trial
from flagperf.submit.evidence import Line, Log
from flagperf.submit.findings import Findings
from flagperf.sweep import SweepCase

_LEAST_SPENT = 0.9
"""Share of a point's time that must have been measured, unless it has so many rounds that the time didn't matter."""
_MOST_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class Context:
    """A trial with its journals, and all that they are held against."""

    trial: Trial
    record: TrialRecord
    ranks: Sequence[Log]
    rules: Rules
    division: DivisionName
    chip: Chip | None
    registries: Registries
    findings: Findings

    @property
    def place(self) -> str:
        """Where the trial's files are in the bundle."""
        return f"runs/{self.record.result.run}/trials/{self.trial.id}"


def check_sweep(own: Context, adapter: VendorManifest | None) -> None:
    """Hold a sweep's journals against what was planned and what can be."""
    trial, findings = own.trial, own.findings
    case: SweepCase = own.registries.cases.load(trial.case)(trial)
    points = {shown(at): at for at in case.points()}
    _providers(own, adapter)
    for log in own.ranks:
        told = [(line, msgspec.convert(line.value, Samples)) for line in log.all(Key.SAMPLES)]
        if any("imported" in samples.facts for _, samples in told):
            findings.refuse(
                "imported", "It was measured by another tool, which took no snapshots of the machine and no telemetry.",
                file=log.file, hint="Measure the case with `flagperf run`, and pack that run.",
            )  # fmt: skip
        if len(told) > (most := 2 * len(points) * len(trial.providers)):
            findings.refuse(
                "point_unplanned", "There are many more samples than were planned.", file=log.file,
                line=told[most][0].number, expected=most // 2, found=len(told),
            )  # fmt: skip
            continue
        _planned(own, log, told, points)
        for line, samples in told:
            _samples(own, log, line, samples)
            if points.get(shown(samples.at)) == samples.at:
                _formulas(own, log, line, samples, case)
        _times(own, log, told)
    _roofs(own)
    if trial.kind == "specification":
        _table(own)
    elif trial.kind == "kernel" and not all("bytes" in case.amounts(at) for at in points.values()):
        findings.note("bytes_untold", f"Bytes of a call of {trial.case} are as its ranks tell them.")


def _providers(own: Context, adapter: VendorManifest | None) -> None:
    """Hold who was measured against who can be; in the closed division the case's first is among them."""
    trial, manifest = own.trial, own.registries.cases.get(own.trial.case)
    brought = [
        each.provider or each.distribution
        for each in (adapter.kernels if adapter else [])
        if each.entry and manifest.operation in each.operations
    ]
    known, there = [*manifest.providers, *brought], trial.providers
    baseline = next(iter(manifest.providers), "")
    if set(there) - set(known) or len(set(there)) < len(there):
        own.findings.refuse(
            "unknown_provider", f"Trial {trial.id} has a provider twice, or one that neither case nor adapter has.",
            file=own.place, expected=", ".join(known), found=", ".join(there),
        )  # fmt: skip
    if own.division == "closed" and baseline not in there:
        own.findings.refuse(
            "no_baseline", f"Trial {trial.id} doesn't measure the provider that others are compared with.",
            file=own.place, expected=baseline, found=", ".join(there), hint=f"Measure it, too: --engine …,{baseline}",
        )  # fmt: skip


def _planned(own: Context, log: Log, told: Sequence[tuple[Line, Samples]], points: Mapping[str, At]) -> None:
    """Every provider at every point once, and nothing else: none is left out because it's slow."""
    planned = {(name, at) for at in points for name in own.trial.providers}
    seen: set[tuple[str, str]] = set()
    for line, samples in told:
        key = (samples.provider, shown(samples.at))
        if key in seen or key not in planned or samples.at != points[key[1]]:
            what = "is there twice" if key in seen else "wasn't planned"
            own.findings.refuse(
                "point_unplanned", f"{key[0]} at {key[1]} {what}.", file=log.file, line=line.number, found=samples.at
            )
        seen.add(key)
    if missing := sorted(planned - seen):
        own.findings.refuse(
            "point_missing", f"{len(missing)} of {len(planned)} points aren't there; the first: "
            f"{missing[0][0]} at {missing[0][1]}.", file=log.file, expected=len(planned), found=len(seen),
        )  # fmt: skip


def _samples(own: Context, log: Log, line: Line, samples: Samples) -> None:
    """Hold one provider's samples at a point against what a measurement can give."""
    rounds, least = len(samples.seconds), own.trial.protocol.steps
    device = samples.clock == "device"
    timed = own.trial.kind != "specification"
    for wrong, code, message, expected, found in (
        (not possible(samples), "impossible_samples", "Times are above 0, amounts aren't below it.", "", ""),
        (not 1 <= samples.calls < 2**53, "impossible_samples", "A round has calls.", "at least 1", samples.calls),
        (
            len(samples.host_seconds) != (rounds if device else 0),
            *("impossible_samples", "The host's clock tells as many rounds as the device's, where that is read."),
            *(rounds if device else 0, len(samples.host_seconds)),
        ),
        ((samples.memory or 0) < 0, "impossible_samples", "Memory isn't below 0.", "at least 0", samples.memory),
        (timed and bool(samples.values), "impossible_samples", "All of it is made of times.", "no values",
         sorted(samples.values)),
        (samples.verdict not in ("valid", "wrong") and rounds > 0, "impossible_samples",
         "It has rounds though it wasn't measured.", "none", rounds),
        (samples.verdict == "valid" and not rounds and (timed or not samples.values), "rounds_missing",
         "Nothing was measured.", f"at least {least} rounds", "none"),
        (samples.verdict == "valid" and 0 < rounds < least, "rounds_missing", "There are fewer rounds than planned.",
         f"at least {least}", rounds),
    ):  # fmt: skip
        if wrong:
            own.findings.refuse(
                code, f"{samples.provider} at {shown(samples.at)}: {message}", file=log.file, line=line.number,
                expected=expected, found=found,
            )  # fmt: skip


def _formulas(own: Context, log: Log, line: Line, samples: Samples, case: SweepCase) -> None:
    """Hold the work of a call, and how its results were judged, against the case."""
    if samples.verdict != "valid" or not samples.seconds:
        return
    where = f"{samples.provider} at {shown(samples.at)}"
    for name, amount in case.amounts(samples.at).items():
        if not math.isclose(found := getattr(samples, name), amount, rel_tol=1e-9):
            own.findings.refuse(
                "work", f"{where}: {name} of a call aren't those of the case's formula.", file=log.file,
                line=line.number, expected=amount, found=found,
            )  # fmt: skip
    if (allowed := case.tolerance(samples.at)) is None:
        return
    judged = samples.accuracy
    errors = (judged.max_absolute, judged.max_relative) if judged else ()
    untold = any(error is None or error < 0 for error in errors)
    if judged is None or untold or (judged.absolute, judged.relative) != allowed or judged.wrong or judged.elements < 1:
        own.findings.refuse(
            "accuracy", f"{where}: its results weren't found right by the case's tolerances.", file=log.file,
            line=line.number, expected=f"{allowed[0]:g} + {allowed[1]:g} × |reference|", found=judged or "not judged",
        )  # fmt: skip


def _times(own: Context, log: Log, told: Sequence[tuple[Line, Samples]]) -> None:
    """Hold the rounds of each point against the journal's clock, and against how long it was to be measured."""
    allowed, protocol = own.rules.tolerances, own.trial.protocol
    begin = max((line.ns for key in (Key.SWEEP, Key.ROOFS) for line in log.all(key)), default=0)
    for at, group in itertools.groupby(told, lambda each: shown(each[1].at)):
        some = list(group)
        timed = [samples for _, samples in some if samples.seconds]
        spent = sum(sum(samples.host_seconds or samples.seconds) * samples.calls for samples in timed)
        last = some[-1][0]
        seen = (last.ns - begin) / 1e9
        begin = last.ns
        if spent > seen + allowed.clock_seconds + allowed.clock_share * seen:
            own.findings.refuse(
                "round_times", f"The rounds at {at} took longer than there was time.", file=log.file, line=last.number,
                expected=f"at most {seen:.3f} s since the point before", found=f"{spent:.3f} s",
            )  # fmt: skip
        rounds = max((len(samples.seconds) for samples in timed), default=0)
        wanted = protocol.seconds * len(timed) * _LEAST_SPENT
        if own.trial.kind == "kernel" and rounds < _MOST_ROUNDS and spent < wanted:
            own.findings.refuse(
                "round_times", f"{at} was measured for less time than its protocol says.", file=log.file,
                line=last.number, expected=f"at least {wanted:.3f} s", found=f"{spent:.3f} s",
            )  # fmt: skip


def _roofs(own: Context) -> None:
    """Hold speeds against the roofs that the ranks measured and against the table of chips.

    Data in caches may come faster than memory gives it: only cold ones are held against the bandwidth.
    """
    allowed = own.rules.tolerances
    roofs = [found for rank in own.record.ranks if (found := told_roofs(rank)) is not None]
    if "roofline_share" in own.trial.metrics:
        dtypes = {str(point.at.get("dtype", "fp32")) for point in own.record.result.points}
        wanted = {dtype for dtype in dtypes if not dtype.startswith(("int", "uint", "bool"))}
        whole = [
            each for each in roofs if wanted <= each.flops.keys() and min([each.bandwidth, *each.flops.values()]) > 0
        ]
        if len(whole) < own.trial.ranks:
            own.findings.refuse(
                "no_roof", f"Not all ranks of trial {own.trial.id} tell the roofs that shares are of.", file=own.place,
                expected=f"bandwidth and FLOP/s of {', '.join(sorted(wanted))}, above 0",
                found=f"{len(whole)} of {own.trial.ranks} ranks",
            )  # fmt: skip
    for point in own.record.result.points:
        dtype, cold = str(point.at.get("dtype", "fp32")), point.at.get("cache") == "cold"
        limits: list[tuple[str, float, float, str]] = []
        for roof in roofs:
            limits.append(("flops_rate", roof.flops.get(dtype, math.inf) / 1e12, allowed.roof, "measured"))
            limits.append(("bandwidth", roof.bandwidth / 1e9 if cold else math.inf, allowed.roof, "measured"))
        if own.chip is not None:
            tera = own.chip.rated(f"{dtype}_tflops") or math.inf
            limits.append(("flops_rate", tera, allowed.rated, "rated"))
            if cold and own.chip.memory_bandwidth_gbs:
                limits.append(("bandwidth", own.chip.rated("memory_bandwidth_gbs") or math.inf, allowed.rated, "rated"))
        for name, most, factor, what in _broken(point, limits):
            own.findings.refuse(
                "above_roof", f"{point.provider} at {shown(point.at)}: {name} is above the {what} roof.",
                file=own.place, expected=f"at most {factor:g} × {most:,.4g} {point.metrics[name].unit}",
                found=point.metrics[name].value,
            )  # fmt: skip


def _broken(point: Point, limits: Sequence[tuple[str, float, float, str]]) -> Iterator[tuple[str, float, float, str]]:
    for name, most, factor, what in limits:
        if name in point.metrics and not point.metrics[name].value <= factor * most:
            yield name, most, factor, what


def _table(own: Context) -> None:
    """The chip that a specification's figures were held against is the one that the system's form names."""
    told = chip_of(own.record.ranks)
    if told != own.chip:
        tell = own.findings.note if own.division == "open" and own.chip is None else own.findings.refuse
        tell(
            "peak", f"Trial {own.trial.id} was held against another chip than the form names.", file=own.place,
            expected=own.chip.chip if own.chip else "none: the table has no such chip",
            found=told.chip if told else "none",
        )  # fmt: skip
