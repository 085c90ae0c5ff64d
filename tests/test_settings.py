"""Settings: one key changed at a time, checked against the case's types."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import UnknownName, UsageError
from flagperf.settings import merged, parse_assignment, parse_duration, parse_whole_numbers, typed


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rate: float
    name: str = "x"


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inner: Inner
    size: int = 1


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("size=3", {"size": 3}),
        ("inner.rate=1e-4", {"inner": {"rate": 1e-4}}),
        ("inner.name=/a=b", {"inner": {"name": "/a=b"}}),
        ("inner.name=true story", {"inner": {"name": "true story"}}),
    ],
)
def test_assignments(text: str, tree: object) -> None:
    assert parse_assignment(text) == tree


@pytest.mark.parametrize("text", ["size", "=3", "inner..rate=1", ".a=1"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_assignment(text)


def test_an_unknown_key_gets_the_nearest() -> None:
    with pytest.raises(UnknownName) as error:
        typed({"inner": {"rate": 1.0, "nam": "y"}}, Outer)
    assert "inner.nam" in str(error.value) and "Did you mean 'inner.name'?" in str(error.value)


def test_a_wrong_type_is_told_where() -> None:
    with pytest.raises(UsageError) as error:
        typed({"inner": {"rate": "fast"}}, Outer)
    assert "$.inner.rate" in str(error.value)


trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_merging_keeps_both_and_prefers_the_second(base: dict, over: dict) -> None:
    result = merged(base, over)
    assert set(result) == set(base) | set(over)
    assert merged(result, over) == result
    assert merged(base, {}) == base


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("10m", 600), ("1h30min", 5400), ("1.5h", 5400), ("2 min 5 s", 125)],
)
def test_a_duration_has_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(alphabet="0123456789.hmins -", max_size=12))
def test_a_duration_is_above_zero_or_refused(text: str) -> None:
    try:
        assert parse_duration(text) > 0
    except UsageError as error:
        assert "10min" in error.hint


@pytest.mark.parametrize("text", ["", "10", "min", "-5s", "0s", "5s10min", "1e3s", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="with its unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "good"), [("1,2,4", [1, 2, 4]), (" 8 ", [8]), ("0", None), ("1,,2", None), ("x", None)]
)
def test_whole_numbers(text: str, good: list[int] | None) -> None:
    if good is not None:
        assert parse_whole_numbers("--rank-counts", text) == good
    else:
        with pytest.raises(UsageError, match="--rank-counts"):
            parse_whole_numbers("--rank-counts", text)
