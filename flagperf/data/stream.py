"""From sources to token files: languages interleaved, validation held out, both by error diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flagperf.data.settings import Counts, Progress
from flagperf.errors import FlagPerfError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

# A longer document is cut at a line's end, so that validation can be held out of one file and languages mix finely.
PIECE_CHARACTERS = 4096
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Text:
    """A document, or a piece of a long one; `ends` says that the document ends here."""

    text: str
    ends: bool = True


@dataclass(frozen=True)
class Piece:
    """The tokens of a Text, and how many bytes it had (0: there was no text)."""

    tokens: npt.NDArray[np.integer]
    bytes: int
    ends: bool


@dataclass
class Stream:
    """What a source yields, by language, and what is known once it has been read."""

    pieces: dict[str, Iterator[Piece]]
    shares: dict[str, float]
    expected: int  # bytes to come, or tokens where there is no text; only for showing progress
    end_of_document: int | None
    replaced_bytes: int = 0
    entropy: float | None = None


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the little-endian type that token files of a vocabulary have."""
    import numpy as np

    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def token_file(folder: Path, split: str) -> Path:
    """Return the path of a split's token ids."""
    return folder / f"{split}.tokens"


def interleave(
    items: Mapping[str, Iterator[T]], shares: Mapping[str, float], size: Callable[[T], int]
) -> Iterator[tuple[str, T]]:
    """Yield (language, item) so that each language has its share of the sizes, to within one item, at every point.

    Ends when the language whose turn it is has no more.
    """
    given = {language: 0 for language, share in shares.items() if share > 0}
    while given:
        language = min(given, key=lambda each: given[each] / shares[each])
        item = next(items[language], None)
        if item is None:
            return
        given[language] += size(item)
        yield language, item


def write_splits(
    folder: Path, stream: Stream, vocab_size: int, validation: float, report: Progress
) -> dict[str, dict[str, Counts]]:
    """Write train.tokens and validation.tokens; return the counts by split and language.

    A piece goes to validation when its language has less there than the share held out, so validation is spread over
    the whole stream and has the same mix. Raises FlagPerfError when there is too little to hold any out.
    """
    dtype = token_dtype(vocab_size)
    counts = {
        split: {language: [0, 0, 0] for language, share in stream.shares.items() if share > 0} for split in SPLITS
    }
    done = 0
    shown = 0.0
    with ExitStack() as stack:
        files = {split: stack.enter_context(token_file(folder, split).open("wb")) for split in SPLITS}
        for language, piece in interleave(stream.pieces, stream.shares, lambda piece: len(piece.tokens)):
            length = len(piece.tokens)
            held_out, given = (counts[each][language][0] for each in ("validation", "train"))
            # Decided by what went before, not by this piece's own length: else short documents would be favoured.
            split = "validation" if held_out < validation * (held_out + given) else "train"
            files[split].write(piece.tokens.astype(dtype, copy=False).tobytes())
            for place, value in enumerate((length, piece.bytes, int(piece.ends))):
                counts[split][language][place] += value
            done += piece.bytes or length
            if done / max(stream.expected, 1) >= shown + 0.01:
                shown = done / max(stream.expected, 1)
                report("writing tokens", min(shown, 1.0))
    report("writing tokens", 1.0)
    for split in SPLITS:
        if not sum(tokens for tokens, _, _ in counts[split].values()):
            raise FlagPerfError(
                f"The corpus is too short: nothing is left for {split}.",
                "Give more text, or hold out a larger share: data.validation=0.1.",
            )
    return {split: {language: Counts(*numbers) for language, numbers in counts[split].items()} for split in SPLITS}
