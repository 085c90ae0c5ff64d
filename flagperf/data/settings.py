"""What training data is asked for, and what was prepared: typed, stored, without numpy."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from flagperf.errors import UsageError

# Told the stage and how much of it is done (0 to 1), or None where that isn't known.
Progress = Callable[[str, float | None], None]

END_OF_DOCUMENT = "<|endoftext|>"
END_OF_DOCUMENT_ID = 0
FORMAT = 1


class DataSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to train on.

    `source` is a recipe's name (`bilingual`), `synthetic`, or a path: a text file, a folder of text files, or one
    half of a Megatron `.bin`/`.idx` pair. `chinese` is the share of tokens from the Chinese source, for recipes only.
    """

    source: str = "bilingual"
    chinese: float = 0.4
    vocab_size: int = 8192
    validation: float = 0.02  # share of the tokens held out
    seed: int = 0  # order of a recipe's documents; the synthetic source's dice
    tokens: int = 4_194_304  # length of the synthetic stream, both splits together

    def __post_init__(self) -> None:
        def refuse(name: str, good: str) -> None:
            raise UsageError(f"data.{name} is {getattr(self, name)!r}.", f"Give {good}.")

        if not self.source:
            refuse("source", "a recipe's name, 'synthetic' or a path")
        if not 0 <= self.chinese <= 1:
            refuse("chinese", "a share from 0 to 1")
        if not 257 <= self.vocab_size <= 2**31 - 1:
            refuse("vocab_size", "a number from 257 (every byte and the end-of-document token) to 2147483647")
        if not 0 < self.validation <= 0.5:
            refuse("validation", "a share above 0, at most 0.5")
        if not 0 <= self.seed < 2**63:
            refuse("seed", "a whole number from 0 to 2^63 - 1")
        if self.tokens < 2048:
            refuse("tokens", "at least 2048")


class Counts(msgspec.Struct, frozen=True):
    """How much of one language is in one split; `bytes` is UTF-8 text, 0 where a source has tokens only."""

    tokens: int
    bytes: int
    documents: int


class Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a prepared corpus is: stored beside it as meta.json."""

    format: int
    name: str
    settings: DataSettings
    identity: dict[str, str | int | float]  # all that the tokens depend on
    fingerprint: str  # SHA-256 over the identity and both token arrays
    vocab_size: int
    end_of_document: int | None
    dtype: str  # of the token files: "uint16" or "uint32", little-endian
    train: dict[str, Counts]  # by language
    validation: dict[str, Counts]
    tokenizer_sha256: str | None
    replaced_bytes: int = 0  # undecodable, replaced by U+FFFD
    entropy: float | None = None  # nats a token of a synthetic source: no model's loss can stay below
    versions: dict[str, str] = {}

    def tokens(self, split: str) -> int:
        """Return the number of tokens in "train" or "validation"."""
        return sum(counts.tokens for counts in self._split(split).values())

    def bytes(self, split: str) -> int:
        """Return the number of bytes of UTF-8 text in "train" or "validation"."""
        return sum(counts.bytes for counts in self._split(split).values())

    def share(self, language: str, split: str = "train") -> float:
        """Return the share of a split's tokens that are of a language."""
        counts = self._split(split).get(language)
        return counts.tokens / self.tokens(split) if counts else 0.0

    def _split(self, split: str) -> dict[str, Counts]:
        return {"train": self.train, "validation": self.validation}[split]
