"""`flagperf vendor parse`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.schema.reading import Readings

_MOST_BYTES = 64 * 2**20


def parse(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The vendor: `flagperf list vendors`.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What its tool printed; - for standard input.")],
    command: Annotated[
        str, typer.Option(help="The command line that printed it. A list without a header is read by it.")
    ] = "",
    vendor_path: common.VENDOR_PATH = None,
    json: common.JSON = False,
) -> None:
    """Tell the devices in what a vendor's tool printed, on any machine; null is what the text doesn't say.

    Example: flagperf vendor parse ascend npu-smi.log --json
    """
    from flagperf.parsing.text import decode

    said = common.registries().vendors.adapter(name).parse(decode(_read(file)), command)
    if json:
        from flagperf.schema.output import ParsedDevice, VendorParseOutput

        devices = [
            ParsedDevice(**{field: getattr(device, field) for field in ParsedDevice.__struct_fields__})
            for device in said.devices
        ]
        common.print_json(VendorParseOutput(devices=devices, error=said.error))
        return
    _print(said)


def _read(file: Path) -> bytes:
    """Return a file's bytes; raise UsageError for one that can't be read or is no tool's output by its size."""
    from flagperf.errors import UsageError

    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror or error}.", "Name a file, or - for stdin.") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{file} has more than {_MOST_BYTES // 2**20} MiB.", "Give the output of one command.")
    return data


def _print(said: Readings) -> None:
    """Print a table for a person."""
    from rich.markup import escape
    from rich.table import Table

    columns = {
        "index": "index", "name": "name", "memory_total_mib": "memory MiB", "memory_used_mib": "used MiB",
        "utilisation_pct": "busy %", "power_w": "W", "temperature_c": "°C", "faulty": "faulty",
    }  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for field, title in columns.items():
        table.add_column(title, justify="left" if field in ("name", "faulty") else "right")
    for device in said.devices:
        values = [getattr(device, field) for field in columns]
        table.add_row(*(_cell(value) for value in values))
    out = common.out()
    if said.devices:
        out.print(table)
    else:
        out.print("No device in this text.")
    if said.driver:
        out.print(f"driver {escape(said.driver)}")
    if said.error:
        out.print(f"error: {escape(said.error)}", soft_wrap=True)


def _cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "–"
    return f"{value:,.10g}" if isinstance(value, float) else escape(str(value))
