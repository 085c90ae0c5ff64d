"""What a page says of a contest: by rule, in both languages, and nothing of the search among the measured."""

from __future__ import annotations

import html as html_module
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagperf.reports import contest, words
from flagperf.reports.data import Group, load
from flagperf.reports.numbers import THIN
from flagperf.schema.result import Comparison, Reason

MakePage = Callable[..., Path]


def plain(words_: Any) -> str:
    return str(words_.en).replace(THIN, " ")


def told(verdict: words.Verdict) -> str:
    return " | ".join(map(plain, (verdict.question, verdict.headline, *verdict.details)))


@pytest.fixture(scope="module")
def usual(contests: Any, tmp_path_factory: pytest.TempPathFactory) -> Group:
    (group,) = load(contests.make_contest(tmp_path_factory.mktemp("usual") / "run")).groups
    return group


def cards(group: Group) -> dict[str, words.Verdict]:
    assert group.contest is not None
    return dict(zip(group.contest.sides, contest.cards(group, group.contest), strict=True))


def shown(group: Group) -> contest.Shown:
    found = contest.shown(group)
    assert found is not None
    return found


def only(contests: Any, folder: Path, *arms: Any, **options: Any) -> Group:
    (group,) = load(contests.make_contest(folder / "run", list(arms) or None, **options)).groups
    return group


def test_names_are_short_and_the_search_stays_out(usual: Group) -> None:
    assert usual.arms == ["megatron-deepspeed", "bmtrain", "bmtrain:overlap=0", "bmtrain:micro=8"]
    assert {view.trial.purpose for view in usual.trials} == {"measure"} and len(usual.trials) == 12
    assert usual.contest is not None and len(usual.contest.searched) == 3
    roles = {each.arm: (each.roles.en, each.layout) for each in shown(usual).arms}
    assert roles["megatron-deepspeed"] == ("as named, the best found", "zero=2,micro=4")
    assert roles["bmtrain:overlap=0"] == ("without overlap", "zero=3,micro=4,overlap=0")
    assert roles["bmtrain:micro=8"][0] == "the best found"


def test_layouts_of_one_engine_are_named_by_all_that_differs(contests: Any) -> None:
    from flagperf.reports.data import _readable
    from flagperf.schema.contest import Arm, Contest
    from flagperf.schema.layout import Layout
    from flagperf.schema.protocol import Protocol

    a, b = (Arm("fsdp", Layout(zero=stage, micro=4)) for stage in (3, 2))
    without = Arm("fsdp", Layout(zero=3, micro=4, overlap=False))
    rules = Protocol(warmup=2, steps=4, trials=1, seed=1, validation=1, global_batch=8)
    named = _readable(Contest(candidate=a, baseline=b, without_overlap=without, protocol=rules), [b, a, without])
    assert list(named.values()) == ["fsdp:zero=2,overlap=1", "fsdp:zero=3,overlap=1", "fsdp:zero=3,overlap=0"]


def test_a_clear_win(usual: Group) -> None:
    found = cards(usual)
    assert list(found) == ["equal", "best", "overlap"]
    assert plain(found["equal"].headline) == "bmtrain trained 50 % faster than megatron-deepspeed"
    assert found["equal"].kind == "better" and "1.50 × the throughput, 95 % interval 1.4" in told(found["equal"])
    assert "tokens/s" in told(found["equal"])
    assert plain(found["best"].headline).startswith("bmtrain:micro=8 trained 66 % faster than megatron-deepspeed")
    assert plain(found["overlap"].headline).startswith("bmtrain trained 13 % faster than bmtrain:overlap=0")
    assert all(verdict.question.zh != verdict.question.en for verdict in found.values())
    assert not any(c.metric.startswith("communication") for v in found.values() for c in v.plotted)


def test_a_large_ratio_is_told_as_a_multiple(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, *contests.usual(0.3, 0.93))
    assert re.match(
        r"bmtrain trained 3\.\d\d times as fast as megatron-deepspeed", plain(cards(group)["equal"].headline)
    )


def test_the_columns_of_numbers_are_compared_with_the_baseline_alone(usual: Group) -> None:
    assert set(usual.compared("bmtrain")) >= {"tokens_per_second", "loss_validation"}
    assert usual.compared("bmtrain")["tokens_per_second"].question == "equal"
    assert usual.compared("bmtrain:overlap=0") == {}


