"""pytest-benchmark's JSON → a run: a trial for each file and case, each benchmark a provider at a point.

What FlagPerf's own plug-in wrote has all that a kernel case's journal has. Of other benchmarks the name without its
parameters is the provider and the parameters are the point, so that two functions are compared where their parameters
agree. Nothing in a file is trusted: what isn't as pytest-benchmark writes it is refused, with the place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from flagperf.collect.sweeps import possible
from flagperf.errors import UsageError
from flagperf.journal import Journal
from flagperf.metrics import catalogue
from flagperf.schema.event import Key
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.sweep import At, Label, Roofs, Samples
from flagperf.schema.trial import Outcome, Run, Trial

LARGEST = 1 << 30
"""Bytes of a file that is read."""
_METRICS = ["kernel_time", "flops_rate", "bandwidth"]
_REGION = "What pytest-benchmark calls a round; benchmarks were measured one after the other."
_UNFIT = re.compile(r"[^\w .:/@()=,-]")
"""What no name of a provider or axis has: `+` joins providers, and control characters are for terminals."""
_LONGEST = 200


class _Stats(msgspec.Struct):
    data: list[float] = []
    """Seconds a call, of every round."""
    iterations: int = 1


class _Benchmark(msgspec.Struct):
    name: str
    stats: _Stats
    fullname: str = ""
    group: str | None = None
    params: dict[str, Any] | None = None
    param: str | None = None
    extra_info: dict[str, Any] = {}


class _File(msgspec.Struct):
    benchmarks: list[_Benchmark]
    machine_info: dict[str, Any] = {}
    datetime: str = ""
    version: str = ""


class _Own(msgspec.Struct):
    """What the plug-in adds to a benchmark; of its trial only what can't do harm is taken."""

    trial: Trial
    samples: Samples
    roofs: Roofs


class Imported(msgspec.Struct):
    """A trial that was measured by pytest-benchmark."""

    trial: Trial
    roofs: Roofs | None
    samples: list[Samples]


def read_files(paths: Sequence[Path]) -> list[Imported]:
    """Return the trials of some files, in order; raise UsageError for a file that isn't pytest-benchmark's JSON."""
    found: list[Imported] = []
    for number, path in enumerate(paths):
        found += _read(path, number)
    return [_numbered(place, each) for place, each in enumerate(found)]


def write_run(folder: Path, run: Run, parts: Iterable[Imported]) -> None:
    """Write a run's plan and journals into its folder; raise OSError if they can't be."""
    (folder / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
    with Journal(folder / "harness.journal", {"role": "harness", "run": run.id}) as harness:
        for part in parts:
            trial = part.trial
            harness.write(Key.TRIAL_START, {"id": trial.id})
            place = folder / "trials" / trial.id / "rank0.journal"
            with Journal(place, {"role": "rank", "trial": trial.id, "rank": 0, "world_size": 1}) as journal:
                if part.roofs is not None:
                    journal.write(Key.ROOFS, part.roofs)
                for samples in part.samples:
                    journal.write(Key.SAMPLES, samples)
                journal.write(Key.RUN_STOP, {"status": "success"})
            seconds = math.fsum(sum(each.seconds) * each.calls for each in part.samples)
            outcome = Outcome(status="finished", seconds=seconds)
            harness.write(Key.TRIAL_STOP, {"id": trial.id, "outcome": msgspec.to_builtins(outcome)})


def _read(path: Path, number: int) -> list[Imported]:
    file = _decoded(path)
    if not file.benchmarks:
        raise UsageError(f"{path} has no benchmark in it.", "Were all of them skipped, or --benchmark-disable given?")
    source = _source(file)
    parts: dict[bytes, Imported] = {}
    for benchmark in file.benchmarks:
        rounds = _rounds(path, benchmark)
        own = _own(path, benchmark)
        samples = _own_samples(own, rounds) if own else _foreign_samples(benchmark, rounds)
        samples = msgspec.structs.replace(samples, facts={**samples.facts, "imported": source})
        trial = _own_trial(own, number) if own else _foreign_trial(benchmark, number)
        part = parts.setdefault(msgspec.json.encode(trial), Imported(trial, None, []))
        if own:
            part.roofs = _together(part.roofs, own.roofs)
        part.samples.append(_distinct(samples, part.samples))
    return [_with_providers(part) for part in parts.values()]


def _decoded(path: Path) -> _File:
    way_out = "Make one with pytest --benchmark-json FILE, or --benchmark-autosave --benchmark-save-data."
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST >> 20} MiB.", "Import its parts one by one.")
        return msgspec.convert(json.loads(path.read_bytes()), _File)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.", way_out) from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or not as pytest-benchmark writes it
        raise UsageError(f"{path} isn't pytest-benchmark's JSON: {str(error)[:300]}", way_out) from error


