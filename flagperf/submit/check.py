"""Checks a bundle: takes it apart in a private folder and finds every reason not to accept it."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flagperf.chips import TABLE, identify
from flagperf.collect.journals import read_harness
from flagperf.collect.trials import TrialRecord
from flagperf.errors import FlagPerfError
from flagperf.registry import Registries, code_digest
from flagperf.schema import SCHEMA_VERSION
from flagperf.schema.chip import Chip
from flagperf.schema.manifest import VendorManifest
from flagperf.schema.result import Result
from flagperf.schema.submission import (
    CheckedResult,
    ClaimedResults,
    Conditions,
    Rules,
    SubmitCheckOutput,
    SystemDescription,
)
from flagperf.schema.trial import Run, Trial
from flagperf.submit import strict, system
from flagperf.submit.archive import Refused
from flagperf.submit.bundle import ADAPTER, LICENCE, RESULTS, RUNS, SYSTEM, Bundle, opened
from flagperf.submit.conformance import Source, check_run
from flagperf.submit.evidence import Log, read_log
from flagperf.submit.findings import Findings
from flagperf.submit.machine import (
    Form,
    allowed_variable,
    check_code,
    check_environments,
    check_history,
    check_within,
)
from flagperf.submit.measured import UNCOMPUTABLE, check_claims, check_gate, check_peak, check_work, complete, measure
from flagperf.submit.rules import read_rules
from flagperf.submit.sweeps import Context, check_sweep


def check(path: Path, registries: Registries, key: str | None = None) -> SubmitCheckOutput:
    """Check a bundle of a stranger's; `key` is the public key that it must be signed by.

    Nothing of the bundle is executed or imported. Time and memory are bounded by `flagperf.submit.confined` only.
    """
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="flagperf-submission-") as folder:
        bundle = opened(path, Path(folder), key, findings)
        if bundle is None:
            return SubmitCheckOutput(bundle=str(path), verdict="rejected", reasons=findings.reasons)
        examination = _Examination(bundle, registries, findings)
        results = examination.results()
    manifest = bundle.manifest
    return SubmitCheckOutput(
        bundle=str(path),
        verdict="rejected" if findings.reasons else "accepted",
        reasons=findings.reasons,
        notes=findings.notes,
        rules=manifest.rules,
        division=manifest.division,
        vendor=manifest.vendor,
        system=examination.form.system.name if examination.form else "",
        seal=manifest.seal,
        signed_by=bundle.signed_by,
        results=[_shown(result) for result in results if result.purpose == "measure"],
    )


def _shown(result: Result) -> CheckedResult:
    return CheckedResult(
        run=result.run,
        trial=result.id,
        case=result.case,
        preset=result.preset,
        engine=result.engine,
        layout=result.layout,
        attempts=int(result.facts.get("attempts", 1)),
        metrics={name: value.value for name, value in result.metrics.items()},
    )


class _Examination:
    """One bundle being checked; what can't be read is told, and the rest goes on."""

    def __init__(self, bundle: Bundle, registries: Registries, findings: Findings) -> None:
        self.bundle, self.registries, self.findings = bundle, registries, findings
        self.rules: Rules | None = None
        self.form: Form | None = None
        self.chip: Chip | None = None
        self.adapter = ""
        """Digest of the adapter's files."""

    def results(self) -> list[Result]:
        """Return every trial's result, computed again."""
        try:
            self.rules = read_rules(self.bundle.manifest.rules)
        except FlagPerfError as error:
            self.findings.refuse("unknown_rules", error.message, file="manifest.json", hint=error.hint)
            return []
        self._system(self.rules)
        self._adapter()
        folders = sorted({name.split("/")[1] for name in self.bundle.files if name.startswith(f"{RUNS}/")})
        if folders != self.bundle.manifest.runs or not folders:
            self.findings.refuse(
                "wrong_runs", "The runs in the bundle aren't those in its manifest.", file="manifest.json",
                expected=self.bundle.manifest.runs, found=folders,
            )  # fmt: skip
        results: list[Result] = []
        for name in folders:
            with self.findings.at(f"{RUNS}/{name}/run.json"):
                results += self._run(name, self.rules)
        with self.findings.at(RESULTS):
            claimed = self.bundle.json(RESULTS, ClaimedResults).results
            text = self.bundle.read(RESULTS).decode()
            check_claims(claimed, results, text, self.rules.tolerances.metric, self.findings)
        return results

    def _system(self, rules: Rules) -> None:
        with self.findings.at(SYSTEM):
            described, lines = system.parse(self.bundle.read(SYSTEM))
            self.form = Form(system=described, lines=lines)
            self._sane(self.form)
            if described.licence not in rules.licences:
                self.findings.refuse(
                    "licence", "The licence isn't one that the rules allow.", file=SYSTEM,
                    line=strict.line_at(lines, ("licence",)), expected=", ".join(rules.licences),
                    found=described.licence,
                )  # fmt: skip
            self.chip = self._chip(described)
        with self.findings.at(LICENCE):
            words = strict.text(self.bundle.read(LICENCE))
            if self.form and f"SPDX-License-Identifier: {self.form.system.licence}" not in words.splitlines():
                self.findings.refuse(
                    "licence", "The licence isn't the one that the system description names.", file=LICENCE,
                    expected=self.form.system.licence, found=words.splitlines()[:1],
                )  # fmt: skip

    def _sane(self, form: Form) -> None:
        host, accelerator = form.system.host, form.system.accelerator
        for place, value in (
            (("host", "count"), host.count),
            (("host", "sockets"), host.sockets),
            (("host", "cores"), host.cores),
            (("host", "memory_gib"), host.memory_gib),
            (("accelerator", "count_per_host"), accelerator.count_per_host),
            (("accelerator", "memory_gib"), accelerator.memory_gib),
        ):
            form.hold(place, "a number above 0", self.findings, same=value > 0, where="anyone ever")

    def _chip(self, described: SystemDescription) -> Chip | None:
        """Return the row of the table of chips that the system's accelerator is."""
        vendor, own = self.bundle.manifest.vendor, described.accelerator
        if vendor not in self.registries.vendors.names():
            chip, why = None, f"no adapter {vendor!r} is installed here, nor its table of chips"
        else:
            chip, why = identify(vendor, own.name, own.memory_gib * 1024, self.registries.vendors.chips(vendor))
        if chip is None:
            self.findings.note("no_rated_peak", f"MFU is held against the measured peak only: {why}.")
        return chip

    def _adapter(self) -> None:
        vendor, own = self.bundle.manifest.vendor, f"{ADAPTER}/"
        names = [name for name in self.bundle.files if name.startswith(own)]
        self.adapter = code_digest({name.removeprefix(own): self.bundle.folder / name for name in names})
        manifests: list[VendorManifest] = []
        for name in names:
            if name.endswith(".toml") and name.count("/") == 1 and name != own + TABLE:
                with self.findings.at(name):
                    manifests.append(_manifest(self.bundle.read(name)))
        if [manifest.name for manifest in manifests] != [vendor]:
            self.findings.refuse(
                "adapter", "The adapter isn't the vendor's.", file=ADAPTER, expected=vendor,
                found=", ".join(manifest.name for manifest in manifests) or "no manifest",
            )  # fmt: skip
        self.manifest = manifests[0] if manifests else None

    def _run(self, name: str, rules: Rules) -> list[Result]:
        place = f"{RUNS}/{name}"
        text = self.bundle.read(f"{place}/run.json")
        run = self.bundle.json(f"{place}/run.json", Run)
        source = Source(run=run, file=f"{place}/run.json", lines=text.decode().split("\n"))
        self._identity(source, name)
        check_run(source, rules, self.bundle.manifest.division, self.registries, self.findings)
        logs = {
            file: read_log(self.bundle.folder / file, file, self.findings, torn=".attempt" in file)
            for file in self.bundle.files
            if file.startswith(f"{place}/") and file.endswith(".journal")
        }
        harness = logs.get(f"{place}/harness.journal")
        if harness is None:
            raise Refused("missing_file", "The harness's journal isn't there.", f"{place}/harness.journal")
        check_history(run, harness, self._attempts(source), self.findings)
        conditions = rules.conditions[self.bundle.manifest.division]
        check_environments(run, harness, self.form, conditions, rules.tolerances, self.findings)
        read = read_harness(self.bundle.folder / place)
        records: list[TrialRecord] = []
        for trial in run.trials:
            with self.findings.at(f"{place}/trials/{trial.id}/trial.json"):
                launched = self._launched(source, trial)
                own = {file: log for file, log in logs.items() if file.startswith(f"{place}/trials/{trial.id}/")}
                ranks = [
                    log for rank in range(len(own)) if (log := own.get(f"{place}/trials/{trial.id}/rank{rank}.journal"))
                ]
                telemetry = own.get(f"{place}/trials/{trial.id}/telemetry.journal")
                check_within(harness, trial.id, own.values(), self.findings)
                check_code(launched, harness, self.adapter, conditions, self.registries, self.findings)
                self._variables(launched, conditions)
                if trial.purpose == "measure" and not complete(ranks, launched, source.file, self.findings):
                    continue
                if trial.purpose == "measure" and telemetry is None:
                    raise Refused(
                        "missing_file", "Telemetry isn't there.", f"{place}/trials/{trial.id}/telemetry.journal"
                    )
                try:
                    record = measure(
                        self.bundle.folder / place, run, trial, read, ranks, telemetry, rules, self.findings
                    )
                except UNCOMPUTABLE as error:
                    raise Refused("uncomputable", f"Its result can't be computed: {type(error).__name__}.") from error
                records.append(record)
                if trial.purpose == "measure":
                    if trial.case in self.registries.cases.names():
                        check_work(launched, ranks, self.registries, self.findings)
                        self._kind(launched, record, ranks, rules)
                    check_peak(launched, record.result, self.chip, source, self.bundle.manifest.division, self.findings)
        check_gate(source, records, self.findings)
        return [record.result for record in records]

    def _kind(self, trial: Trial, record: TrialRecord, ranks: Sequence[Log], rules: Rules) -> None:
        """Check what only trials of one kind have."""
        own = Context(
            trial=trial,
            record=record,
            ranks=ranks,
            rules=rules,
            division=self.bundle.manifest.division,
            chip=self.chip,
            registries=self.registries,
            findings=self.findings,
        )
        try:
            if trial.swept:
                check_sweep(own, self.manifest)
        except (FlagPerfError, *UNCOMPUTABLE) as error:
            raise Refused("impossible", f"The case can't be what trial {trial.id} says: {error}") from error

    def _identity(self, source: Source, name: str) -> None:
        run, manifest = source.run, self.bundle.manifest
        for what, expected, found in (
            ("schema", f"at most {SCHEMA_VERSION}", run.schema if run.schema > SCHEMA_VERSION else None),
            ("id", name, run.id if run.id != name else None),
        ):
            if found is not None:
                self.findings.refuse(
                    "wrong_run", f"The run's {what} isn't what it should be.", file=source.file,
                    line=source.line(what), expected=expected, found=found,
                )  # fmt: skip
        for index, trial in enumerate(run.trials):
            if trial.vendor != manifest.vendor:
                self.findings.refuse(
                    "other_vendor", f"Trial {trial.id} is of another vendor than the bundle.", file=source.file,
                    line=source.line("trials", index, "vendor"), expected=manifest.vendor, found=trial.vendor,
                )  # fmt: skip

    def _attempts(self, source: Source) -> dict[str, list[int]]:
        """Return the numbers of the earlier attempts of each trial; refuse folders of no trial."""
        attempts: dict[str, list[int]] = {}
        own = f"{RUNS}/{source.run.id}/trials/"
        known = {trial.id for trial in source.run.trials}
        for folder in sorted({name.split("/")[3] for name in self.bundle.files if name.startswith(own)}):
            found = re.fullmatch(r"(.+)\.attempt([0-9]{1,6})", folder)
            if (found[1] if found else folder) not in known:
                self.findings.refuse("extra_file", "This is of no trial that was planned.", file=own + folder)
            elif found:
                attempts.setdefault(found[1], []).append(int(found[2]))
        return attempts

    def _launched(self, source: Source, planned: Trial) -> Trial:
        """Return a trial as its ranks got it: as planned, with the measured peak."""
        name = f"{RUNS}/{source.run.id}/trials/{planned.id}/trial.json"
        launched = self.bundle.json(name, Trial)
        if msgspec.structs.replace(launched, peak_flops=planned.peak_flops) != planned:
            self.findings.refuse("other_trial", "The trial isn't the one that was planned.", file=name)
        return launched

    def _variables(self, trial: Trial, own: Conditions) -> None:
        """Hold what the adapter sets for every rank against the rules' list."""
        for variable in self.manifest.variables(trial.case) if self.manifest else {}:
            if not allowed_variable(variable, own):
                self.findings.refuse(
                    "variable", f"The adapter sets {variable}, which isn't on the rules' list.", file=ADAPTER,
                    expected=", ".join(own.variables), found=variable,
                )  # fmt: skip


def _manifest(data: bytes) -> VendorManifest:
    try:
        return msgspec.convert(tomllib.loads(strict.text(data)), VendorManifest, strict=True)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise strict.Malformed(f"it isn't TOML: {error}", int(line[1]) if line else None) from None
    except (ValueError, RecursionError) as error:  # msgspec's validation errors are ValueErrors
        raise strict.Malformed(str(error) or "it is nested too deeply") from None
