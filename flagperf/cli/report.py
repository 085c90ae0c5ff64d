"""`flagperf report`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flagperf.cli import common


class Language(StrEnum):
    """The language a report opens in; both are always in it."""

    auto = "auto"
    en = "en"
    zh = "zh"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path(
        "report.html"
    ),
    language: Annotated[Language, typer.Option(help="Language it opens in; auto is the browser's.")] = Language.auto,
    json: common.JSON = False,
) -> None:
    """Write one self-contained HTML page about one or more runs.

    Example: flagperf report runs/* -o report.html
    """
    import importlib

    from flagperf.errors import FlagPerfError

    page = importlib.import_module("flagperf.reports.page")
    try:
        page.write(runs, output, language=language.value)
    except OSError as error:
        raise FlagPerfError(f"Can't write {output}: {error.strerror}.", "Choose another file with -o.") from error
    if json:
        common.print_json({"report": str(output), "runs": [str(folder) for folder in runs]})
    else:
        common.err().print(f"Report: {output}", soft_wrap=True)
