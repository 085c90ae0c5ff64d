"""Contests: what is tried and in which order, which layout is the best, and how the questions are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import TINY, called, flagperf
from hypothesis import given, settings
from hypothesis import strategies as st

from flagperf.collect.contest import answers, best, claims, told, tried
from flagperf.collect.runs import read_run
from flagperf.errors import UnknownName, UsageError
from flagperf.metrics import metric
from flagperf.plan import Options, plan
from flagperf.plan.contests import further
from flagperf.registry import Registries
from flagperf.schema.contest import Claim
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Reason, Result
from flagperf.schema.trial import Nodes, Run, Trial

MIB = 2**20


def planned(**options: Any) -> Run:
    usual: dict[str, Any] = {"cases": ["aquila/pretrain"], "compare": ("fsdp:zero=3", "ddp"), "ranks": 2}
    return plan(Options(**(usual | options)), Registries())


def result(run: Run, trial: Trial, speed: float = 100.0, memory: float = 50.0, reasons: tuple[str, ...] = ()) -> Result:
    """A result as the collector would make it, with a memory in MiB and a speed that is sure to 1 %."""
    values = {"tokens_per_second": speed, "memory_peak_allocated": memory}
    bounds = {"tokens_per_second": {"low": 0.99 * speed, "high": 1.01 * speed}}
    return Result(
        case=trial.case,
        preset=trial.preset,
        vendor=trial.vendor,
        engine=trial.engine,
        ranks=trial.ranks,
        layout=str(trial.layout),
        dtype=trial.dtype,
        seed=trial.seed,
        trial=trial.trial,
        purpose=trial.purpose,
        verdict="invalid" if reasons else "valid",
        reasons=[Reason(code, code) for code in reasons],
        metrics={}
        if reasons
        else {
            name: MetricValue(
                value=value, unit=metric(name).unit, direction=metric(name).direction, **bounds.get(name, {})
            )
            for name, value in values.items()
        },
        run=run.id,
        id=trial.id,
    )


def played(
    run: Run, memory: dict[str, float], fails: dict[str, str] | None = None, speed: dict[str, float] | None = None
) -> tuple[Run, list[Result]]:
    """Carry out a run on paper: an arm's memory by a part of its name; what it fails of and its speed likewise."""
    results: list[Result] = []
    while True:
        for trial in run.trials[len(results) :]:
            why = [code for part, code in (fails or {}).items() if part in trial.arm]
            size = next((mib for part, mib in memory.items() if part in trial.arm), 1.0)
            fast = next((value for part, value in (speed or {}).items() if part in trial.arm), 100.0)
            results.append(result(run, trial, fast, size, tuple(why)))
        more = further(run, results)
        if not more:
            return run, results
        run = msgspec.structs.replace(run, trials=[*run.trials, *more])


def arms(trials: Iterator[Trial] | list[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.arm for trial in trials))


def test_a_search_begins_with_the_largest_micro_batch_of_each_layout() -> None:
    run = planned(settings={"protocol": {"global_batch": 16}})
    assert [trial.purpose for trial in run.trials] == ["search"] * 3
    assert arms(run.trials) == ["fsdp:zero=2,micro=8", "fsdp:zero=3,micro=8", "ddp:zero=0,micro=8"]
    assert all(trial.protocol.steps == 9 for trial in run.trials)
    assert run.contest is not None and run.contest.protocol.steps == 20
    assert run.baseline == "ddp:zero=0,micro=4"


@pytest.mark.parametrize("faster", [0.9, 1.01, 1.019])
def test_the_named_layout_is_the_best_unless_another_is_surely_faster(faster: float) -> None:
    run, results = played(planned(), {}, speed={"fsdp:zero=2": 100.0 * faster})
    assert run.contest is not None
    assert str(best(run.contest, "fsdp", results)) == "fsdp:zero=3,micro=4"
    assert len(arms([trial for trial in run.trials if trial.purpose == "measure"])) == 2
    # Where an interval is lacking nothing is sure.
    unsure = [
        msgspec.structs.replace(r, metrics={k: msgspec.structs.replace(v, low=None) for k, v in r.metrics.items()})
        for r in played(planned(), {}, speed={"fsdp:zero=2": 200.0})[1]
    ]
    assert str(best(run.contest, "fsdp", unsure)) == "fsdp:zero=3,micro=4"


