"""Huawei Ascend, read through `npu-smi`.

It counts NPUs (cards) and the chips on each; torch counts chips. What is called a device here is a chip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from flagperf.accelerator import Accelerator
from flagperf.parsing.boxes import boxes
from flagperf.parsing.fields import Names, first_with_devices, is_name, readings
from flagperf.parsing.quantities import BUS_ID, pair, quantity, whole
from flagperf.parsing.records import Record, Value, column_records, key, section_records
from flagperf.schema.reading import Reading, Readings

_MAPPED: Names = {"index": ("chip logic id",), "name": ("chip name",), "npu": ("npu id",), "chip": ("chip id",)}
_SECTIONS: Names = {
    "memory_total_mib": ("hbm capacity", "ddr capacity"),
    "utilisation_pct": ("aicore usage rate",),
    "power_w": ("npu real-time power",),
    "temperature_c": ("temperature",),
    "clock_mhz": ("aicore curfreq",),
}


class Ascend(Accelerator):
    """Ascend NPUs; a card's controller (MCU) isn't a device."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `npu-smi info`, of its mapping (`-m`), or of one card's `-t common` or `-t usages`."""
        return first_with_devices(text, self._layouts(text))

    def _layouts(self, text: str) -> Iterator[Readings]:
        version = re.search(r"npu-smi\s{1,40}\S{1,40}\s{1,200}Version:\s{1,20}(\S{1,40})", text[:4096])
        yield Readings(devices=list(_table(text).values()), driver=version[1] if version else None)
        mapped = column_records(text, is_name(_MAPPED).__contains__)
        yield readings([one for one in mapped if _is_number(one.get("chip logic id"))], _MAPPED)
        yield readings(_chips(text), _SECTIONS)


def _is_number(value: Value | None) -> bool:
    return value is not None and whole(value.text) is not None


def _table(text: str) -> dict[int, Reading]:
    """Return the devices of the table: two lines each, whose header says what the words of a cell are."""
    header: list[list[str]] = []
    found: list[tuple[int, Reading]] = []
    for box in boxes(text):
        if isinstance(box, str):
            continue
        first = " ".join(box[0]).lower()
        if "process" in first:
            break
        if len(box) < 2:
            continue
        if "name" in first.split() and "npu" in first.split():
            header = box[:2]
            continue
        for line in range(0, len(box) - 1, 2) if header else ():
            chip = _device(header, box[line : line + 2])
            if chip is not None and len(found) < 1024:
                found.append(chip)
    cards = [number for number, _ in found]
    devices: dict[int, Reading] = {}
    for place, (card, device) in enumerate(found):
        index = device.index
        if index < 0:  # the text doesn't say it: with a chip on each card it's the card's number, else the order
            index = card if len(set(cards)) == len(cards) else place
        devices.setdefault(index, msgspec.structs.replace(device, index=index))
    return devices


def _device(header: list[list[str]], lines: list[list[str]]) -> tuple[int, Reading] | None:
    """Return the card and its chip, whose number is -1 where the text doesn't say it."""
    (npu, *_), (chip, *_) = lines[0], lines[1]
    card, die = whole(npu.partition(" ")[0]), whole(chip.partition(" ")[0])
    if len(lines[0]) < 3 or len(lines[1]) < 3 or card is None or die is None:
        return None
    upper, lower = _words(header[0][-1], lines[0][-1]), _words(header[1][-1], lines[1][-1])
    ids = dict(zip(header[1][0].lower().split(), chip.split(), strict=False))
    number = whole(ids.get("phy-id")) if "phy-id" in ids else whole(ids.get("device"))
    memory = _memory(lower, lines[1][-1])
    bus = BUS_ID.search(lines[1][1])
    name = npu.split(maxsplit=1)[1:]
    return card, Reading(
        index=-1 if number is None else number,
        name=name[0] if name else None,
        memory_used_mib=memory[0],
        memory_total_mib=memory[1],
        utilisation_pct=quantity(lower.get("aicore"), "%"),
        power_w=quantity(upper.get("power"), "W"),
        temperature_c=quantity(upper.get("temp"), "C"),
        bus_id=bus[0] if bus else None,
        facts={"npu_id": card, "chip_id": die, "health": lines[0][1]},
    )


def _words(header: str, cell: str) -> dict[str, str]:
    """Return the words of a cell by those of its header; `0    / 65536` is one word."""
    words = re.sub(r"(\S)\s*/\s*(\S)", r"\1/\2", cell[:400]).split()
    return dict(zip((key(name)[0] for name in header.split()), words, strict=False))


def _memory(words: dict[str, str], cell: str) -> tuple[float | None, float | None]:
    """Return HBM used and total; without HBM what the memory column says. Some headers lack HBM though rows have it."""
    pairs = [found for text in words.values() if (found := pair(text, bare=True))]
    for match in re.finditer(r"(?<![\d.])\d+\s*/\s*\d+(?![\d.])", cell[:400]):
        found = pair(match[0], bare=True)
        if found and found not in pairs:
            pairs.append(found)
    sized = [found for found in pairs if found[1]]
    return sized[-1] if sized else (None, None)


def _chips(text: str) -> list[Record]:
    """Return each chip's names and values; its number comes first, or last as in `-t usages`."""
    chips: list[Record] = []
    npu: Value | None = None
    for part in re.split(r"\n[ \t]*\n", text):
        record = next(iter(section_records("X 0\n" + part, r"X (0)$")), {})
        npu = record.get("npu id", npu)
        if _is_number(record.get("chip id")):
            record["index"] = Value("")
            chips.append(record)
    return chips
