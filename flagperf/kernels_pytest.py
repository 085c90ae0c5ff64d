"""The pytest plug-in that collects kernel cases: `pytest cases/attention`, one item a point and provider.

pytest-benchmark times them, with its own options and statistics, by a clock of ours: the device's events where there is
a device. What goes in, what must come out and which inputs a round is given are the kernel protocol's. A result that is
wrong fails its item; what isn't supported or doesn't fit is skipped with the reason.

Items of a point run one after the other, not in turn: to compare providers, `flagperf run` is the better judge.
It's loaded by every pytest on the machine, so that nothing heavy is imported until a manifest of a kernel is collected.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flagperf.kernels_benchmark import Bench

_INSTALL = "pip install 'flagperf[kernels]'"
_BENCH: pytest.StashKey[dict[tuple[Path, ...], Bench]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say what of a kernel case is measured, and where."""
    group = parser.getgroup("flagperf", "FlagPerf's kernel cases")
    group.addoption("--flagperf-preset", metavar="NAME", default="tiny", help="Size of the kernel cases: tiny.")
    group.addoption("--flagperf-vendor", metavar="NAME", default="auto", help="Whose devices they run on: auto.")
    group.addoption(
        *("--flagperf-provider",),
        metavar="NAMES",
        default="",
        help="Providers, the rare ones too: naive,flex. -k chooses among those that are measured anyway.",
    )
    group.addoption(
        *("--flagperf-set",),
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="Change a setting: 'sweep.seq=[2048]'.",
    )
    group.addoption(
        *("--flagperf-plugins",),
        metavar="DIR",
        action="append",
        default=[],
        help="Folder with cases/ or vendors/ of your own, or with adapters. Also FLAGPERF_PLUGINS.",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Manifest | None:
    """Collect a manifest of a kernel case; any other file is left alone."""
    if file_path.suffix != ".toml":
        return None
    try:
        told = tomllib.loads(file_path.read_text("utf-8"))
    except (OSError, ValueError):  # no TOML: nothing of ours
        return None
    if told.get("kind") != "kernel" or not all(isinstance(told.get(key), str) for key in ("name", "entry")):
        return None
    manifest: Manifest = Manifest.from_parent(parent, path=file_path, case=told["name"])
    return manifest


class Manifest(pytest.File):
    """A manifest of a kernel case, and the items it makes."""

    def __init__(self, *, case: str, **about: Any) -> None:
        super().__init__(**about)
        self.case = case

    def collect(self) -> Iterator[pytest.Item]:
        """Plan the case, as `flagperf run` does, and make an item of every point and provider."""
        from flagperf.errors import FlagPerfError

        if not self.config.pluginmanager.hasplugin("benchmark"):
            raise self.CollectError(f"Kernel cases are timed by pytest-benchmark: {_INSTALL}")
        try:
            bench = _bench(self.config, self.path)
            trial = bench.plan(self.case, self.path)
            points = bench.points(trial)
        except FlagPerfError as error:
            raise self.CollectError(" ".join(filter(None, (error.message, error.hint)))) from None
        for at in points:
            for provider in trial.providers:
                named = "-".join(_spelled(axis, value) for axis, value in [*at.items(), ("provider", provider)])

                def measure(benchmark: Any, at: Any = at, provider: str = provider) -> None:
                    bench.measure(benchmark, trial, at, provider)

                item: Any = Item.from_parent(self, name=f"{self.path.stem}[{named}]", callobj=measure, fixtureinfo=None)
                # What pytest-benchmark groups by: --benchmark-group-by=param:seq
                item.callspec = SimpleNamespace(
                    id=named, params={**at, "provider": provider}, indices={}, _arg2scope={}, marks=[]
                )
                item.add_marker(pytest.mark.benchmark(timer=bench.clock.read, group=bench.group(trial, at)))
                yield item


class Item(pytest.Function):
    """One provider at one point."""

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return where it's from and what it's called: its manifest."""
        return self.path, 0, self.name


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the devices to what pytest-benchmark says of the machine."""
    for bench in config.stash.get(_BENCH, {}).values():
        machine_info.setdefault("flagperf", {}).update(bench.devices())


def _bench(config: pytest.Config, path: Path) -> Bench:
    """Return what measures the cases of a folder, made once a session."""
    from flagperf.cli.common import plugins
    from flagperf.kernels_benchmark import Bench, home

    given = [Path(folder).resolve() for folder in config.getoption("--flagperf-plugins")]
    folders = tuple(dict.fromkeys([*given, *plugins(), *home(path)]))
    benches = config.stash.setdefault(_BENCH, {})
    if folders not in benches:
        benches[folders] = Bench(
            folders,
            preset=config.getoption("--flagperf-preset"),
            vendor=config.getoption("--flagperf-vendor"),
            providers=config.getoption("--flagperf-provider"),
            settings=config.getoption("--flagperf-set"),
        )
    return benches[folders]


def _spelled(axis: str, value: object) -> str:
    if isinstance(value, bool):
        return axis if value else f"no_{axis}"
    return str(value)
