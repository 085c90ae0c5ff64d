"""Whether a trial measured what it should have, and if not, why and what to do about it."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from flagperf.collect.devices import device_notes, energy_notes
from flagperf.collect.inference import Served, inference_notes, inference_reasons
from flagperf.collect.journals import HarnessJournal, RankJournal, Telemetry, number
from flagperf.collect.resources import Span
from flagperf.collect.sweeps import sweep_notes, sweep_reasons
from flagperf.collect.training import Window, machine_speeds
from flagperf.schema import SCHEMA_VERSION
from flagperf.schema.event import Key
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import LINK_SHAPED, SIMULATED, Reason
from flagperf.schema.sweep import Point
from flagperf.schema.trial import Outcome, Trial
from flagperf.statistics import outliers

CLOCK_JUMP = 1.0
"""Seconds between the wall clock and the monotonic one, more or less than before, that mean that someone set it."""
SPEED_CHANGE = 0.10
"""Relative change of the machine's speed during a trial that a reader must know of."""

_RESUME = "Look at {place}/output for what the ranks printed, then run it again with `flagperf run --resume`."

_DISK_FULL = "Free some space, or put the run elsewhere with --out DIR; then use --resume."

_CAUSES: list[tuple[str, re.Pattern[str], str, str]] = [
    (
        "out_of_memory",
        re.compile(
            r"out of memory|can('t|not) allocate memory|OutOfMemory|MemoryError|bad_alloc|failed to map segment", re.I
        ),
        "ran out of memory",
        "Use a smaller micro-batch (--layout micro=…), recomputation, a higher ZeRO stage or more ranks.",
    ),
    (
        "device_lost",
        re.compile(
            r"(device|GPU)\b.{0,40}\bis (now )?lost|fallen off the bus|GPU_IS_LOST|device[ _]lost|device removed", re.I
        ),
        "lost its device",
        "The driver's log says why: overheating, power, or the device itself. Reset it before the next trial.",
    ),
    (
        "disk_full",
        re.compile(r"disk full|no space left on device|disk quota exceeded|ENOSPC", re.I),
        "couldn't write: the disk is full",
        _DISK_FULL,
    ),
    (
        "resource_limit",
        re.compile(r"can't start new thread|resource temporarily unavailable", re.I),
        "met a limit on processes, threads or memory",
        "`ulimit -a` shows the limits; raise the one that is too low.",
    ),
    (
        "peer_lost",
        re.compile(r"connection (closed|reset)|broken pipe|read error|timed out waiting \d+ms for", re.I),
        "lost another rank",
        "That rank's own reason comes first.",
    ),
]

_SIGNALS = {
    signal.SIGKILL: (
        "killed",
        "the system's out-of-memory killer, or someone's kill -9",
        "`dmesg` says whether the kernel did it for want of memory; if so use a smaller micro-batch or more sharding.",
    ),
    signal.SIGTERM: (
        "terminated",
        "the launcher after another rank failed, or someone's kill",
        "If another reason is given, that one came first.",
    ),
    signal.SIGSEGV: ("crashed", "a fault in native code", "The rank's stderr in the trial's output may say where."),
    signal.SIGABRT: ("crashed", "native code gave up", "The rank's stderr in the trial's output says why."),
    signal.SIGBUS: (
        "crashed",
        "memory that couldn't be backed, often a full /dev/shm",
        "Look at `df /dev/shm`, and give a container more of it: --shm-size.",
    ),
    signal.SIGINT: ("interrupted", "Ctrl-C", "Finish it with `flagperf run --resume`."),
}
_CONSEQUENCES = [
    *("rank_failed", "peer_lost", "terminated", "failed", "no_journal", "unfinished", "steps_missing", "steps_differ"),
    *("points_missing", "nothing_measured", "no_load", "queries_missing"),
]
"""Reasons that mostly follow from another one, which is then told first; in the order they are told."""


