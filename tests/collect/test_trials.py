"""A trial's journals → its result: every metric by its meaning, every way to fail by its name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from collect import runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flagperf.collect.journals import Telemetry
from flagperf.collect.resources import energy
from flagperf.collect.trials import TrialRecord, read_trial
from flagperf.journal import Journal
from flagperf.metrics import catalogue
from flagperf.schema.event import PREFIX, Key
from flagperf.schema.result import Reason
from flagperf.schema.trial import Outcome, RankExit, Trial


def read(folder: Path, trial: Trial, **options: Any) -> TrialRecord:
    """Write a run of one trial and read it."""
    outcome = options.pop("outcome", None)
    plan = runs.run([trial])
    runs.write_run(folder, plan, **options, **({"outcome": outcome} if outcome else {}))
    return read_trial(folder, plan, trial)


def codes(reasons: list[Reason]) -> list[str]:
    return [reason.code for reason in reasons]


def test_a_good_trial(tmp_path: Path) -> None:
    trial = runs.trial()
    record = read(tmp_path, trial)
    assert record.result.verdict == "valid", record.result.reasons
    assert record.result.notes == []
    values = {name: metric.value for name, metric in record.result.metrics.items()}
    each = np.array([[runs.step_seconds(trial, rank, step) for step in range(2, 12)] for rank in (0, 1)])
    slowest = np.diff(each.cumsum(axis=1).max(axis=0), prepend=0)  # from last rank's end to last rank's end
    assert sum(slowest) == pytest.approx(each.sum(axis=1).max())  # steps take the time there was, no more
    median = float(np.median(slowest))
    assert values["step_time"] == pytest.approx(median)
    assert values["step_time_p90"] == pytest.approx(np.quantile(slowest, 0.9))
    assert values["tokens_per_second"] == pytest.approx(1024 / median)
    assert values["tokens_per_second_per_device"] == pytest.approx(512 / median)
    assert values["mfu"] == pytest.approx(5e5 * 1024 / median / 1e10)
    assert values["hfu"] == pytest.approx(values["mfu"] * 4 / 3)
    assert "mfu_rated" not in values
    assert values["data_wait"] == pytest.approx(0.001)
    assert values["time_to_first_step"] == 4.0
    assert values["p_train"] == pytest.approx(40 / sum(slowest))
    assert values["p_whole"] == pytest.approx(40 / (sum(slowest) + 0.2))
    assert values["p_core"] == pytest.approx(40 / (sum(slowest) - 10 * 0.001))
    assert values["p_whole"] < values["p_train"] < values["p_core"]
    assert values["memory_peak_allocated"] == 101
    assert values["memory_pss"] == 400
    assert values["loss_final"] == pytest.approx(runs.loss_of(trial, 11))
    assert values["loss_validation"] == pytest.approx(runs.loss_of(trial, 12))
    assert values["bits_per_byte"] == pytest.approx(runs.loss_of(trial, 12) / math.log(2) / 4)
    assert values["machine_speed"] == 8
    assert values["telemetry_cost"] == pytest.approx(0.2)
    time, rate = record.result.metrics["step_time"], record.result.metrics["tokens_per_second"]
    assert time.n == 10
    assert (time.low, time.high) == pytest.approx((sorted(slowest)[1], sorted(slowest)[8]))
    assert time.low is not None
    assert rate.high == pytest.approx(1024 / time.low)
    facts = record.result.facts
    assert facts["tokens_fingerprint"] == f"{14:032x}"
    assert facts["samples"] == 48
    assert facts["peak_flops_per_rank"] == 5e9
    assert facts["prepared"] == {"tokens": 1000}
    assert facts["environment"]["packages"] == {"torch": "2.9.0"}
    assert list(record.ranks[1].steps.step) == list(range(12))


def test_the_declaration_is_what_reduces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = runs.trial()
    before = read(tmp_path / "a", trial).result.metrics
    declared = dict(catalogue())
    for name, over in (
        ("step_time", "max"),
        ("tokens_per_second", "max"),
        ("step_time_p90", "min"),
        ("loss_final", "mean"),
    ):
        declared[name] = msgspec.structs.replace(declared[name], over_steps=over)
    declared["memory_pss"] = msgspec.structs.replace(declared["memory_pss"], over_ranks="max")
    monkeypatch.setattr("flagperf.metrics.catalogue", lambda: declared)
    after = read(tmp_path / "b", trial).result.metrics
    assert after["step_time_p90"].value < before["step_time"].value < after["step_time"].value
    assert after["tokens_per_second"].value == pytest.approx(1024 / after["step_time"].value)
    assert after["loss_final"].value > before["loss_final"].value  # the mean of a loss that falls
    assert after["memory_pss"].value == before["memory_pss"].value / 2


@pytest.mark.parametrize("left", ["nothing", "a beginning"])
def test_telemetry_that_died_is_told(tmp_path: Path, left: str) -> None:
    trial = runs.trial()
    assert read(tmp_path, trial).result.notes == []
    journal = tmp_path / "trials" / trial.id / "telemetry.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]))
    if left == "nothing":
        journal.unlink()
    result = read_trial(tmp_path, runs.run([trial]), trial).result
    assert result.verdict == "valid"
    assert [note.code for note in result.notes] == ["no_telemetry"]


def test_the_peak_is_the_largest_seen(tmp_path: Path) -> None:
    record = read(tmp_path, runs.trial(), pulses=(8e9, 7.5e9))
    assert record.result.facts["peak_flops_per_rank"] == 8e9


def test_the_peak_that_ranks_got_counts_and_not_the_plans(tmp_path: Path) -> None:
    launched = runs.trial()
    runs.write_run(tmp_path, runs.run([launched]))
    planned = msgspec.structs.replace(launched, peak_flops=None)
    assert read_trial(tmp_path, runs.run([planned]), planned).result.facts["peak_flops_per_rank"] == 5e9


def test_losses_are_weighted_by_tokens_and_only_leaders_speak(tmp_path: Path) -> None:
    trial = runs.trial(ranks=3)
    folder = runs.write_run(tmp_path, runs.run([trial]))
    for rank, (loss, tokens, leader) in enumerate([(2.0, 100, True), (4.0, 300, True), (9.0, 300, False)]):
        path = folder / f"trials/{trial.id}/rank{rank}.journal"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(_rewrite(line, loss, tokens, leader) for line in lines))
    values = read_trial(folder, runs.run([trial]), trial).result.metrics
    assert values["loss_final"].value == pytest.approx(3.5)
    assert values["loss_validation"].value == pytest.approx(3.5)
    assert values["tokens_per_second"].value == pytest.approx(400 / values["step_time"].value)


def _rewrite(line: bytes, loss: float, tokens: int, leader: bool) -> bytes:
    event = msgspec.json.decode(line[len(PREFIX) :])
    if event["key"] in (Key.STEP, Key.EVAL):
        event["value"].update(loss=loss, tokens=tokens, leader=leader)
    return PREFIX + msgspec.json.encode(event) + b"\n"


def outcome(*exits: RankExit, status: str = "failed", **more: Any) -> Outcome:
    return Outcome(status=status, seconds=9.0, exits=list(exits), **more)


KILLED = RankExit(rank=1, exit_code=-9, message="SIGKILL")
ENDED = RankExit(rank=0, exit_code=-15, message="SIGTERM")


@pytest.mark.parametrize(
    ("ended", "first", "words"),
    [
        (
            outcome(ENDED, KILLED),
            "killed",
            "rank 1 was killed by signal 9 (SIGKILL): the system's out-of-memory killer",
        ),
        (outcome(RankExit(rank=1, exit_code=137)), "killed", "signal 9 (SIGKILL)"),
        (outcome(RankExit(rank=0, exit_code=-11)), "crashed", "SIGSEGV"),
        (outcome(RankExit(rank=0, exit_code=3, message="x")), "rank_failed", "exit status 3: x"),
        (outcome(stderr_tail="std::bad_alloc"), "out_of_memory", "ran out of memory"),
        (outcome(stderr_tail="OSError: [Errno 28] No space left on device"), "disk_full", "disk is full"),
        (outcome(stderr_tail="a\nlast words\n"), "failed", "last words"),
        (outcome(status="timeout"), "timeout", "ended after 9 s"),
        (outcome(status="interrupted"), "interrupted", "interrupted"),
        (outcome(status="not started", message="no agent"), "not_started", "no agent"),
    ],
)
def test_how_it_ended_is_told_first(tmp_path: Path, ended: Outcome, first: str, words: str) -> None:
    result = read(tmp_path, runs.trial(), outcome=ended, stop=False, steps=5).result
    assert result.verdict == "invalid"
    assert result.reasons[0].code == first
    assert words.lower() in result.reasons[0].message.lower()
    assert result.reasons[0].hint
    assert {"unfinished", "steps_missing"} <= set(codes(result.reasons))
    assert result.metrics["step_time"].n == 3  # what there is is shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            {"kind": "out of memory", "message": "RuntimeError: can't allocate memory: 5 GB", "hint": "smaller"},
            "out_of_memory",
        ),
        ({"kind": "OutOfMemoryError", "message": "CUDA", "hint": ""}, "out_of_memory"),
        ({"kind": "RuntimeError", "message": "CUDA error: GPU is lost", "hint": ""}, "device_lost"),
        ({"kind": "AcceleratorError", "message": "device 3 is lost", "hint": ""}, "device_lost"),
        ({"kind": "disk full", "message": "OSError: [Errno 28]", "hint": ""}, "disk_full"),
        ({"kind": "ValueError", "message": "bad", "hint": "mend it"}, "error"),
        ({"kind": None}, "error"),
        ("nothing we know", "error"),
    ],
)
def test_what_a_rank_said_before_it_died(tmp_path: Path, error: Any, code: str) -> None:
    trial = runs.trial()
    folder = runs.write_run(tmp_path, runs.run([trial]), stop=False, outcome=outcome(RankExit(rank=0, exit_code=1)))
    with Journal(folder / "trials" / trial.id / "other.journal", {}) as journal:
        journal.write(Key.ERROR, error)
    rank = folder / "trials" / trial.id / "rank0.journal"
    rank.write_bytes(rank.read_bytes() + journal.path.read_bytes().splitlines(keepends=True)[1])
    result = read_trial(folder, runs.run([trial]), trial).result
    assert code in codes(result.reasons)
    assert codes(result.reasons).index(code) < codes(result.reasons).index("unfinished")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"loss": lambda trial, step: math.nan if step > 5 else 3.0}, "loss_not_finite"),
        ({"loss": lambda trial, step: math.inf if step == 12 else 3.0}, "loss_not_finite"),
        ({"seconds": lambda trial, rank, step: 0.01}, "mfu_above_one"),
        ({"seconds": lambda trial, rank, step: 0.1 if step != 7 else 0.0}, "impossible_time"),
        ({"steps": 11}, "steps_missing"),
        ({"stop": False}, "unfinished"),
        ({"leader": False}, "no_tokens"),
        ({"skipped": lambda step: step >= 2}, "all_steps_skipped"),
    ],
)
def test_a_trial_that_ended_well_can_be_invalid(tmp_path: Path, options: dict[str, Any], code: str) -> None:
    result = read(tmp_path, runs.trial(), **options).result
    assert result.verdict == "invalid"
    assert code in codes(result.reasons)


def test_skipped_updates_are_counted_and_told(tmp_path: Path) -> None:
    """In warm-up and after; the result stands as long as one measured step wasn't skipped."""
    result = read(tmp_path, runs.trial(), skipped=lambda step: step != 7).result
    assert result.verdict == "valid"
    assert result.metrics["steps_skipped"].value == 11 and result.metrics["steps_skipped"].n == 12
    assert any("11 steps" in note.message for note in result.notes if note.code == "steps_skipped")
    clean = read(tmp_path / "clean", runs.trial()).result
    assert clean.metrics["steps_skipped"].value == 0 and "steps_skipped" not in codes(clean.notes)


