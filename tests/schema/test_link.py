"""Links as `--link` takes them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import UsageError
from flagperf.schema.link import Link


@pytest.mark.parametrize(
    ("text", "rate", "delay"),
    [
        ("500mbit,1ms", 5e8, 1e-3),
        ("1.5gbit", 1.5e9, 0.0),
        ("20us", None, 2e-5),
        ("1s, 100kbit", 1e5, 1.0),
        ("full", None, 0.0),
    ],
)
def test_bandwidth_and_delay_are_read(text: str, rate: float | None, delay: float) -> None:
    link = Link.parse(text)
    assert (link.rate, link.delay) == (rate, pytest.approx(delay))


@pytest.mark.parametrize(
    "text",
    [
        *("", "500", "500mbit,", "1ms,2ms", "1mbit,2gbit", "mbit", "-1mbit", "1mbyte", "1kbit", "2000gbit", "11s"),
        *("full,1ms", "1e3mbit"),
    ],
)
def test_what_is_no_link_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--link can't be") as refused:
        Link.parse(text)
    assert "500mbit,1ms" in refused.value.hint


@given(
    st.none() | st.integers(100, 10**9).map(lambda kilobits: kilobits * 1e3),
    st.integers(0, 10**7).map(lambda microseconds: microseconds * 1e-6),
)
def test_what_is_shown_can_be_read_again(rate: float | None, delay: float) -> None:
    link = Link(rate=rate, delay=delay)
    again = Link.parse(str(link))
    assert again.rate == (None if rate is None else pytest.approx(rate, rel=1e-9))
    assert again.delay == pytest.approx(delay, rel=1e-9)
    assert msgspec.json.decode(msgspec.json.encode(link), type=Link) == link
