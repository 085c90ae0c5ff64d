"""The usual parser: for makers whose tool has a table of boxes, queries as CSV or JSON, `-L` and `-q`."""

from __future__ import annotations

from collections.abc import Iterator

from flagperf.parsing.boxes import box_readings
from flagperf.parsing.fields import USUAL, Names, first_with_devices, is_name, readings
from flagperf.parsing.records import csv_records, json_record, list_records, load_json, objects, section_records
from flagperf.parsing.text import driver_version
from flagperf.schema.reading import Readings

SECTION = r"[A-Z]{3,6}(?: ID)?[ :\[]{1,4}((?:[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])|\d{1,4})\]?\s*$"
"""Begins a device in what `-q` prints: `GPU 00000000:01:00.0`, `DEV ID 0`, `GPU: 0`."""


def smi_readings(text: str, command: str = "", names: Names = USUAL, section: str = SECTION) -> Readings:
    """Return the devices of a table of boxes, of CSV, of JSON, of `-L` or of `-q`, whichever the text is."""
    return first_with_devices(text, _layouts(text, command, names, section))


def _layouts(text: str, command: str, names: Names, section: str) -> Iterator[Readings]:
    known, driver = is_name(names).__contains__, driver_version(text)
    loaded = load_json(text)
    if loaded is not None:
        records = [json_record(one) for one in objects(loaded, "gpu", "gpus", "devices", "device_list")]
        yield readings([record for record in records if any(map(known, record))], names, driver)
    yield box_readings(text)
    yield readings(csv_records(text, known, command), names, driver)
    yield readings(list_records(text), names, driver)
    yield readings(section_records(text, section), names, driver)