def test_ranks_must_take_the_same_steps(tmp_path: Path) -> None:
    trial = runs.trial()
    folder = runs.write_run(tmp_path, runs.run([trial]))
    (folder / f"trials/{trial.id}/rank1.journal").unlink()
    missing = read_trial(folder, runs.run([trial]), trial).result
    assert "no_journal" in codes(missing.reasons)
    assert "step_time" not in missing.metrics  # rank 1 may have been the slowest
    runs.write_rank(folder, trial, 1, steps=8)
    assert "steps_differ" in codes(read_trial(folder, runs.run([trial]), trial).result.reasons)


def test_journals_that_belong_elsewhere(tmp_path: Path) -> None:
    trial = runs.trial()
    folder = runs.write_run(tmp_path, runs.run([trial]))
    place = folder / "trials" / trial.id
    whole = (place / "rank0.journal").read_bytes()
    (place / "rank1.journal").write_bytes(whole)
    assert "wrong_journal" in codes(read_trial(folder, runs.run([trial]), trial).result.reasons)
    (place / "rank0.journal").write_bytes(whole * 2)
    assert "restarted" in codes(read_trial(folder, runs.run([trial]), trial).result.reasons)


def test_trials_that_have_not_come_yet(tmp_path: Path) -> None:
    trials = [runs.trial(0), runs.trial(1, trial=1, seed=101)]
    plan = runs.run(trials)
    folder = runs.write_run(tmp_path, plan, skip=["001-ddp"])
    result = read_trial(folder, plan, trials[1]).result
    assert codes(result.reasons) == ["not_started"]
    assert result.metrics == {}
    harness = folder / "harness.journal"
    harness.write_bytes(b"".join(line for line in harness.open("rb") if b"trial_stop" not in line))
    assert codes(read_trial(folder, plan, trials[0]).result.reasons) == ["no_outcome"]
    with Journal(harness, {}) as journal:
        journal.write(Key.INTERRUPTED)
    assert codes(read_trial(folder, plan, trials[0]).result.reasons) == ["interrupted"]
    assert "interrupted before it" in read_trial(folder, plan, trials[1]).result.reasons[0].message


