"""Intervals hold what they promise, with few trials and ugly noise too; verdicts follow their rules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flagperf.statistics import (
    compare_groups,
    compare_pairs,
    outliers,
    quantile_interval,
    trial_interval,
)

Noise = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

NOISES: dict[str, Noise] = {
    "normal": lambda random, n: random.normal(0, 0.03, n),
    "heavy-tailed": lambda random, n: 0.03 * random.standard_t(2, n),
    "one trial in ten disturbed": lambda random, n: np.where(
        random.random(n) < 0.1, random.normal(0.3, 0.1, n), random.normal(0, 0.02, n)
    ),
}
MIRROR = {"better": "worse", "worse": "better", "equivalent": "equivalent", "cannot tell": "cannot tell"}


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("noise", NOISES)
def test_pairs_cover_the_true_ratio_and_see_no_difference_where_none_is(noise: str, n: int) -> None:
    random = np.random.default_rng(n)
    repeats, truth, covered, false = 500, 1.2, 0, 0
    for repeat in range(repeats):
        drift = 2 * NOISES[noise](random, n)  # of the machine, common to both of a pair
        c, b = (np.exp(drift + NOISES[noise](random, n)) for _ in range(2))
        estimate = compare_pairs(truth * c, b, "higher", 0.03, seed=repeat)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= truth <= estimate.high
        # With no difference the interval is the same, divided by 1.2.
        excludes = not estimate.low <= truth <= estimate.high
        assert estimate.ratio is not None
        false += excludes and abs(math.log(estimate.ratio / truth)) > math.log(1.03)
    assert covered / repeats >= 0.93
    assert false / repeats <= 0.05


@pytest.mark.parametrize("noise", NOISES)
def test_groups_cover_the_true_ratio(noise: str) -> None:
    random = np.random.default_rng(1)
    repeats, truth, covered = 300, 0.8, 0
    for repeat in range(repeats):
        estimate = compare_groups(
            truth * np.exp(NOISES[noise](random, 4)), np.exp(NOISES[noise](random, 6)), "lower", 0.03, seed=repeat
        )
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= truth <= estimate.high
    assert covered / repeats >= 0.93


def test_a_bootstrap_alone_would_not_cover_with_three_pairs() -> None:
    """The reason why Student's t is in the interval: this is what it protects from."""
    random = np.random.default_rng(0)
    covered, repeats = 0, 1000
    for _ in range(repeats):
        sample = random.normal(0, 1, 3)
        low, high = np.quantile(random.choice(sample, (1000, 3)).mean(axis=1), [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / repeats < 0.85


positive = st.floats(1e-3, 1e6)
arms = st.integers(2, 8).flatmap(
    lambda n: st.tuples(st.lists(positive, min_size=n, max_size=n), st.lists(positive, min_size=n, max_size=n))
)
functions = st.sampled_from([compare_pairs, compare_groups])


@given(arms, st.floats(1e-3, 1e3), functions)
@settings(max_examples=60, deadline=None)
def test_the_unit_does_not_matter(arms: tuple[list[float], list[float]], factor: float, compare: object) -> None:
    c, b = map(np.array, arms)
    one = compare(c, b, "higher", 0.03)  # type: ignore[operator]
    other = compare(c * factor, b * factor, "higher", 0.03)  # type: ignore[operator]
    assert other.ratio == pytest.approx(one.ratio, rel=1e-9)
    assert other.low == pytest.approx(one.low, rel=1e-6)
    assert other.high == pytest.approx(one.high, rel=1e-6)


@given(arms)
@settings(max_examples=60, deadline=None)
def test_swapping_the_arms_mirrors_everything(arms: tuple[list[float], list[float]]) -> None:
    c, b = arms
    one, other = compare_pairs(c, b, "higher", 0.03), compare_pairs(b, c, "higher", 0.03)
    assert one.ratio is not None
    assert one.low is not None
    assert one.high is not None
    assert other.ratio == pytest.approx(1 / one.ratio, rel=1e-9)
    assert other.low == pytest.approx(1 / one.high, rel=1e-6)
    assert other.high == pytest.approx(1 / one.low, rel=1e-6)
    edges = [abs(math.log(x)) for x in (one.low, one.high)]
    assume(all(edge > 1e-9 and abs(edge - math.log(1.03)) > 1e-9 for edge in edges))
    assert other.verdict == MIRROR[one.verdict]
    assert other.more_trials == one.more_trials


@given(arms, functions)
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_ratio_and_agrees_with_the_verdict(
    arms: tuple[list[float], list[float]], compare: object
) -> None:
    estimate = compare(*arms, "lower", 0.03)  # type: ignore[operator]
    assert estimate.low <= estimate.ratio <= estimate.high
    within = estimate.low >= 1 / 1.03 and estimate.high <= 1.03
    assert (estimate.verdict == "equivalent") == within
    if estimate.verdict in ("better", "worse"):
        assert not estimate.low <= 1 <= estimate.high
        assert (estimate.ratio < 1) == (estimate.verdict == "better")
    if estimate.verdict != "cannot tell":
        assert estimate.more_trials is None


def test_verdicts() -> None:
    base = [100.0, 101.0, 99.0, 100.5, 99.5]
    faster = [x * 1.2 for x in (100.2, 100.9, 99.1, 100.4, 99.6)]
    assert compare_pairs(faster, base, "higher", 0.03).verdict == "better"
    assert compare_pairs(faster, base, "lower", 0.03).verdict == "worse"
    assert compare_pairs(base, base, "higher", 0.03).verdict == "equivalent"
    # Surely different, but by less than the minimum effect and not surely within it.
    slightly = [103.0, 101.0, 103.2, 101.2, 102.0]
    assert compare_pairs(slightly, [100.0] * 5, "higher", 0.03).verdict == "cannot tell"
    neither = compare_pairs(faster, base, "none", 0.03)
    assert neither.verdict == "cannot tell"
    assert neither.why


def test_losses_that_differ_in_the_last_bits_are_equivalent() -> None:
    base = [3.2101, 3.1987, 3.2044]
    estimate = compare_pairs([x * (1 + 1e-6) for x in base], base, "lower", 0.01)
    assert estimate.verdict == "equivalent"
    assert estimate.ratio == pytest.approx(1 + 1e-6, rel=1e-9)


def test_no_spread() -> None:
    estimate = compare_pairs([600.0] * 3, [500.0] * 3, "lower", 0.03)
    assert (estimate.verdict, estimate.low, estimate.high) == ("worse", pytest.approx(1.2), pytest.approx(1.2))
    assert compare_groups([0.0] * 3, [0.0] * 2, "lower", 0.03).verdict == "equivalent"


@pytest.mark.parametrize(
    ("candidate", "baseline", "words"),
    [
        ([], [], "no trial"),
        ([math.nan, 1.0], [1.0, math.inf], "no trial"),
        ([1.0, 0.0], [1.0, 1.0], "above zero"),
        ([1.0, 1.0], [1.0, -1.0], "above zero"),
        ([1.5], [1.0], "no spread"),
    ],
)
@pytest.mark.parametrize("compare", [compare_pairs, compare_groups])
def test_what_has_no_interval_cannot_be_told(
    compare: object, candidate: list[float], baseline: list[float], words: str
) -> None:
    estimate = compare(candidate, baseline, "higher", 0.03)  # type: ignore[operator]
    if compare is compare_groups and words == "no trial" and candidate:
        return  # one finite value is left on either side
    assert estimate.verdict == "cannot tell"
    assert estimate.low is None
    assert words in estimate.why


def test_values_that_are_not_finite_take_their_pair_with_them() -> None:
    estimate = compare_pairs([1.0, math.nan, 1.01, 0.99], [1.0, 1.0, 1.01, 0.99], "higher", 0.03)
    assert estimate.pairs == 3
    assert estimate.verdict == "equivalent"


def test_unequal_counts_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 3"):
        compare_pairs([1.0, 2.0], [1.0, 2.0, 3.0], "higher", 0.03)


def test_more_trials_settle_it() -> None:
    random = np.random.default_rng(3)
    settled, told = 0, 0
    for _ in range(100):
        ratios = np.exp(random.normal(0.08, 0.06, 40))
        few = compare_pairs(ratios[:3], np.ones(3), "higher", 0.03)
        if few.verdict == "cannot tell" and few.more_trials is not None and few.more_trials <= 37:
            told += 1
            settled += (
                compare_pairs(ratios[: 3 + few.more_trials], np.ones(3 + few.more_trials), "higher", 0.03).verdict
                != "cannot tell"
            )
    assert told > 30
    assert settled / told > 0.4  # the spread of 3 is itself uncertain
    on_the_edge = compare_pairs([1.02999, 1.04, 1.01], [1.0, 1.0, 1.0], "higher", 0.02999)
    assert on_the_edge.verdict == "cannot tell"
    assert on_the_edge.more_trials is None


@pytest.mark.parametrize("n", [6, 10, 51, 400, 20_000])
@pytest.mark.parametrize("q", [0.5, 0.9])
def test_order_statistics_cover_the_quantile(n: int, q: float) -> None:
    random = np.random.default_rng(0)
    truth = -math.log(1 - q)
    intervals = [quantile_interval(random.exponential(1, n), q) for _ in range(400)]
    if intervals[0] is None:
        assert q == 0.9  # six or ten values hold no 95 % interval of a 90th percentile
        assert n <= 10
        return
    assert np.mean([low <= truth <= high for low, high in intervals]) > 0.92  # type: ignore[misc]


def test_the_median_needs_six_values() -> None:
    assert quantile_interval(range(5)) is None
    assert quantile_interval([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (1.0, 6.0)
    assert quantile_interval(range(1, 11)) == (2, 9)  # P(1 ≤ B ≤ 8) is 97.9 %, one rank less 89 %


def test_outliers_are_marked_never_dropped() -> None:
    values = [1.0, 1.01, 0.99, 1.02, 0.98, 3.0]
    assert outliers(values).tolist() == [False] * 5 + [True]
    assert not outliers([1.0] * 10).any()
    assert outliers([1.0] * 9 + [2.0]).tolist() == [False] * 9 + [True]


def test_interval_over_trials_is_students() -> None:
    low, high = trial_interval([10.0, 11.0, 12.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((8.746, 13.759), abs=0.001)
    assert trial_interval([1.0]) is None
