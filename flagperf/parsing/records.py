"""Layouts in which a device is a list of names and values: CSV, columns, sections, JSON and XML.

Each gives records: names as `key` makes them, values as the text has them. What the values mean is `fields.py`'s.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from flagperf.parsing.quantities import is_unit, whole
from flagperf.parsing.text import plain_lines

Record = dict[str, "Value"]

_LONGEST_LINE = 65536
_MOST_DEVICES = 1024


class Value(msgspec.Struct, frozen=True):
    """A value as the text has it, and the unit that its name gives, if it does."""

    text: str
    unit: str = ""


_UNIT = re.compile(r"\s*[\[(]\s*([^\[\]()]{1,24}?)\s*[\])]$")


def key(name: str) -> tuple[str, str]:
    """Return a name in lower case with single blanks and without its unit, and the unit: `Power(W)` → power, w."""
    plain = " ".join(name[:400].strip(" \t:*#\"'").lower().split())
    match = _UNIT.search(plain)
    if match is None:
        last = plain.rpartition("_")[2]
        return (plain[: -len(last) - 1], last) if last in ("byte", "bytes", "mib") else (plain, "")
    unit = match[1].removesuffix(" degree")
    return (plain[: match.start()].rstrip(" :"), unit) if is_unit(unit) else (plain, "")


def _put(record: Record, name: str, value: str) -> None:
    """Keep the first value of a name."""
    plain, unit = key(name)
    if plain and value.strip():
        record.setdefault(plain, Value(value.strip(), unit))


# CSV


def csv_records(text: str, names: Callable[[str], bool], command: str = "") -> list[Record]:
    """Return the rows below a line of known names, or of a list without one if the command line says its columns.

    `names` says whether a name (as `key` makes it) is that of a column; a header has at least two of them.
    """
    rows = [_row(line) for line in plain_lines(text) if "," in line[:_LONGEST_LINE]]
    header: list[str] = []
    for number, row in enumerate(rows):
        if _is_header(row, names):
            header, rows = row, rows[number + 1 :]
            break
    else:
        header = _queried(command)
    records = []
    for row in rows[:_MOST_DEVICES] if header else []:
        if row == header or len(row) > len(header) or len(row) < min(2, len(header)):
            continue
        if len(row) < len(header):
            row = row[:-1]  # cut off, perhaps within a number
        record: Record = {}
        for name, cell in zip(header, row, strict=False):
            _put(record, name, cell)
        records.append(record)
    return records


def _row(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line[:_LONGEST_LINE]], skipinitialspace=True), [])]
    except csv.Error:
        return []


def _queried(command: str) -> list[str]:
    """Return the columns that a command line asks for: `--query-gpu=index,name`, `-Q name,uuid`."""
    match = re.search(r"(?:--query-[a-z]{1,16}[= ]|\s-Q\s)\s*([\w.,\[\]-]{3,8000})", command)
    return match[1].split(",") if match else []


# Columns


def column_records(text: str, names: Callable[[str], bool]) -> list[Record]:
    """Return the rows of a table without borders: a header with two known names, then rows that begin with a number.

    A second header line that begins as the first does (`#`, `*`) has the units.
    """
    records: list[Record] = []
    headers: list[list[str]] = []
    for line in plain_lines(text):
        bare = line[:4096].strip()
        tokens = bare.split()
        if not tokens:
            continue
        if whole(tokens[0]) is None:
            if bare[0] in "#*" and headers and len(tokens) == len(headers[0]) and sum(map(is_unit, tokens)) >= 2:
                headers = [[f"{name} ({unit})" for name, unit in zip(headers[0], tokens, strict=True)]]
            elif any(_is_header(words, names) for words in (tokens, _cells(bare))):
                headers = [tokens, _cells(bare)]  # which of them, its rows will tell
            elif len(tokens) > 1 and bare.strip("-=+| "):
                headers = []  # another table, or prose
            continue
        for header in headers:
            row = next((each for each in (tokens, _cells(bare)) if len(each) == len(header)), None)
            if row is not None and len(records) < _MOST_DEVICES and _is_header(header, names):
                record: Record = {}
                for name, cell in zip(header, row, strict=True):
                    _put(record, name, cell)
                records.append(record)
                break
    return records


def _is_header(cells: Sequence[str], names: Callable[[str], bool]) -> bool:
    """Whether cells name two known columns; a list of processes isn't one of devices."""
    keys = [key(cell)[0] for cell in cells]
    return "pid" not in keys and sum(map(names, keys)) >= 2


def _cells(line: str) -> list[str]:
    return re.split(r"[ \t]{2,}", line)


def bordered_records(text: str, names: Callable[[str], bool]) -> list[Record]:
    """Return the rows of a table whose cells are between bars, a line a device, below a header of known names."""
    records: list[Record] = []
    header: list[str] = []
    for line in plain_lines(text):
        if "|" not in line[:4096]:
            continue
        cells = [cell.strip() for cell in line[:4096].strip().strip("|").split("|")]
        if _is_header(cells, names):
            header = cells
        elif whole(cells[0]) is None:
            header = []
        elif len(cells) == len(header) and len(records) < _MOST_DEVICES:
            record: Record = {}
            for name, cell in zip(header, cells, strict=True):
                _put(record, name, cell)
            records.append(record)
    return records


# Names and values