def test_earlier_attempts_are_counted_only(tmp_path: Path) -> None:
    trial = runs.trial()
    folder = runs.write_run(tmp_path, runs.run([trial]))
    (folder / f"trials/{trial.id}.attempt1").mkdir()
    result = read_trial(folder, runs.run([trial]), trial).result
    assert (result.verdict, result.facts["attempts"]) == ("valid", 2)


def test_notes(tmp_path: Path) -> None:
    def seconds(trial: Trial, rank: int, step: int) -> float:
        return 1.0 if step == 9 else runs.step_seconds(trial, rank, step)

    trial = runs.trial(ranks=3)
    folder = runs.write_run(tmp_path, runs.run([trial]), seconds=seconds, pulses=(5e9, 4e9))
    place = folder / "trials" / trial.id
    with (place / "rank0.journal").open("ab") as file:
        file.write(
            b"W0101 something printed\n" + PREFIX + b'{"time_ms":1,"key":"step","value":{"step":1},"metadata":{}}\n'
        )
        file.write(PREFIX + b'{"time_ms":1,"ke')
    with Journal(folder / "harness.journal", {}) as harness:
        foreign = [{"pid": 7, "name": "miner", "percent": 95.0}]
        busy = runs.environment(foreign=foreign, foreign_percent=95.0)
        harness.write(Key.ENVIRONMENT, {"trial": trial.id, "when": "before", **busy})
    with Journal(place / "telemetry.journal", {}) as telemetry:
        telemetry.write(Key.TELEMETRY_COST, {"cpu_seconds": 1, "wall_seconds": 2, "missed": 3, "failed": 0})
    result = read_trial(folder, runs.run([trial]), trial).result
    assert result.verdict == "valid", result.reasons
    told = {note.code: note.message for note in result.notes}
    assert "1 foreign, 1 malformed, 1 torn" in told["journal_flaws"]
    assert "20%" in told["machine_slowed"]
    assert "1 of 10 steps" in told["outlying_steps"]
    assert "miner" in told["environment"]
    assert "3 ranks shared 2 cores" in told["oversubscribed"]
    assert "missed 3 samples" in told["telemetry_gaps"]


