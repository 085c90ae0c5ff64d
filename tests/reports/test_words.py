"""Sentences by rules: each verdict, both languages, and figures that aren't embellished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.reports import numbers, words
from flagperf.reports.data import load
from flagperf.reports.tables import plot
from flagperf.reports.texts import LANGUAGES, texts
from flagperf.schema.result import Comparison

THIN = numbers.THIN


def comparison(**changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "metric": "tokens_per_second",
        "candidate": "fsdp",
        "baseline": "ddp",
        "ratio": 0.92,
        "low": 0.89,
        "high": 0.95,
        "verdict": "worse",
        "pairs": 3,
        "direction": "higher",
    }
    return Comparison(**{**fields, **changes})


def plain(words_: Any) -> str:
    return str(words_.en).replace(THIN, " ")


def test_slower() -> None:
    headline, badge, detail = words.speed_sentence(comparison())
    assert plain(headline) == "fsdp trained 8.0 % slower than ddp"
    assert plain(detail) == "95 % interval 5.0 to 11 %, 3 pairs."
    assert badge.zh == "更慢" and "慢" in headline.zh


def test_faster_by_a_step_time() -> None:
    headline, badge, _ = words.speed_sentence(
        comparison(metric="step_time", direction="lower", ratio=0.8, low=0.75, high=0.85, verdict="better")
    )
    assert plain(headline) == "fsdp trained 20 % faster than ddp"
    assert badge.en == "faster"


def test_equivalent() -> None:
    headline, _, detail = words.speed_sentence(comparison(ratio=1.001, low=0.99, high=1.01, verdict="equivalent"))
    assert plain(headline) == "fsdp trained as fast as ddp: any difference is below 3 %"
    assert "−1.0 % to +1.0 %" in plain(detail)


@pytest.mark.parametrize(
    ("more", "said"),
    [(4, "About 4 more trials of each"), (1, "About 1 more trial of each"), (None, "no reasonable number")],
)
def test_cannot_tell_says_what_would_settle_it(more: int | None, said: str) -> None:
    headline, _, detail = words.speed_sentence(
        comparison(ratio=0.98, low=0.93, high=1.04, verdict="cannot tell", more_trials=more)
    )
    assert plain(headline).startswith("Cannot tell whether fsdp trained faster or slower than ddp")
    assert said in plain(detail)


def test_one_pair_gives_no_interval() -> None:
    _, _, detail = words.speed_sentence(
        comparison(ratio=0.9, low=None, high=None, verdict="cannot tell", pairs=1, more_trials=2)
    )
    assert plain(detail).startswith("Measured −10 %; there is no interval from 1 pair. About 2 more trials")


def test_verdict_of_a_whole_run(runs: Any, tmp_path: Path) -> None:
    group = load(runs.make_run(tmp_path / "run")).groups[0]
    (verdict,) = words.verdicts(group)
    assert verdict.kind == "worse"
    assert plain(verdict.headline).startswith("fsdp trained ") and "slower than ddp" in plain(verdict.headline)
    details = [plain(detail) for detail in verdict.details]
    assert "Losses agree within 0.01 %." in details
    assert "Peak memory, allocator 21 % lower." in details
    assert [c.metric for c in verdict.plotted][:2] == ["tokens_per_second", "step_time"]


def test_losses_apart_forbid_a_verdict_on_speed(runs: Any, tmp_path: Path) -> None:
    arms = [runs.Arm(name="ddp"), runs.Arm(name="fsdp", step=0.3, loss_shift=0.02)]
    (verdict,) = words.verdicts(load(runs.make_run(tmp_path / "run", arms)).groups[0])
    assert verdict.kind == "cannot_tell"
    assert plain(verdict.details[0]) == (
        "Losses differ by up to 2.0 %, more than the 1 % allowed: the speeds are not comparable."
    )
    assert not any("more trial" in plain(detail) for detail in verdict.details)


def test_a_loss_that_strays_in_the_middle_is_found(runs: Any, tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", trials=2)
    path = folder / "trials" / "001-fsdp" / "rank0.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"step":10,' in line)
    head, _, tail = lines[at].partition(b'"loss":')
    lines[at] = head + b'"loss":9.5,' + tail.split(b",", 1)[1]
    path.write_bytes(b"".join(lines))
    (verdict,) = words.verdicts(load(folder).groups[0])
    assert verdict.kind == "cannot_tell"
    assert "Losses differ by up to" in plain(verdict.details[0])


def test_invalid_arms_are_named_with_the_way_out_and_never_ranked(runs: Any, tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", trials=1, fail=["001-fsdp"])
    alone, invalid = words.verdicts(load(folder).groups[0])
    assert plain(alone.headline).startswith("ddp trained at ")
    assert plain(invalid.headline) == "fsdp has no valid trial and isn't ranked"
    assert "SIGKILL" in plain(invalid.details[0]) and "smaller micro-batch" in plain(invalid.details[0])


def test_no_valid_trial(runs: Any, tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", trials=1, fail=["000-ddp", "001-fsdp"])
    (verdict,) = words.verdicts(load(folder).groups[0])
    assert verdict.kind == "invalid" and plain(verdict.headline).startswith("No valid trial")


def test_a_single_engine_says_what_it_reached(runs: Any, tmp_path: Path) -> None:
    (verdict,) = words.verdicts(load(runs.make_run(tmp_path / "run", [runs.Arm(name="ddp")])).groups[0])
    assert verdict.kind == "measured"
    assert plain(verdict.headline).endswith("tokens/s")
    assert any("Median of 3 trials" in plain(detail) for detail in verdict.details)


def test_every_text_is_there_in_both_languages_with_the_same_fields() -> None:
    import string

    for key, both in texts().items():
        fields = [
            {name for _, name, _, _ in string.Formatter().parse(getattr(both, lang)) if name} for lang in LANGUAGES
        ]
        assert fields[0] == fields[1], key
        assert both.en and both.zh, key


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567.0, "1 234 567"),
        (5062.4, "5 062"),
        (404.56, "404.6"),
        (0.012345, "0.01235"),
        (0.0, "0"),
        (-3.5, "−3.500"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert numbers.number(value).replace(THIN, " ") == shown


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_can_be_shown(value: float) -> None:
    assert numbers.number(value)
    assert numbers.change(value)
    if value == value and abs(value) < 1e6:
        assert numbers.percent(value)


@given(st.floats(1e-9, 10.0))
def test_within_is_never_less_than_the_truth(fraction: float) -> None:
    said = float(numbers.percent_above(fraction).replace(THIN, "").rstrip("%")) / 100
    assert said >= fraction * 0.9999
    assert said <= max(fraction * 3, 0.0001)


def test_scales() -> None:
    assert numbers.scale("s", [0.4, 0.5]).full(0.4).replace(THIN, " ") == "400.0 ms"
    assert numbers.scale("MiB", [20480.0]).full(20480.0).replace(THIN, " ") == "20.00 GiB"
    assert numbers.scale("ratio", [0.382]).full(0.382, 3).replace(THIN, " ") == "38.2 %"
    assert numbers.scale("unheard of", [3.0]).unit == "unheard of"


def test_plot_places_points_bands_and_cut_intervals() -> None:
    drawn = plot([comparison(), comparison(metric="step_time", ratio=1.5, low=0.2, high=9.0, direction="lower")])
    assert drawn is not None
    first, second = drawn.marks
    assert first.point < first.band_low < 50 < first.band_high
    assert first.low is not None and first.high is not None and first.low < first.point < first.high
    assert second.high == 100.0 and second.cut_high and not first.cut_high
    assert plot([]) is None
