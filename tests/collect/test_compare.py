"""Comparisons: pairs, accuracy before speed, names of arms, runs against runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from collect import runs

from flagperf.collect.compare import compare, compare_runs, labels
from flagperf.errors import UnknownName, UsageError
from flagperf.metrics import metric
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Comparison, Reason, Result

SPEED = 1000.0


def result(engine: str, trial: int = 0, speed: float = SPEED, **changes: Any) -> Result:
    """A valid result as `read_trial` gives it."""
    values = {"tokens_per_second": speed, "step_time": 1000 / speed, "loss_final": 5.0, "loss_validation": 5.1}
    values |= changes.pop("values", {})
    environment = {"python": "3.11.7", "packages": {"torch": "2.9.0"}} | changes.pop("environment", {})
    facts = {"loss_band": 0.01, "minimum_effect": 0.03, "tokens_fingerprint": "0e", "environment": environment}
    usual: dict[str, Any] = {
        "case": "aquila/pretrain",
        "preset": "tiny",
        "vendor": "cpu",
        "engine": engine,
        "ranks": 2,
        "layout": "micro=2",
        "dtype": "fp32",
        "seed": 100 + trial,
        "trial": trial,
        "verdict": "valid",
        "reasons": [],
        "run": "run",
        "id": f"{trial}-{engine}",
        "metrics": {
            name: MetricValue(value=value, unit=metric(name).unit, direction=metric(name).direction)
            for name, value in values.items()
        },
        "facts": facts | changes.pop("facts", {}),
    }
    return Result(**(usual | changes))


def both(speed: float = 1.2, **candidate: Any) -> list[Result]:
    """Three trials each of ddp and of fsdp, which is `speed` times as fast."""
    drift = (1.0, 1.1, 0.9)
    base = [result("ddp", trial, SPEED * drift[trial]) for trial in range(3)]
    wobble = (1.001, 0.999, 1.0)
    return base + [result("fsdp", t, SPEED * drift[t] * speed * wobble[t], **candidate) for t in range(3)]


def of(comparisons: list[Comparison], name: str) -> Comparison:
    return next(row for row in comparisons if row.metric == name)


def codes(comparison: Comparison) -> list[str]:
    return [note.code for note in comparison.notes]


def test_pairs_cancel_the_drift_of_the_machine() -> None:
    rows = compare(both(), "ddp")
    assert [row.metric for row in rows] == ["tokens_per_second", "step_time", "loss_final", "loss_validation"]
    speed = of(rows, "tokens_per_second")
    assert (speed.candidate, speed.baseline, speed.verdict, speed.pairs) == ("fsdp", "ddp", "better", 3)
    assert speed.ratio == pytest.approx(1.2, rel=0.01)
    assert speed.low is not None
    assert speed.high is not None
    assert speed.high / speed.low < 1.02
    assert speed.candidate_value == pytest.approx(1200, rel=0.01)
    assert speed.baseline_value == 1000
    assert (speed.unit, speed.direction, speed.minimum_effect, speed.notes) == ("tokens/s", "higher", 0.03, [])
    assert of(rows, "step_time").verdict == "better"
    assert of(rows, "loss_final").verdict == "equivalent"
    assert of(rows, "loss_final").minimum_effect == 0.01
    assert of(compare(both(1 / 1.2), "ddp"), "step_time").verdict == "worse"
    assert of(compare(both(1.0), "ddp"), "step_time").verdict == "equivalent"


def test_invalid_results_never_enter() -> None:
    results = both()
    results[4] = msgspec.structs.replace(results[4], verdict="invalid", reasons=[Reason("killed", "gone")])
    speed = of(compare(results, "ddp"), "tokens_per_second")
    assert speed.pairs == 2
    assert codes(speed) == ["invalid_left_out", "unpaired_left_out"]
    assert speed.baseline_value == 950  # of the pairs that are left
    results[3:] = [msgspec.structs.replace(x, verdict="invalid") for x in results[3:]]
    speed = of(compare(results, "ddp"), "tokens_per_second")
    assert (speed.verdict, speed.ratio, speed.pairs) == ("cannot tell", None, 0)
    assert "undecidable" in codes(speed)


@pytest.mark.parametrize(
    ("candidate", "code"),
    [
        ({"values": {"loss_validation": 5.3}}, "losses_differ"),
        ({"values": {"loss_final": 4.8}}, "losses_differ"),
        ({"facts": {"tokens_fingerprint": "0f"}}, "tokens_differ"),
    ],
)
def test_accuracy_before_speed(candidate: dict[str, Any], code: str) -> None:
    rows = compare(both(2.0, **candidate), "ddp")
    speed = of(rows, "tokens_per_second")
    assert (speed.verdict, speed.more_trials) == ("cannot tell", None)
    assert speed.ratio == pytest.approx(2.0, rel=0.01)  # shown, but not judged
    assert codes(speed)[0] == code
    if code == "losses_differ":
        assert speed.notes[0].message.startswith("losses differ by ")
        name = next(iter(candidate["values"]))
        assert of(rows, name).verdict != "equivalent"


def test_a_single_trial_that_differs_is_enough() -> None:
    results = both()
    results[4] = result("fsdp", 1, 1300.0, values={"loss_validation": 5.2})
    assert "losses differ by 1.96% in validation for seed 101" in compare(results, "ddp")[0].notes[0].message


def test_every_step_is_checked_where_curves_are_known() -> None:
    curves = {("run", f"{t}-{e}"): {0: 9.0, 1: 8.0, 2: 7.0} for t in range(3) for e in ("ddp", "fsdp")}
    assert of(compare(both(), "ddp", curves=curves), "step_time").verdict == "better"
    curves["run", "2-fsdp"][1] = 8.2
    speed = of(compare(both(), "ddp", curves=curves), "step_time")
    assert speed.verdict == "cannot tell"
    assert "by 2.50% at step 1 for seed 102" in speed.notes[0].message
    curves["run", "2-fsdp"][1] = float("nan")
    assert "beyond measure" in compare(both(), "ddp", curves=curves)[0].notes[0].message


def test_groups_are_compared_each_by_itself() -> None:
    other = [msgspec.structs.replace(x, case="other") for x in both(1.0)]
    rows = compare(both() + other, "ddp", ["step_time"])
    assert [(row.case, row.verdict) for row in rows] == [("aquila/pretrain", "better"), ("other", "equivalent")]
    bf16 = [result("fsdp", t, dtype="bf16") for t in range(3)]
    assert len(compare(both() + bf16, "ddp", ["step_time"])) == 1


def test_names_of_arms() -> None:
    assert labels([("ddp", "micro=2"), ("fsdp", "zero=2"), ("fsdp", "zero=3")]) == ["ddp", "fsdp:zero=2", "fsdp:zero=3"]
    arms = [result("fsdp", t, layout=f"zero={z},micro=2") for z in (3, 2) for t in range(2)]

    def sides(baseline: str) -> tuple[str, str]:
        (row,) = compare(arms, baseline, ["step_time"])
        return row.candidate, row.baseline

    assert sides("fsdp:zero=2") == ("fsdp:zero=3,micro=2", "fsdp:zero=2,micro=2")  # as it was asked for
    assert sides("fsdp:micro=2,zero=2") == ("fsdp:zero=3,micro=2", "fsdp:zero=2,micro=2")
    assert sides("fsdp:default") == sides("fsdp") == ("fsdp:zero=2,micro=2", "fsdp:zero=3,micro=2")
    for name in ("ddp", "fsdp:zero=1", "fsdp:nonsense=1"):
        with pytest.raises(UnknownName, match="engine of these results"):
            compare(arms, name)
    with pytest.raises(UnknownName, match="step_time"):
        compare(arms, "fsdp", ["steptime"])


def test_several_runs_are_pooled_but_pairs_stay_within_a_run() -> None:
    second = [msgspec.structs.replace(x, run="later") for x in both()]
    assert of(compare(both() + second, "ddp"), "step_time").pairs == 6
    apart = both()[:3] + second[3:]
    row = of(compare(apart, "ddp"), "tokens_per_second")
    assert "not_interleaved" in codes(row)
    assert row.low is not None
    assert row.low < 1.1  # the drift counts now


def test_run_against_run() -> None:
    environment = {"packages": {"torch": "2.10.0"}}
    later = [
        result(x.engine, x.trial, x.metrics["tokens_per_second"].value * 2, run="later", environment=environment)
        for x in both()
    ]
    rows = compare_runs(later, both(), ["tokens_per_second"])
    assert [(row.candidate, row.baseline) for row in rows] == [
        ("ddp in later", "ddp in run"),
        ("fsdp in later", "fsdp in run"),
    ]
    assert {row.verdict for row in rows} == {"better"}
    assert codes(rows[0]) == ["not_interleaved", "environments_differ"]
    assert "torch 2.10.0 against 2.9.0" in rows[0].notes[1].message
    with pytest.raises(UsageError, match="nothing in common"):
        compare_runs([msgspec.structs.replace(x, ranks=4) for x in later], both())


def test_other_seeds_are_not_checked_and_it_is_said() -> None:
    results = both()[:3] + [result("fsdp", t, 2000.0, seed=900 + t, values={"loss_final": 1.0}) for t in range(3)]
    assert codes(of(compare(results, "ddp"), "step_time")) == ["not_interleaved", "losses_unchecked"]


def test_from_journals(tmp_path: Path) -> None:
    from flagperf.collect.store import Store

    order = [("ddp", 0), ("fsdp", 0), ("fsdp", 1), ("ddp", 1), ("ddp", 2), ("fsdp", 2)]
    trials = [runs.trial(n, engine=engine, trial=t, seed=100 + t) for n, (engine, t) in enumerate(order)]
    folder = runs.write_run(
        tmp_path,
        runs.run(trials),
        seconds=lambda trial, rank, step: runs.step_seconds(trial, rank, step) * (1.5 if trial.engine == "fsdp" else 1),
        loss=lambda trial, step: 3.0 - step / 100 + 1e-6 * (trial.engine == "fsdp"),
    )
    store = Store([folder])
    rows = compare(store.results(), "ddp", curves=store.curves())
    verdicts = {row.metric: row.verdict for row in rows}
    assert verdicts["tokens_per_second"] == verdicts["step_time"] == "worse"
    assert verdicts["memory_peak_rss"] == verdicts["loss_final"] == verdicts["loss_validation"] == "equivalent"
    assert all(row.notes == [] for row in rows)


def test_other_settings_are_another_thing() -> None:
    """`--set model.layers=8` makes another model of the same preset: its speed says nothing about the engine."""
    results = both(facts={"settings_digest": "other"})
    assert compare(results, "ddp") == []
    with pytest.raises(UsageError, match="nothing in common"):
        compare_runs(results[3:], [result("fsdp", trial) for trial in range(3)])


def test_trials_that_were_run_again_later_are_told() -> None:
    row = of(compare(both(facts={"attempts": 2}), "ddp"), "step_time")
    assert "resumed" in codes(row)
    assert "3 trials" in next(note.message for note in row.notes if note.code == "resumed")
    assert "resumed" not in codes(of(compare(both(facts={"attempts": 1}), "ddp"), "step_time"))