def reasons(
    trial: Trial,
    harness: HarnessJournal,
    ranks: Sequence[RankJournal],
    steps: Window | None,
    metrics: dict[str, MetricValue],
    points: Sequence[Point] = (),
    served: Served | None = None,
) -> list[Reason]:
    """Return why a trial's result is invalid, causes before consequences; nothing if it is valid."""
    outcome = harness.outcomes.get(trial.id)
    if outcome is None and trial.id not in harness.started and not any(rank.present for rank in ranks):
        why = "the run was interrupted before it" if harness.interrupted else "the run ended, or hasn't come to it yet"
        return [Reason("not_started", f"The trial wasn't started: {why}.", "Finish it with `flagperf run --resume`.")]
    found = [*_outcome(trial, outcome, harness), *_errors(ranks)]
    for rank in ranks:
        found += _journal(trial, rank)
    if trial.swept:
        found += sweep_reasons(trial, points, ranks)
    else:
        found += _steps(trial, ranks, steps) if served is None else inference_reasons(trial, served)
    for name in ("mfu", "mfu_rated"):
        if name in metrics and metrics[name].value > 1:
            found.append(
                Reason(
                    "mfu_above_one",
                    f"{name} is {metrics[name].value:.2f}: more than can be; a peak, a clock or a count is wrong.",
                    "Measure the peak again on an idle machine, and check the case's FLOPs formula.",
                )
            )
    unique = {(reason.code, reason.message): reason for reason in found}
    rank_of = {code: place for place, code in enumerate(_CONSEQUENCES, 1)}
    return sorted(unique.values(), key=lambda reason: rank_of.get(reason.code, 0))


def causes(found: Sequence[Reason]) -> list[Reason]:
    """Return the reasons that don't merely follow from others; all of them where there is no other."""
    return [reason for reason in found if reason.code not in _CONSEQUENCES] or list(found)


def _outcome(trial: Trial, outcome: Outcome | None, harness: HarnessJournal) -> Iterator[Reason]:
    resume = _RESUME.format(place=f"trials/{trial.id}")
    if outcome is None:
        if harness.interrupted:
            yield Reason("interrupted", "The run was interrupted during this trial.", resume)
        else:
            yield Reason(
                "no_outcome", "The harness didn't record how the trial ended: it goes on still, or was killed.", resume
            )
        return
    if outcome.status == "timeout":
        yield Reason(
            "timeout",
            f"The trial was ended after {outcome.seconds:.0f} s: it took longer than it may, or hung"
            + (f" ({outcome.message})." if outcome.message else "."),
            "The ranks' stderr in its output shows where each one was; --timeout SECONDS gives it longer.",
        )
    elif outcome.status == "interrupted":
        yield Reason("interrupted", "The trial was interrupted.", "Finish it with `flagperf run --resume`.")
    elif outcome.status == "not started":
        why = outcome.message or "no reason was given"
        yield Reason("not_started", f"The trial couldn't be started: {why}.", resume)
    for exit in outcome.exits:
        if exit.exit_code != 0:
            yield _exit(exit.rank, exit.exit_code, exit.message, resume)
    for code, pattern, what, hint in _CAUSES:
        if code != "peer_lost" and outcome.status != "finished" and pattern.search(outcome.stderr_tail):
            yield Reason(code, f"The trial {what}, as its output says.", hint)
    limits = harness.environments.get(trial.id, {}).get("before", {}).get("limits")
    space = number(limits.get("as")) if isinstance(limits, dict) else None
    if outcome.status == "failed" and space is not None:
        yield Reason(
            "resource_limit",
            f"The trial failed under a limit of {space / 2**20:,.0f} MiB on memory addresses (`ulimit -v`).",
            "Ranks need several GiB of addresses, far more than memory: take the limit away, and use --memory-limit.",
        )
    if outcome.status not in ("finished", "timeout", "interrupted", "not started"):
        last = outcome.message or next(iter(reversed(outcome.stderr_tail.strip().splitlines())), "")
        yield Reason("failed", f"The launcher says the trial {outcome.status}{f': {last}' if last else ''}.", resume)


