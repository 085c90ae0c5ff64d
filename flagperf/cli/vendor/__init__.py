"""`flagperf vendor`: what a chip maker, or who supports one, needs; a file a command."""

from __future__ import annotations

import typer

from flagperf.cli.vendor.check import check
from flagperf.cli.vendor.explain import explain
from flagperf.cli.vendor.new import new
from flagperf.cli.vendor.parse import parse

app = typer.Typer(
    help="Chip makers' adapters: begin, check and explain one; parse what its tool prints.", no_args_is_help=True
)
app.command()(new)
app.command()(check)
app.command()(explain)
app.command()(parse)
