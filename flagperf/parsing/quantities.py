"""Quantities as tools write them: `35W`, `34℃`, `858/65536 MiB`, `[N/A]`. A text that is none gives None."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["W", "C", "%", "MiB", "MHz"]

_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_WHOLE = re.compile(rf"\(?\s*(-?{_NUMBER}|\d{{1,3}}(?:,\d{{3}}){{1,4}})\s*([^\s\d()/,.]{{0,14}})\s*\)?")
_UNITS: dict[Kind, dict[str, float]] = {
    "W": {"": 1, "w": 1, "watt": 1, "watts": 1, "mw": 1e-3, "kw": 1e3},
    "C": {"": 1, "c": 1, "℃": 1, "°c": 1, "°": 1, "degc": 1, "celsius": 1, "摄氏度": 1},
    "%": {"": 1, "%": 1, "percent": 1, "％": 1},
    # What these tools call MB is 2^20 bytes: a card of 32 GiB says 32768 MB.
    "MiB": {"": 1, "mib": 1, "mb": 1, "m": 1, "mbytes": 1, "gib": 2**10, "gb": 2**10, "g": 2**10, "tib": 2**20,
            "tb": 2**20, "kib": 2**-10, "kb": 2**-10, "k": 2**-10, "b": 2**-20, "byte": 2**-20, "bytes": 2**-20},
    "MHz": {"": 1, "mhz": 1, "ghz": 1e3, "khz": 1e-3, "hz": 1e-6},
}  # fmt: skip
_BOUNDS: dict[Kind, tuple[float, float]] = {
    "W": (0, 1e9),
    "C": (-100, 1e9),
    "%": (0, 100),
    "MiB": (0, 1e9),
    "MHz": (0, 1e9),
}
"""What can't be is None. Power and temperature aren't bounded above: a reading gives a dead card away by them."""

NOTHING = re.compile(r"\[?\bN/?A\b\]?", re.IGNORECASE)
"""How tools write that they have no value."""


def quantity(text: str | None, kind: Kind, unit: str = "") -> float | None:
    """Return a quantity in the unit of its kind; `unit` is that of a bare number, from the column's or key's name.

    None where the text isn't one number with a unit of that kind and nothing else.
    """
    if text is None or len(text) > 80:
        return None
    match = _WHOLE.fullmatch(text.strip())
    if match is None:
        return None
    factor = _UNITS[kind].get((match[2] or unit).lower())
    if factor is None:
        return None
    value = float(match[1].replace(",", "")) * factor
    least, most = _BOUNDS[kind]
    return round(value, 9) if least <= value <= most else None


def is_unit(text: str) -> bool:
    """Whether a text is a unit that `quantity` knows."""
    return text.lower() in _ALL_UNITS


_ALL_UNITS = {unit for units in _UNITS.values() for unit in units if unit}

_PAIR = re.compile(
    rf"(?P<used>{_NUMBER}|[x*-]{{1,16}}|NA)\s*(?P<unit>[KMGT]?i?B)?\s*(?:/|\()\s*"
    rf"(?P<total>{_NUMBER}|[x*-]{{1,16}}|NA)\s*(?P<last>[KMGT]?i?B)?",
    re.IGNORECASE,
)


def pair(cell: str, bare: bool = False) -> tuple[float | None, float | None] | None:
    """Return used and total memory from `31058MiB / 98304MiB`, `858/65536 MiB` or `66641MiB(81920MiB)`, in MiB.

    None where there is no such pair. One without a unit counts only if `bare` says that it's in MiB.
    """
    for match in _PAIR.finditer(NOTHING.sub("NA", cell[:400])):
        last = match["last"] or match["unit"]
        if last or bare:
            return quantity(match["used"], "MiB", match["unit"] or last or ""), quantity(
                match["total"], "MiB", last or ""
            )
    return None


_WATTS = re.compile(rf"({_NUMBER})\s*W\b", re.IGNORECASE)
_END = re.compile(rf"(?<![\w.])({_NUMBER})\s*W?\s*$", re.IGNORECASE)
_START = re.compile(rf"\s*({_NUMBER})\s*(?:W\b|\s|$)", re.IGNORECASE)


def power_and_limit(cell: str) -> tuple[float | None, float | None]:
    """Return the power and its limit from `53W / 450W`, `106 W/ 250 W`, `105W  300W` or `N/A / 350W`, W."""
    plain = NOTHING.sub("NA", cell[:400])
    if "/" in plain:
        left, _, right = plain.partition("/")
        used, limit = _END.search(left), _START.match(right)
        return quantity(used[1] if used else None, "W"), quantity(limit[1] if limit else None, "W")
    watts = [quantity(number, "W") for number in _WATTS.findall(plain)]
    if re.search(r"\bNA\b\s+[\d.]+\s*W\b", plain):
        watts.insert(0, None)
    power, limit, *_ = [*watts, None, None]
    return power, limit


_CELSIUS = re.compile(rf"(?<![\w.-])(-?{_NUMBER})\s*(?:℃|°\s?C|C)(?![\w:])")
_PERCENT = re.compile(rf"(?<![\w.-])({_NUMBER})\s*[%％]")
BUS_ID = re.compile(r"(?<![\w:])[0-9a-f]{2,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f](?![\w:])", re.IGNORECASE)


def celsius_in(cell: str) -> float | None:
    """Return the first temperature with its unit in a cell."""
    match = _CELSIUS.search(cell[:400])
    return quantity(match[1], "C") if match else None


def percent_in(cell: str) -> float | None:
    """Return the first percentage in a cell."""
    match = _PERCENT.search(cell[:400])
    return quantity(match[1], "%") if match else None


def whole(text: str | None, most: int = 4096) -> int | None:
    """Return a small whole number, as an index or an id is, or None."""
    stripped = (text or "").strip()
    if not (stripped.isascii() and stripped.isdigit() and len(stripped) <= 9):
        return None
    return value if (value := int(stripped)) <= most else None
