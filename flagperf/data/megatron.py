"""Megatron's indexed token files: `prefix.bin` has the tokens, `prefix.idx` says where each sequence stands.

The format (Megatron-Core, core/datasets/indexed_dataset.py), little-endian: 9 bytes magic, u64 version 1, u8 type code,
u64 number of sequences S, u64 number of document indices D; then i32[S] lengths in tokens, i64[S] offsets in bytes,
i64[D] the sequences at which documents begin, with S at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flagperf.errors import FlagPerfError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
# The format's codes 6 and 7 are floats, which are no tokens.
TYPE_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEADER = struct.Struct("<9sQBQQ")


def indexed_pair(path: Path) -> tuple[Path, Path] | None:
    """Return (bin, idx) if a path is one of the two files or their common prefix, else None."""
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    tokens, index = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
    if tokens.is_file() and index.is_file():
        return tokens, index
    if path.suffix in (".bin", ".idx") and (tokens.is_file() or index.is_file()):
        missing = index if tokens.is_file() else tokens
        raise UsageError(f"{missing} is missing.", "Megatron's format is a pair of files: .bin and .idx.")
    return None


class IndexedTokens:
    """A pair of files opened for reading; every number in the index is checked against the files' sizes first."""

    def __init__(self, tokens: Path, index: Path) -> None:
        """Read the index. Raises FlagPerfError saying what is wrong with which file."""
        import numpy as np

        self._index = index
        data = index.read_bytes()
        if len(data) < _HEADER.size:
            self._refuse(f"has {len(data)} bytes, less than its header")
        magic, version, code, sequences, documents = _HEADER.unpack_from(data)
        if magic != MAGIC:
            self._refuse(f"begins with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            self._refuse(f"is of version {version}, not {VERSION}")
        if code not in TYPE_CODES:
            self._refuse(f"has the type code {code}, not one of {sorted(TYPE_CODES)} (integers)")
        expected = _HEADER.size + sequences * 12 + documents * 8
        if len(data) != expected:
            what = f"{sequences} sequences and {documents} document indices"
            self._refuse(f"has {len(data)} bytes, but {what} take {expected}")
        self.dtype = np.dtype(TYPE_CODES[code])
        place = _HEADER.size
        self.lengths = np.frombuffer(data, "<i4", sequences, place)
        self._offsets = np.frombuffer(data, "<i8", sequences, place + sequences * 4)
        self._starts = np.frombuffer(data, "<i8", documents, place + sequences * 12)
        size = tokens.stat().st_size
        if sequences:
            if self.lengths.min() < 0:
                self._refuse("has a sequence of negative length")
            # Checked against the size before adding, so that no sum can overflow.
            room = size - self.lengths.astype(np.int64) * self.dtype.itemsize
            outside = np.flatnonzero((self._offsets < 0) | (self._offsets > room))
            if len(outside):
                self._refuse(f"puts sequence {outside[0]} outside {tokens}, which has {size} bytes")
        starts = self._starts
        if not documents or starts[0] != 0 or starts[-1] != sequences or (starts[1:] < starts[:-1]).any():
            self._refuse(f"has document indices that don't rise from 0 to {sequences}")
        self._tokens = np.memmap(tokens, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def _refuse(self, what: str) -> None:
        raise FlagPerfError(f"{self._index} {what}.", "It was cut, damaged, or isn't Megatron's indexed format.")

    def sequence(self, number: int) -> npt.NDArray[np.integer]:
        """Return the tokens of a sequence."""
        start = int(self._offsets[number])
        raw = self._tokens[start : start + int(self.lengths[number]) * self.dtype.itemsize]
        tokens: npt.NDArray[np.integer] = raw.view(self.dtype)
        return tokens

    def documents(self) -> Iterator[list[npt.NDArray[np.integer]]]:
        """Yield each document as the list of its sequences."""
        for start, end in zip(self._starts[:-1], self._starts[1:], strict=True):
            yield [self.sequence(number) for number in range(int(start), int(end))]


def write_indexed(
    prefix: Path, documents: Iterable[Iterable[npt.NDArray[np.integer]]], dtype: npt.DTypeLike = "<i4"
) -> None:
    """Write prefix.bin and prefix.idx from documents, each a list of sequences of tokens."""
    import numpy as np

    code = {np.dtype(name): number for number, name in TYPE_CODES.items()}[np.dtype(dtype)]
    lengths: list[int] = []
    starts = [0]
    with prefix.with_name(prefix.name + ".bin").open("wb") as file:
        for document in documents:
            for sequence in document:
                file.write(np.asarray(sequence).astype(dtype, casting="unsafe").tobytes())
                lengths.append(len(sequence))
            starts.append(len(lengths))
    sizes = np.array(lengths, "<i4")
    ends = np.cumsum(sizes.astype("<i8") * np.dtype(dtype).itemsize, dtype="<i8")
    with prefix.with_name(prefix.name + ".idx").open("wb") as file:
        file.write(_HEADER.pack(MAGIC, VERSION, code, len(sizes), len(starts)))
        for part in (sizes, np.concatenate([np.zeros(1, "<i8"), ends])[:-1], np.array(starts, "<i8")):
            file.write(part.tobytes())