def test_when_all_fit_the_best_is_measured_beside_the_named() -> None:
    run = planned(trials=2)
    run, results = played(run, {}, speed={"fsdp:zero=2": 103.0})
    measured = [trial for trial in run.trials if trial.purpose == "measure"]
    assert arms(measured) == ["ddp:zero=0,micro=4", "fsdp:zero=3,micro=4", "fsdp:zero=2,micro=4"]
    assert [trial.seed for trial in measured] == [1234] * 3 + [1235] * 3
    assert [trial.arm for trial in measured[3:]] == [trial.arm for trial in reversed(measured[:3])]
    assert [trial.id for trial in run.trials] == [f"{n:03d}-{t.engine}" for n, t in enumerate(run.trials)]
    assert len(results) == len(run.trials)


def test_what_is_too_big_is_tried_leaner_until_it_fits() -> None:
    run = planned(memory_budget=100 * MIB)
    run, results = played(run, {"ddp:zero=0,micro=4": 200.0, "ddp:zero=0,micro=2": 150.0, "fsdp": 90.0})
    assert run.contest is not None
    ladder = next(each for each in run.contest.ladders if each.engine == "ddp")
    assert [(str(t.arm), t.verdict) for t in tried(run.contest, ladder, results)] == [
        ("ddp:zero=0,micro=4", "too big"),
        ("ddp:zero=0,micro=2", "too big"),
        ("ddp:zero=0,micro=1", "fits"),
    ]
    assert str(best(run.contest, "ddp", results)) == "ddp:zero=0,micro=1"
    measured = arms([trial for trial in run.trials if trial.purpose == "measure"])
    assert measured[:2] == ["ddp:zero=0,micro=4", "fsdp:zero=3,micro=4"] and "ddp:zero=0,micro=1" in measured


def test_recomputation_comes_after_the_smallest_micro_batch() -> None:
    run = planned()
    assert run.contest is not None
    (ladder,) = (each for each in run.contest.ladders if each.engine == "ddp")
    assert [str(rung) for rung in ladder.rungs] == [
        *("zero=0,micro=4", "zero=0,micro=2", "zero=0,micro=1"),
        *("zero=0,micro=4,recompute=1", "zero=0,micro=2,recompute=1", "zero=0,micro=1,recompute=1"),
    ]


def test_running_out_of_memory_is_too_big_and_another_failure_ends_the_ladder() -> None:
    run, results = played(planned(), {}, {"ddp:zero=0,micro=4": "out_of_memory", "fsdp:zero=2": "rank_failed"})
    assert run.contest is not None
    verdicts = {
        str(each.arm): each.verdict for ladder in run.contest.ladders for each in tried(run.contest, ladder, results)
    }
    assert verdicts["ddp:zero=0,micro=4"] == "too big" and verdicts["ddp:zero=0,micro=2"] == "fits"
    assert verdicts["fsdp:zero=2,micro=4"] == "failed" and "fsdp:zero=2,micro=2" not in verdicts
    assert str(best(run.contest, "fsdp", results)) == "fsdp:zero=3,micro=4"


def test_where_nothing_fits_the_question_stays_open_and_says_why() -> None:
    run, results = played(planned(memory_budget=10 * MIB), {"ddp": 50.0})
    assert run.contest is not None
    found = {(each.question, each.metric): each for each in answers(run, results, run.contest, None)}
    open_one = found["best", "tokens_per_second"]
    assert open_one.verdict == "cannot tell" and open_one.ratio is None
    assert "ddp" in open_one.notes[0].message and "10 MiB" in open_one.notes[0].message
    assert "fsdp" not in open_one.notes[0].message
    assert found["equal", "tokens_per_second"].ratio is not None  # it was asked as it stands, budget or not


def test_search_trials_enter_no_comparison() -> None:
    run, results = played(planned(trials=3), {})
    assert run.contest is not None
    fast = [msgspec.structs.replace(r, metrics={}) if r.purpose == "search" else r for r in results]
    assert answers(run, results, run.contest, None)[0].pairs == 3
    assert all(each.pairs == 3 for each in answers(run, fast, run.contest, None) if each.question == "equal")


def test_the_metrics_of_the_answers_can_be_chosen() -> None:
    run, results = played(planned(trials=3), {})
    assert run.contest is not None
    found = answers(run, results, run.contest, None, ["memory_peak_allocated"])
    assert {(each.question, each.metric) for each in found} == {
        ("equal", "memory_peak_allocated"),
        ("best", "memory_peak_allocated"),
    }


