from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.data.megatron import IndexedTokens, indexed_pair, write_indexed
from flagperf.errors import FlagPerfError, UsageError

DOCUMENTS = st.lists(st.lists(st.lists(st.integers(0, 127), max_size=9), max_size=4), max_size=6)
TYPES = st.sampled_from(["u1", "i1", "<i2", "<i4", "<i8", "<u2"])


def written(folder: Path, documents: list[list[list[int]]], dtype: str) -> tuple[Path, Path]:
    write_indexed(folder / "corpus", [[np.array(s, dtype) for s in document] for document in documents], dtype)
    return folder / "corpus.bin", folder / "corpus.idx"


@given(DOCUMENTS, TYPES)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], dtype: str) -> None:
    indexed = IndexedTokens(*written(tmp_path_factory.mktemp("pair"), documents, dtype))
    assert [[sequence.tolist() for sequence in document] for document in indexed.documents()] == documents
    assert indexed.dtype == np.dtype(dtype)


@given(DOCUMENTS, st.data())
def test_a_changed_index_is_refused_or_read_within_bounds(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], data: st.DataObject
) -> None:
    tokens, index = written(tmp_path_factory.mktemp("pair"), documents, "<i4")
    spoilt = bytearray(index.read_bytes())
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= data.draw(st.integers(1, 255))
    index.write_bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))] if data.draw(st.booleans()) else spoilt)
    try:
        indexed = IndexedTokens(tokens, index)
    except FlagPerfError:
        return
    lengths = [len(sequence) for document in indexed.documents() for sequence in document]
    assert lengths == indexed.lengths.tolist()


PLACES = {
    "magic": (0, b"XX", "begins with"),
    "version": (9, b"\x02", "is of version 2"),
    "float type": (17, b"\x07", "type code 7"),
    "count": (18, b"\xff", "has 74 bytes, but 255 sequences"),
    "negative length": (34, b"\xff\xff\xff\xff", "negative length"),
    "long length": (34, b"\xff\xff\xff\x7f", "puts sequence 0 outside"),
    "offset": (50, b"\xff", "puts sequence 1 outside"),
    "documents": (66, b"\x09", "don't rise"),
}


@pytest.mark.parametrize("what", PLACES)
def test_each_fault_is_named(tmp_path: Path, what: str) -> None:
    tokens, index = written(tmp_path, [[[1, 2], [3]]], "<i4")
    place, spoilt, message = PLACES[what]
    content = bytearray(index.read_bytes())
    content[place : place + len(spoilt)] = spoilt
    index.write_bytes(content)
    with pytest.raises(FlagPerfError, match=message):
        IndexedTokens(tokens, index)


def test_a_cut_token_file_is_refused(tmp_path: Path) -> None:
    tokens, index = written(tmp_path, [[[1, 2], [3]]], "<i4")
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(FlagPerfError, match=r"puts sequence 1 outside .*corpus\.bin, which has 11 bytes"):
        IndexedTokens(tokens, index)


def test_layout_of_the_format(tmp_path: Path) -> None:
    tokens, index = written(tmp_path, [[[1, 2]], [[3]]], "<u2")
    assert tokens.read_bytes() == b"\1\0\2\0\3\0"
    numbers = np.frombuffer(index.read_bytes()[34 + 8 :], "<i8").tolist()
    assert (
        index.read_bytes()[:34] == b"MMIDIDX\0\0" + b"\1" + b"\0" * 7 + b"\x08" + b"\2" + b"\0" * 7 + b"\3" + b"\0" * 7
    )
    assert np.frombuffer(index.read_bytes()[34:42], "<i4").tolist() == [2, 1]
    assert numbers == [0, 4, 0, 1, 2]


def test_a_pair_is_known_by_either_file_or_its_prefix(tmp_path: Path) -> None:
    pair = written(tmp_path, [[[1]]], "<i4")
    assert indexed_pair(pair[0]) == indexed_pair(pair[1]) == indexed_pair(tmp_path / "corpus") == pair
    assert indexed_pair(tmp_path) is None
    pair[1].unlink()
    with pytest.raises(UsageError, match=r"corpus\.idx is missing"):
        indexed_pair(pair[0])
