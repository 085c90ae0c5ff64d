"""What a record's names mean: the usual ones of all tools, to which a vendor adds its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from flagperf.parsing.quantities import BUS_ID, NOTHING, Kind, pair, quantity, whole
from flagperf.parsing.records import Record, Value
from flagperf.parsing.text import complaint
from flagperf.schema.reading import Reading, Readings

Names = Mapping[str, Sequence[str]]
"""Names by field of a reading, the surest first. `memory_free_mib` and `memory_pair` stand in for used and total."""

_KINDS: dict[str, Kind] = {
    "memory_total_mib": "MiB",
    "memory_used_mib": "MiB",
    "memory_free_mib": "MiB",
    "utilisation_pct": "%",
    "power_w": "W",
    "power_limit_w": "W",
    "temperature_c": "C",
    "clock_mhz": "MHz",
    "memory_clock_mhz": "MHz",
}
_TEXTS = ("name", "uuid", "bus_id")

USUAL: Names = {
    "index": ("index", "gpu", "device id", "deviceid", "device_id", "id", "devid"),
    "name": ("name", "product name", "device name", "device_name"),
    "memory_total_mib": ("memory.total", "fb memory usage/total", "memory total"),
    "memory_used_mib": ("memory.used", "fb memory usage/used", "memory used"),
    "memory_free_mib": ("memory.free", "fb memory usage/free"),
    "utilisation_pct": ("utilization.gpu", "utilization/gpu"),
    "power_w": ("power.draw", "gpu.power.draw", "board.power.draw", "power readings/power draw", "power.draw.average"),
    "power_limit_w": ("power.limit", "power readings/current power limit"),
    "temperature_c": ("temperature.gpu", "temperature/gpu current temp"),
    "clock_mhz": ("clocks.current.sm", "clocks.sm", "clocks/sm", "clocks/graphics"),
    "memory_clock_mhz": ("clocks.current.memory", "clocks.mem", "clocks/memory"),
    "uuid": ("uuid", "gpu uuid"),
    "bus_id": ("pci.bus_id", "pci/bus id", "bus-id", "bus id", "pci bus", "bdf"),
    "ecc_uncorrected": ("ecc.errors.uncorrected.volatile.total",),
}

_IMPLAUSIBLE_W = 60000.0
"""No device draws as much; it's how a counter of 16 bits says that the card doesn't answer."""


def also(names: Names, usual: Names = USUAL) -> Names:
    """Return the usual names with a vendor's own, which are surer."""
    return {field: (*names.get(field, ()), *usual.get(field, ())) for field in {*usual, *names}}


def is_name(names: Names) -> frozenset[str]:
    """Return all the names; its `__contains__` tells a header."""
    return frozenset(name for each in names.values() for name in each)


def readings(records: Iterable[Record], names: Names, driver: str | None = None) -> Readings:
    """Return a reading a record; one without a number gets its place. Of two of one number the first is taken."""
    devices: dict[int, Reading] = {}
    for place, record in enumerate(records):
        index = _index(record, names, place)
        if index is not None:
            devices.setdefault(index, reading(record, names, index))
    return Readings(devices=list(devices.values()), driver=driver)


def reading(record: Record, names: Names, index: int) -> Reading:
    """Return what a record says of a device."""
    numbers: dict[str, Any] = {field: _quantity(record, names.get(field, ()), kind) for field, kind in _KINDS.items()}
    free = numbers.pop("memory_free_mib")
    if numbers["memory_total_mib"] is None and numbers["memory_used_mib"] is not None and free is not None:
        numbers["memory_total_mib"] = numbers["memory_used_mib"] + free
    for value in _present(record, names.get("memory_pair", ())):
        both = pair(value.text, bare=bool(value.unit))
        if both is not None and numbers["memory_total_mib"] is None:
            numbers["memory_used_mib"], numbers["memory_total_mib"] = both
    texts: dict[str, Any] = {field: _text(record, names.get(field, ())) for field in _TEXTS}
    ecc = (whole(value.text, 10**9) for value in _present(record, names.get("ecc_uncorrected", ())))
    return checked(Reading(index=index, **numbers, **texts, ecc_uncorrected=next(ecc, None)))


def checked(device: Reading) -> Reading:
    """Return a reading as it is, or without what a dead card can't know, if its power gives it away."""
    if device.power_w is None or device.power_w < _IMPLAUSIBLE_W:
        return device
    return msgspec.structs.replace(
        device,
        power_w=None,
        temperature_c=None,
        utilisation_pct=None,
        clock_mhz=None,
        memory_clock_mhz=None,
        faulty=f"its power reads {device.power_w:.0f} W",
    )


def first_with_devices(text: str, attempts: Iterable[Readings]) -> Readings:
    """Return the first readings with a device; where none has one, what the tool complains of."""
    for attempt in attempts:
        if attempt.devices:
            return attempt
    return Readings(error=complaint(text) or (None if text.strip() else "nothing was printed"))


def _index(record: Record, names: Names, place: int) -> int | None:
    """Return a record's number: None where it should have one that can't be read."""
    for value in _present(record, names.get("index", ())):
        if BUS_ID.search(value.text):
            continue
        return whole(value.text.lower().removeprefix("card").removeprefix("gpu"))
    return place


def _quantity(record: Record, names: Sequence[str], kind: Kind) -> float | None:
    found = (quantity(value.text, kind, value.unit) for value in _present(record, names))
    return next((value for value in found if value is not None), None)


def _text(record: Record, names: Sequence[str]) -> str | None:
    for value in _present(record, names):
        if not NOTHING.fullmatch(value.text) and value.text.strip("-*. ") and value.text[0] not in "[<":
            return value.text[:200]
    return None


def _present(record: Record, names: Sequence[str]) -> list[Value]:
    return [record[name] for name in names if name in record]