def test_a_claim_stands_beside_the_answer_to_its_question() -> None:
    run, results = played(planned(), {})
    assert run.contest is not None
    kinds = ("equal", "overlap")
    made = [
        Claim(title="t", title_zh="t", question=q, candidate="fsdp", baseline="ddp", low=8.0, source="s")  # type: ignore[arg-type]
        for q in kinds
    ]
    contest = msgspec.structs.replace(run.contest, claims=made)
    rows = claims(contest, answers(run, results, contest, None))
    assert rows[0].measured is not None and rows[0].measured.question == "equal"
    assert rows[1].measured is None  # fsdp's overlap can't be turned off, so nothing was measured in its place
    assert told(msgspec.structs.replace(run, contest=None), results, []) is None


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_search_ends_and_is_the_same_whatever_is_asked_when(data: st.DataObject) -> None:
    run = planned(memory_budget=100 * MIB)
    results: list[Result] = []
    for _ in range(50):
        for trial in run.trials[len(results) :]:
            outcome = data.draw(st.sampled_from(["fits", "big", "oom", "broken"]))
            codes = {"oom": ("out_of_memory",), "broken": ("rank_failed",)}.get(outcome, ())
            results.append(result(run, trial, data.draw(st.floats(1, 1e6)), 200.0 if outcome == "big" else 50.0, codes))
        more = further(run, results)
        assert more == further(run, list(reversed(results)))
        if not more:
            break
        assert not {trial.id for trial in more} & {trial.id for trial in run.trials}
        run = msgspec.structs.replace(run, trials=[*run.trials, *more])
    else:
        raise AssertionError("the search goes on for ever")
    assert run.contest is not None
    measured = [trial for trial in run.trials if trial.purpose == "measure"]
    assert {str(arm) for arm in run.contest.arms} <= set(arms(measured))
    for engine in ("ddp", "fsdp"):
        chosen = best(run.contest, engine, results)
        assert chosen is None or str(chosen) in arms(measured)


@pytest.mark.parametrize(
    ("options", "told_so"),
    [
        ({"compare": ("ddp", "ddp")}, "Both sides are ddp"),
        ({"compare": ("ddp,fsdp", "ddp")}, "names 2 engines"),
        ({"engines": ["ddp"]}, "candidate and baseline"),
        ({"cases": ["aquila/pretrain", "aquila/pretrain"]}, "one case"),
        ({"baseline": "ddp"}, "--baseline"),
        ({"nodes": Nodes(count=2, rendezvous="h:1")}, "--no-search"),
        ({"cases": ["aquila/bmtrain-vs-megatron"]}, "a contest"),
    ],
    ids=str,
)
def test_a_contest_that_cant_be_is_refused_with_the_way_out(options: dict[str, Any], told_so: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(**options)
    assert told_so in str(error.value)


def test_an_unknown_contest_is_an_unknown_case() -> None:
    with pytest.raises(UnknownName):
        planned(cases=["aquila/bmtrain-vs-megatorn"], compare=None)


def test_without_a_search_only_the_named_are_measured() -> None:
    run = planned(search=False, trials=1)
    assert arms(run.trials) == ["ddp:zero=0,micro=4", "fsdp:zero=3,micro=4"]
    assert run.contest is not None and not run.contest.ladders and further(run, []) == []


def test_every_contest_that_a_case_declares_can_be_read() -> None:
    named = [(case, name) for case in Registries().cases.all() for name in case.contests]
    assert ("aquila/bmtrain-vs-megatron") in [name for _, name in named]
    for case, name in named:
        assert case.contests[name].title_zh
        assert all(claim.source and claim.title_zh for claim in case.claims)


@pytest.mark.slow
def test_a_contest_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "run"
    sides = ("--compare", "ddp", "single:micro=4", "--ranks", "1", "--trials", "1")
    done = flagperf("run", "aquila/pretrain", *TINY, *sides, "--memory-budget", "8.5", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert {row["question"] for row in output["comparisons"]} == {"equal", "best"}
    became = {(each["arm"]["engine"], each["arm"]["layout"]["micro"]): each for each in output["contest"]["tried"]}
    assert became["ddp", 8]["verdict"] == became["single", 8]["verdict"] == "too big"
    assert became["single", 4]["verdict"] == "fits", became
    run = read_run(out)
    # As if it had been killed when the search was over: the plan without what followed from it.
    searched = [trial for trial in run.trials if trial.purpose == "search"]
    (out / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(run, trials=searched)))
    stamps = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*/rank0.journal")}
    again = flagperf("run", "--resume", str(out), "--json")
    assert again.returncode == 0, again.stderr
    assert read_run(out).trials == run.trials
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())  # nothing was run twice
    shown = called("compare", out)
    assert "Each in its best layout" in shown.stdout and shown.returncode == 0
    found = json.loads(called("results", out, "--where", "purpose=search", "--json").stdout)
    assert len(found["results"]) == len(searched)
