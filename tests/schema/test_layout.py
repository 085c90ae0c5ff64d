"""Layouts are read and written without loss, and a wrong one is told what would be right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import UsageError
from flagperf.schema.layout import Layout

layouts = st.builds(
    Layout,
    tp=st.integers(1, 64),
    pp=st.integers(1, 64),
    zero=st.none() | st.integers(0, 3),
    micro=st.none() | st.integers(1, 4096),
    recompute=st.booleans(),
    offload=st.booleans(),
    overlap=st.booleans(),
    compile=st.booleans(),
)


@given(layouts)
def test_text_and_back(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        layout = Layout.parse(text)
    except UsageError:
        return
    assert Layout.parse(str(layout)) == layout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("zeor=2", "Did you mean 'zero'?"),
        ("zero=4", "0, 1, 2 or 3"),
        ("tp=0", "at least 1"),
        ("tp=two", "whole number"),
        ("recompute=maybe", "on or off"),
        ("tp=2,tp=4", "twice"),
    ],
)
def test_a_wrong_layout_is_told_what_is_right(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        Layout.parse(text)
    assert told in str(error.value)


def test_a_key_alone_switches_on() -> None:
    assert Layout.parse("recompute, zero=3") == Layout(recompute=True, zero=3)
    assert Layout.parse("overlap=off").overlap is False
