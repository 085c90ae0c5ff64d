"""Journals are held against themselves, each other, the case's formulas and what is claimed."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from submit import made
from submit.conftest import Check

from flagperf.registry import VendorRegistry
from flagperf.schema.chip import Chip
from flagperf.schema.event import Key

RANK = made.place("trials/000-ddp/rank0.journal")
OTHER = made.place("trials/000-ddp/rank1.journal")
TELEMETRY = made.place("trials/000-ddp/telemetry.journal")
RUN = made.place("run.json")
TRIAL = made.place("trials/000-ddp")
Change = Callable[[made.Contents], object]


def rank(key: str, path: str, value: object, nth: int = 0, file: str = RANK) -> Change:
    """A rank's journal that tells otherwise."""
    return lambda files: made.set_line(files, file, key, path, value, nth)


def every_step(factor: float) -> Change:
    """All trials' steps as if they had taken this share of their time."""

    def change(files: made.Contents) -> None:
        for name in [name for name in files if "/rank" in name]:
            for number in range(24):
                scale(files, name, number, factor)

    return change


def scale(files: made.Contents, name: str, number: int, factor: float) -> None:
    """One step's time times a factor."""
    line = next(line for line in files[name].splitlines() if b'"step":%d,' % number in line)
    seconds = msgspec.json.decode(line[line.index(b"{") :])["value"]["seconds"]
    made.set_line(files, name, Key.STEP, "value.seconds", seconds * factor, number)


def sample(path: str, value: object, nth: int = 1) -> Change:
    """Telemetry that tells otherwise."""
    return lambda files: made.set_line(files, TELEMETRY, Key.TELEMETRY, f"value.{path}", value, nth)


def idle(files: made.Contents) -> None:
    """A machine that did nothing while it trained."""
    for nth in range(files[TELEMETRY].count(b'"key":"telemetry",')):
        sample("cpu_percent", 0.0, nth)(files)


def gone(file: str, key: str, numbers: slice) -> Change:
    """Lines that were taken out."""
    return lambda files: made.drop_lines(files, file, key, numbers)


def slow_gemm(files: made.Contents) -> None:
    """A peak so low that the trial was faster than it."""
    made.set_json(files, made.place("trials/000-ddp/trial.json"), "peak_flops", 1e10)
    for file in (RANK, OTHER):
        for nth in (0, 1):
            rank(Key.PULSE, "value.flops_per_second", 1e10, nth, file)(files)


def no_peak(files: made.Contents) -> None:
    """A trial of which nothing tells how fast its device can be."""
    made.set_json(files, made.place("trials/000-ddp/trial.json"), "peak_flops", None)
    for file in (RANK, OTHER):
        made.drop_lines(files, file, Key.PULSE, slice(0, 2))


def gap(files: made.Contents) -> None:
    """Telemetry planned at 100 Hz that was silent for three seconds."""
    made.set_plan(files, "protocol.telemetry", 0.01)
    made.set_line(files, TELEMETRY, Key.HEADER, "value.interval", 0.01)
    made.drop_lines(files, TELEMETRY, Key.TELEMETRY, slice(1, 3))


def all_losses(value: float | None) -> Change:
    """One arm's losses are others."""

    def change(files: made.Contents) -> None:
        for name in [name for name in files if "-fsdp/rank" in name]:
            for number in range(24):
                made.set_line(files, name, Key.STEP, "value.loss", value, number)

    return change


