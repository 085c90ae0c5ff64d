from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flagperf.data import text
from flagperf.data.stream import PIECE_CHARACTERS
from flagperf.data.text import TextReader, text_files
from flagperf.errors import FlagPerfError, UsageError


def read(*files: Path) -> tuple[list[tuple[str, bool]], int]:
    reader = TextReader()
    return [(each.text, each.ends) for each in reader.texts(list(files))], reader.replaced_bytes


def test_folder_sorted_hidden_and_foreign_files_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/x.PNG", ".hidden.txt", ".git/x.txt", "a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in text_files(tmp_path)] == ["a.py", "a/z.md", "b.txt"]


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no text files"):
        text_files(tmp_path)


@example(content=b"\xef\xbb\xbfa", block=2)
@example(content="中\n".encode() + b"\xe4\xb8", block=2)
@given(content=st.binary(max_size=300), block=st.integers(1, 20))
def test_any_bytes_read_as_python_would_replace_them(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK_BYTES", block)
        documents, replaced = read(path)
    decoded = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    bad = [char for char in decoded if "\udc80" <= char <= "\udcff"]
    assert replaced == len(bad)
    assert "".join(part for part, _ in documents) == "".join("\ufffd" if c in bad else c for c in decoded)


def test_long_documents_are_cut_after_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"第 {number} 行\n" for number in range(3000)), "utf-8")
    (tmp_path / "b.txt").write_text("x" * 10_000)
    documents, _ = read(tmp_path / "a.txt")
    assert "".join(part for part, _ in documents) == (tmp_path / "a.txt").read_text("utf-8")
    assert all(part.endswith("\n") and len(part) <= PIECE_CHARACTERS for part, _ in documents)
    assert [ends for _, ends in documents] == [False] * (len(documents) - 1) + [True]
    assert [len(part) for part, _ in read(tmp_path / "b.txt")[0]] == [4096, 4096, 1808]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "你好", "id": 1}, ensure_ascii=False).encode(), b"", b'{"text": "caf\xe9"}']
    path.write_bytes(b"\n".join(lines))
    assert read(path) == ([("你好", True), ("caf\ufffd", True)], 1)


@pytest.mark.parametrize("line", ['{"body": "x"}', "{", '{"text": 3}'])
def test_a_bad_json_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line)
    with pytest.raises(FlagPerfError, match=r"a\.jsonl, line 2: "):
        read(tmp_path / "a.jsonl")
