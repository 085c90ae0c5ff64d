"""Reads what strangers wrote: JSON, YAML and text of which nothing can be read in two ways, with line numbers.

Refused are duplicate keys, numbers that aren't finite or that 64 bits can't hold, byte order marks, wrong encodings,
and of YAML all that is more than plain data: tags, anchors, aliases, merges, several documents.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import yaml

T = TypeVar("T")

DEPTH = 64
"""Deepest nesting; nothing of ours comes near."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}

Path = tuple[str | int, ...]


class Malformed(Exception):
    """Text that can't be read, and the line where that is seen, from 1; `None` where it's of the whole."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def text(data: bytes) -> str:
    """Decode UTF-8 without a byte order mark or control characters; raise Malformed otherwise."""
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Malformed("it begins with a byte order mark; plain UTF-8 is expected", 1)
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("it isn't UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    if odd := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]", whole):
        line = whole.count("\n", 0, odd.start()) + 1
        raise Malformed(f"it has the control character U+{ord(odd[0]):04X}", line)
    return whole


def json_value(data: bytes) -> Any:
    """Read one JSON value; raise Malformed for what isn't JSON, or could be read in two ways."""
    whole = text(data)
    _check_depth(data)
    try:
        return json.loads(
            whole, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise Malformed(f"it isn't JSON: {error.msg}", error.lineno) from None
    except RecursionError:
        raise Malformed("it is nested too deeply") from None


def json_line(data: bytes) -> Any:
    """Read one line of JSON. Fast for what msgspec wrote: written again it is the same, so nothing in it is twice."""
    try:
        value = msgspec.json.decode(data)
        if msgspec.json.encode(value) == data:
            return value
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # what is wrong with it is told below
    return json_value(data)


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before a parser goes down into it; strings are skipped."""
    depth = 0
    for part in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', data, re.DOTALL):
        mark = part[0]
        if mark in (b"[", b"{"):
            depth += 1
            if depth > DEPTH:
                raise Malformed("it is nested too deeply", data.count(b"\n", 0, part.start()) + 1)
        elif mark in (b"]", b"}"):
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"the key {twice!r} is there twice")
    return result


def _constant(word: str) -> Any:
    raise Malformed(f"{word} is no number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Malformed(f"the number {digits[:40]} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise Malformed(f"the number {digits[:40]} is too large")
    return int(digits)


class Document(NamedTuple):
    """A YAML document: plain data, and the line that each part of it is on."""

    value: Any
    lines: dict[Path, int]


def yaml_document(data: bytes) -> Document:
    """Read one YAML document of plain data; raise Malformed for everything else.

    Of plain scalars, those that read as JSON's are JSON's; all others are text, `no` and `12:30` and dates as well.
    """
    reader = _YamlReader()
    try:
        for event in yaml.parse(text(data), Loader=yaml.SafeLoader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Malformed(f"it isn't YAML: {error.problem or error.context}", mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Malformed(f"it isn't YAML: {error}") from None
    return Document(reader.value, reader.lines)


class _YamlReader:
    """Builds plain data from the parser's events, without PyYAML's constructors."""

    def __init__(self) -> None:
        self.value: Any = None
        self.lines: dict[Path, int] = {}
        self._open: list[dict[str, Any] | list[Any]] = []
        self._keys: list[str | None] = []
        self._path: list[str | int] = []
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent):
            raise Malformed(f"it has the alias *{event.anchor}: aliases aren't taken", line)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise Malformed(f"it has the anchor &{event.anchor}: anchors aren't taken", line)
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag not in (None, "!"):
            raise Malformed(f"it has the tag {event.tag}: tags aren't taken", line)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise Malformed("it has more than one document", line)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            whole: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._put(whole, line, event)
            self._open.append(whole)
            self._keys.append(None)
            if len(self._open) > DEPTH:
                raise Malformed("it is nested too deeply", line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()
            if self._path:
                self._path.pop()
        elif isinstance(event, yaml.ScalarEvent):
            if self._open and isinstance(self._open[-1], dict) and self._keys[-1] is None:
                self._key(event, line)
            else:
                self._put(_scalar(event, line), line, event)
                if self._path:
                    self._path.pop()

    def _key(self, event: yaml.ScalarEvent, line: int | None) -> None:
        whole = self._open[-1]
        assert isinstance(whole, dict)
        if event.value == "<<" and event.implicit[0]:
            raise Malformed("it has a merge key: merges aren't taken", line)
        if event.value in whole:
            raise Malformed(f"the key {event.value!r} is there twice", line)
        self._keys[-1] = event.value

    def _put(self, value: Any, line: int | None, event: yaml.Event) -> None:
        if not self._open:
            self.value = value
        else:
            whole, key = self._open[-1], self._keys[-1]
            if isinstance(whole, list):
                self._path.append(len(whole))
                whole.append(value)
            elif key is None:
                raise Malformed("a key isn't text", line)
            else:
                self._path.append(key)
                whole[key] = value
                self._keys[-1] = None
        self.lines[tuple(self._path)] = line or 1


def _scalar(event: yaml.ScalarEvent, line: int | None) -> Any:
    written: str = event.value
    if not event.implicit[0]:
        return written
    if written in _CONSTANTS:
        return _CONSTANTS[written]
    try:
        if _INTEGER.fullmatch(written):
            return _integer(written)
        if _FLOAT.fullmatch(written):
            return _float(written)
    except Malformed as error:
        raise Malformed(str(error), line) from None
    return written


def typed(document: Document, kind: type[T]) -> T:
    """Return a document as a struct; raise Malformed with the line of what doesn't fit."""
    return convert(document.value, kind, lambda place: line_at(document.lines, place))


def convert(value: Any, kind: type[T], line: Callable[[Path], int | None]) -> T:
    """Return plain data as a struct; raise Malformed with what `line` says of the place of what doesn't fit."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        place = re.search(r" - at `(?:key in )?\$(.*?)`$", message)
        path = path_of(place[1]) if place else ()
        unknown = re.search(r"unknown field `([^`]+)`", message)
        raise Malformed(message, line((*path, unknown[1]) if unknown else path)) from None


def path_of(place: str) -> Path:
    """Read msgspec's notation of a place: `.host.cpu`, `[0].name`."""
    return tuple(int(index) if index else name for name, index in re.findall(r"\.([^.\[]+)|\[([0-9]+)\]", place))


def line_at(lines: dict[Path, int], path: Path) -> int:
    """Return the line of a part, or of the nearest thing around it that is there."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def json_line_number(lines: Sequence[str], path: Path) -> int | None:
    """Return where a part stands in JSON as the harness writes it: two blanks a level, a member a line."""
    place = 0
    for depth, part in enumerate(path, 1):
        indent = "  " * depth
        count = -1
        for number in range(place + 1, len(lines)):
            line = lines[number]
            if not line.startswith(indent):
                return None
            if line[len(indent) :].startswith((" ", "]", "}")):
                continue
            count += 1
            if count == part if isinstance(part, int) else line.startswith(f'{indent}"{part}":'):
                place = number
                break
        else:
            return None
    return place + 1 if path else 1