def section_records(text: str, start: str) -> list[Record]:
    """Return the `name: value` lines of each device; a device begins where `start` matches, its number in group 1.

    The names of lines above with less indentation and no value of their own come first: `temperature info/gcu temp`.
    What stands before the first device isn't told.
    """
    begin = re.compile(start, re.IGNORECASE)
    records: list[Record] = []
    path: list[tuple[int, str]] = []
    for line in plain_lines(text):
        bare = line[:4096].strip(" \t|")
        if not bare:
            continue
        indent = len(line[:4096].expandtabs(8)) - len(line[:4096].expandtabs(8).lstrip())
        if match := begin.match(bare):
            if len(records) == _MOST_DEVICES:
                break
            records.append({"index": Value(match[1])})
            path = []
            rest = bare[match.end() :].strip(" \t|:")
            if not rest:
                continue
            bare = rest
        if not records:
            continue
        name, colon, value = bare.partition(": ") if ": " in bare else bare.rpartition(":")
        if not colon:
            name, value = bare, ""
        if not value.strip():
            while path and path[-1][0] >= indent:
                path.pop()
            path.append((indent, key(name)[0]))
            del path[6:]
            continue
        parents = [parent for depth, parent in path if depth < indent]
        _put(records[-1], "/".join([*parents, name.strip()]), value)
    return records


_INDEXED = re.compile(
    r"^\s*(?:GPU|DCU|HCU|card|NPU|XPU)\s?\[?(\d{1,4})\]?\s*:\s*(\S.{0,200}?)\s*:\s+(\S.{0,200})$", re.IGNORECASE
)


def indexed_records(text: str) -> list[Record]:
    """Return devices from lines such as `GPU[0] : Temperature (Sensor edge) (C): 41.0`."""
    records: dict[str, Record] = {}
    for line in plain_lines(text):
        if match := _INDEXED.match(line[:1024]):
            if match[1] not in records and len(records) == _MOST_DEVICES:
                break
            _put(records.setdefault(match[1], {"index": Value(match[1])}), match[2], match[3])
    return list(records.values())


_LISTED = re.compile(r"^\s*[A-Z]{3}\s?(\d{1,4})\s*:\s*(\S.{0,200}?)\s*\(UUID\s*:\s*([^()\s]{1,80})\)")


def list_records(text: str) -> list[Record]:
    """Return devices from lines such as `GPU 0: NVIDIA H200 (UUID: GPU-…)`; parts of a device are left out."""
    found = (_LISTED.match(line[:1024]) for line in plain_lines(text))
    return [{"index": Value(match[1]), "name": Value(match[2]), "uuid": Value(match[3])} for match in found if match][
        :_MOST_DEVICES
    ]


# JSON and XML


def load_json(text: str) -> Any:
    """Return the first JSON object or list that begins a line; None where there is none, or a broken one."""
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    for tried, match in enumerate(re.finditer(r"^[ \t]*([{\[])", text, re.MULTILINE)):
        if tried == 4:
            break
        try:
            return decoder.raw_decode(text, match.start(1))[0]
        except (ValueError, RecursionError):
            continue
    return None


def json_record(value: Any) -> Record:
    """Return nested objects as one record: `{"Utilization": {"Gpu": "42%"}}` → utilization/gpu."""
    record: Record = {}
    for name, leaf in _leaves(value, (), 0):
        _put(record, "/".join(name), leaf)
    return record


def _leaves(value: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], str]]:
    if depth > 8:
        return
    if isinstance(value, dict):
        if isinstance(value.get("unit"), str) and isinstance(value.get("value"), str | int | float):
            yield path, f"{value['value']} {value['unit']}"  # as amd-smi writes quantities
            return
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name.strip(" :")), depth + 1)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield path, str(value)[:400]


def numbered_objects(value: Any) -> list[Record]:
    """Return the objects that a JSON object has under names that end in a number: `{"card0": {…}}`."""
    records: list[Record] = []
    for name, inner in value.items() if isinstance(value, dict) else ():
        match = re.fullmatch(r"[A-Za-z _]{1,16}(\d{1,4})", name)
        if match and isinstance(inner, dict) and len(records) < _MOST_DEVICES:
            records.append({**json_record(inner), "index": Value(match[1])})
    return records


def objects(value: Any, *names: str) -> Iterable[dict[str, Any]]:
    """Return the objects in the first list that a JSON object has under one of these names, or in a list itself."""
    found = value
    if isinstance(value, dict):
        plain = {name.strip().lower(): inner for name, inner in value.items()}
        found = next((plain[name] for name in names if name in plain), None)
    return [one for one in found if isinstance(one, dict)][:_MOST_DEVICES] if isinstance(found, list) else []


_TAG = re.compile(r"<(/?)([A-Za-z_][\w.-]{0,63})((?:\s[^<>]{0,400})?)>([^<]{0,400})")


def xml_records(text: str, device: str, apart: Sequence[str] = ()) -> list[Record]:
    """Return the elements called `device`, each as one record; what is in the elements `apart` isn't its own.

    Reads tags only, so that a file that isn't well-formed is still told from, and no entity is ever followed.
    """
    records: list[Record] = []
    path: list[str] = []
    for match in _TAG.finditer(text):
        closing, name, attributes, value = match[1], match[2].lower(), match[3], match[4]
        if closing:
            if name in path[-8:]:
                del path[len(path) - 1 - path[::-1].index(name) :]
            continue
        if attributes.endswith("/"):
            continue
        if name == device and device not in path:
            if len(records) == _MOST_DEVICES:
                break
            records.append({})
            if identity := re.search(r"\bid=\"([^\"]{1,64})\"", attributes):
                _put(records[-1], "id", identity[1])
        if len(path) < 32:
            path.append(name)
        if device in path and not any(part in apart for part in path):
            _put(records[-1], "/".join(path[-2:]), value)
            _put(records[-1], name, value)
    return records
