"""Text on this machine: a file, or a folder of files, in UTF-8."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from flagperf.data.stream import PIECE_CHARACTERS, Text
from flagperf.errors import FlagPerfError, UsageError

SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".jsonl", ".tex", ".html", ".xml", ".csv", ".toml", ".yaml", ".py", ".c", ".h", ".cc"}
    | {".cpp", ".java", ".js", ".ts", ".go", ".rs", ".sh", ".sql"}
)
_BLOCK_BYTES = 1 << 20
# Python's name for a byte that isn't UTF-8, under the error handler "surrogateescape".
_UNDECODABLE = re.compile("[\udc80-\udcff]")


class _Line(msgspec.Struct):
    text: str


def text_files(path: Path) -> list[Path]:
    """Return a file itself, or the text files under a folder sorted by path, hidden ones left out."""
    if path.is_file():
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".") and Path(name).suffix in SUFFIXES]
    if not found:
        raise UsageError(f"{path} has no text files.", f"Looked for {' '.join(sorted(SUFFIXES))}.")
    return sorted(found, key=lambda each: each.relative_to(path).as_posix())


class TextReader:
    """Reads files piece by piece; counts the bytes that were no UTF-8 and had to be replaced by U+FFFD."""

    def __init__(self) -> None:
        self.replaced_bytes = 0

    def texts(self, files: list[Path]) -> Iterator[Text]:
        """Yield the documents of the files: each a file, or each a line's field `text` in a .jsonl file."""
        for path in files:
            blocks = self._json_lines(path) if path.suffix == ".jsonl" else [self._decoded(path)]
            for document in blocks:
                yield from _pieces(document)

    def _json_lines(self, path: Path) -> Iterator[Iterator[str]]:
        decoder = msgspec.json.Decoder(_Line)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                text, replaced = _replace(line.decode("utf-8", "surrogateescape"))
                self.replaced_bytes += replaced
                try:
                    yield iter([decoder.decode(text).text])
                except msgspec.MsgspecError as error:
                    raise FlagPerfError(
                        f"{path}, line {number}: {error}", 'Each line is a JSON object with a field "text".'
                    ) from error

    def _decoded(self, path: Path) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield self._counted(decoder.decode(block))
        yield self._counted(decoder.decode(b"", final=True))

    def _counted(self, text: str) -> str:
        text, replaced = _replace(text)
        self.replaced_bytes += replaced
        return text


def _replace(text: str) -> tuple[str, int]:
    return _UNDECODABLE.subn("\ufffd", text)


def _pieces(blocks: Iterator[str]) -> Iterator[Text]:
    """Yield a document in pieces of at most PIECE_CHARACTERS, cut after a line where there is one."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while (cut := _cut(rest, start)) < len(rest):
            yield Text(rest[start:cut], ends=False)
            start = cut
        rest = rest[start:]
    if rest:
        yield Text(rest)


def _cut(text: str, start: int) -> int:
    """Return where to end a piece: the length of the text when all of it fits."""
    end = start + PIECE_CHARACTERS
    if end >= len(text):
        return len(text)
    line_end = text.rfind("\n", start, end) + 1
    return line_end if line_end > start else end
