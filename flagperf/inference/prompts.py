"""What queries ask: passages of a text at seeded places and of seeded lengths, or the lines of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from flagperf.errors import UsageError
from flagperf.inference.engine import Request
from flagperf.schema.inference import Lengths, LoadSettings

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a prompts file."""

    prompt: str = ""
    tokens: list[int] = []
    limit: int | None = None


def passages(
    load: LoadSettings, stream: npt.NDArray[np.integer], decode: Decode | None, context: int, seed: int
) -> list[Request]:
    """Return `load.count` requests whose prompts are passages of a token stream, each at a place of its own.

    All begin with the same `load.shared` tokens. Prompt and answer together fit into `context`: where they don't, the
    answer is asked to be shorter. Raises UsageError for a stream that is too short, or a context.
    """
    random = np.random.default_rng([seed, load.count])
    inputs, outputs = drawn(load.input, load.count, random), drawn(load.output, load.count, random)
    longest = load.shared + int(inputs.max())
    if longest >= context or longest > len(stream):
        least = min(context - 1, len(stream))
        raise UsageError(
            f"Prompts are up to {longest} tokens long; this model and its text leave room for {least}.",
            f"For example --set load.input.most={max(1, least - load.shared)}",
        )
    shared = [int(token) for token in stream[: load.shared]]
    requests = []
    for length, limit in zip(inputs.tolist(), outputs.tolist(), strict=True):
        begin = int(random.integers(0, len(stream) - length + 1))
        prompt = [*shared, *(int(token) for token in stream[begin : begin + length])]
        text = decode(prompt) if decode is not None else ""
        requests.append(Request(prompt, min(limit, context - len(prompt)), text))
    return requests


def drawn(lengths: Lengths, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw lengths."""
    values = lengths.median * np.exp(lengths.spread * random.standard_normal(count))
    rounded: npt.NDArray[np.int64] = np.clip(np.rint(values), lengths.least, lengths.most).astype(np.int64)
    return rounded


def from_file(load: LoadSettings, encode: Encode, vocabulary: int, seed: int) -> list[Request]:
    """Return the requests of a prompts file; raise UsageError for one that can't be read, naming the line."""
    path = Path(load.prompts)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The prompts in {path} can't be read: {error}.") from None
    lines = text.split("\n")  # JSON may have the other separators of lines in its strings
    limits = drawn(load.output, len(lines), np.random.default_rng([seed, load.count])).tolist()
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = msgspec.json.decode(line, type=Line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(
                f"Line {number} of {path} is no prompt: {error}.",
                'A line is an object such as {"prompt": "text", "limit": 32} or {"tokens": [5, 17]}.',
            ) from None
        prompt = told.tokens or encode(told.prompt)
        limit = told.limit if told.limit is not None else int(limits[number - 1])
        if not prompt or limit < 1 or min(prompt) < 0 or max(prompt) >= vocabulary:
            raise UsageError(
                f"Line {number} of {path} asks nothing that can be answered.",
                f"It needs at least one token, of the {vocabulary} that there are, and a limit of at least 1.",
            )
        requests.append(Request(list(prompt), limit, told.prompt))
    if not requests:
        raise UsageError(f"There is no prompt in {path}.")
    return requests