def _exit(rank: int, code: int, message: str, resume: str) -> Reason:
    if code == os.EX_IOERR:  # what flagperf.worker ends with when it can't write
        what = f"Rank {rank} couldn't go on writing its journal: the disk is full, or its folder is gone."
        return Reason("disk_full", what, _DISK_FULL)
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0  # shells add 128 to the signal's number
    try:
        name = signal.Signals(number)
    except ValueError:
        return Reason(
            "rank_failed", f"Rank {rank} ended with exit status {code}{f': {message}' if message else ''}.", resume
        )
    kind, who, hint = _SIGNALS.get(name, ("killed", "nothing here knows what sends it", resume))
    return Reason(kind, f"Rank {rank} was killed by signal {int(name)} ({name.name}): {who}.", hint)


def _errors(ranks: Sequence[RankJournal]) -> Iterator[Reason]:
    for rank in ranks:
        for event in rank.events.get(Key.ERROR, []):
            value: dict[str, Any] = event.value if isinstance(event.value, dict) else {}
            kind, message, hint = (str(value.get(name) or "") for name in ("kind", "message", "hint"))
            for code, pattern, what, way_out in _CAUSES:
                if pattern.search(f"{kind}: {message}"):
                    yield Reason(code, f"Rank {rank.rank} {what}: {message}", hint or way_out)
                    break
            else:
                yield Reason("error", f"Rank {rank.rank} failed: {message or kind or 'it said nothing'}", hint)


def _journal(trial: Trial, rank: RankJournal) -> Iterator[Reason]:
    name = f"trials/{trial.id}/rank{rank.rank}.journal"
    if not rank.present:
        yield Reason(
            "no_journal",
            f"Rank {rank.rank} left no journal.",
            f"It ended before it wrote {name}, or the file was lost: its stderr in the trial's output may say more. "
            "If it ran on another node, copy that node's trials/ into this run.",
        )
        return
    headers = [event.value for event in rank.events.get(Key.HEADER, []) if isinstance(event.value, dict)]
    header = headers[0] if headers else {}
    if number(header.get("schema")) is not None and header["schema"] > SCHEMA_VERSION:
        yield Reason(
            "newer_schema",
            f"The journal of rank {rank.rank} has schema {header['schema']}; schema {SCHEMA_VERSION} is known here.",
            "Read it with the FlagPerf that wrote it.",
        )
    if header.get("trial") != trial.id or header.get("rank") != rank.rank or header.get("world_size") != trial.ranks:
        yield Reason(
            "wrong_journal",
            f"{name} says it is of trial {header.get('trial')!r}, rank {header.get('rank')!r} of "
            f"{header.get('world_size')!r}; expected {trial.id!r}, {rank.rank} of {trial.ranks}.",
            "Files were mixed up or damaged; run the trial again.",
        )
    if len(headers) > 1:
        yield Reason(
            "restarted",
            f"Rank {rank.rank} was started {len(headers)} times in one trial.",
            "A restart is no measurement; run the trial again.",
        )
    if not rank.succeeded:
        yield Reason(
            "unfinished",
            f"Rank {rank.rank} didn't come to its end: its journal has no run_stop with success.",
            "See the other reasons; its stderr is in the trial's output.",
        )


