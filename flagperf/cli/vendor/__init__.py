"""`flagperf vendor`: what a chip maker, or who supports one, needs; a file a command."""

from __future__ import annotations

import typer

from flagperf.cli.vendor.parse import parse

app = typer.Typer(help="Chip makers' adapters: parse what their tools print.", no_args_is_help=True)
app.command()(parse)
