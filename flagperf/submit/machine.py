"""Holds what the harness saw of a run against itself: the order of things, the machine, its settings and its code."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from flagperf.errors import FlagPerfError
from flagperf.measure.environment import Environment
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.submission import Conditions, SystemDescription, Tolerances
from flagperf.schema.trial import Run, Trial
from flagperf.submit import strict
from flagperf.submit.bundle import SYSTEM
from flagperf.submit.conformance import limits, outside
from flagperf.submit.evidence import Line, Log
from flagperf.submit.findings import Findings

_SAME = ("cpu", "cores", "kernel", "python", "packages", "governor", "clock_source", "memory_total")
"""Of a snapshot: what is the same before and after every trial of a run."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The description of the system, and the lines that its parts are on."""

    system: SystemDescription
    lines: dict[strict.Path, int]

    def hold(self, place: strict.Path, seen: object, findings: Findings, *, same: bool, where: str) -> None:
        """Refuse the form where what it says isn't what was seen."""
        if not same:
            told: Any = self.system
            for part in place:
                told = told[part] if isinstance(told, dict) else getattr(told, str(part))
            findings.refuse(
                "form_differs", f"{'.'.join(map(str, place))} isn't what {where} saw.", file=SYSTEM,
                line=strict.line_at(self.lines, place), expected=seen, found=told,
            )  # fmt: skip


def check_history(run: Run, harness: Log, attempts: Mapping[str, Sequence[int]], findings: Findings) -> None:
    """Hold the order of what happened against what is there: no trial hidden, none inside another."""
    if harness.header.get("run") != run.id:
        findings.refuse(
            "wrong_journal", "The harness's journal is of another run.", file=harness.file, line=1, expected=run.id,
            found=harness.header.get("run"),
        )  # fmt: skip
    begun = ""
    known = {trial.id for trial in run.trials}
    for line in harness.lines:
        name = line.told.get("id")
        if line.key in (Key.TRIAL_START, Key.TRIAL_STOP) and name not in known:
            findings.refuse(
                "trial_left_out", "A trial was run that the plan doesn't have.", file=harness.file, line=line.number,
                found=name,
            )  # fmt: skip
        if line.key == Key.TRIAL_STOP and name != begun:
            findings.refuse(
                "trial_order", "A trial ended that hadn't begun.", file=harness.file, line=line.number, expected=begun,
                found=name,
            )  # fmt: skip
        begun = str(name) if line.key == Key.TRIAL_START else "" if line.key == Key.TRIAL_STOP else begun
    for trial in run.trials:
        starts = [line for line in harness.all(Key.TRIAL_START) if line.told.get("id") == trial.id]
        numbers = sorted(attempts.get(trial.id, []))
        if numbers != list(range(1, len(numbers) + 1)) or (
            trial.purpose == "measure" and len(starts) != 1 + len(numbers)
        ):
            findings.refuse(
                "attempt_left_out", f"Trial {trial.id} was begun more or less often than there are attempts of it.",
                file=harness.file, line=starts[-1].number if starts else None,
                expected=f"1 start and one for each of the attempts {numbers}", found=f"{len(starts)} starts",
                hint="Pack the whole run, the folders of failed attempts too.",
            )  # fmt: skip
        elif numbers:
            findings.note("attempts", f"Trial {trial.id} was run {len(numbers) + 1} times; the last counts.")


def span(harness: Log, trial: str) -> tuple[Line, Line] | None:
    """Return the lines on which a trial's last attempt began and ended."""
    start = next((x for x in reversed(harness.all(Key.TRIAL_START)) if x.told.get("id") == trial), None)
    stop = next((x for x in reversed(harness.all(Key.TRIAL_STOP)) if x.told.get("id") == trial), None)
    return (start, stop) if start and stop and start.number < stop.number else None


def check_within(harness: Log, trial: str, logs: Iterable[Log], findings: Findings) -> None:
    """What a trial's processes wrote lies between its beginning and its end, by the clock that a host has."""
    bounds = span(harness, trial)
    if bounds is None:
        return  # the verdict says so
    for log in logs:
        if not log.lines or log.header.get("host") != harness.header.get("host"):
            continue
        for line in (log.lines[0], log.lines[-1]):
            if not bounds[0].ns <= line.ns <= bounds[1].ns:
                findings.refuse(
                    "outside_trial", f"This was written before trial {trial} began, or after it ended.", file=log.file,
                    line=line.number, expected=f"{bounds[0].ns} to {bounds[1].ns} ns", found=line.ns,
                )  # fmt: skip
                break


def check_environments(
    run: Run, harness: Log, form: Form | None, own: Conditions, allowed: Tolerances, findings: Findings
) -> None:
    """Hold the snapshots of the machine against what can be, against each other, the rules and the form."""
    first: tuple[Line, Environment] | None = None
    for trial in run.trials:
        bounds = span(harness, trial.id)
        if bounds is None:
            continue
        inside = [x for x in harness.all(Key.ENVIRONMENT) if bounds[0].number < x.number < bounds[1].number]
        moments = [line.told.get("when") for line in inside if line.told.get("trial") == trial.id]
        if moments != ["before", "after"]:
            findings.refuse(
                "no_environment", f"The machine wasn't looked at before and after trial {trial.id}.", file=harness.file,
                line=bounds[0].number, expected=["before", "after"], found=moments,
            )  # fmt: skip
        for line in inside:
            try:
                seen = msgspec.convert(line.told, Environment)
            except msgspec.ValidationError as error:
                findings.refuse(
                    "environment", f"The snapshot can't be read: {error}", file=harness.file, line=line.number
                )
                continue
            _plausible(seen, line, run, harness.file, findings)
            _ruled(seen, line, own, harness.file, findings)
            if first is None:
                first = line, seen
                if form is not None:
                    _described(seen, form, allowed, findings)
            else:
                _alike(first, seen, line, harness.file, findings)


