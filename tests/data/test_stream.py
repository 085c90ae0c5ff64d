from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.data.stream import Piece, Stream, interleave, token_dtype, token_file, write_splits
from flagperf.errors import FlagPerfError

SIZES = st.lists(st.integers(1, 100), min_size=1, max_size=200)


@given(SIZES, SIZES, st.floats(0.05, 0.95))
def test_each_language_has_its_share_at_every_point(zh: list[int], en: list[int], share: float) -> None:
    given_out = {"zh": 0, "en": 0}
    total = 0
    for language, size in interleave({"zh": iter(zh), "en": iter(en)}, {"zh": share, "en": 1 - share}, int):
        given_out[language] += size
        total += size
        assert abs(given_out["zh"] - share * total) <= max(zh + en)
    assert total > 0


def test_a_language_without_a_share_is_not_asked_for() -> None:
    assert [*interleave({"en": iter([1, 2])}, {"zh": 0.0, "en": 1.0}, int)] == [("en", 1), ("en", 2)]


def pieces(count: int, first: int, rng: np.random.Generator) -> list[Piece]:
    return [
        Piece(np.full(rng.integers(1, 200), first + number, np.uint32), 5, ends=number % 2 == 0)
        for number in range(count)
    ]


def test_splits_are_disjoint_complete_and_mixed_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    zh, en = pieces(1000, 1, rng), pieces(1500, 10_001, rng)
    stream = Stream({"zh": iter(zh), "en": iter(en)}, {"zh": 0.4, "en": 0.6}, 12_500, None)
    shown: list[float | None] = []
    counts = write_splits(tmp_path, stream, 100_000, 0.05, lambda stage, done: shown.append(done))
    train, validation = (np.fromfile(token_file(tmp_path, split), "<u4") for split in ("train", "validation"))
    assert not set(train) & set(validation)
    for split, tokens in (("train", train), ("validation", validation)):
        assert len(tokens) == sum(each.tokens for each in counts[split].values())
        assert counts[split]["zh"].tokens / len(tokens) == pytest.approx(0.4, abs=0.02)
        assert counts[split]["zh"].tokens == (tokens < 10_000).sum()
    assert len(validation) / len(train) == pytest.approx(0.05 / 0.95, rel=0.1)
    # Not by length: what is held out is as long as the rest.
    lengths = {each.tokens[0]: len(each.tokens) for each in zh + en}
    mean = np.mean([lengths[token] for token in set(validation)])
    assert mean == pytest.approx(np.mean(list(lengths.values())), rel=0.2)
    assert shown == sorted(shown) and shown[-1] == 1.0


def test_too_little_to_hold_any_out(tmp_path: Path) -> None:
    stream = Stream({"und": iter([Piece(np.arange(9), 9, True)])}, {"und": 1.0}, 9, None)
    with pytest.raises(FlagPerfError, match="too short: nothing is left for validation"):
        write_splits(tmp_path, stream, 300, 0.02, lambda stage, done: None)


@pytest.mark.parametrize(("size", "name"), [(65536, "uint16"), (65537, "uint32")])
def test_token_type(size: int, name: str) -> None:
    assert token_dtype(size).name == name