EVIDENCE: dict[str, tuple[Change, str, str]] = {
    "times that are too good": (every_step(0.1), "step_times", RANK),
    "times that grow good": (every_step(0.7), "step_times", RANK),
    "a clock that goes back": (rank(Key.STEP, "metadata.ns", 10**14, 9), "clock_back", RANK),
    "clocks that disagree": (rank(Key.STEP, "time_ms", 1_767_225_900_000, 9), "clocks_differ", RANK),
    "a step left out": (gone(RANK, Key.STEP, slice(9, 10)), "steps_missing", RANK),
    "slow steps left out on all ranks": (
        lambda files: [gone(name, Key.STEP, slice(9, 10))(files) for name in (RANK, OTHER)], "steps_missing", RANK
    ),
    "a step numbered again": (rank(Key.STEP, "value.step", 9, 10), "step_gap", RANK),
    "a warm-up step measured": (
        rank(Key.STEP, "value.measured", True, 3), "invalid: steps_wrong", TRIAL
    ),
    "a time below zero": (
        rank(Key.STEP, "value.seconds", -0.1, 9), "invalid: impossible_time", TRIAL
    ),
    "a loss that isn't finite": (
        rank(Key.STEP, "value.loss", None, 9), "invalid: loss_not_finite", TRIAL
    ),
    "a rank that didn't end": (gone(RANK, "run_stop", slice(0, 1)), "invalid: unfinished", TRIAL),
    "another rank's journal": (lambda files: files.update({RANK: files[OTHER]}), "wrong_journal", RANK),
    "another trial's journal": (
        lambda files: files.update({RANK: files[made.place("trials/004-ddp/rank0.journal")]}), "wrong_journal", RANK
    ),
    "another trial's time": (
        lambda files: files.update({RANK: files[made.place("trials/004-ddp/rank0.journal")]}), "outside_trial", RANK
    ),
    "another layout": (rank(Key.BUILD, "value.layout", "zero=3"), "wrong_journal", RANK),
    "another seed": (rank("seed", "value", 7), "seed", RANK),
    "more FLOPs": (rank(Key.BUILD, "value.flops_per_token", 1e9), "flops", RANK),
    "FLOPs in words": (rank(Key.BUILD, "value.flops_per_token", "many"), "flops", RANK),
    "recomputation that wasn't": (rank(Key.BUILD, "value.hfu_factor", 1.3), "flops", RANK),
    "more tokens": (rank(Key.STEP, "value.tokens", 4096, 9), "tokens", RANK),
    "fewer samples": (rank(Key.TOKENS, "value.samples", 1), "tokens", RANK),
    "other tokens for one arm": (rank(Key.TOKENS, "value.fingerprint", "0" * 32), "tokens_differ", RUN),
    "other losses for one arm": (all_losses(5.0), "losses_differ", RUN),
    "no validation": (
        lambda files: [gone(name, Key.EVAL, slice(0, 1))(files) for name in (RANK, OTHER)],
        *("invalid: no_validation", TRIAL),
    ),
    "faster than the peak": (slow_gemm, "invalid: mfu_above_one", TRIAL),
    "no peak": (no_peak, "no_peak", RUN),
    "telemetry with a gap": (gap, "telemetry_window", TELEMETRY),
    "telemetry that ends early": (gone(TELEMETRY, Key.TELEMETRY, slice(2, None)), "telemetry_window", TELEMETRY),
    "telemetry that begins late": (gone(TELEMETRY, Key.TELEMETRY, slice(0, 2)), "telemetry_window", TELEMETRY),
    "samples taken out": (gone(TELEMETRY, Key.TELEMETRY, slice(1, 2)), "telemetry_lost", TELEMETRY),
    "telemetry that was killed": (gone(TELEMETRY, Key.TELEMETRY_COST, slice(0, 1)), "telemetry_lost", TELEMETRY),
    "telemetry more seldom": (
        lambda files: made.set_line(files, TELEMETRY, Key.HEADER, "value.interval", 60.0),
        *("telemetry_interval", TELEMETRY),
    ),
    "samples out of order": (sample("tick", 0, 3), "telemetry_order", TELEMETRY),
    "an idle machine": (idle, "telemetry_idle", TELEMETRY),
    "more than all cores": (sample("cpu_percent", 4000.0), "sensor", TELEMETRY),
    "a power that can't be": (sample("devices.0.power_w", 65535.0), "sensor", TELEMETRY),
    "a power below zero": (sample("devices.0.power_w", -5.0), "sensor", TELEMETRY),
    "a temperature that can't be": (sample("devices.0.temperature_c", 255.0), "sensor", TELEMETRY),
    "more than 100 percent": (sample("devices.0.utilisation_pct", 101.0), "sensor", TELEMETRY),
    "energy from nothing": (sample("energy_joules.package-0", 1e9, 2), "energy", TELEMETRY),
    "energy that falls": (sample("energy_joules.package-0", 0.0, 3), "energy", TELEMETRY),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVIDENCE)
def test_a_journal_that_cant_be_true_is_refused(kind: str, files: made.Contents, checked: Check) -> None:
    change, code, file = EVIDENCE[kind]
    change(files)
    verdict = checked(made.assemble(files))
    assert verdict.verdict == "rejected"
    assert (code, file) in [(reason.code, reason.file) for reason in verdict.reasons], verdict.reasons


