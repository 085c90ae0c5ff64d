"""The pytest plug-in of the kit: its options, the adapter under test, and what each check came to.

Not registered as an entry point: `--vendor` would then be an option of every pytest on the machine.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from flagperf.conformance.check import Declared
from flagperf.conformance.kit import Kit

_KIT = pytest.StashKey[Kit]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say which adapter is checked."""
    group = parser.getgroup("flagperf", "conformance of a FlagPerf adapter")
    group.addoption("--vendor", metavar="NAME", help="Which vendor's adapter.")
    group.addoption("--vendor-path", metavar="DIR", action="append", default=[], help="Where it is, if not installed.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Open the adapter under test, and give each check its name, reason and fix; they go into JUnit's properties."""
    checks = [(item, found) for item in items if (found := _declared(item)) is not None]
    if not checks:
        return
    name = config.getoption("--vendor")
    if not name:
        raise pytest.UsageError("Say which adapter is to be checked: --vendor NAME")
    config.stash[_KIT] = Kit(name, [Path(folder).resolve() for folder in config.getoption("--vendor-path")])
    for item, found in checks:
        item.user_properties += [("check", _name(item)), ("why", found.why), ("fix", found.fix)]


@pytest.fixture(scope="session")
def kit(request: pytest.FixtureRequest) -> Generator[Kit]:
    """Return the adapter under test; the processes that were started for it end with the session."""
    kit = request.config.stash[_KIT]
    yield kit
    kit.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell a failure that the template's marks explain from others."""
    report = yield
    found = _declared(item)
    if found is not None and report.failed and found.part:
        left = [mark for mark in item.config.stash[_KIT].marks if found.part in (mark.part, "all")]
        if left:
            report.user_properties.append(("to fill in", ", ".join(f"{mark.file}:{mark.line}" for mark in left)))
    return report


def _declared(item: pytest.Item) -> Declared | None:
    found = getattr(getattr(item, "function", None), "declared", None)
    return found if isinstance(found, Declared) else None


def _name(item: pytest.Item) -> str:
    """Return `group.name[parameter]` of a check in `test_group.py::test_name`."""
    return f"{item.path.stem.removeprefix('test_')}.{item.name.removeprefix('test_')}"
