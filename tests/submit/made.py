"""A run of the closed division, written line by line as ranks, telemetry and the harness write it on a quiet machine.

What the rules ask for takes minutes to measure; here it is data, which tests change in one place and pack again.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from collect import runs

from flagperf.case import Case
from flagperf.plan.options import Options
from flagperf.plan.trials import interleaved, sized
from flagperf.registry import Registries
from flagperf.schema.event import PREFIX, Event, Key, Memory, Step
from flagperf.schema.layout import Layout
from flagperf.schema.submission import BundledFile, BundleManifest
from flagperf.schema.sweep import Accuracy, At, Samples
from flagperf.schema.trial import Outcome, Run, Trial
from flagperf.submit import archive, system
from flagperf.submit.bundle import MANIFEST, chained, encoded, sealed, sha256
from flagperf.sweep import SweepCase

NAME = "20260101-000000-made"
_NS, _MS = 10**15, 1_767_225_600_000
_STEP = 0.1

Contents = dict[str, bytes]


def line(key: str, value: Any, seconds: float) -> bytes:
    """One line of a journal, written so many seconds after the run began."""
    event = Event(
        time_ms=_MS + round(seconds * 1e3),
        key=key,
        value=value,
        metadata={"file": "made.py", "lineno": 1, "ns": _NS + round(seconds * 1e9)},
    )
    return PREFIX + msgspec.json.encode(event) + b"\n"


def snapshot(seconds: float) -> dict[str, Any]:
    """The machine at a moment."""
    time = datetime.fromtimestamp(_MS / 1e3 + seconds, UTC).isoformat(timespec="milliseconds")
    more = {"memory_total": 16 * 2**30, "memory_available": 8 * 2**30, "variables": {"OMP_NUM_THREADS": "1"}}
    return runs.environment(time=time, **more)


def plan(registries: Registries) -> Run:
    """Two arms of two ranks, three trials each, exactly as the case says."""
    size = sized("aquila/pretrain", Options(cases=["aquila/pretrain"]), registries)
    arms = [
        Trial(
            id="",
            case=size.case.name,
            preset="tiny",
            vendor="cpu",
            engine=engine,
            ranks=2,
            layout=Layout(zero=zero, micro=4),
            dtype=size.dtype,
            seed=size.protocol.seed,
            trial=0,
            protocol=size.protocol,
            settings=size.settings,
            metrics=size.case.metrics,
            threads=1,
        )
        for engine, zero in (("ddp", 0), ("fsdp", 3))
    ]
    return runs.run(interleaved(arms, 0), NAME)


def sweep(case: str, providers: str, ranks: int, registries: Registries) -> Run:
    """One trial of a sweep, exactly as the case says."""
    size = sized(case, Options(cases=[case]), registries)
    trial = Trial(
        id="",
        case=case,
        kind=size.case.kind,
        preset="tiny",
        vendor="cpu",
        engine=providers,
        ranks=ranks,
        layout=Layout(),
        dtype=size.dtype,
        seed=size.protocol.seed,
        trial=0,
        protocol=size.protocol,
        settings=size.settings,
        metrics=size.case.metrics,
        threads=1,
    )
    return runs.run(interleaved([trial], 0), NAME, baseline=trial.arm)


def write(folder: Path, registries: Registries, run: Run | None = None) -> None:
    """Write the whole run."""
    run = run or plan(registries)
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(encoded(run))
    lines = [line(Key.HEADER, {"schema": 1, "host": "a", "role": "harness", "run": run.id, "node": 0, "pid": 1}, 0)]
    began = 1.0
    for trial in run.trials:
        code = {"case": registries.cases.digest(trial.case), "vendor": registries.vendors.digest(trial.vendor)}
        if not trial.swept:
            code["engine"] = registries.engines.digest(trial.engine)
        lines.append(line(Key.TRIAL_START, {"id": trial.id, "prepared": {}, "code": code}, began))
        lines.append(_environment(trial, "before", began + 0.5))
        ended = _trial(folder / "trials" / trial.id, trial, registries, began + 1)
        lines.append(_environment(trial, "after", ended + 0.5))
        outcome = Outcome(status="finished", seconds=ended - began)
        lines.append(line(Key.TRIAL_STOP, {"id": trial.id, "outcome": outcome}, ended + 0.6))
        began = ended + 1
    (folder / "harness.journal").write_bytes(b"".join(lines))


def _environment(trial: Trial, when: str, seconds: float) -> bytes:
    seen = {key: value for key, value in snapshot(seconds).items() if value is not msgspec.UNSET}
    return line(Key.ENVIRONMENT, {"trial": trial.id, "when": when, **seen}, seconds)


def _trial(folder: Path, trial: Trial, registries: Registries, began: float) -> float:
    """Write a trial's files; return when it ended."""
    folder.mkdir(parents=True)
    (folder / "trial.json").write_bytes(encoded(msgspec.structs.replace(trial, peak_flops=1e12)))
    case: Case = registries.cases.load(trial.case)(trial)
    if isinstance(case, SweepCase):
        ended = max(_swept(folder, case, rank, began) for rank in range(trial.ranks))
    else:
        estimate = case.estimate()
        ended = max(
            _rank(folder, trial, rank, estimate.flops_per_token, estimate.tokens_per_step, began) for rank in (0, 1)
        )
    header = {"schema": 1, "pid": 2, "host": "a", "role": "telemetry", "interval": 1.0, "parent": 1, "vendor": "cpu"}
    lines = [line(Key.HEADER, header, began)]
    count = int(ended - began) + 1
    for tick in range(count):
        joules = {"package-0": 40.0 * tick}
        sample = {"tick": tick, "cpu_percent": 99.0, "energy_joules": joules, "devices": [_device(tick)]}
        lines.append(line(Key.TELEMETRY, sample, began + 0.1 + tick))
    cost = {"cpu_seconds": 0.02, "wall_seconds": 10.0, "samples": count, "missed": 0, "failed": 0}
    lines.append(line(Key.TELEMETRY_COST, cost, ended + 0.2))
    (folder / "telemetry.journal").write_bytes(b"".join(lines))
    return ended + 0.3