CLAIMS: dict[str, tuple[Change, str]] = {
    "a better figure": (
        lambda files: made.set_json(files, "results.json", "results.0.metrics.tokens_per_second.value", 1e6),
        "tokens_per_second of trial 000-ddp",
    ),
    "a better figure in the tenth digit": (
        lambda files: made.set_json(
            files,
            "results.json",
            "results.0.metrics.mfu.value",
            1.00000001 * msgspec.json.decode(files["results.json"])["results"][0]["metrics"]["mfu"]["value"],
        ),
        "mfu of trial 000-ddp",
    ),
    "another unit": (
        lambda files: made.set_json(files, "results.json", "results.1.metrics.step_time.unit", "ms"),
        "step_time of trial 001-fsdp",
    ),
    "a metric of one's own": (
        lambda files: made.set_json(
            files,
            "results.json",
            "results.0.metrics.energy_saved",
            {"value": 1.0, "unit": "J", "direction": "higher"},
        ),
        "energy_saved of trial 000-ddp",
    ),
    "an engine of another name": (
        lambda files: made.set_json(files, "results.json", "results.0.engine", "super"),
        "engine of trial 000-ddp",
    ),
    "invalid called valid": (
        lambda files: made.set_line(files, RANK, Key.STEP, "value.loss", None, 9),
        "verdict of trial 000-ddp",
    ),
    "a result left out": (
        lambda files: made.set_json(
            files, "results.json", "results", msgspec.json.decode(files["results.json"])["results"][1:]
        ),
        "Trial 000-ddp",
    ),
    "a result twice": (
        lambda files: made.set_json(
            files, "results.json", "results", msgspec.json.decode(files["results.json"])["results"] * 2
        ),
        "A trial is claimed twice",
    ),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_claim_that_journals_dont_bear_is_refused(kind: str, files: made.Contents, checked: Check) -> None:
    change, words = CLAIMS[kind]
    change(files)
    told = [reason for reason in checked(made.assemble(files)).reasons if reason.code == "claim"]
    assert any(reason.message.startswith(words) and reason.file == "results.json" for reason in told), told


def test_a_claim_is_found_on_its_line(files: made.Contents, checked: Check) -> None:
    CLAIMS["a better figure"][0](files)
    (reason,) = checked(made.assemble(files)).reasons
    text = files["results.json"].decode().split("\n")
    assert reason.line and "1000000.0" in text[reason.line - 1]
    assert "1000000" in reason.found and "tokens/s" in reason.expected


def test_a_failed_attempt_is_told_and_accepted(files: made.Contents, checked: Check) -> None:
    """A trial that was run again because the first attempt was killed, torn line and all."""
    harness = files[made.place("harness.journal")].splitlines(keepends=True)
    begin, end = (
        next(number for number, line in enumerate(harness) if b'"%s","value":{"id":"000-ddp"' % key in line)
        for key in (b"trial_start", b"trial_stop")
    )
    again = harness[begin : end + 1]
    # The first attempt lies a minute earlier, and so does the run's beginning.
    earlier = [_moved(line, -60) for line in [*harness[:1], again[0], again[1], again[-1]]]
    files[made.place("harness.journal")] = b"".join([*earlier, *harness[begin:]])
    first = files[RANK].splitlines(keepends=True)[:5]
    files[made.place("trials/000-ddp.attempt1/rank0.journal")] = b"".join(first)[:-20]
    files[made.place("trials/000-ddp.attempt1/trial.json")] = files[made.place("trials/000-ddp/trial.json")]
    verdict = checked(made.assemble(files))
    assert verdict.verdict == "accepted", verdict.reasons
    assert [result.attempts for result in verdict.results] == [2, 1, 1, 1, 1, 1]
    assert "Trial 000-ddp was run 2 times" in "".join(note.message for note in verdict.notes)
    del (
        files[made.place("trials/000-ddp.attempt1/rank0.journal")],
        files[made.place("trials/000-ddp.attempt1/trial.json")],
    )
    assert "attempt_left_out" in [reason.code for reason in checked(made.assemble(files)).reasons]


def _moved(line: bytes, seconds: int) -> bytes:
    """A line as if it had been written at another time."""
    start = line.index(b"{")
    event = msgspec.json.decode(line[start:])
    event["time_ms"] += seconds * 1000
    event["metadata"]["ns"] += seconds * 10**9
    if event["key"] == Key.ENVIRONMENT:
        event["value"]["time"] = made.snapshot(1.5 + seconds)["time"]
    return line[:start] + msgspec.json.encode(event) + b"\n"


@pytest.mark.parametrize(("tera", "code"), [(0.01, "mfu_above_one"), (10.0, None)])
def test_throughput_is_held_against_the_table_of_chips(
    tera: float, code: str | None, packed: bytes, checked: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = Chip(vendor="cpu", chip="A", names=["a cpu"], fp32_tflops=tera, source="made", confidence="high")
    monkeypatch.setattr(VendorRegistry, "chips", lambda self, name: [chip])
    verdict = checked(packed)
    assert {reason.code for reason in verdict.reasons} == ({code} if code else set())
    assert "no_rated_peak" not in [note.code for note in verdict.notes]


def test_the_open_division_notes_a_peak_that_the_table_hasnt(files: made.Contents, checked: Check) -> None:
    made.set_plan(files, "rated_flops", 1e15)
    assert "peak" in {reason.code for reason in checked(made.assemble(files)).reasons}
    verdict = checked(made.assemble(files, division="open"))
    assert "peak" not in {reason.code for reason in verdict.reasons}
    assert "peak" in {note.code for note in verdict.notes}


def test_an_adapters_own_table_of_chips_is_no_manifest(files: made.Contents, checked: Check) -> None:
    files["adapter/chips.toml"] = b'[[chips]]\nvendor = "cpu"\n'
    assert not {reason.code for reason in checked(made.assemble(files)).reasons} & {"malformed", "adapter"}