def test_cannot_tell(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, *contests.usual(0.4, 0.405), noise=0.08)
    found = cards(group)["equal"]
    assert found.kind == "cannot_tell" and "Cannot tell whether bmtrain trained faster or slower" in told(found)
    row = shown(group).claims[1]
    assert row.kind == "cannot_tell" and "more trials are needed" in plain(row.reading)


def test_the_best_that_is_the_named_is_not_told_twice(contests: Any, tmp_path: Path) -> None:
    ladders = ((contests.NAMED[0], (contests.CANDIDATE,)), (contests.NAMED[1], (contests.BASELINE,)))
    group = only(contests, tmp_path, ladders=ladders)
    found = cards(group)
    assert found["best"].kind == found["equal"].kind == "better"
    assert "No layout that was tried is surely faster than those that were named" in told(found["best"])
    assert not found["best"].plotted and "%" not in told(found["best"])
    assert shown(group).claims[0].measured == shown(group).claims[1].measured != "–"


def test_nothing_fits(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, budget=250 * 2**20)
    found = cards(group)["best"]
    assert found.kind == "cannot_tell" and "no layout of megatron-deepspeed that was tried fits" in told(found)
    assert cards(group)["equal"].kind == "better"
    rows = shown(group).tried
    assert [(row.arm.engine, row.kind, row.chosen) for row in rows] == [
        ("bmtrain", "too_big", False),
        ("bmtrain", "fits", True),
        ("megatron-deepspeed", "too_big", False),
        ("megatron-deepspeed", "too_big", False),
    ]
    assert "At most 250" in plain(shown(group).search)
    claim = shown(group).claims[0]
    assert claim.kind == "unmeasured" and "No layout of megatron-deepspeed" in plain(claim.reading)


def test_a_probe_that_failed_says_why(contests: Any, tmp_path: Path) -> None:
    arms = contests.usual()
    arms[2] = contests.arm(contests.NAMED[0], contests.BIGGER, 0.3, error=("ValueError", "<b>no such kernel</b>"))
    group = only(contests, tmp_path, *arms)
    row = shown(group).tried[0]
    assert (row.kind, row.chosen, row.speed) == ("failed", False, "–") and "<b>no such kernel</b>" in row.why
    assert cards(group)["best"].headline.en.startswith("No layout that was tried")


def test_too_little_memory_for_the_baseline_is_said_of_the_claim(contests: Any, tmp_path: Path) -> None:
    arms = contests.usual()
    arms[3] = contests.arm(contests.NAMED[1], contests.BASELINE, 0.6, error=contests.OUT_OF_MEMORY)
    group = only(contests, tmp_path, *arms)
    assert [row.kind for row in shown(group).tried] == ["fits", "fits", "too_big", "fits"]
    assert "1 of 2 layouts of megatron-deepspeed that were tried were too big" in plain(shown(group).claims[0].reading)
    equal = cards(group)["equal"]
    assert (
        equal.kind == "invalid"
        and "megatron-deepspeed: no valid trial" in told(equal)
        and "out of memory" in told(equal)
    )
    assert cards(group)["best"].baseline == "megatron-deepspeed:micro=2"
    assert shown(group).claims[1].kind == "unmeasured"


def test_losses_apart_forbid_any_verdict(contests: Any, tmp_path: Path) -> None:
    arms = contests.usual(loss_shift=0.03)
    group = only(contests, tmp_path, *arms)
    said = shown(group)
    assert said.losses is not None and said.losses.kind == "worse"
    assert "Losses differ by up to 3.0 %" in plain(said.losses.headline)
    found = cards(group)
    assert found["equal"].kind == found["best"].kind == "cannot_tell"
    assert plain(found["equal"].details[0]).startswith("Losses differ")
    assert found["overlap"].kind == "better" and "Losses" not in told(found["overlap"]), "its sides learn the same"
    assert [row.kind for row in said.claims[:2]] == ["cannot_tell"] * 2
    assert "didn't train the same" in plain(said.claims[0].reading)


