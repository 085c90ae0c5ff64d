"""`flagperf compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.schema.result import Comparison, Result


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="One run, or several.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE|RUN",
            help="Engine, ENGINE:LAYOUT, or provider of a sweep that the others are compared with; or one of the runs.",
            show_default="of one run its own; of several the first run",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metrics to compare; may be repeated.", show_default="the main ones"),
    ] = None,
    json: common.JSON = False,
) -> None:
    """Say which engine, provider or run is better: the ratio with its 95 % interval, and a verdict, for each metric.

    Example: flagperf compare runs/20260101-120000-aquila-pretrain-tiny --baseline ddp
    """
    from flagperf.collect import compare as comparing
    from flagperf.collect import points
    from flagperf.collect.clients import compare_clients
    from flagperf.collect.contest import answers
    from flagperf.collect.runs import find_runs, read_run
    from flagperf.collect.store import Store

    folders = find_runs(runs)
    results = {folder: Store([folder]).results() for folder in folders}
    curves = Store(folders).curves()
    everything = [result for found in results.values() for result in found]
    reference = _reference(folders, results, baseline)
    comparisons: list[Comparison] = []
    run = read_run(folders[0])
    if reference is None and baseline is None and run.contest is not None:
        comparisons = answers(run, everything, run.contest, curves, metric)
    elif reference is None:
        comparisons = points.compare_providers(results, baseline)
        whole = [result for result in everything if not result.swept]
        if whole and not (baseline and comparisons):
            comparisons += comparing.compare(whole, baseline or run.baseline, metric, curves=curves)
            comparisons += compare_clients(whole, baseline or run.baseline, metric)
    else:
        for folder in folders:
            if folder != reference:
                found = points.compare_sweeps(results[folder], results[reference], metric)
                whole = [result for result in results[folder] if not result.swept]
                if whole or not found:
                    found = comparing.compare_runs(whole, results[reference], metric, curves=curves) + found
                comparisons += found
    if json:
        common.print_json({"comparisons": comparisons})
    else:
        _show(comparisons)
    if any(result.verdict == "invalid" for result in everything if result.purpose == "measure"):
        common.err().print("Invalid trials were left out: `flagperf results` says why they are.")
        raise typer.Exit(1)


def _reference(folders: list[Path], results: dict[Path, list[Result]], baseline: str | None) -> Path | None:
    """Return the run that the others are compared with; None if it is an engine that is."""
    if baseline is None:
        return folders[0] if len(folders) > 1 else None
    for folder, found in results.items():
        names = {str(folder), folder.name, *(result.run for result in found)}
        if len(folders) > 1 and (baseline in names or Path(baseline).resolve() == folder.resolve()):
            return folder
    return None


def _show(comparisons: list[Comparison]) -> None:
    from itertools import groupby

    from flagperf.cli import tables
    from flagperf.cli.points import print_compared

    if not comparisons:
        common.out().print("There is only the baseline; nothing to compare it with.")
    ordered = sorted(comparisons, key=lambda row: (row.case, row.preset))
    for (case, preset), rows in groupby(ordered, key=lambda row: (row.case, row.preset)):
        common.out().print(f"{case} {preset}", markup=False)
        told = list(rows)
        tables.print_comparisons(told)
        print_compared(told)
