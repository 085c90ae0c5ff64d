"""The parser: right on the vendor's own samples, quiet on anything else, and never a number that isn't in the text."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flagperf.conformance.check import Problems, check
from flagperf.conformance.kit import Kit, Sample
from flagperf.schema.reading import Reading, Readings
from flagperf.vendor import Vendor

_LIMIT = 5.0
"""Seconds of CPU time for one text."""
_FIELDS = ("memory_total_mib", "memory_used_mib", "utilisation_pct", "power_w", "temperature_c")
_SIZES = (1.0, 2**10, 2**20, 1e3, 1e6, 2**20 / 1e6, 2**30 / 1e9)
"""Between what a tool may print a size in and MiB."""
_PARTS = (1.0, 1e3, 1e6)
"""Milliwatts and microwatts, thousandths of a degree."""
_MORE_LINES = 3000

_HOSTILE: dict[str, str] = {
    "empty": "",
    "blanks": " \t\r\n" * 500,
    "binary": "".join(map(chr, range(256))) * 40,
    "long line": "a1 " * 200_000,
    "many lines": "x | 1 | 2 |\n" * 20_000,
    "borders": "+-----+=====+|||||\n" * 5_000,
    "brackets": "[{" * 50_000,
    "xml": "<a>" * 20_000 + "&x;",
    "numbers": " ".join(str(10**n) for n in range(0, 400, 7)) + " 1e999 -0 NaN inf 0x10 ١٢٣",
    "quotes": "\"'`," * 20_000,
    "error": "Failed to initialize: Driver/library version mismatch\n",
    "not found": "sh: 1: tool: not found\n",
}


@check(
    "Without the values that are right nobody can tell a parser that reads wrong ones.",
    'Put beside samples/NAME.txt a NAME.json: {"command": …, "devices": [{…}], "error": …}; read it off by eye.',
    part="samples",
)
def test_samples_have_expected_values(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        if sample.problem:
            yield sample.problem


@check(
    "These values go into results, and a wrong one looks like any other.",
    "Mend the parser; `flagperf vendor parse NAME FILE` shows what it reads.",
    part="parser",
)
def test_reads_samples_right(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        if sample.expected is not None:
            for wrong in _differences(sample.expected, kit.parse(sample)):
                yield f"{sample.path.name}: {wrong}"


@check(
    "A number that the tool didn't print is made up, and no one will notice.",
    "Leave unknown what the text doesn't say; don't compute it, and don't put 0 for it.",
    part="parser",
)
def test_invents_no_number(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        for wrong in _invented(sample.text, kit.parse(sample)):
            yield f"{sample.path.name}: {wrong}"


@check(
    "A tool is killed when it takes too long, and a log is cut by whoever copies it.",
    "Take what is whole and leave the rest; never raise.",
    part="parser",
)
def test_takes_a_text_cut_anywhere(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        step = max(1, len(sample.text) // 40)
        for end in range(0, len(sample.text), step):
            said = _bounded(kit, sample.text[:end], sample.command)
            for wrong in said if isinstance(said, list) else _invented(sample.text[:end], said):
                yield f"{sample.path.name} cut at {end}: {wrong}"
                break


@check(
    "The same log comes with the line ends of the machine it went through, and between other lines of a console.",
    "Split lines by `flagperf.parsing.text.plain_lines`.",
    part="parser",
)
@pytest.mark.parametrize("how", ["crlf", "trailing blanks", "a prompt before", "a byte order mark"])
def test_reads_a_copied_sample_alike(kit: Kit, how: str) -> Problems:
    for sample in kit.needed_samples():
        said, copied = kit.parse(sample), kit.accelerator.parse(_copied(sample, how), sample.command)
        if [each.known() for each in said.devices] != [each.known() for each in copied.devices]:
            yield f"{sample.path.name}: {len(said.devices)} devices, {len(copied.devices)} of the copy, or other values"


@check(
    "A tool's output is foreign text: a parser that raises or hangs on it takes telemetry down with it.",
    "Return `Readings()` with what can't be read left unknown; bound each loop and each regular expression.",
    part="parser",
)
@pytest.mark.parametrize("kind", list(_HOSTILE))
def test_bears_any_text(kit: Kit, kind: str) -> Problems:
    said = _bounded(kit, _HOSTILE[kind], "")
    if isinstance(said, list):
        yield from said
        return
    yield from _invented(_HOSTILE[kind], said)
    if said.devices and kind not in ("numbers", "many lines"):
        yield f"it sees {len(said.devices)} devices in it"


@check(
    "Half of a table may be of another firmware, and another tool's table is sometimes put in by mistake.",
    "Look each name up where it stands; don't count on a number of lines.",
    part="parser",
)
@pytest.mark.parametrize("how", ["backwards", "doubled", "every other line", "digits gone", "very many"])
def test_bears_a_mangled_sample(kit: Kit, how: str) -> Problems:
    for sample in kit.needed_samples():
        text = _mangled(sample.text, how)
        said = _bounded(kit, text, sample.command)
        for wrong in said if isinstance(said, list) else _invented(text, said):
            yield f"{sample.path.name}: {wrong}"
            break


@check(
    "A share of more than the whole, or a memory fuller than full, is a number from the wrong column.",
    "Look at the columns: percent 0 … 100, used at most total, °C below 200.",
    part="parser",
)
def test_values_are_plausible(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        for device in kit.parse(sample).devices:
            where = f"{sample.path.name}, device {device.index}"
            if device.utilisation_pct is not None and not 0 <= device.utilisation_pct <= 100:
                yield f"{where}: busy {device.utilisation_pct} %"
            if device.temperature_c is not None and not -50 <= device.temperature_c <= 200:
                yield f"{where}: {device.temperature_c} °C"
            if device.power_w is not None and not 0 <= device.power_w <= 10_000:
                yield f"{where}: {device.power_w} W"
            used, total = device.memory_used_mib, device.memory_total_mib
            if used is not None and total is not None and not 0 <= used <= total * 1.01:
                yield f"{where}: {used} of {total} MiB used"


@check(
    "A second device of the same index hides the first.",
    "Give each device of a text an index of its own.",
    part="parser",
)
def test_indices_of_a_sample_are_unique(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        indices = [device.index for device in kit.parse(sample).devices]
        if len(indices) != len(set(indices)) or any(index < 0 for index in indices):
            yield f"{sample.path.name}: {indices}"


@check(
    "A parser that remembers shows yesterday's value as today's.",
    "Keep nothing between two calls.",
    part="parser",
)
def test_remembers_nothing(kit: Kit) -> Problems:
    for sample in kit.needed_samples():
        first = kit.parse(sample)
        kit.accelerator.parse("", "")
        if kit.parse(sample) != first:
            yield f"{sample.path.name} is read differently the second time"


def _differences(expected: dict[str, Any], said: Readings) -> Problems:
    wanted = {device.get("index", place): device for place, device in enumerate(expected["devices"])}
    got = {device.index: device for device in said.devices}
    if list(wanted) != list(got):
        yield f"devices {list(wanted)} are expected, {list(got)} are read"
    for index in wanted.keys() & got.keys():
        for field, value in wanted[index].items():
            read = getattr(got[index], field, got[index].facts.get(field))
            same = value == read
            if isinstance(value, int | float) and isinstance(read, int | float):
                same = math.isclose(value, read, rel_tol=1e-3, abs_tol=0.01)
            if not same:
                yield f"device {index}, {field}: {value!r} is expected, {read!r} is read"
    if "error" in expected and bool(expected["error"]) != bool(said.error):
        yield f"error {expected['error']!r} is expected, {said.error!r} is read"


def _invented(text: str, said: Readings) -> Problems:
    """Yield the values of the main fields that the text doesn't have, in any unit that a tool might print."""
    numbers = {float(match[0].replace(",", "")) for match in re.finditer(r"\d[\d,]*(?:\.\d{1,12})?", text[:2_000_000])}
    hexadecimal = {float(int(match[0], 16)) for match in re.finditer(r"0x[0-9a-fA-F]{1,12}", text[:2_000_000])}
    for device in said.devices[:_MORE_LINES]:
        for field in _FIELDS:
            value = getattr(device, field)
            if value is None:
                continue
            if not math.isfinite(value):
                yield f"device {device.index}: {field} is {value}"
            elif not _is_in(field, value, device, numbers | hexadecimal):
                yield f"device {device.index}: {field} is {value:g}, which isn't in the text"