def _steps(trial: Trial, ranks: Sequence[RankJournal], steps: Window | None) -> Iterator[Reason]:
    protocol = trial.protocol
    planned = np.arange(protocol.warmup, protocol.warmup + protocol.steps)
    counts = []
    for rank in (rank for rank in ranks if rank.present):
        measured = rank.steps.step[rank.steps.measured]
        counts.append(len(rank.steps))
        if not np.array_equal(measured, planned) and not np.array_equal(np.sort(measured), planned):
            yield Reason(
                "steps_missing" if len(measured) < len(planned) else "steps_wrong",
                f"Rank {rank.rank} has {len(measured)} measured steps, not the {len(planned)} planned"
                + (" ones." if len(measured) == len(planned) else "."),
                "A result stands on exactly the steps its protocol says; run the trial again.",
            )
        chosen = rank.steps.take(rank.steps.measured)
        bad = chosen.step[~(np.isfinite(chosen.seconds) & (chosen.seconds > 0))]
        if len(bad):
            yield Reason(
                "impossible_time",
                f"Rank {rank.rank} has {len(bad)} measured steps without a time above zero, step {bad[0]} first.",
                "The clock or the journal is damaged; run the trial again.",
            )
        lost = rank.steps.step[rank.steps.leader & ~np.isfinite(rank.steps.loss)]
        if len(lost):
            yield Reason(
                "loss_not_finite",
                f"The loss of rank {rank.rank} isn't finite in {len(lost)} steps, from step {lost[0]} on.",
                "Training diverged: a lower learning rate, or fp32 in place of a shorter type, tells why.",
            )
        if len(chosen) and chosen.skipped.all():
            yield Reason(
                "all_steps_skipped",
                f"Rank {rank.rank} left out the update in every measured step: gradients overflowed.",
                "Give loss scaling more steps to find its factor (--warmup), or use bf16 or fp32.",
            )
        judged = rank.last(Key.EVAL)
        if judged and judged.get("leader", True) and number(judged.get("loss")) is None:
            what = f"The validation loss of rank {rank.rank} isn't finite."
            yield Reason("loss_not_finite", what, "Training diverged.")
    if len(set(counts)) > 1:
        yield Reason(
            "steps_differ",
            f"The ranks took different numbers of steps: {', '.join(map(str, counts))}.",
            "One stopped before the others; see the other reasons.",
        )
    if "loss_validation" in trial.metrics and all(r.succeeded and not r.last(Key.EVAL) for r in ranks):
        hint = "Speed without accuracy is no result; run it again."
        yield Reason("no_validation", "The model wasn't judged on held-out text.", hint)
    if steps is not None and not (steps.tokens > 0).all():
        yield Reason(
            "no_tokens",
            "Steps were measured for which no rank tells the tokens it read.",
            "The engine must have one leader in each data-parallel group.",
        )


def notes(
    trial: Trial,
    harness: HarnessJournal,
    ranks: Sequence[RankJournal],
    steps: Window | None,
    span: Span | None,
    telemetry: Telemetry,
    points: Sequence[Point] = (),
    served: Served | None = None,
) -> list[Reason]:
    """Return what doesn't make a result invalid but must be seen."""
    found: list[Reason] = [*(sweep_notes(points) if served is None else inference_notes(trial, served))]
    if simulated := next((said for rank in ranks if (said := _simulated(rank))), ""):
        found.append(
            Reason(
                SIMULATED,
                f"The devices are simulated: {simulated}. No speed here is that of any chip.",
                "It tries the harness; to measure, use devices that exist.",
            )
        )
    if trial.link is not None:
        found.append(
            Reason(
                LINK_SHAPED,
                f"The ranks' links were made to be {trial.link}, in network namespaces of one machine.",
                "It shows what such links would do; no network was measured.",
            )
        )
    named = [*((f"rank{rank.rank}.journal", rank.flaws) for rank in ranks), ("telemetry.journal", telemetry.flaws)]
    named.append(("harness.journal", harness.flaws))
    found += [_flaws(name, flaws) for name, flaws in named if flaws]
    speeds = machine_speeds(ranks)
    if len(speeds) == 2 and speeds["after"] < (1 - SPEED_CHANGE) * speeds["before"]:
        loss = 1 - speeds["after"] / speeds["before"]
        found.append(
            Reason(
                "machine_slowed",
                f"The machine was {loss:.0%} slower after the steps than before.",
                "It throttles, or someone else uses it: the step times aren't all of one kind.",
            )
        )
    found += _environment(trial, ranks, harness.environments.get(trial.id, {}))
    if steps is not None and (far := int(outliers(steps.seconds).sum())):
        found.append(
            Reason(
                "outlying_steps",
                f"{far} of {len(steps.seconds)} steps took a time far from the others (modified z-score > 3.5).",
                "They are counted; medians bear them.",
            )
        )
    if skipped := max((int(rank.steps.skipped.sum()) for rank in ranks), default=0):
        found.append(
            Reason(
                "steps_skipped",
                f"Gradients overflowed in {skipped} steps, warm-up included, whose update was left out.",
                "Loss scaling in fp16 finds its factor so; those steps took part in the time, not in the learning.",
            )
        )
    for rank in ranks:
        if failure := rank.last(Key.COMMUNICATION).get("failure"):
            what = f"Communication wasn't observed in full on rank {rank.rank}: {failure}."
            found.append(Reason("communication_not_observed", what, "Nothing else of the result rests on it."))
    measured_here = not any("imported" in point.facts for point in points)
    if measured_here and not telemetry.cost and any(rank.succeeded for rank in ranks):
        found.append(
            Reason(
                "no_telemetry",
                "Telemetry didn't come to its end: its curves stop early, or are missing.",
                "What it printed is in the trial's output/telemetry.log.",
            )
        )
    found += _telemetry(telemetry)
    if span is not None:
        found += device_notes(ranks, telemetry, *span)
        found += energy_notes(ranks, telemetry, *span)
    return found


