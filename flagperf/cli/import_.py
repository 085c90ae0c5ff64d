"""`flagperf import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flagperf.cli import common


def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSON that pytest-benchmark wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; must be new or empty.", show_default="runs/<id>")
    ] = None,
    json: common.JSON = False,
) -> None:
    """Make a run of what pytest-benchmark measured; files with the same benchmarks are repetitions of them.

    Example: flagperf import .benchmarks/*/0001_*.json --out runs/imported
    """
    import sys
    from datetime import UTC, datetime

    from flagperf import __version__
    from flagperf import run as running
    from flagperf.collect.contest import compared
    from flagperf.collect.pytest_benchmark import read_files, write_run
    from flagperf.collect.store import Store
    from flagperf.errors import FlagPerfError
    from flagperf.schema.result import RunOutput
    from flagperf.schema.trial import Nodes, Run

    parts = read_files(files)
    now = datetime.now(UTC)
    run = Run(
        id=f"{now:%Y%m%d-%H%M%S}-imported",
        created=now.isoformat(timespec="seconds"),
        command=list(sys.argv),
        flagperf=__version__,
        commit=None,
        launcher="pytest-benchmark",
        trials=[part.trial for part in parts],
        baseline=parts[0].trial.providers[0],
    )
    folder = running.new_folder(out, run, Nodes())
    try:
        write_run(folder, run, parts)
    except OSError as error:
        raise FlagPerfError(f"Can't write to {folder}: {error.strerror}.", "Choose another folder: --out") from error
    store = Store([folder])
    results = store.results()
    comparisons = compared(run, results, store.curves())
    if json:
        common.print_json(RunOutput(run=str(folder), results=results, comparisons=comparisons))
    else:
        from flagperf.cli import tables
        from flagperf.cli.points import print_sweeps

        tables.print_results(results)
        tables.print_comparisons(comparisons)
        print_sweeps(results, str(folder))
        common.err().print(f"Run: {folder}", soft_wrap=True)
    if any(result.verdict == "invalid" for result in results):
        common.err().print("Not all of it is valid: `flagperf results` says why.")
        raise typer.Exit(1)
