"""What queries ask: seeded passages within their bounds, and prompts files however hostile."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import UsageError
from flagperf.inference.prompts import drawn, from_file, passages
from flagperf.schema.inference import Lengths, LoadSettings

VOCABULARY = 300
SIZES = st.integers(1, 10_000)


def settings(**options: object) -> LoadSettings:
    """Return a load's settings."""
    some = {"median": 8, "least": 4, "most": 16}
    plain: dict[str, object] = {"input": Lengths(**some), "output": Lengths(**some), "ttft": 1.0, "tpot": 1.0}
    return LoadSettings(**(plain | options))  # type: ignore[arg-type]


def encode(text: str) -> list[int]:
    """Return a token a character."""
    return [ord(letter) % VOCABULARY for letter in text]


@given(SIZES, SIZES, SIZES, st.floats(0, 20), st.integers(1, 50), st.integers(0, 2**31))
def test_lengths_are_within_their_bounds(a: int, b: int, c: int, spread: float, count: int, seed: int) -> None:
    least, median, most = sorted((a, b, c))
    lengths = Lengths(median=median, least=least, most=most, spread=spread)
    found = drawn(lengths, count, np.random.default_rng(seed))
    assert len(found) == count
    assert ((least <= found) & (found <= most)).all()
    assert (found == drawn(lengths, count, np.random.default_rng(seed))).all()
    if spread == 0:
        assert (found == median).all()


@given(st.integers(0, 20), st.integers(0, 2**31))
def test_passages_are_of_the_text_and_fit(shared: int, seed: int) -> None:
    stream = np.arange(1000) % VOCABULARY
    requests = passages(settings(shared=shared), stream, None, 64, seed)
    assert len(requests) == 64
    begin = list(range(shared))
    for request in requests:
        prompt = list(request.prompt)
        assert prompt[:shared] == begin
        rest = prompt[shared:]
        assert 4 <= len(rest) <= 16
        assert all((after - before) % VOCABULARY == 1 for before, after in itertools.pairwise(rest))
        assert 1 <= request.limit <= 64 - len(prompt)
    assert requests == passages(settings(shared=shared), stream, None, 64, seed)
    assert len({tuple(request.prompt) for request in requests}) > 32, "never one fixed prompt"


@pytest.mark.parametrize(("stream", "context"), [(8, 64), (1000, 16)])
def test_a_text_or_context_that_is_too_short_is_told(stream: int, context: int) -> None:
    with pytest.raises(UsageError, match="leave room"):
        passages(settings(), np.arange(stream), None, context, 1)


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "你好", "limit": 3}, {"tokens": [5, 17]}, {"prompt": "b"}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines), "utf-8")
    requests = from_file(settings(prompts=str(path)), encode, VOCABULARY, 1)
    assert [list(request.prompt) for request in requests] == [encode("你好"), [5, 17], encode("b")]
    assert requests[0].limit == 3
    assert all(4 <= request.limit <= 16 for request in requests[1:])
    assert requests == from_file(settings(prompts=str(path)), encode, VOCABULARY, 1)


def test_separators_of_lines_in_a_prompt_are_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one\u2028two\x85three"}\r\n', "utf-8")
    (request,) = from_file(settings(prompts=str(path)), encode, VOCABULARY, 1)
    assert request.text == "one\u2028two\x85three"


HOSTILE = [
    b'{"prompt": ""}',
    b'{"tokens": []}',
    b'{"tokens": [-1]}',
    b'{"tokens": [300]}',
    b'{"tokens": [1.5]}',
    b'{"tokens": [99999999999999999999999]}',
    b'{"prompt": "a", "limit": 0}',
    b'{"prompt": "a", "limit": "many"}',
    b'{"prompt": "a", "more": 1}',
    b'["a"]',
    b"not JSON",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"prompt": "a"',
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_are_refused_with_their_place(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(UsageError) as told:
        from_file(settings(prompts=str(path)), encode, VOCABULARY, 1)
    assert "ine 2 of" in str(told.value) or "can't be read" in str(told.value)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(text)
    try:
        requests = from_file(settings(prompts=str(path)), encode, VOCABULARY, 1)
    except UsageError:
        return
    assert requests
    assert all(request.prompt and request.limit >= 1 for request in requests)


@pytest.mark.parametrize("path", ["", "none.jsonl", "."])
def test_no_file_is_told(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError):
        from_file(settings(prompts=str(tmp_path / (path or "empty"))), encode, VOCABULARY, 1)
