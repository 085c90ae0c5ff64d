"""`flagperf vendor check`."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flagperf.conformance.runner import Progress
    from flagperf.schema.conformance import ConformanceOutput, Status

_COLOURS: dict[Status, str] = {"passed": "green", "failed": "red", "skipped": "dim", "to fill in": "yellow"}
_QUIET = 2.0
"""Seconds before progress is shown."""


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The vendor: `flagperf list vendors`.")],
    vendor_path: common.VENDOR_PATH = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Make only the checks of this group; may be repeated.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit's XML as well.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show what passed, too.")] = False,
    json: common.JSON = False,
) -> None:
    """Check an adapter: its manifest, detection, parser and README, and where there is a device that as well.

    Exit status 1 if a check failed or something is left to fill in. Checks that need a device are skipped without one.

    Example: flagperf vendor check cpu --json
    """
    from flagperf.errors import Unavailable, UnknownName

    try:
        from flagperf.conformance.runner import known_groups, run_checks
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise Unavailable(
            "The checks run under pytest, which isn't installed.", "Get it: pip install 'flagperf[conformance]'"
        ) from error
    for wanted in group or []:
        if wanted not in known_groups():
            raise UnknownName("group of checks", wanted, known_groups())
    with _progress() as progress:
        found = run_checks(name, common.plugins(), group or [], junit.resolve() if junit else None, progress)
    if json:
        common.print_json(found)
    else:
        _print(found, every)
    if not found.conforms:
        raise typer.Exit(1)


def _print(found: ConformanceOutput, every: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = common.out()
    groups = Table(box=None, pad_edge=False, title=escape(f"{found.vendor} in {found.path}"), title_justify="left")
    for column in ("group", *_COLOURS):
        groups.add_column(column, justify="left" if column == "group" else "right")
    names = dict.fromkeys(check.name.partition(".")[0] for check in found.checks)
    for name in names:
        own = [check.status for check in found.checks if check.name.partition(".")[0] == name]
        cells = ((colour, sum(each == status for each in own)) for status, colour in _COLOURS.items())
        groups.add_row(name, *(f"[{colour}]{count}[/]" if count else "–" for colour, count in cells))
    out.print(groups)
    for check in found.checks:
        if (check.status == "passed" and not every) or check.status == "skipped":
            continue
        out.print(f"\n[{_COLOURS[check.status]}]{check.status}[/] [bold]{escape(check.name)}[/]", soft_wrap=True)
        for problem in check.problems:
            out.print(f"  {escape(problem)}", soft_wrap=True)
        out.print(f"  [dim]why: {escape(check.why)}[/]", soft_wrap=True)
        if check.status != "passed":
            out.print(f"  fix: {escape(check.fix)}", soft_wrap=True)
    needs: dict[str, list[str]] = {}
    for check in found.checks:
        if check.status == "skipped":
            needs.setdefault(check.problems[0], []).append(check.name.partition("[")[0])
    if needs:
        out.print("\nSkipped:")
    for need, skipped in needs.items():
        kinds = list(dict.fromkeys(skipped))
        shown = ", ".join(kinds if every else [*kinds[:4], *(["…"] if len(kinds) > 4 else [])])
        out.print(f"  [dim]{len(skipped)} {escape(need)}: {escape(shown)}[/]", soft_wrap=True)
    told = ", ".join(f"{found.counts.get(status, 0)} {status}" for status in _COLOURS)
    verdict = "[green]conforms[/], as far as it could be tried" if found.conforms else "[red]doesn't conform[/]"
    out.print(f"\n{escape(found.vendor)} {verdict}: {told}.")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show on stderr which check is made, once it takes long enough for somebody to wonder."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    began = time.monotonic()
    with Bar(
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")),
        console=common.err(),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not common.err().is_terminal,
    ) as bar:
        task = bar.add_task("", visible=False)

        def progress(name: str, done: int, total: int) -> None:
            shown = time.monotonic() - began > _QUIET
            bar.update(task, description=name, completed=done, total=total, visible=shown)

        yield progress