def test_energy_is_the_rise_of_all_counters_in_the_window() -> None:
    def telemetry(*rows: tuple[int, str, float]) -> Telemetry:
        ns, sensor, value = zip(*rows, strict=True)
        return Telemetry(
            ns=np.array(ns), sensor=list(sensor), value=np.array(value, np.float64), cost={}, flaws=Counter()
        )

    one = [
        (0, "energy_joules.package-0", 0.0),
        (10, "energy_joules.package-0", 100.0),
        (20, "energy_joules.package-0", 150.0),
    ]
    two = [(0, "energy_joules.package-1", 0.0), (20, "energy_joules.package-1", 20.0), (5, "cpu_percent", 3.0)]
    assert energy(telemetry(*one), 5, 15) == pytest.approx(75)
    assert energy(telemetry(*one, *two), 5, 15) == pytest.approx(85)
    assert energy(telemetry(*one), 5, 25) is None  # the counter ends before the window does
    assert energy(telemetry(*one, *two[:1]), 5, 15) is None
    assert energy(telemetry(two[2]), 5, 15) is None


json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
RANK_KEYS = [value for name, value in vars(Key).items() if name.isupper()]


@given(
    events=st.lists(st.tuples(st.sampled_from(RANK_KEYS), json), max_size=12),
    where=st.sampled_from(["rank0.journal", "telemetry.journal", "../../harness.journal"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_journal_makes_it_raise(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, Any]], where: str
) -> None:
    trial = runs.trial(ranks=1)
    folder = runs.write_run(tmp_path_factory.mktemp("hostile"), runs.run([trial]))
    with (folder / "trials" / trial.id / where).open("ab") as file:
        for key, value in events:
            line = {"time_ms": 1, "key": key, "value": value, "metadata": {"ns": value}}
            file.write(PREFIX + msgspec.json.encode(line) + b"\n")
    record = read_trial(folder, runs.run([trial]), trial)
    msgspec.json.encode(record.result)


@pytest.mark.parametrize(
    "hostile",
    [
        lambda value: value | {"step": 2**70},
        lambda value: value | {"seconds": -1.0},
        lambda value: value | {"tokens": "many"},
        lambda value: {},
        lambda value: [value],
        lambda value: None,
    ],
)
def test_steps_that_are_none_are_counted(tmp_path: Path, hostile: Callable[[Any], Any]) -> None:
    trial = runs.trial()
    folder = runs.write_run(tmp_path, runs.run([trial]))
    path = folder / f"trials/{trial.id}/rank0.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    at = max(number for number, line in enumerate(lines) if b'"key":"step"' in line)
    event = msgspec.json.decode(lines[at][len(PREFIX) :])
    lines[at] = PREFIX + msgspec.json.encode(event | {"value": hostile(event["value"])}) + b"\n"
    path.write_bytes(b"".join(lines))
    result = read_trial(folder, runs.run([trial]), trial).result
    assert {"steps_missing", "impossible_time"} & set(codes(result.reasons))


def test_communication_and_memory_are_those_of_the_rank_with_most(tmp_path: Path) -> None:
    trial = runs.trial(metrics=[])
    plan = runs.run([trial])
    runs.write_run(tmp_path, plan)
    for rank, (talked, exposed, weights) in enumerate([(0.4, 0.1, 300.0), (0.3, 0.2, 500.0)]):
        path = tmp_path / "trials" / trial.id / f"rank{rank}.journal"
        with Journal(path, {"role": "rank", "trial": trial.id, "rank": rank, "world_size": 2}) as journal:
            journal.write(Key.COMMUNICATION, {"seconds": 1.0 + rank, "communication": talked, "exposed": exposed})
            held = {"weights": weights * 2**20, "gradients": 0, "optimizer": 0, "host": rank * 2**20}
            journal.write(Key.HELD, {**held, "allocated": weights * 2**20})
            journal.write(Key.MEMORY, {"peak_allocated": 600 * 2**20})
            journal.write(Key.RUN_STOP, {"status": "success"})
    values = {name: metric.value for name, metric in read_trial(tmp_path, plan, trial).result.metrics.items()}
    assert values["communication_time"] == 0.4
    assert values["communication_exposed"] == 0.2
    assert values["communication_exposed_share"] == 0.1
    assert values["memory_weights"] == 500
    assert values["memory_activations"] == 300
    assert values["memory_offloaded"] == 1


def test_communication_that_one_rank_didnt_see_is_no_figure_but_a_note(tmp_path: Path) -> None:
    trial = runs.trial()
    plan = runs.run([trial])
    runs.write_run(tmp_path, plan)
    path = tmp_path / "trials" / trial.id / "rank1.journal"
    with path.open("ab") as file:
        file.write(PREFIX + b'{"time_ms":1,"key":"communication","value":{"failure":"RuntimeError: no counters"}}\n')
    result = read_trial(tmp_path, plan, trial).result
    assert result.verdict == "valid"
    assert [note.message for note in result.notes if note.code == "communication_not_observed"] == [
        "Communication wasn't observed in full on rank 1: RuntimeError: no counters."
    ]
    assert "communication_time" not in result.metrics
