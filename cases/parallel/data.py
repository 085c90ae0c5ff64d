"""The case `parallel/data`: documents cleaned and tokenized by one process, or shared out to several."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from flagperf.case import Progress
from flagperf.data import DataSettings, made_ready

from .workers import Job, WorkersCase, WorkersSettings

if TYPE_CHECKING:
    from flagperf.vendor import Runtime


class ProcessingSettings(WorkersSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the case can be told. An item is a document."""

    data: DataSettings
    length: Annotated[int, msgspec.Meta(ge=16)] = 2048
    """Tokens of the corpus that a document is made of."""


class ParallelData(WorkersCase):
    """Preparation of text for training."""

    Settings = ProcessingSettings

    def prepare(self, progress: Progress) -> dict[str, Any]:
        """Make the corpus ready that documents are passages of."""
        return {"data": made_ready(self.settings.data, progress)}

    def job(self) -> Job:
        """Return the documents."""
        return Cleaning(self.settings.data, self.settings.items, self.settings.length)


class Cleaning(Job):
    """Normalization (NFKC), removal of control characters and of white space that says nothing, and tokenization."""

    def __init__(self, data: DataSettings, count: int, length: int) -> None:
        self.data, self.count, self.length = data, count, length

    def start(self, runtime: Runtime) -> None:
        """Read the documents."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are what is to be parallel
        from tokenizers import Tokenizer

        from flagperf.data import open_tokens
        from flagperf.errors import UsageError

        prepared = open_tokens(self.data)
        if prepared.tokenizer is None:
            raise UsageError("This corpus has no text to process.", "For example --set data.source=bilingual")
        self.tokenizer = Tokenizer.from_file(str(prepared.tokenizer))
        stream, step = prepared.train, max(1, (len(prepared.train) - self.length) // self.count)
        passages = [stream[at * step : at * step + self.length] for at in range(self.count)]
        self.documents = [self.tokenizer.decode([int(token) for token in each]) for each in passages]

    def __getstate__(self) -> dict[str, object]:
        """Send what the work is, not what `start` made of it."""
        return {name: getattr(self, name) for name in ("data", "count", "length")}

    def items(self) -> int:
        """Return the number of documents."""
        return self.count

    def outcome(self, item: int) -> bytes:
        """Clean and tokenize a document."""
        text = unicodedata.normalize("NFKC", self.documents[item])
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
        text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()
        return msgspec.json.encode(self.tokenizer.encode(text).ids)
