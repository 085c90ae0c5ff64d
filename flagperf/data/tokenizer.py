"""The tokenizer: byte-level BPE, trained on the corpus it is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flagperf.data.settings import END_OF_DOCUMENT, END_OF_DOCUMENT_ID, Meta
from flagperf.data.stream import Piece, Text, token_dtype
from flagperf.errors import FlagPerfError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from tokenizers import Tokenizer

# Twice the text makes 0.2 % fewer tokens and takes twice the time.
SAMPLE_BYTES = 8_000_000


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; the end-of-document token has id 0. The same texts give the same merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Iterator[Text], vocab_size: int) -> Iterator[Piece]:
    """Yield the tokens of each text; the end-of-document token follows where a document ends."""
    import numpy as np

    dtype = token_dtype(vocab_size)
    # The end-of-document mark spelled out in a text is text, never the token.
    tokenizer.encode_special_tokens = True
    while batch := list(islice(texts, 256)):
        encodings = tokenizer.encode_batch_fast([text.text for text in batch], add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            ids = [*encoding.ids, END_OF_DOCUMENT_ID] if text.ends else encoding.ids
            yield Piece(np.array(ids, dtype), len(text.text.encode("utf-8")), text.ends)


def token_bytes(path: Path | None, meta: Meta) -> npt.NDArray[np.int64]:
    """Return [vocab_size] the number of bytes each token of a tokenizer file stands for."""
    if path is None:
        raise FlagPerfError(
            f"{meta.name} has tokens but no text, so bits a byte isn't defined for it.",
            "Use the loss in nats a token, or a source of text.",
        )
    import numpy as np
    from tokenizers import Tokenizer

    counts = np.zeros(meta.vocab_size, np.int64)
    for token, number in Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).items():
        # The byte-level alphabet spells each byte by one character.
        counts[number] = 0 if number == END_OF_DOCUMENT_ID else len(token)
    return counts
