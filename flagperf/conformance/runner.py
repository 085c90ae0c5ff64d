"""Runs the checks of an adapter under pytest, apart from any configuration of pytest that is around."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from flagperf import __version__
from flagperf.conformance import plugin
from flagperf.conformance.kit import Kit
from flagperf.errors import FlagPerfError
from flagperf.schema.conformance import CheckResult, ConformanceOutput, Status

Progress = Callable[[str, int, int], None]
"""Told the check that is made, how many are done, and of how many."""


class _Recorder:
    def __init__(self, progress: Progress) -> None:
        self.checks: list[CheckResult] = []
        self._progress, self._total = progress, 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._progress(str(dict(item.user_properties).get("check")), len(self.checks), self._total)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a check came to; setting up and tearing down count only if they fail."""
        if report.when != "call" and report.outcome == "passed":
            return
        told = {str(key): str(value) for key, value in report.user_properties}
        status: Status = "passed"
        problems: list[str] = []
        if report.skipped:
            status = "skipped"
            where = report.longrepr
            problems = [(where[2] if isinstance(where, tuple) else str(where)).removeprefix("Skipped: ")]
        elif report.failed:
            status = "to fill in" if "to fill in" in told else "failed"
            problems = report.longreprtext.splitlines()
            if status == "to fill in" and told["to fill in"].count(",") < 2:
                problems.append(f"still to fill in: {told['to fill in']}")
        self.checks.append(
            CheckResult(
                name=told["check"],
                status=status,
                why=told["why"],
                fix=told["fix"],
                problems=problems,
                seconds=round(report.duration, 3),
            )
        )


def run_checks(
    name: str,
    folders: list[Path],
    groups: Sequence[str] = (),
    junit: Path | None = None,
    progress: Progress | None = None,
) -> ConformanceOutput:
    """Make all checks of an adapter, or those of some groups; raise FlagPerfError where pytest itself fails."""
    kit = Kit(name, folders)  # an unknown name is refused here, before pytest starts
    recorder, here = _Recorder(progress or (lambda name, done, total: None)), Path(__file__).parent
    arguments = [
        *(str(here / f"test_{group}.py") for group in groups or known_groups()),
        *("-c", os.devnull, "--rootdir", str(here), "--vendor", name, "-q", "--no-header", "--no-summary", "-s"),
        *("-p", "no:cacheprovider", "-p", "no:faulthandler"),
        *(word for folder in folders for word in ("--vendor-path", str(folder))),
        *((f"--junitxml={junit}", "-o", "junit_suite_name=flagperf-conformance") if junit else ()),
    ]
    printed = io.StringIO()
    with _alone(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = pytest.main(arguments, plugins=[plugin, recorder])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not recorder.checks:
        raise FlagPerfError(f"pytest couldn't make the checks: {status!r}.", printed.getvalue().strip()[-2000:])
    counts = Counter(check.status for check in recorder.checks)
    return ConformanceOutput(
        vendor=name,
        path=str(kit.folder),
        flagperf=__version__,
        conforms=not counts["failed"] and not counts["to fill in"],
        counts=dict(counts),
        to_fill_in=kit.marks,
        checks=recorder.checks,
    )


def known_groups() -> list[str]:
    """Return the names of the groups of checks."""
    return [path.stem.removeprefix("test_") for path in sorted(Path(__file__).parent.glob("test_*.py"))]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep the user's plug-ins and options of pytest out."""
    kept = {name: os.environ.pop(name, None) for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    before = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name, value in {**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": before}.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
