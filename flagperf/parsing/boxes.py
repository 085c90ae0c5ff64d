"""Tables of boxes, in which a device takes two or three lines: the layout that most makers follow.

A header box says what stands where; cells are told by its words, and values within a cell by their shapes, so that
columns may move, be added or be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from flagperf.parsing.fields import checked
from flagperf.parsing.quantities import BUS_ID, celsius_in, pair, percent_in, power_and_limit, quantity, whole
from flagperf.parsing.text import driver_version, plain_lines
from flagperf.schema.reading import DeviceProcess, Reading, Readings

Box = list[list[str]]
"""Lines of cells between two borders."""

_BORDER = re.compile(r"[\s+|#*]*[-=]{3}[\s+|#*=-]*")
_COUNTERS = ("gpu", "xpu", "ppu", "aip", "dcu", "hcu", "gcu", "mlu", "npu", "dev", "card", "id", "index", "board")
"""What the column of device numbers is called, the surest first: on a board there may be more than one."""
_VALUES = {
    "memory": ("memory-usage", "mem"),
    "utilisation": ("util", "%gpu", "dused"),
    "power": ("pwr", "power"),
    "temperature": ("temp",),
    "ecc": ("uncorr. ecc", "ecc-error"),
}
_MOST_DEVICES = 1024


def boxes(text: str) -> Iterator[Box | str]:
    """Return the boxes of a text, and the lines that are in none, in their order."""
    box: Box = []
    for line in plain_lines(text):
        short = line[:4096]
        border = _BORDER.fullmatch(short) is not None
        if "|" in short and not border:
            box.append([cell.strip() for cell in short.strip().removeprefix("|").removesuffix("|").split("|")])
            continue
        if box:
            yield box
            box = []
        if not border and short.strip():
            yield short.strip()
    if box:
        yield box


class _Header(msgspec.Struct, frozen=True):
    """Where values are: (line, cell) by what they are."""

    lines: int
    words: Box
    number: int
    """Cell of the first line that begins with the device's number."""
    name: int
    places: dict[str, tuple[int, int]]


_USUAL = _Header(
    2,
    [["GPU  Name", "Bus-Id", "ECC"], ["Fan  Temp  Perf  Pwr:Usage/Cap", "Memory-Usage", "GPU-Util"]],
    0,
    0,
    {"memory": (1, 1), "utilisation": (1, 2), "power": (1, 0), "temperature": (1, 0)},
)
"""For a text that begins below its header."""


def box_readings(text: str) -> Readings:
    """Return the devices of a table of boxes, with the processes that are listed below it."""
    devices: dict[int, Reading] = {}
    processes: dict[int, list[DeviceProcess]] = {}
    header: _Header | None = None
    seen = False
    pid_place: int | None = None
    for box in boxes(text):
        if isinstance(box, str):
            if box.lower().startswith("process"):
                header, seen = None, True
            continue
        if found := _header(box):
            header, seen, pid_place = found, True, None
            continue
        first = " ".join(box[0]).lower()
        place = next((p for line in box if (p := _pid_place(line)) is not None), None)
        if place is not None:
            header, seen, pid_place = None, True, place
            continue
        if pid_place is not None and len(box[0]) == 1:
            _add_processes(box, pid_place, processes)
            continue
        if len(box[0]) == 1 and (first.endswith(":") or "process" in first):
            header, seen, pid_place = None, True, None
            continue
        used = header or (None if seen else _USUAL)
        for part in _parts(box, used) if used else []:
            device = _device(part, used, named=header is not None) if used else None
            if device is not None and len(devices) < _MOST_DEVICES:
                devices.setdefault(device.index, device)
    listed = [msgspec.structs.replace(device, processes=processes.get(device.index)) for device in devices.values()]
    return Readings(devices=listed, driver=driver_version(text))


def _header(box: Box) -> _Header | None:
    """Return where a header's words say that values are; None if the box isn't a header."""
    flat = [[cell.lower() for cell in line] for line in box]
    named = [number for number, cell in enumerate(flat[0]) if "name" in cell.split()]
    if not named or whole(flat[0][0].split(" ")[0]) is not None:
        return None
    places: dict[str, tuple[int, int]] = {}
    for value, words in _VALUES.items():
        for word in words:
            for row, line in enumerate(flat):
                for column, cell in enumerate(line):
                    if word in cell and value not in places:
                        places[value] = (row, column)
    if not places:
        return None
    first_words = [(cell.split() or [""])[0] for cell in flat[0]]
    number = next((first_words.index(word) for word in _COUNTERS if word in first_words), 0)
    return _Header(len(box), box, number, named[0], places)


