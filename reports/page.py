"""One self-contained page about one or more runs: verdict, numbers, charts, environment, rules, how to repeat it."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from flagperf._version import __version__
from flagperf.errors import FlagPerfError, UsageError
from flagperf.metrics import catalogue
from flagperf.schema import SCHEMA_VERSION

from . import contest, environment, points, rules, scaling, serving, serving_charts, sweeps, tables
from .bundle import bundle
from .charts import DASHES, MOST_TRIALS, Chart, charts
from .data import Group, Progress, RunView, load
from .numbers import exact
from .panels import Figure
from .sweep_charts import figures
from .texts import LANGUAGES, Both, coded, same, text, texts, title
from .words import Verdict, verdicts

COLOURS = 8
"""Colours of engines in page.css; more engines than that go round, told apart by their dashes."""


def write(runs: Sequence[Path], output: Path, *, language: str = "auto", progress: Progress | None = None) -> None:
    """Write the report of these run directories to one HTML file, whole or not at all.

    `language` is the one it opens in: `en`, `zh`, or `auto` for the browser's. `progress(stage, share)` is told how far
    it is. Raises FlagPerfError for a folder that is no run, or a file that can't be written.
    """
    if language not in ("auto", *LANGUAGES):
        raise UsageError(f"A report opens in en, zh or auto, not in {language!r}.")
    if not runs:
        raise UsageError("A report needs at least one run.", "Name a run's folder: flagperf report runs/NAME")
    views = []
    for index, folder in enumerate(dict.fromkeys(Path(run) for run in runs)):
        views.append(load(folder, index, progress))
    if progress is not None:
        progress("writing the page", None)
    _save(output, render(views, language=language))


def render(runs: Sequence[RunView], *, language: str = "auto", now: datetime | None = None) -> str:
    """Return the page's HTML."""
    groups = [group for run in runs for group in run.groups]
    arms = list(dict.fromkeys(arm for group in groups for arm in group.arms))
    drawn = {group.id: charts(group, arms) for group in groups}
    swept = {group.id: _figures(group, arms) for group in groups}
    scripts = {"vega": Markup(bundle()), "page": Markup(_resource("page.js"))}
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=_title(groups),
            language=language,
            runs=runs,
            groups=groups,
            verdicts={group.id: [(v, tables.plot(v.plotted)) for v in _verdicts(group)] for group in groups},
            contests={group.id: contest.shown(group) for group in groups},
            surveys={run.folder: scaling.shown(run) for run in runs},
            servings={group.id: serving.shown(group) for group in groups},
            blocks={group.id: tables.blocks(group) for group in groups},
            trials={group.id: tables.trial_table(group) for group in groups},
            remarks={group.id: tables.remarks(group) for group in groups},
            glossary=_glossary(groups),
            points={g.id: points.table(view) for g in groups if (view := g.sweep or g.clients)},
            everything={g.id: points.everything(view) for g in groups if (view := g.sweep or g.clients)},
            charts=drawn,
            figures=swept,
            most_trials=MOST_TRIALS,
            machines={run.folder: environment.machine(run) for run in runs},
            costs={run.folder: environment.costs(run) for run in runs},
            rules={group.id: _rules(group, run.groups[0] is group) for run in runs for group in run.groups},
            repeats={run.folder: rules.repeat(run) for run in runs},
            colour={arm: index % COLOURS for index, arm in enumerate(arms)},
            dashes={arm: DASHES[index % len(DASHES)] for index, arm in enumerate(arms)},
            data=script_json(_data(runs)),
            drawing=script_json(_drawing(drawn, swept)),
            style=Markup(_resource("page.css")),
            scripts=scripts,
            hashes=" ".join(_hash(script) for script in scripts.values()),
            version=__version__,
            schema=SCHEMA_VERSION,
            generated=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        )
    )


def _figures(group: Group, arms: Sequence[str]) -> list[Figure]:
    if group.first.scenario:
        return serving_charts.figures(group, arms)
    return figures(group, group.sweep, arms) if group.sweep else []


def _rules(group: Group, first: bool) -> list[rules.Rule]:
    if group.first.scenario:
        return serving.rules(group, first=first)
    return sweeps.rules(group, group.sweep) if group.sweep else rules.rules(group)


def _verdicts(group: Group) -> list[Verdict]:
    if group.sweep is not None:
        return sweeps.cards(group, group.sweep)
    if group.run.survey is not None and len(group.arms) < 2:
        return []  # its points are related to each other in a section of their own
    return verdicts(group) if group.contest is None else contest.cards(group, group.contest)


def _title(groups: Sequence[Group]) -> Both:
    cases = list(dict.fromkeys(f"{group.first.case} · {group.first.preset}" for group in groups))
    if not cases:
        return text("page.title")
    if len(groups) == 1 and groups[0].contest is not None:
        return contest.contest_title(groups[0].contest)
    return same(cases[0] if len(cases) == 1 else f"{cases[0]} + {len(cases) - 1}")


def _glossary(groups: Sequence[Group]) -> list[tuple[Both, Both]]:
    return list(dict.fromkeys(entry for group in groups for entry in tables.glossary(group)))


def _data(runs: Sequence[RunView]) -> dict[str, Any]:
    """Return all that the tables show, for programs."""
    return {
        "flagperf": __version__,
        "schema": SCHEMA_VERSION,
        "runs": [run.run for run in runs],
        "results": [
            view.result
            for run in runs
            for group in run.groups
            for view in (*(group.contest.searched if group.contest else ()), *group.trials)
        ],
        "comparisons": [
            {"run": run.run.id, **msgspec.to_builtins(comparison)}
            for run in runs
            for group in run.groups
            for comparison in (group.contest.answers if group.contest else group.comparisons)
        ],
        "contests": [
            {"run": run.run.id, **msgspec.to_builtins(group.contest.output)}
            for run in runs
            for group in run.groups
            if group.contest is not None
        ],
        "environments": [run.harness.environments for run in runs],
    }


def _drawing(drawn: dict[str, list[Chart]], swept: dict[str, list[Figure]]) -> dict[str, Any]:
    """Return what the page's script needs to draw the charts, and the panels of figures."""
    words = {key: both for key, both in texts().items() if key.startswith(("axis.", "serving.axis_"))}
    panels = [panel for several in swept.values() for figure in several for panel in figure.panels]
    if panels:
        words |= {f"metric.{name}": title(name) for name in catalogue()}
    return {
        "charts": [
            {
                "id": chart.id,
                "spec": chart.spec,
                "data": chart.data,
                "alt": chart.alt,
                "title": chart.title,
            }
            for several in (panels, *drawn.values())
            for chart in several
        ],
        "texts": {language: {key: getattr(both, language) for key, both in words.items()} for language in LANGUAGES},
        "copied": text("repeat.copied"),
    }


_UNSAFE = re.compile(rb"[<>&]|\xe2\x80[\xa8\xa9]")


def script_json(value: Any) -> Markup:
    """Return JSON that is harmless inside a script element, whatever strings it holds; NaN becomes null."""
    encoded = msgspec.json.encode(value)
    safe = _UNSAFE.sub(lambda match: b"\\u%04x" % ord(match.group().decode()), encoded)
    return Markup(safe.decode())


def _hash(script: str) -> str:
    """Return a script's source expression for the Content-Security-Policy: only scripts of this program then run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _environment() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["t"] = text
    templates.filters["exact"] = exact
    templates.filters["coded"] = coded
    return templates


def _save(output: Path, html: str) -> None:
    temporary: str | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(html)
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(output)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FlagPerfError(f"Can't write {output}: {error.strerror}.", "Choose another file with -o.") from error
