"""`flagperf vendor`: what a chip maker, or who supports one, needs; a file a command."""

from __future__ import annotations

import typer

from flagperf.cli.vendor.check import check
from flagperf.cli.vendor.parse import parse

app = typer.Typer(help="Chip makers' adapters: check one, parse what its tool prints.", no_args_is_help=True)
app.command()(check)
app.command()(parse)