def _telemetry(telemetry: Telemetry) -> Iterator[Reason]:
    """Tell where telemetry has gaps, and whether the wall clock was set meanwhile."""
    missed, failed, unwritten = (number(telemetry.cost.get(key)) or 0 for key in ("missed", "failed", "unwritten"))
    if missed or failed or unwritten:
        told = telemetry.cost.get("sources")
        sources = told.items() if isinstance(told, dict) else ()
        broken = ", ".join(f"{name} {x['failed']}" for name, x in sources if isinstance(x, dict) and x.get("failed"))
        by_source = f" ({broken})" if broken else ""
        lost = f"; {unwritten:.0f} samples couldn't be written" if unwritten else ""
        yield Reason(
            "telemetry_gaps",
            f"Telemetry missed {missed:.0f} samples, and {failed:.0f} readings of sensors failed{by_source}{lost}.",
            "The machine was too busy for it, a sensor hung, or the disk was full; its curves have gaps.",
        )
    if telemetry.clock_jump > CLOCK_JUMP:
        yield Reason(
            "clock_jumped",
            f"The wall clock was set by {telemetry.clock_jump:.1f} s during the trial.",
            "No result rests on it: times are those of the monotonic clock. Only the dates in the journals are off.",
        )


def _simulated(rank: RankJournal) -> str:
    """Return what a rank says it runs on instead of a real device, or nothing."""
    facts = rank.last(Key.BUILD).get("facts")
    return str(facts.get("simulated") or "") if isinstance(facts, dict) else ""


def _flaws(name: str, flaws: Counter[str]) -> Reason:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(flaws.items()))
    return Reason(
        "journal_flaws",
        f"{name} has lines that couldn't be used: {counts}.",
        "Torn lines are the mark of a kill, foreign ones were printed into the file by something; no other is lost.",
    )


def _environment(trial: Trial, ranks: Sequence[RankJournal], moments: dict[str, dict[str, Any]]) -> Iterator[Reason]:
    """Tell what the snapshots of the machine say against the result."""
    from flagperf.measure.environment import Environment, differences

    try:
        before, after = (msgspec.convert(moments[when], Environment) for when in ("before", "after"))
    except (KeyError, msgspec.ValidationError):
        yield Reason("no_environment", "The machine wasn't looked at both before and after the trial.")
        return
    for sentence in differences(before, after):
        yield Reason("environment", sentence, "Measure on a machine that does nothing else.")
    hosts = Counter(str(rank.last(Key.HEADER).get("host")) for rank in ranks)
    most = max(hosts.values())
    if most > before.cores:
        yield Reason(
            "oversubscribed",
            f"{most} ranks shared {before.cores} cores.",
            "They waited for one another; the speed says little about the engine.",
        )