def _parts(box: Box, header: _Header) -> Iterator[Box]:
    """Return the devices of a box: one, or more where no border is between them."""
    if len(box) <= header.lines or len(box) % header.lines:
        yield box
        return
    for start in range(0, len(box), header.lines):
        yield box[start : start + header.lines]


def _device(box: Box, header: _Header, named: bool) -> Reading | None:
    """Return what a box says of a device, or None if it's not of one."""
    line = box[0]
    if max(header.name, header.number) >= len(line):
        return None
    words = line[header.number].split()
    index = whole(words[0]) if words else None
    joined = " | ".join(" | ".join(cells) for cells in box)
    bus = BUS_ID.search(joined[:4096])
    if index is None or (not named and (bus is None or len(box) < 2 or len(words) < 2)):
        return None
    name = _name(header.words[0][header.name], line[header.name], named)

    def cell(value: str) -> str:
        row, column = header.places.get(value, (-1, -1))
        return box[row][column] if 0 <= row < len(box) and column < len(box[row]) else ""

    memory = pair(cell("memory")) or (None, _total(cell("memory")))
    power, limit = power_and_limit(cell("power"))
    temperature = celsius_in(cell("temperature"))
    if temperature is None and "temperature" in header.places:
        row, column = header.places["temperature"]
        temperature = quantity(_same_place(header.words[row][column], cell("temperature"), "temp"), "C")
    ecc = cell("ecc").split()
    return checked(
        Reading(
            index=index,
            name=name,
            memory_used_mib=memory[0],
            memory_total_mib=memory[1],
            utilisation_pct=percent_in(cell("utilisation")),
            power_w=power,
            power_limit_w=limit,
            temperature_c=temperature,
            bus_id=bus[0] if bus else None,
            ecc_uncorrected=whole(ecc[-1], 10**9) if ecc else None,
        )
    )


def _total(cell: str) -> float | None:
    """Return a size that stands alone: where a table has but one, it's the total."""
    match = re.match(r"(\d[\d.]{0,14}\s*[KMGT]i?B)(?![\w/(])(?!\s*[/(])", cell)
    return quantity(match[1], "MiB") if match else None


def _name(header: str, cell: str, named: bool) -> str | None:
    """Return the name in a cell by the places of the words in its header: `GPU  Name  Persistence-M`."""
    words, parts, tokens = _split(header), _split(cell), cell.split()
    place = next((number for number, word in enumerate(words) if word.lower() == "name"), None)
    if place is None:
        words = header.split()
        place = next(number for number, word in enumerate(words) if word.lower() == "name")
    if len(parts) in (len(words), place + 1) or (not named and len(parts) > place):
        found = parts[place]
    else:
        found = " ".join(tokens[place : len(tokens) - (len(words) - place - 1)])
    return found[:200] if found.strip("-./ ") and found.upper() not in ("N/A", "NA", "[N/A]") else None


def _same_place(header: str, cell: str, word: str) -> str | None:
    """Return what stands in a cell where a word stands in its header: first, or both having as many parts."""
    words, parts = header.lower().split(), _split(cell)
    place = next((number for number, each in enumerate(words) if word in each), None)
    return parts[place] if place is not None and (place == 0 or len(parts) == len(words)) else None


def _split(cell: str) -> list[str]:
    return re.split(r"\s{2,}", cell.strip())


def _pid_place(line: list[str]) -> int | None:
    """Return which word of a header of processes is the process number."""
    words = line[0].lower().split() if len(line) == 1 else []
    return words.index("pid") if "pid" in words else None


def _add_processes(box: Box, place: int, processes: dict[int, list[DeviceProcess]]) -> None:
    """Add the processes of a box whose lines have the number of the process at a place."""
    for line in box:
        words = line[0].split()
        index = whole(words[0]) if words else None
        pid = whole(words[place], 2**31) if len(words) > place else None
        if index is None or pid is None or len(processes) >= _MOST_DEVICES:
            continue
        rest = words[place + 1 :]
        if rest and re.fullmatch(r"[CG](?:\+[CG])?", rest[0], re.IGNORECASE):
            rest = rest[1:]
        memory = quantity(rest[-1], "MiB", "mib") if rest else None
        name = " ".join(rest[:-1] if len(rest) > 1 else rest)[:200]
        processes.setdefault(index, []).append(DeviceProcess(pid=pid, name=name or None, memory_mib=memory))
