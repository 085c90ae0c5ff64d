"""Surveys: which trials follow from which results, within the budget, and what becomes of every layout."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import TINY, flagperf
from hypothesis import given, settings
from hypothesis import strategies as st

from flagperf.cli.watch import Terminal
from flagperf.collect.runs import read_run
from flagperf.collect.store import Store
from flagperf.collect.survey import SLACK, answers, best, fates, following, told
from flagperf.errors import UsageError
from flagperf.journal import Journal
from flagperf.metrics import metric
from flagperf.plan import Options, further, plan
from flagperf.registry import Registries
from flagperf.run import execute
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Reason, Result
from flagperf.schema.survey import Survey
from flagperf.schema.trial import Nodes, Run, Trial
from flagperf.worker import rank_context

MIB = 2**20
REGISTRIES = Registries()


def planned(**options: Any) -> Run:
    usual: dict[str, Any] = {"cases": ["parallel/throughput"], "engines": ["ddp,fsdp"], "ranks": 2, "budget": 1000.0}
    return plan(Options(**(usual | options)), REGISTRIES)


def survey_of(run: Run) -> Survey:
    assert run.survey is not None
    return run.survey


def result(
    run: Run, trial: Trial, speed: float = 100.0, seconds: float = 10.0, memory: float = 50.0, why: tuple[str, ...] = ()
) -> Result:
    """A result as the collector would make it, with a speed that is sure to 1 %."""
    values = {
        "tokens_per_second": {"value": speed, "low": 0.99 * speed, "high": 1.01 * speed},
        "memory_peak_allocated": {"value": memory},
    }
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
        verdict="invalid" if why else "valid",
        reasons=[Reason(code, f"rank 1: {code}") for code in why],
        metrics={}
        if why
        else {
            name: MetricValue(unit=metric(name).unit, direction=metric(name).direction, **each)
            for name, each in values.items()
        },
        run=run.id,
        id=trial.id,
        facts={"seconds": seconds},
    )


def played(run: Run, of: Any = lambda trial: {}) -> tuple[Run, list[Result]]:
    """Carry out a run on paper; `of` gives what `result` is to say of a trial."""
    results: list[Result] = []
    while True:
        results += [result(run, trial, **of(trial)) for trial in run.trials[len(results) :]]
        more = further(run, results)
        if not more:
            return run, results
        run = msgspec.structs.replace(run, trials=[*run.trials, *more])


def searched(run: Run) -> list[str]:
    return [trial.arm for trial in run.trials if trial.purpose == "search"]


def why(run: Run, results: list[Result]) -> dict[str, tuple[str, str]]:
    return {str(row.arm): (row.fate, row.why) for row in fates(survey_of(run), results)}


def test_rank_counts_are_halves_and_each_is_measured_at_the_same_batch_and_at_a_growing_one() -> None:
    run = planned(ranks=4, oversubscribe=True, search=False, trials=2)
    assert [(s.kind, s.ranks, s.global_batch, s.arm.engine) for s in survey_of(run).scales] == [
        ("base", 1, 8, "single"),
        ("strong", 2, 8, "ddp"),
        ("strong", 4, 8, "ddp"),
        ("weak", 2, 16, "ddp"),
        ("weak", 4, 32, "ddp"),
    ]
    assert [trial.purpose for trial in run.trials] == ["measure"] * 10
    order = [(trial.ranks, trial.protocol.global_batch) for trial in run.trials]
    assert order == [*order[:5], *reversed(order[:5])]  # A B … B A
    # All ranks have as many threads, and a rank alone the cores that it has beside the others.
    assert len({trial.threads for trial in run.trials}) == 1
    assert {(trial.ranks, trial.slots) for trial in run.trials} == {(1, 4), (2, 4), (4, 0)}


def test_rank_counts_can_be_named_and_the_fewest_are_the_base() -> None:
    run = planned(rank_counts=[2, 4], ranks=None, oversubscribe=True, search=False)
    assert [(s.kind, s.ranks, s.global_batch, s.arm.engine) for s in survey_of(run).scales] == [
        ("base", 2, 8, "ddp"),
        ("strong", 4, 8, "ddp"),
        ("weak", 4, 16, "ddp"),
    ]


def test_the_named_layout_is_tried_first_and_every_engine_before_any_twice() -> None:
    run, _ = played(planned())
    assert searched(run)[:3] == ["ddp:zero=0,micro=4", "fsdp:zero=2,micro=4", "fsdp:zero=3,micro=4"]
    assert all(trial.protocol.steps == 9 for trial in run.trials if trial.purpose == "search")
    assert all(trial.id == f"{n:03d}-{trial.engine}" for n, trial in enumerate(run.trials))


def test_recomputation_isnt_tried_where_the_same_fits_without() -> None:
    run, results = played(planned())
    told_of = why(run, results)
    assert not any("recompute" in arm for arm in searched(run))
    assert told_of["ddp:zero=0,micro=4,recompute=1"] == ("pruned", "it fits without recompute, which only adds work")
    assert all(fate in ("fits", "pruned") for fate, _ in told_of.values())


def test_a_slope_is_not_followed_downwards() -> None:
    speeds = {4: 100.0, 2: 80.0, 1: 120.0}  # the last one would surprise, and isn't looked at
    run, results = played(planned(engines=["ddp"]), lambda trial: {"speed": speeds[trial.layout.micro]})
    told_of = why(run, results)
    assert searched(run) == ["ddp:zero=0,micro=4", "ddp:zero=0,micro=2"]
    assert told_of["ddp:zero=0,micro=1"] == ("pruned", "micro=2 was surely slower than micro=4")
    slower = "without recompute it is pruned for its speed, and recompute only adds work"
    assert told_of["ddp:zero=0,micro=1,recompute=1"] == ("pruned", slower)


def test_what_is_too_big_by_formula_is_never_tried_and_what_only_may_be_is() -> None:
    whole = planned(engines=["ddp"])
    needs = {str(each.arm): each.predicted or 0 for each in survey_of(whole).candidates}
    budget = int(needs["ddp:zero=0,micro=4"] / (1 + SLACK)) - 1
    run, results = played(planned(engines=["ddp:micro=4", "fsdp:zero=3"], memory_budget=budget, layout=""))
    assert why(run, results)["ddp:zero=0,micro=4"][0] == "pruned"
    assert "by formula it needs" in why(run, results)["ddp:zero=0,micro=4"][1]
    assert "ddp:zero=0,micro=4" not in searched(run)
    run, _ = played(planned(engines=["ddp"], memory_budget=budget + MIB))
    assert "ddp:zero=0,micro=4" in searched(run)


def test_out_of_memory_in_one_leads_to_the_leaner_ones() -> None:
    def oom(trial: Trial) -> dict[str, Any]:
        return {"why": ("out_of_memory",)} if trial.layout.micro == 2 and not trial.layout.recompute else {}

    run, results = played(planned(engines=["ddp:micro=2"]), oom)
    assert why(run, results)["ddp:zero=0,micro=2"] == ("too big", "it ran out of memory")
    assert searched(run) == ["ddp:zero=0,micro=2", "ddp:zero=0,micro=2,recompute=1"]
    assert str(best(survey_of(run), results)) == "ddp:zero=0,micro=2,recompute=1"
    run, results = played(planned(engines=["ddp"]), lambda trial: {"why": ("out_of_memory",)})
    assert why(run, results)["ddp:zero=0,micro=2"][0] == "too big"  # a smaller one might have fitted
    run, results = played(
        planned(engines=["ddp"]),
        lambda trial: {"why": ("out_of_memory",)} if trial.layout.micro == 4 else {"memory": 60.0},
    )
    assert str(best(survey_of(run), results)) == "ddp:zero=0,micro=2"


def test_a_layout_that_dies_costs_its_other_micro_batches_and_nothing_else() -> None:
    run, results = played(planned(), lambda trial: {"why": ("rank_failed",)} if "zero=2" in trial.arm else {})
    told_of = why(run, results)
    assert told_of["fsdp:zero=2,micro=4"] == ("failed", "rank 1: rank_failed")
    assert told_of["fsdp:zero=2,micro=2"] == ("pruned", "micro=4 of it failed")
    assert told_of["fsdp:zero=3,micro=4"][0] == "fits"
    output = told(run, results)
    assert output is not None and output.ended == "complete" and not output.notes


def test_the_best_is_measured_beside_the_named_and_compared_with_it() -> None:
    run, results = played(planned(trials=3), lambda trial: {"speed": 130.0 if "zero=3" in trial.arm else 100.0})
    measured = [trial for trial in run.trials if trial.purpose == "measure"]
    chosen = best(survey_of(run), results)
    assert chosen is not None and chosen.engine == "fsdp" and str(chosen) in {trial.arm for trial in measured}
    assert len(measured) == 3 * 4  # base, strong, weak, best
    found = {row.metric: row for row in answers(run, results, None)}
    assert found["tokens_per_second"].ratio == pytest.approx(1.3) and found["tokens_per_second"].pairs == 3
    same, alike = played(planned(trials=3))
    assert best(survey_of(same), alike) == survey_of(same).arm and not answers(same, alike, None)


@pytest.mark.parametrize(("budget", "tries"), [(5.0, 1), (10.0, 1), (19.0, 1), (20.0, 2), (49.0, 4)])
def test_the_search_ends_in_time_and_says_what_it_left(budget: float, tries: int) -> None:
    run, results = played(planned(budget=budget))
    assert len(searched(run)) == tries
    output = told(run, results)
    assert output is not None and output.ended == "budget" and output.spent == 10.0 * tries
    codes = {note.code for note in output.notes}
    assert "budget_over" in codes and ("budget_too_small" in codes) == (budget < 10)
    left = [row for row in output.layouts if row.fate == "not tried"]
    assert left and all(row.why == f"{output.spent:,.0f} s of the budget of {budget:,.0f} s are spent, and a trial "
                        "takes about 10 s" for row in left)  # fmt: skip
    assert [trial for trial in run.trials if trial.purpose == "measure"]  # scaling is measured all the same


def test_a_hung_layout_cant_eat_more_than_is_left() -> None:
    run, _ = played(planned(budget=900.0), lambda trial: {"seconds": 250.0})
    limits = [trial.protocol.timeout for trial in run.trials if trial.purpose == "search"]
    assert limits == [900.0, 650.0, 400.0]
    assert all(t.protocol.timeout == 1800.0 for t in run.trials if t.purpose == "measure")


@functools.cache
def in_room(room: int | None) -> Run:
    return planned(memory_budget=room, trials=1)


OUTCOMES = st.sampled_from(["fits", "fits", "big", "oom", "broken"])


@settings(max_examples=25, deadline=None)
@given(st.data(), st.floats(1, 400), st.sampled_from([None, 8 * MIB, 100 * MIB, 250 * MIB]))
def test_every_search_keeps_to_its_budget_and_gives_each_layout_one_fate(
    data: st.DataObject, budget: float, room: int | None
) -> None:
    survey = msgspec.structs.replace(survey_of(in_room(room)), budget=budget)
    run = msgspec.structs.replace(in_room(room), survey=survey)
    results: list[Result] = []
    gone: set[str] = set()
    for _ in range(len(survey.candidates) + 2):
        for trial in run.trials[len(results) :]:
            became = data.draw(OUTCOMES)
            codes = {"oom": ("out_of_memory",), "broken": ("rank_failed",)}.get(became, ())
            results.append(
                result(
                    run,
                    trial,
                    data.draw(st.floats(1, 1e4)),
                    data.draw(st.floats(0.1, 90)),
                    1000.0 if became == "big" else 1.0,
                    codes,
                )
            )
        rows = fates(survey, results)
        assert [row.arm for row in rows] == [each.arm for each in survey.candidates]  # each once
        out = {str(row.arm) for row in rows if row.fate in ("pruned", "refused")}
        assert gone <= out and not out & set(searched(run))  # pruned for good, and never tried
        assert all(bool(row.why) != (row.fate in ("fits", "not tried")) for row in rows)
        assert all((row.tried is None) == (row.fate in ("pruned", "refused", "not tried")) for row in rows)
        gone = out
        more = further(run, results)
        assert more == further(run, results[::-1])  # whatever the order: a resumed run goes on alike
        if not more:
            break
        run = msgspec.structs.replace(run, trials=[*run.trials, *more])
    else:
        raise AssertionError("the search goes on for ever")
    if not searched(run):  # nothing could fit
        assert all(row.fate != "not tried" for row in rows)
    spent = [r.facts["seconds"] for r in results if r.purpose == "search"]
    assert sum(spent[:-1]) < budget or len(spent) == 1  # over by one trial at most
    assert len(set(searched(run))) == len(searched(run))
    output = told(run, results)
    assert output is not None and following(survey, results) is None
    assert (output.ended == "complete") == (not any(row.fate == "not tried" for row in output.layouts))
    assert all(row.why for row in output.layouts if row.fate == "not tried")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cases": ["parallel/throughput", "aquila/pretrain"]}, "a survey"),
        ({"compare": ("ddp", "fsdp")}, "a survey"),
        ({"baseline": "ddp"}, "a survey"),
        ({"cases": ["aquila/pretrain"]}, "--budget and --rank-counts are for surveys"),
        ({"ranks": 4096}, "--oversubscribe"),
        ({"rank_counts": [1, 4], "ranks": 2, "oversubscribe": True}, "more than --ranks 2"),
        ({"rank_counts": [2, 3], "oversubscribe": True, "ranks": None}, "global batch of 8"),
        ({"layout": "micro=8"}, "micro=8 doesn't divide"),
        ({"nodes": Nodes(count=2, rendezvous="h:1")}, "--no-search"),
    ],
    ids=str,
)
def test_a_survey_that_cant_be_is_refused_with_the_way_out(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(**options)
    assert says in str(error.value)


def test_engines_that_arent_installed_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from flagperf.plan import surveys
    from flagperf.registry import availability
    from flagperf.schema.machine import Availability

    def without(manifest: Any) -> Any:
        gone = Availability(name="fsdp", available=False, reason="it isn't installed", remedy="pip install it")
        return gone if manifest.name == "fsdp" else availability(manifest)

    monkeypatch.setattr(surveys, "availability", without)
    run = planned(engines=[], search=False)
    assert survey_of(run).left_out["fsdp"] == "it isn't installed; pip install it"


def test_a_rank_alone_has_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = next(trial for trial in planned(search=False).trials if trial.ranks == 1)
    asked: list[tuple[int, ...]] = []
    cpu = REGISTRIES.vendors.load("cpu")
    monkeypatch.setattr(cpu, "runtime", lambda self, *place: asked.append(place))
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    with Journal(tmp_path / "rank0.journal", {}) as journal:
        rank_context(alone, journal)
        rank_context(msgspec.structs.replace(alone, slots=0), journal)
    assert asked == [(0, 2, alone.threads), (0, 1, alone.threads)]


@pytest.mark.slow
def test_a_survey_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "run"
    chosen = ("--engine", "ddp", "--layout", "micro=4", "--rank-counts", "2", "--trials", "1", "--budget", "1s")
    observed = ("--set", "protocol.profile=2")
    done = flagperf("run", "parallel/throughput", *TINY, *observed, *chosen, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)["survey"]
    (base,) = output["scaling"]
    assert (base["kind"], base["ranks"], base["efficiency"], base["valid"]) == ("base", 2, 1.0, 1)
    assert {each["fate"] for each in output["layouts"]} == {"fits", "pruned"} and output["ended"] == "complete"
    assert output["spent"] > 1 and [note["code"] for note in output["notes"]] == ["budget_too_small"]
    # The step's parts are its length, and the trace is one that Perfetto reads.
    parts = base["split"]
    assert parts["exposed"] > 0 and parts["seconds"] == pytest.approx(
        sum(parts[k] for k in ("compute", "exposed", "idle"))
    )
    trace = json.loads(gzip.decompress((out / parts["trace"]).read_bytes()))
    assert any(event.get("name") == "flagperf: step" for event in trace["traceEvents"])
    # As if it had been killed when the search was over.
    run = read_run(out)
    kept = [trial for trial in run.trials if trial.purpose == "search"]
    (out / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(run, trials=kept)))
    execute(read_run(out), out, REGISTRIES, Terminal(), nodes=Nodes())
    assert read_run(out).trials == run.trials
    assert not list((out / "trials").glob("*.attempt*"))
    store = Store([out])
    assert msgspec.to_builtins(told(run, store.results(), store.curves())) == output
    assert "Efficiency is throughput a rank" in (out / "report.html").read_text("utf-8")