def _plausible(seen: Environment, line: Line, run: Run, file: str, findings: Findings) -> None:
    total, available = seen.memory_total, seen.memory_available
    try:
        stamp = datetime.datetime.fromisoformat(seen.time).timestamp()
    except (ValueError, OverflowError):
        stamp = 0.0
    for wrong, expected, found in (
        (abs(stamp - line.time_ms / 1000) > 5, f"the time of the journal's line, {line.time_ms} ms", seen.time),
        (seen.cores < 1, "at least one core", seen.cores),
        (seen.window <= 0, "a window above 0 s", seen.window),
        (min(seen.load, default=-1) < 0, "three loads of at least 0", seen.load),
        (seen.foreign_percent < 0, "at least 0 percent", seen.foreign_percent),
        (seen.steal_percent is not None and not 0 <= seen.steal_percent <= 100, "0 to 100 percent", seen.steal_percent),
        (total is not None and available is not None and not 0 <= available <= total, f"at most {total}", available),
        (seen.flagperf != run.flagperf, f"FlagPerf {run.flagperf}, as the plan says", seen.flagperf),
    ):
        if wrong:
            findings.refuse(
                "environment", "The snapshot of the machine can't be true.", file=file, line=line.number,
                expected=expected, found=found,
            )  # fmt: skip


def _ruled(seen: Environment, line: Line, own: Conditions, file: str, findings: Findings) -> None:
    for name, bound in own.machine.items():
        value = getattr(seen, name, None)
        if value is not None and (why := outside(bound, value)):
            findings.refuse(
                "machine", f"{name}: {why}.", file=file, line=line.number, expected=limits(bound), found=value
            )
    for name, setting in seen.variables.items():
        if not allowed_variable(name, own):
            findings.refuse(
                "variable", f"The environment variable {name} isn't on the rules' list.", file=file, line=line.number,
                expected=", ".join(own.variables), found=f"{name}={setting}",
            )  # fmt: skip
    if seen.commit is not None and seen.commit.endswith("+dirty"):
        tell = findings.refuse if own.released_code else findings.note
        tell(
            "code_changed", "The code had been changed since its commit.", file=file, line=line.number,
            expected="a commit", found=seen.commit,
        )  # fmt: skip


def allowed_variable(name: str, own: Conditions) -> bool:
    """Whether a submitter may set an environment variable."""
    return any(fnmatchcase(name, pattern) for pattern in own.variables)


def _alike(first: tuple[Line, Environment], seen: Environment, line: Line, file: str, findings: Findings) -> None:
    for name in _SAME:
        before, now = getattr(first[1], name), getattr(seen, name)
        if before != now:
            findings.refuse(
                "machine_changed", f"{name} isn't what it was on line {first[0].number}: another machine, or other "
                "software.", file=file, line=line.number, expected=before, found=now,
            )  # fmt: skip


def _described(seen: Environment, form: Form, allowed: Tolerances, findings: Findings) -> None:
    told, where = form.system, "the harness"
    form.hold(("host", "cpu"), seen.cpu, findings, same=told.host.cpu == seen.cpu, where=where)
    form.hold(("host", "cores"), seen.cores, findings, same=told.host.cores == seen.cores, where=where)
    form.hold(("host", "kernel"), seen.kernel, findings, same=told.host.kernel == seen.kernel, where=where)
    if seen.memory_total is not None:
        gib = seen.memory_total / 2**30
        close = abs(told.host.memory_gib - gib) <= allowed.memory * gib
        form.hold(("host", "memory_gib"), round(gib, 1), findings, same=close, where=where)
    software = told.software
    form.hold(("software", "python"), seen.python, findings, same=software.python == seen.python, where=where)
    for name, version in seen.packages.items():
        same = software.packages.get(name, version) == version
        form.hold(("software", "packages", name), version, findings, same=same, where=where)


def check_code(
    trial: Trial, harness: Log, adapter: str, own: Conditions, registries: Registries, findings: Findings
) -> None:
    """Hold the code that a trial ran with against what this FlagPerf has, and the adapter against the bundled one."""
    bounds = span(harness, trial.id)
    if bounds is None:
        return
    start = bounds[0]
    told = start.told.get("code")
    code = told if isinstance(told, dict) else {}
    own_code = own.released_code
    for what, registry, name in (("case", registries.cases, trial.case), ("engine", registries.engines, trial.engine)):
        if what == "engine" and trial.swept:
            continue  # its providers are the case's code, or the adapter's
        try:
            here = registry.digest(name)
        except FlagPerfError:
            here = ""  # an engine of the submitter's own, or an unknown case, which is told elsewhere
        if code.get(what) != here:
            # An engine may be the submitter's own; what it may not change, the case and the accuracy gate hold.
            tell = findings.refuse if what not in code or (what == "case" and own_code) else findings.note
            tell(
                "unknown_code", f"The {what} {name} isn't the one that this FlagPerf has.", file=harness.file,
                line=start.number, expected=here or "one that is installed here", found=code.get(what, "not told"),
                hint="Check it with the FlagPerf that it was measured with.",
            )  # fmt: skip
    if code.get("vendor") != adapter:
        findings.refuse(
            "other_adapter", "The adapter in the bundle isn't the one that the trial ran with.", file=harness.file,
            line=start.number, expected=code.get("vendor", "not told"), found=adapter,
            hint="Pack with the adapter that was measured.",
        )  # fmt: skip
