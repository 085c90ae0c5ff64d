from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from flagperf.data import DataSettings, prepare, tokenizer
from flagperf.data.settings import END_OF_DOCUMENT, END_OF_DOCUMENT_ID
from flagperf.data.stream import Text
from flagperf.errors import FlagPerfError

TEXTS = ["云服务器的说明和价格\n", "the server and its disks\n", f"{END_OF_DOCUMENT} in a text\n"] * 50


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizer.train(TEXTS, 300)


def test_training_is_deterministic(trained: Tokenizer) -> None:
    assert tokenizer.train(TEXTS, 300).to_str() == trained.to_str()
    assert trained.get_vocab_size() == 300


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_comes_back_with_its_bytes(trained: Tokenizer, texts: list[str]) -> None:
    pieces = list(tokenizer.encode(trained, (Text(text) for text in texts), 300))
    assert [trained.decode(piece.tokens.tolist(), skip_special_tokens=True) for piece in pieces] == texts
    assert [piece.bytes for piece in pieces] == [len(text.encode()) for text in texts]


def test_only_the_end_of_a_document_is_marked(trained: Tokenizer) -> None:
    texts = [Text("half a ", ends=False), Text(f"{END_OF_DOCUMENT} document")]
    first, second = tokenizer.encode(trained, iter(texts), 300)
    assert END_OF_DOCUMENT_ID not in first.tokens
    assert np.flatnonzero(second.tokens == END_OF_DOCUMENT_ID).tolist() == [len(second.tokens) - 1]


def test_bytes_of_tokens_add_up_to_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"第{n}行 line {n} é\n" for n in range(2000)), "utf-8")
    prepared = prepare(DataSettings(source=str(tmp_path / "a.txt"), vocab_size=400, validation=0.1))
    counts = prepared.token_bytes()
    assert counts.shape == (400,)
    assert counts[prepared.validation].sum() == prepared.meta.bytes("validation")
    assert counts[prepared.train].sum() == prepared.meta.bytes("train")
    assert prepared.meta.bytes("train") + prepared.meta.bytes("validation") == (tmp_path / "a.txt").stat().st_size


def test_tokens_without_text_have_no_bytes() -> None:
    with pytest.raises(FlagPerfError, match="synthetic has tokens but no text"):
        prepare(DataSettings(source="synthetic", tokens=4096)).token_bytes()
