"""Settings: nested keys that a case checks against its types, changed one by one with `--set key.path=value`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from flagperf.errors import UnknownName, UsageError

T = TypeVar("T")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the leaves of `over` laid over it."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_assignment(text: str) -> dict[str, Any]:
    """Read `a.b=value` into `{"a": {"b": value}}`; the value is JSON where it reads as JSON, text otherwise."""
    path, sign, raw = text.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise UsageError(f"--set takes key=value, not {text!r}.", "For example --set data.source=synthetic")
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def parse_whole_numbers(option: str, text: str) -> list[int]:
    """Read `1,2,4` into numbers; raise UsageError for anything else, and for one below 1."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{option} takes whole numbers from 1 on, not {text!r}.", f"For example {option} 1,2,4")
    return numbers


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: str) -> float:
    """Read `90s`, `10min` or `1h30min` into seconds; raise UsageError for anything else, and for no time at all."""
    match = _DURATION.fullmatch("".join(text.split()))
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = hours * 3600 + minutes * 60 + seconds
    if not total > 0:
        raise UsageError(f"A time is written with its unit, not {text!r}.", "For example 90s, 10min or 1h30min")
    return total


def typed(settings: Mapping[str, Any], kind: type[T]) -> T:
    """Return the settings as a typed struct; a wrong or unknown key is a UsageError that says which ones there are."""
    try:
        return msgspec.convert(dict(settings), kind, strict=True)
    except msgspec.ValidationError as error:
        unknown = re.search(r"unknown field `([^`]+)`(?: - at `\$\.?([^`]*)`)?", str(error))
        if unknown:
            prefix = f"{unknown[2]}." if unknown[2] else ""
            raise UnknownName("setting", prefix + unknown[1], _leaves(kind)) from None
        raise UsageError(f"A setting is wrong: {error}", f"Settings: {', '.join(_leaves(kind))}") from None


def _leaves(kind: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    for field in msgspec.structs.fields(kind):
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        name = prefix + field.encode_name
        names += _leaves(field.type, name + ".") if nested else [name]
    return names