def _is_in(field: str, value: float, device: Reading, numbers: set[float]) -> bool:
    if not field.startswith("memory"):
        return any(math.isclose(abs(value) * part, number, abs_tol=0.006) for part in _PARTS for number in numbers)
    candidates = [value]
    if device.memory_total_mib and device.memory_used_mib is not None:
        candidates.append(device.memory_total_mib - device.memory_used_mib)  # what is free was printed
        candidates.append(device.memory_used_mib / device.memory_total_mib * 100)  # a share was
    return any(
        math.isclose(candidate * unit, number, rel_tol=6e-3, abs_tol=0.006) or math.isclose(candidate, number * unit)
        for candidate in candidates
        for unit in _SIZES
        for number in numbers
    )


def _copied(sample: Sample, how: str) -> str:
    text = sample.text
    if how == "crlf":
        return text.replace("\r\n", "\n").replace("\n", "\r\n")
    if how == "trailing blanks":
        return "\n".join(line + "  " for line in text.splitlines()) + "\n"
    if how == "a byte order mark":
        return "\ufeff" + text
    return f"[root@node ~]# {sample.command}\n{text}"


def _mangled(text: str, how: str) -> str:
    lines = text.splitlines()
    return {
        "backwards": "\n".join(reversed(lines)),
        "doubled": text + "\n" + text,
        "every other line": "\n".join(lines[::2]),
        "digits gone": re.sub(r"\d", "", text),
        "very many": "\n".join(lines * max(1, _MORE_LINES // max(1, len(lines)))),
    }[how]


def _bounded(kit: Kit, text: str, command: str) -> Readings | list[str]:
    """Parse within a limit of CPU time; return what went wrong where something did."""
    if type(kit.accelerator).parse is Vendor.parse:
        pytest.skip("needs a parser; this adapter reads a library alone")
    try:
        with _limited():
            said: object = kit.accelerator.parse(text, command)
    except TimeoutError:
        return [f"no end within {_LIMIT:g} s of CPU time"]
    except Exception as error:  # whatever a parser raises is what is looked for
        return [f"it raises {type(error).__name__}: {str(error)[:200]}"]
    if not isinstance(said, Readings):
        return [f"it returns {type(said).__name__}"]
    return said


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TimeoutError once this process has computed for too long; a busy machine doesn't count."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, _LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
