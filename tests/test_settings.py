"""Settings: one key changed at a time, checked against the case's types."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import UnknownName, UsageError
from flagperf.settings import merged, parse_assignment, typed


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