def _rounds(path: Path, benchmark: _Benchmark) -> list[float]:
    """Return the seconds of every round; raise UsageError where there are none, or impossible ones."""
    name, stats = benchmark.name[:_LONGEST], benchmark.stats
    if not stats.data:
        raise UsageError(
            f"{path} has no rounds of {name!r}, only statistics of them.",
            "pytest --benchmark-json FILE keeps them; so does --benchmark-save-data.",
        )
    for place, seconds in enumerate(stats.data):
        if not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(
                f"{path} can't be used: round {place} of {name!r} took {seconds} s.",
                "Measure it again, with a timer fine enough for it.",
            )
    if not 1 <= stats.iterations < 1 << 53:
        raise UsageError(f"{path} is damaged: {name!r} has {stats.iterations} iterations a round.", "Measure it again.")
    return stats.data


def _source(file: _File) -> str:
    node = file.machine_info.get("node")
    where = f" on {_clean(str(node))}" if node else ""
    when = _clean(file.datetime.replace("+00:00", "Z"))
    return f"pytest-benchmark {_clean(file.version)}{where} at {when}"


def _own(path: Path, benchmark: _Benchmark) -> _Own | None:
    told = benchmark.extra_info.get("flagperf")
    if told is None:
        return None
    try:
        own = msgspec.convert(told, _Own)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} has a FlagPerf benchmark that can't be read, {benchmark.name[:_LONGEST]!r}: {str(error)[:300]}",
            "Import it with the FlagPerf that measured it; without extra_info.flagperf it is as any other benchmark.",
        ) from error
    if own.samples.provider not in own.trial.providers:
        raise UsageError(f"{path} is damaged: {own.samples.provider[:_LONGEST]!r} isn't a provider of its trial.")
    if not possible(own.samples):
        raise UsageError(f"{path} is damaged: the samples of {benchmark.name[:_LONGEST]!r} can't have been measured.")
    return own


def _own_samples(own: _Own, rounds: list[float]) -> Samples:
    return msgspec.structs.replace(own.samples, seconds=rounds, host_seconds=[], values={})


def _own_trial(own: _Own, number: int) -> Trial:
    told = own.trial
    metrics = [name for name in told.metrics if name in catalogue()]
    trial = _trial(told.case, told.preset, told.vendor, number)
    return msgspec.structs.replace(trial, engine=told.engine, metrics=metrics, settings=told.settings)


def _foreign_samples(benchmark: _Benchmark, rounds: list[float]) -> Samples:
    """Return samples of somebody's benchmark: `test_sort[1000]` is `test_sort` at its parameters."""
    at: At = {_clean(axis): _label(value) for axis, value in (benchmark.params or {}).items()}
    if not at and benchmark.param:
        at = {"param": _clean(benchmark.param)}
    if benchmark.group:
        at = {"group": _clean(benchmark.group), **at}
    provider = _clean(benchmark.name.partition("[")[0]) or "unnamed"
    return Samples(at=at, provider=provider, seconds=rounds, calls=benchmark.stats.iterations)


def _foreign_trial(benchmark: _Benchmark, number: int) -> Trial:
    stem = Path(benchmark.fullname.partition("::")[0]).stem
    return _trial(f"pytest/{stem or 'benchmarks'}", "imported", "unknown", number)


def _trial(case: str, preset: str, vendor: str, number: int) -> Trial:
    return Trial(
        id="",
        case=_clean(case),
        kind="kernel",
        preset=_clean(preset),
        vendor=_clean(vendor),
        engine="",
        ranks=1,
        layout=Layout(),
        dtype="",
        seed=0,
        trial=number,
        protocol=Protocol(warmup=0, steps=1, trials=1, seed=0, region=_REGION),
        settings={},
        metrics=_METRICS,
        threads=1,
    )


def _with_providers(part: Imported) -> Imported:
    """Say which providers there are, in the order of the trial they were planned in, else as they come."""
    there = {samples.provider for samples in part.samples}
    names = list(dict.fromkeys([*part.trial.providers, *(samples.provider for samples in part.samples)]))
    dtypes = dict.fromkeys(_clean(str(samples.at["dtype"])) for samples in part.samples if "dtype" in samples.at)
    engine = "+".join(name for name in names if name in there)
    trial = msgspec.structs.replace(part.trial, engine=engine, dtype="+".join(dtypes))
    return Imported(trial, part.roofs, part.samples)


def _numbered(place: int, part: Imported) -> Imported:
    return Imported(msgspec.structs.replace(part.trial, id=f"{place:03d}-imported"), part.roofs, part.samples)


def _together(a: Roofs | None, b: Roofs) -> Roofs:
    return b if a is None else Roofs(flops={**a.flops, **b.flops}, bandwidth=max(a.bandwidth, b.bandwidth))


def _distinct(samples: Samples, others: Sequence[Samples]) -> Samples:
    """Return samples with a number behind the provider's name where another one is at that point already."""
    taken = {each.provider for each in others if each.at == samples.at}
    name, number = samples.provider, 2
    while name in taken:
        name, number = f"{samples.provider} ({number})", number + 1
    return msgspec.structs.replace(samples, provider=name)


def _label(value: object) -> Label:
    if isinstance(value, bool | int) and abs(value) < 1 << 53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _clean(str(value))


def _clean(text: str) -> str:
    return _UNFIT.sub("_", text)[:_LONGEST]