def test_a_best_arm_that_learns_something_else_is_found(contests: Any, tmp_path: Path) -> None:
    """Its partner isn't the group's baseline, and its first and last losses agree."""
    arms = contests.usual()
    arms[3] = contests.arm(contests.NAMED[1], contests.BASELINE, 0.6)
    arms[4] = contests.arm(contests.NAMED[1], contests.LEANER, 0.5, allocated=280.0)
    ladders = ((contests.NAMED[0], (contests.BIGGER,)), (contests.NAMED[1], (contests.LEANER,)))
    folder = contests.make_contest(tmp_path / "run", arms, ladders=ladders)
    path = next(
        p for p in sorted(folder.parent.glob("run*/trials/*-megatron-deepspeed/trial.json")) if _is(p, "micro=2")
    )
    journal = path.with_name("rank0.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"step":10,' in line)
    head, _, tail = lines[at].partition(b'"loss":')
    lines[at] = head + b'"loss":9.5,' + tail.split(b",", 1)[1]
    journal.write_bytes(b"".join(lines))
    (group,) = load(path.parent.parent.parent).groups
    found = cards(group)
    assert found["best"].kind == "cannot_tell" and "Losses differ" in told(found["best"])
    assert found["equal"].kind == "better"
    losses = shown(group).losses
    assert losses is not None and losses.kind == "worse"


def _is(path: Path, layout: str) -> bool:
    plan = json.loads(path.read_bytes())
    return plan["purpose"] == "measure" and f"micro={plan['layout']['micro']}" == layout


def test_identical_work_is_said_once(usual: Group) -> None:
    losses = shown(usual).losses
    assert losses is not None and losses.kind == "equivalent" and "Losses agree within 0.01 %" in plain(losses.headline)
    assert not any("Losses" in told(verdict) for verdict in cards(usual).values())


def test_without_an_arm_for_overlap(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, without=None)
    assert "overlap" not in cards(group)
    assert "bmtrain can't be run with and without it" in plain(shown(group).overlap)
    assert "There is no trial without overlap" in plain(shown(group).claims[2].reading)


def test_without_a_search_and_without_claims(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, ladders=(), claims=(), title="")
    assert list(cards(group)) == ["equal", "overlap"]
    assert shown(group).tried == [] == shown(group).claims and "weren't looked for" in plain(shown(group).search)
    assert plain(shown(group).title) == "bmtrain against megatron-deepspeed"


def test_a_search_that_was_not_finished(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, measured=False)
    assert shown(group).unfinished and group.first.protocol.steps == 20
    assert {verdict.kind for verdict in cards(group).values()} == {"cannot_tell"}
    assert shown(group).losses is None and shown(group).memory == []


def test_memory_is_split_and_adds_up(usual: Group) -> None:
    bars = {bar.arm: bar for bar in shown(usual).memory}
    named = bars["megatron-deepspeed"]
    assert [(plain(part.title), part.value) for part in named.parts] == [
        ("Weights", "60.00"),
        ("Gradients", "60.00"),
        ("Optimizer state", "120.0"),
        ("Activations and buffers", "61.00"),
    ]
    assert named.total.replace(THIN, " ") == "301.0 MiB" and sum(part.width for part in named.parts) == pytest.approx(
        100, abs=0.1
    )
    assert sum(part.width for part in bars["bmtrain"].parts) == pytest.approx(100 * 201 / 301, abs=0.1)
    assert [plain(words_) for words_ in bars["bmtrain"].beside] == ["besides, 12.00 MiB on the host"]
    assert named.beside == []


def test_memory_that_is_not_split_is_one_bar(contests: Any, tmp_path: Path) -> None:
    group = only(contests, tmp_path, *contests.usual(held=None), without=None)
    bars = {bar.arm: bar for bar in shown(group).memory}
    assert [plain(part.title) for part in bars["bmtrain"].parts] == ["not split"]
    assert len(bars["megatron-deepspeed"].parts) == 4


def test_exposed_communication_with_overlap_and_without(usual: Group) -> None:
    bars = {bar.arm: bar for bar in shown(usual).communication}
    assert [part.value for part in bars["bmtrain"].parts] == ["101.0", "99.00"]
    assert [part.width for part in bars["bmtrain:overlap=0"].parts] == pytest.approx([101, 0], abs=1.1)
    assert [plain(words_) for words_ in bars["bmtrain"].beside] == ["20 % of the step is exposed"]
    assert plain(shown(usual).overlap).startswith("With overlap 50 % less is exposed than without: 95 % interval")


def test_what_was_not_told_is_not_drawn(contests: Any, tmp_path: Path) -> None:
    arms = [contests.arm(a.name, a.layout, a.step, communication=None) for a in contests.usual()]
    said = shown(only(contests, tmp_path, *arms))
    assert said.communication == [] and "isn't known" in plain(said.overlap)


def comparison(low: float | None, high: float | None, *notes: str, ratio: float | None = 1.3) -> Comparison:
    return Comparison(
        metric="tokens_per_second",
        candidate="bmtrain",
        baseline="megatron-deepspeed",
        ratio=ratio,
        low=low,
        high=high,
        verdict="better",
        notes=[Reason(code, "") for code in notes],
    )


@pytest.mark.parametrize(
    ("low", "high", "measured", "kind", "said"),
    [
        (8.0, None, (1.2, 1.4), "above", "it is 5.71 times its upper end"),
        (1.1, None, (1.2, 1.4), "below", "lies below the measured interval, 1.20 × to 1.40 ×"),
        (1.3, None, (1.2, 1.4), "within", "The claim lies within the measured interval"),
        (1.06, 1.62, (1.2, 1.4), "within", "lies within the published range"),
        (1.25, 1.3, (1.2, 1.4), "within", "The claim lies within the measured interval"),
        (1.06, 1.3, (1.2, 1.4), "within", "overlap"),
        (1.06, 1.62, (0.9, 1.4), "cannot_tell", "no difference at all"),
        (1.06, 1.62, (0.9, 1.02), "above", "it is 1.04 times its upper end"),
        (1.06, 1.1, (1.2, 1.4), "below", "lies below"),
        (1.06, 1.62, (None, None), "cannot_tell", "two pairs"),
    ],
)
def test_how_a_claim_stands(
    contests: Any,
    low: float,
    high: float | None,
    measured: tuple[float | None, float | None],
    kind: str,
    said: str,
) -> None:
    claim = contests.claim(low=low, high=high)
    found, sentence = contest.reading(claim, comparison(*measured))
    assert found == kind and said in plain(sentence) and sentence.zh != sentence.en
    assert (
        contest.reading(claim, None)[0] == contest.reading(claim, comparison(None, None, ratio=None))[0] == "unmeasured"
    )
    assert contest.reading(claim, comparison(*measured, "tokens_differ"))[0] == "cannot_tell"


def test_the_claims_of_a_page(usual: Group) -> None:
    eight, equal, overlap = shown(usual).claims
    assert (eight.published, equal.published, overlap.published) == ("8×", "1.06 … 1.62×", "1.1×")
    assert eight.kind == "above" and "memory doesn't hold it back here" in plain(eight.reading)
    assert equal.kind == "within" and equal.interval.replace(THIN, " ").startswith("1.4")
    assert eight.note.zh == "未说明测试环境。" and plain(eight.question) == "Each in the fastest layout that fits"
    assert not overlap.note
    assert plain(shown(usual).where) == "Here: tiny, 2 ranks on cpu, fp32."


def test_the_page_and_its_json(contest_page: MakePage) -> None:
    html = contest_page(claims=(_hostile_claim(),)).read_text("utf-8")
    body, _, scripts = html.partition('<script type="application/json"')
    assert '<h1><span class="l-en" lang="en">BMTrain against Megatron + DeepSpeed</span>' in body
    assert "<img" not in body and "&lt;img src=x&gt;" in body
    text = html_module.unescape(re.sub(r"<[^>]+>", "", body))
    assert "Layouts that were tried" in text and "尝试过的并行方式" in text
    trials = re.search(r'<table class="trials">(.*?)</table>', body, re.S)
    assert trials is not None and trials[1].count("<tr>") == 13 and "000-bmtrain" not in trials[1]
    data = json.loads(scripts[scripts.index(">") + 1 : scripts.index("</script>")])
    (told_,) = data["contests"]
    assert [each["verdict"] for each in told_["tried"]] == ["fits"] * 3
    assert told_["claims"][0]["claim"]["low"] == 8.0 and told_["claims"][0]["measured"]["question"] == "best"
    assert {c["question"] for c in data["comparisons"]} == {"equal", "best", "overlap"}
    assert data["comparisons"][0]["candidate"] == "bmtrain:zero=3,micro=4", "as `flagperf run --json` has it"
    assert sum(result["purpose"] == "search" for result in data["results"]) == 3
    drawn = scripts[scripts.index("flagperf-charts") :]
    assert "000-bmtrain" not in drawn and "003-megatron" in drawn


def _hostile_claim() -> Any:
    from flagperf.schema.contest import Claim

    evil = "<img src=x>"
    return Claim(
        title=evil,
        title_zh=evil,
        question="best",
        candidate="a",
        baseline="b",
        low=8.0,
        source=evil,
        note=evil,
        note_zh=evil,
    )
