"""An answer as an OpenAI-compatible server streams it: events, the tokens in them, and whether it was all.

Tokens are counted by their ids where the server tells them, else by the usage in every event. Where it tells neither,
an event's tokens are taken to be in proportion to its text; what they are of is the usage in the last event, else what
a tokenizer makes of the text, else the number of events. So an answer that came in a burst is still seen as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from flagperf.inference.engine import Reply
from flagperf.schema.inference import Fault

Counting = Literal["ids", "usage", "text"]

_TOO_LONG = re.compile(r"context.{0,20}(length|size|window)|prompt.{0,20}too long|maximum.{0,20}(context|tokens)", re.I)
_SHOWN = 300
"""Characters of a server's message that are kept."""


class Delta(msgspec.Struct, frozen=True):
    """What a chat's event adds."""

    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """One answer of an event; only one is asked for."""

    text: str | None = None
    delta: Delta = Delta()
    token_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]] | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens so far, or in all."""

    completion_tokens: int = 0


class Event(msgspec.Struct, frozen=True):
    """One event of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class Broken(Exception):
    """Ends a query without a complete answer."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault: Fault = fault
        self.why = why


_EVENT = msgspec.json.Decoder(Event)


class Stream:
    """Reads one answer's events and hands its tokens to a reply."""

    def __init__(self, reply: Reply, asked: int, encode: Callable[[str], Sequence[int]] | None = None) -> None:
        self._reply, self._asked, self._encode = reply, asked, encode
        self.counting: Counting | None = None
        """How its tokens are counted; None before the first."""
        self._made = self._pieces = 0
        self._said: int | None = None
        """Tokens, by the server's usage."""
        self._text: list[str] = []
        self._finish: str | None = None

    def take(self, data: bytes) -> None:
        """Read an event's data. Raises Broken for what can't be read or is too much."""
        try:
            event = _EVENT.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Broken("rubbish", f"{error}: {shown(data)}") from None
        if event.error is not None:
            raise refused(None, msgspec.json.encode(event.error))
        ids: list[int] = []
        text = ""
        for choice in event.choices:
            ids += choice.token_ids or ()
            text += choice.text or choice.delta.content or choice.delta.reasoning_content or ""
            self._finish = choice.finish_reason or self._finish
        if event.usage is not None:
            self._said = event.usage.completion_tokens
        if self.counting is None and (ids or text):
            self.counting = "ids" if ids else "usage" if self._said else "text"
        came = self._count(ids, text)
        if came:
            self._pieces += 1
            self._made += len(came)
            self._reply.tokens(came)
            if (self._pieces if self.counting == "text" else self._made) > self._asked:
                raise Broken(
                    "too_many", f"more than the {self._asked} tokens asked for came; the rest isn't waited for"
                )

    def _count(self, ids: list[int], text: str) -> Sequence[int]:
        """Return an event's tokens; zeros, as many as they are taken to be, where their ids aren't known."""
        if self.counting == "usage":
            return [0] * min((self._said or 0) - self._made, self._asked + 1)
        if self.counting == "text":
            self._text.append(text)
            return [0] * len(text)
        return ids

    def end(self) -> None:
        """Say that nothing more comes; raise Broken where that isn't the whole answer."""
        total = self._made
        if self.counting == "text":
            total = self._guessed() if self._said is None else self._said
            self._reply.recounted(max(0, min(total, self._asked + 1)))
        elif self.counting == "ids" and self._said is not None and self._said != total:
            raise Broken("rubbish", f"the server says that it made {self._said} tokens; {total} came")
        sure = self.counting != "text" or self._said is not None
        if total < self._asked and self._finish != "stop" and (sure or self._finish is None):
            how = f'with "{shown(self._finish.encode())}"' if self._finish else "without a reason"
            raise Broken("closed", f"the answer ended {how} after {total} of {self._asked} tokens")

    def _guessed(self) -> int:
        text = "".join(self._text)
        return min(self._asked, len(self._encode(text)) if self._encode is not None else self._pieces)

    def broken(self) -> None:
        """Put right what was guessed of an answer that is no whole one."""
        if self.counting == "text":
            self._reply.recounted(self._pieces)


def refused(status: int | None, body: bytes) -> Broken:
    """Return the fault that a server's own error is."""
    said = shown(body)
    if _TOO_LONG.search(said) and (status is None or 400 <= status < 500):
        return Broken("too_long", said)
    return Broken("status", f"{status or 'an error in the stream'}: {said}")


def shown(data: bytes) -> str:
    """Return a server's words so that they can be printed anywhere: short, on one line, without control characters."""
    text = data[: 4 * _SHOWN].decode("utf-8", "replace")
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}…"