def _device(tick: int) -> dict[str, Any]:
    return {
        "index": 0,
        "power_w": 80.0 + tick,
        "temperature_c": 60.0,
        "utilisation_pct": 97.0,
        "memory_used_mib": 900.0,
    }


def _rank(folder: Path, trial: Trial, rank: int, flops: float, tokens: int, began: float) -> float:
    """Write a rank's journal; return when it ended."""
    dice = random.Random(f"{trial.id} {rank}")
    protocol = trial.protocol
    header = {"schema": 1, "pid": 9, "host": "a", "role": "rank", "trial": trial.id, "rank": rank, "world_size": 2}
    built = {"seconds": 0.1, "flops_per_token": flops, "hfu_factor": 1.0, "layout": str(trial.layout), "facts": {}}
    lines = [
        line(Key.HEADER, header, began + 0.2),
        line("seed", trial.seed, began + 0.2),
        line(Key.BUILD, built, began + 0.3),
        line(Key.PULSE, {"flops_per_second": 4e10, "when": "before"}, began + 0.4),
        line(Key.RUN_START, None, began + 0.4),
    ]
    now = began + 0.5
    for number in range(protocol.warmup + protocol.steps):
        seconds = round(_STEP + dice.uniform(0, 0.01), 6)
        now += seconds
        step = Step(
            step=number,
            measured=number >= protocol.warmup,
            seconds=seconds,
            data_seconds=0.001,
            tokens=tokens // 2,
            loss=9.0 - 0.01 * number + 0.001 * trial.trial,
            gradient_norm=1.0,
            learning_rate=1e-4,
        )
        lines.append(line(Key.STEP, step, now))
        if number == 0:
            lines.append(line(Key.FIRST_STEP, {"seconds": 3.0}, now))
    samples = protocol.global_batch * (protocol.warmup + protocol.steps) // 2
    for key, value in (
        (Key.MEMORY, Memory(peak_allocated=100 * 2**20, peak_rss=300 * 2**20, pss=200 * 2**20)),
        (Key.EVAL, {"loss": 8.5, "tokens": 4096, "bytes": 0, "seconds": 0.2, "step": 24, "leader": True}),
        (Key.PULSE, {"flops_per_second": 4e10, "when": "after"}),
        (Key.TOKENS, {"fingerprint": f"{trial.seed:032x}", "samples": samples}),
        ("run_stop", {"status": "success"}),
    ):
        now += 0.01
        lines.append(line(key, value, now))
    (folder / f"rank{rank}.journal").write_bytes(b"".join(lines))
    return now + 0.1


def _swept(folder: Path, case: SweepCase, rank: int, began: float) -> float:
    """Write the journal of a rank of a sweep; return when it ended."""
    trial, points = case.trial, case.points()
    dice = random.Random(f"{trial.id} {rank}")
    header = {"schema": 1, "pid": 9, "host": "a", "role": "rank", "trial": trial.id, "rank": rank}
    roofs = {"flops": {str(at.get("dtype", "fp32")): 1e11 for at in points}, "bandwidth": 1e10}
    lines = [
        line(Key.HEADER, header | {"world_size": trial.ranks}, began + 0.2),
        line("seed", trial.seed, began + 0.2),
        line(Key.BUILD, {"facts": {}}, began + 0.3),
        line(Key.RUN_START, None, began + 0.3),
        line(Key.SWEEP, {"points": len(points), "providers": trial.providers}, began + 0.4),
        *([line(Key.ROOFS, roofs, began + 0.5)] if trial.kind == "kernel" else []),
    ]
    now = began + 0.5
    for at in points:
        now += 1.5 * trial.protocol.seconds * len(trial.providers)
        for number, provider in enumerate(trial.providers):
            lines.append(line(Key.SAMPLES, _samples(case, at, provider, 1 + number / 4, dice), now + number / 1e3))
    lines.append(line("run_stop", {"status": "success"}, now + 0.1))
    (folder / f"rank{rank}.journal").write_bytes(b"".join(lines))
    return now + 1.0  # telemetry goes on until it has seen the last point


