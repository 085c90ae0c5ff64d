"""`flagperf vendor new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagperf.cli import common


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The vendor's name: lower-case letters, digits, hyphens.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put the folder.")] = Path(),
    json: common.JSON = False,
) -> None:
    """Write an adapter's folder for a new vendor, and say which parts are to be filled in.

    Example: flagperf vendor new mychip --out adapters --json
    """
    from rich.markup import escape

    from flagperf.conformance.marks import marks
    from flagperf.conformance.template import write_adapter
    from flagperf.errors import UsageError
    from flagperf.schema.conformance import VendorNewOutput

    try:
        folder = write_adapter(name, out, common.registries())
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error.strerror}.", "Choose another place: --out") from error
    left = marks(folder)
    if json:
        common.print_json(VendorNewOutput(vendor=name, path=str(folder), to_fill_in=left))
        return
    console = common.out()
    console.print(f"{escape(str(folder))} is there. To fill in:\n", soft_wrap=True)
    for mark in left:
        console.print(
            f"  {escape(f'{mark.file}:{mark.line}')} [bold]{mark.part}[/]: {escape(mark.text)}", soft_wrap=True
        )
    console.print("\nDelete each mark when its part is filled in. Then, or at any time:")
    console.print(f"  flagperf vendor check {name} --vendor-path {escape(str(folder))}", soft_wrap=True)
