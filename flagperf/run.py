"""Carries out a planned run: prepares, launches trial after trial, and keeps what was measured whatever happens.

The run directory is the truth: `run.json` (the plan), `harness.journal` (what the harness saw), and a folder a trial
with a journal a rank. Nothing is kept in memory that isn't there too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from flagperf.collect.sweeps import shown
from flagperf.collect.trials import read_trial
from flagperf.errors import FlagPerfError, UsageError
from flagperf.journal import Journal
from flagperf.launchers import Launcher
from flagperf.measure.environment import snapshot
from flagperf.measure.peak import measured_peak
from flagperf.plan import further
from flagperf.registry import Registries
from flagperf.schema.event import PREFIX, Key, Step
from flagperf.schema.inference import LoadStart
from flagperf.schema.result import Result
from flagperf.schema.sweep import Samples
from flagperf.schema.trial import Nodes, Outcome, Run, Trial

_LEAST_FREE = 2 * 2**20
"""Bytes that must be free before a trial is started: its journals are smaller, but not much."""


class Watcher(Protocol):
    """Is told how a run goes on."""

    def stage(self, text: str, share: float | None) -> None:
        """Something that takes time is being prepared."""

    def trial_started(self, number: int, count: int, trial: Trial) -> None:
        """A trial is being launched; `number` counts from 1."""

    def step(self, done: int, planned: int, loss: float | None, tokens_per_second: float) -> None:
        """A trial has come this far."""

    def points(self, done: int, planned: int, where: str) -> None:
        """A sweep has measured so many of its points, each with every provider."""

    def queries(self, done: int, failed: int, share: float, load: LoadStart) -> None:
        """So many queries of a load have ended; `share` is how far it is by time and number."""

    def trial_ended(self, trial: Trial, result: Result) -> None:
        """A trial has ended, well or not."""


def execute(
    run: Run, folder: Path, registries: Registries, watcher: Watcher, *, nodes: Nodes, keep_going: bool = False
) -> None:
    """Carry out the trials of `run` in `folder` that have no valid result yet, and those that follow from them.

    Without `keep_going` it stops after the first invalid one. Raises KeyboardInterrupt again after cleaning up, and
    FlagPerfError for what makes further trials pointless; results so far can be read from the folder in any case.
    """
    with _disk_errors(folder), _locked(folder, nodes), _termination_is_interrupt():
        if nodes.index == 0 or not (folder / "run.json").exists():  # on a shared file system node 0's is everyone's
            _write(folder / "run.json", run)
        launcher: Launcher = registries.launchers.load(run.launcher)(nodes)
        with Journal(
            folder / f"harness{nodes.suffix}.journal", {"role": "harness", "run": run.id, "node": nodes.index}
        ) as journal:
            try:
                pending = [trial for trial in run.trials if not _done(folder, run, trial, nodes)]
                facts: dict[str, dict[str, Any]] = {}
                while True:
                    facts |= _prepare([trial for trial in pending if trial.case not in facts], registries, watcher)
                    for trial in pending:
                        watcher.trial_started(run.trials.index(trial) + 1, len(run.trials), trial)
                        if trial.kind == "training":
                            trial = _with_peak(trial, nodes, watcher)
                        begun = {"id": trial.id, "prepared": facts[trial.case], "code": _code(trial, registries)}
                        journal.write(Key.TRIAL_START, begun)
                        outcome = _launch(trial, folder, launcher, journal, watcher, registries)
                        journal.write(Key.TRIAL_STOP, {"id": trial.id, "outcome": msgspec.to_builtins(outcome)})
                        result = read_trial(folder, run, trial).result
                        watcher.trial_ended(trial, result)
                        # A node sees its own ranks' journals only, so it can't judge the whole trial.
                        bad = result.verdict == "invalid" if nodes.count == 1 else outcome.status != "finished"
                        if bad and not keep_going and trial.purpose == "measure":
                            return
                    more = further(run, [read_trial(folder, run, trial).result for trial in run.trials])
                    if not more:
                        return
                    run = msgspec.structs.replace(run, trials=[*run.trials, *more])
                    _write(folder / "run.json", run)
                    pending = [trial for trial in more if not _done(folder, run, trial, nodes)]
            except KeyboardInterrupt:
                journal.write(Key.INTERRUPTED)
                raise


def new_folder(out: Path | None, run: Run, nodes: Nodes) -> Path:
    """Return the run's folder, made anew; refuse one that has something in it, unless another node may have put it."""
    folder = out or Path("runs") / run.id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of several nodes that share a folder another may have been first; only the first node's own files count.
        own = "harness.journal" if nodes.count > 1 else "[!.]*"
        if nodes.index == 0 and any(folder.glob(own)):
            raise UsageError(
                f"{folder} isn't empty.",
                f"Give another folder with --out, or go on with what is there by --resume {folder}.",
            )
        (folder / ".lock").touch()
    except OSError as error:
        raise FlagPerfError(
            f"Can't write to {folder}: {error.strerror}.", "Choose a folder you may write to with --out DIR."
        ) from error
    return folder