def _samples(case: SweepCase, at: At, provider: str, factor: float, dice: random.Random) -> Samples:
    """A provider's rounds at a point, a few more than the least, together as long as the protocol says."""
    protocol, tolerance = case.trial.protocol, case.tolerance(at) or (0.0, 0.0)
    rounds = protocol.steps + 2
    return Samples(
        at=at,
        provider=provider,
        seconds=[round(protocol.seconds / rounds / 10 * factor * dice.uniform(1, 1.1), 9) for _ in range(rounds)],
        calls=10,
        **({"bytes": 2e6} | case.amounts(at)),
        accuracy=Accuracy(
            max_absolute=tolerance[0] / 2,
            max_relative=tolerance[1] / 2,
            absolute=tolerance[0],
            relative=tolerance[1],
            wrong=0,
            elements=1000,
        ),
    )


def form(**changes: Any) -> bytes:
    """The description of that machine, as a person has filled it in; `changes` by path, `_` between parts."""
    values: dict[str, Any] = yaml.safe_load(system.form([])[0])
    seen = snapshot(0)
    values |= {"name": "Made 1", "status": "research", "submitter": "Somebody", "contact": "a@b.c", "cooling": "air"}
    values["licence"] = "Apache-2.0"
    values["host"] |= {"cpu": seen["cpu"], "cores": 2, "memory_gib": 16.0, "kernel": seen["kernel"], "sockets": 1}
    values["host"] |= {"network": "none", "storage": "a disk"}
    own = {"name": "A CPU", "count_per_host": 1, "memory_gib": 16.0, "interconnect": "none", "driver": "none"}
    values["accelerator"] |= {**own, "firmware": "none"}
    values["software"] = {"python": seen["python"], "packages": seen["packages"]}
    for path, value in changes.items():
        *above, last = path.split("__")
        place = values
        for part in above:
            place = place[part]
        place[last] = value
    return yaml.safe_dump(values, sort_keys=False).encode()


def contents(bundle: bytes) -> Contents:
    """Take a bundle apart, but for its manifest and signature."""
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        whole = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return {name: data for name, data in whole.items() if name not in (MANIFEST, "signature.json")}


def manifest(files: Mapping[str, bytes], /, **changes: Any) -> BundleManifest:
    """A manifest that is right for these files, but for the changes."""
    listed = [BundledFile(path=name, size=len(data), sha256=sha256(data)) for name, data in sorted(files.items())]
    usual: dict[str, Any] = {
        "rules": "1",
        "division": "closed",
        "vendor": "cpu",
        "flagperf": "0.1.0",
        "runs": sorted({name.split("/")[1] for name in files if name.startswith("runs/")}),
        "files": listed,
        "chain": chained(listed),
    }
    return sealed(BundleManifest(**(usual | changes)))


def assemble(files: Mapping[str, bytes], /, **changes: Any) -> bytes:
    """Pack files into a bundle whose manifest is right for them, as a forger would."""
    whole = io.BytesIO()
    archive.write(whole, {MANIFEST: encoded(manifest(files, **changes)), **dict(sorted(files.items()))})
    return whole.getvalue()


def place(name: str = "") -> str:
    """Where the run's files are in a bundle."""
    return f"runs/{NAME}/{name}"


def set_json(files: Contents, name: str, path: str, value: Any) -> None:
    """Set a part of a JSON document, and lay it out again."""
    whole = msgspec.json.decode(files[name])
    at: Any = whole
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in above:
        at = at[part]
    at[last] = value
    files[name] = msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def set_plan(files: Contents, path: str, value: Any, trials: range = range(6)) -> None:
    """Set a part of trials, in the plan and where they were launched."""
    ids = [trial["id"] for trial in msgspec.json.decode(files[place("run.json")])["trials"]]
    for number in trials:
        set_json(files, place("run.json"), f"trials.{number}.{path}", value)
        set_json(files, place(f"trials/{ids[number]}/trial.json"), path, value)


def set_line(files: Contents, name: str, key: str, path: str, value: Any, nth: int = 0) -> int:
    """Set a part of the nth event of a key in a journal; return the line it's on, from 1."""
    lines = files[name].splitlines(keepends=True)
    numbers = [number for number, line in enumerate(lines) if b'"key":"%s"' % key.encode() in line]
    number = numbers[nth]
    event = msgspec.json.decode(lines[number][len(PREFIX) :])
    at: Any = event
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in above:
        at = at[part]
    at[last] = value
    lines[number] = PREFIX + msgspec.json.encode(event) + b"\n"
    files[name] = b"".join(lines)
    return number + 1


def drop_lines(files: Contents, name: str, key: str, numbers: slice) -> None:
    """Take events of a key out of a journal."""
    lines = files[name].splitlines(keepends=True)
    ours = [number for number, line in enumerate(lines) if b'"key":"%s"' % key.encode() in line]
    gone = set(ours[numbers])
    files[name] = b"".join(line for number, line in enumerate(lines) if number not in gone)
