"""The command line: one file a command, each parses, calls, and prints.

Only typer is imported here; commands import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors become a message and an exit status."""
    from flagperf.cli.app import run_app

    sys.exit(run_app())