def _done(folder: Path, run: Run, trial: Trial, nodes: Nodes) -> bool:
    """Whether a trial has a valid result, or has shown what it was to; what is left of a failed one is put aside."""
    place = folder / "trials" / trial.id
    if not place.exists() or nodes.count > 1:  # then it may be there because another node has begun
        return False
    result = read_trial(folder, run, trial).result
    if result.verdict == "valid":
        return True
    if trial.purpose == "search" and not {reason.code for reason in result.reasons} & {"interrupted", "no_outcome"}:
        return True  # that a layout doesn't fit is what the search wants to know
    attempt = sum(1 for _ in place.parent.glob(f"{trial.id}.attempt*")) + 1
    place.rename(place.with_name(f"{trial.id}.attempt{attempt}"))
    return False


def _prepare(trials: list[Trial], registries: Registries, watcher: Watcher) -> dict[str, dict[str, Any]]:
    """Let each case make ready what its trials need."""
    first = {trial.case: trial for trial in reversed(trials)}
    return {name: registries.cases.load(name)(trial).prepare(watcher.stage) for name, trial in first.items()}


def _code(trial: Trial, registries: Registries) -> dict[str, str]:
    """Return digests of the plug-ins that a trial runs with: whoever reads it later can tell if theirs are the same."""
    return {
        "case": registries.cases.digest(trial.case),
        **({} if trial.swept else {"engine": registries.engines.digest(trial.engine)}),
        "vendor": registries.vendors.digest(trial.vendor),
    }


def _with_peak(trial: Trial, nodes: Nodes, watcher: Watcher) -> Trial:
    """Return the trial with the measured peak that its MFU is relative to; measured once a machine."""
    local = trial.ranks // nodes.count
    folders = [Path(folder) for folder in trial.plugins]
    peak = measured_peak(trial.vendor, trial.dtype, trial.threads, local, watcher.stage, folders)
    return msgspec.structs.replace(trial, peak_flops=peak)


def _launch(
    trial: Trial,
    folder: Path,
    launcher: Launcher,
    journal: Journal,
    watcher: Watcher,
    registries: Registries,
) -> Outcome:
    """Run one trial between two looks at the machine, with telemetry beside it."""
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    place = folder / "trials" / trial.id
    place.mkdir(parents=True, exist_ok=True)
    _write(place / f"trial{launcher.nodes.suffix}.json", trial)
    vendor = registries.vendors.get(trial.vendor)
    environment = {**vendor.variables(trial.case), "OMP_NUM_THREADS": str(trial.threads)}
    progress = _Progress(place / "rank0.journal", trial, watcher)
    began = time.monotonic()
    _environment(journal, trial, "before", folder)
    try:
        with _telemetry(place / f"telemetry{launcher.nodes.suffix}.journal", trial):
            outcome = launcher.launch(trial, place, environment, trial.protocol.timeout, progress.look)
    except KeyboardInterrupt:
        outcome = Outcome(status="interrupted", seconds=time.monotonic() - began)
        journal.write(Key.TRIAL_STOP, {"id": trial.id, "outcome": msgspec.to_builtins(outcome)})
        raise
    _environment(journal, trial, "after", folder)
    return outcome


def _environment(journal: Journal, trial: Trial, when: str, folder: Path) -> None:
    seen = msgspec.to_builtins(snapshot(folder))
    journal.write(Key.ENVIRONMENT, {"trial": trial.id, "when": when, **seen})


