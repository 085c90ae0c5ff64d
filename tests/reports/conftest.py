"""Runs and a browser that the tests of reports share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _module(name: str) -> Any:
    """Load a helper beside this file; under importlib mode tests can't import one another by name."""
    known = f"reports_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


@pytest.fixture(scope="session")
def runs() -> Any:
    """The module that makes run directories."""
    return _module("runs")


@pytest.fixture(scope="session")
def contests() -> Any:
    """The module that makes run directories of contests."""
    return _module("contests")


@pytest.fixture(scope="session")
def contest_page(tmp_path_factory: pytest.TempPathFactory, contests: Any) -> Callable[..., Path]:
    """Make a contest's run by `make_contest`'s arguments and return its page."""
    from flagperf.reports import page

    def make(*arms: Any, **options: Any) -> Path:
        place = tmp_path_factory.mktemp("contest")
        page.write([contests.make_contest(place / "run", arms or None, **options)], place / "report.html")
        return place / "report.html"

    return make


@pytest.fixture(scope="session")
def page_of(tmp_path_factory: pytest.TempPathFactory, runs: Any) -> Callable[..., Path]:
    """Make a run by `make_run`'s arguments and return its page; each kind is made once."""
    from flagperf.reports import page

    made: dict[str, Path] = {}

    def make(*arms: Any, language: str = "auto", **options: Any) -> Path:
        key = repr((arms, language, sorted(options.items())))
        if key not in made:
            place = tmp_path_factory.mktemp("page")
            given = {"arms": arms, **options} if arms else options
            page.write([runs.make_run(place / "run", **given)], place / "report.html", language=language)
            made[key] = place / "report.html"
        return made[key]

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real headless browser."""
    module = _module("browser")
    if module.find_chromium() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium isn't installed, and on CI the page must be seen in a browser")
        pytest.skip("chromium isn't installed: apt-get install chromium")
    with module.Browser() as opened:
        yield opened
