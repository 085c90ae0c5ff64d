"""Journals: appended by one process, read by anyone, whole even after a kill.

Each event is one `write` to a file opened for appending, so that what was written before a kill is in the file and at
most the line being written is torn. `read` says what it couldn't use, and goes on.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from flagperf.schema import SCHEMA_VERSION
from flagperf.schema.event import PREFIX, Event, EventType, Key

T = TypeVar("T")

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a damaged line raises; the last one for JSON nested without end."""


class Journal:
    """An append-only event log of one process.

    Not thread-safe: one writer, one thread. Raises OSError where the file can't be written (a full disk, say).
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self.write(Key.HEADER, {"schema": SCHEMA_VERSION, "pid": os.getpid(), "host": os.uname().nodename, **header})

    def write(self, key: str, value: Any = None, event_type: EventType = "POINT_IN_TIME") -> None:
        """Append one event, stamped with the wall clock, the monotonic clock and where it was called from."""
        caller = sys._getframe(1)
        event = Event(
            time_ms=time.time_ns() // 1_000_000,
            event_type=event_type,
            key=key,
            value=value,
            metadata={
                "file": caller.f_code.co_filename.rsplit("/", 1)[-1],
                "lineno": caller.f_lineno,
                "ns": time.monotonic_ns(),
            },
        )
        line = memoryview(PREFIX + self._encode(event) + b"\n")
        while line:  # a full disk can take part of a line: the next write then says so
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        """Close the file; writing after that is an error."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """Turn what isn't JSON into what is: paths, and numbers of numpy and torch."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"A journal can't hold a {type(value).__name__}.")


class Flaw(msgspec.Struct, frozen=True):
    """A line that couldn't be used."""

    line: int
    """Counted from 1."""
    kind: str
    """`torn` (the last line, cut by a kill), `corrupt` or `foreign`."""
    text: str


class Reader:
    """Iterates over a journal's events; afterwards `flaws` tells what was passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flaws: list[Flaw] = []

    def __iter__(self) -> Iterator[Event]:
        return self.decoded(msgspec.json.Decoder(Event).decode)

    def decoded(self, decode: Callable[[bytes], T]) -> Iterator[T]:
        """Yield what `decode` makes of each event's JSON; what it refuses with a msgspec error becomes a flaw."""
        self.flaws = []
        skip = len(PREFIX)
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.startswith(PREFIX):
                    try:
                        event = decode(line[skip:])
                    except _UNREADABLE:
                        pass
                    else:
                        yield event
                        continue
                yield from self._salvage(number, line, decode)

    def _salvage(self, number: int, line: bytes, decode: Callable[[bytes], T]) -> Iterator[T]:
        """Yield the events of a line that isn't just one: something was printed, or torn off, in front of them."""
        starts = [match.start() for match in re.finditer(re.escape(PREFIX), line)]
        rest = [] if starts and starts[0] == 0 else [line[: starts[0] if starts else None]]
        past = 0  # where the last event that was read ends
        for start, after in zip(starts, [*starts[1:], len(line)], strict=False):
            if start < past:
                continue
            for end in (len(line), after):  # a string inside an event may itself hold the prefix
                try:
                    event = decode(line[start + len(PREFIX) : end])
                except _UNREADABLE:
                    continue
                past = end
                yield event
                break
            else:
                rest.append(line[start:after])
        waste = b"".join(rest)
        if waste.strip():
            whole = line.endswith(b"\n")
            ours = waste.startswith(PREFIX) or (not whole and PREFIX.startswith(waste))
            kind = ("corrupt" if whole else "torn") if ours else "foreign"
            self.flaws.append(Flaw(number, kind, _excerpt(waste)))


def _excerpt(line: bytes) -> str:
    return line[:120].decode("utf-8", "replace").rstrip("\n")