@contextmanager
def _telemetry(path: Path, trial: Trial) -> Iterator[None]:
    """Sample the machine in a process of its own while the body runs."""
    log = path.parent / "output" / "telemetry.log"
    log.parent.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-m", "flagperf.measure.telemetry", "--out", str(path)),
        *("--parent", str(os.getpid()), "--vendor", trial.vendor, "--interval", str(trial.protocol.telemetry)),
        *(part for folder in trial.plugins for part in ("--plugins", folder)),
    ]
    environment = {**os.environ, "FLAGPERF_PARENT": str(os.getpid())}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _StepLine(msgspec.Struct):
    value: Step


class _SweepLine(msgspec.Struct):
    value: dict[str, Any]


class _SamplesLine(msgspec.Struct):
    value: Samples


class _LoadLine(msgspec.Struct):
    value: LoadStart


class _Progress:
    """Reads what rank 0 has added to its journal, about once a second, to say how far the trial is."""

    def __init__(self, path: Path, trial: Trial, watcher: Watcher) -> None:
        self.path, self.trial, self.watcher = path, trial, watcher
        self.tokens = 0
        self.planned = trial.protocol.warmup + trial.protocol.steps
        self.offset = self.done = self.points = self.failed = 0
        self.load: LoadStart | None = None
        self.began = 0.0

    def look(self) -> None:
        """Tell the watcher of new steps."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            chunk = file.read()
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self.offset += len(whole)
        lines = whole.splitlines()
        with suppress(msgspec.DecodeError):  # a torn line: the collector will say so, this only shows progress
            for line in (line for line in lines if b'"key":"sweep"' in line):
                self.points = msgspec.json.decode(line[len(PREFIX) :], type=_SweepLine).value["points"]
            if samples := [line for line in lines if b'"key":"samples"' in line]:
                self.done += len(samples)
                last_at = msgspec.json.decode(samples[-1][len(PREFIX) :], type=_SamplesLine).value
                planned = self.points * len(self.trial.providers)
                self.watcher.points(self.done, planned, f"{last_at.provider} {shown(last_at.at)}")
            self._look_at_queries(lines)
        steps = [line for line in lines if b'"key":"step"' in line]
        if steps:
            self.done += len(steps)
            with suppress(msgspec.DecodeError):
                last = msgspec.json.decode(steps[-1][len(PREFIX) :], type=_StepLine).value
                self.watcher.step(self.done, self.planned, last.loss, last.tokens / max(last.seconds, 1e-9))

    def _look_at_queries(self, lines: list[bytes]) -> None:
        """Tell the watcher of new queries of a load, and of a load that has begun."""
        for line in lines:
            if b'"key":"load_start"' in line:
                self.load = msgspec.json.decode(line[len(PREFIX) :], type=_LoadLine).value
                self.began, self.done, self.failed = time.monotonic(), 0, 0
            elif b'"key":"query"' in line:
                self.done += 1
                self.failed += b'"fault":"' in line
        if self.load is not None:
            passed = (time.monotonic() - self.began) / max(self.load.seconds, 1e-9)
            share = min(1.0, passed, self.done / max(self.load.queries, 1))
            self.watcher.queries(self.done, self.failed, share, self.load)


@contextmanager
def _locked(folder: Path, nodes: Nodes) -> Iterator[None]:
    """Hold the folder's lock: two runs into one folder would mix their journals."""
    with (folder / f".lock{nodes.suffix}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FlagPerfError(
                f"Another run is going on in {folder}.", "Wait for it, or give another folder with --out."
            ) from None
        yield


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the harness can't write into a message; what was measured before stays readable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FlagPerfError(
                f"The disk with {folder} is full.",
                f"Free some space and go on with `flagperf run --resume {folder}`, or choose another --out.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise FlagPerfError(
                f"Can't write in {folder}: {error.strerror} ({error.filename}).",
                "Make the folder writable, or start a new run with another --out.",
            ) from error
        raise


@contextmanager
def _termination_is_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C: clean up, keep what was measured."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before: list[tuple[int, Callable[..., Any] | int | None]] = [
        (number, signal.signal(number, interrupt)) for number in (signal.SIGTERM, signal.SIGHUP)
    ]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _write(path: Path, value: msgspec.Struct) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
