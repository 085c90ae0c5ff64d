"""What tests share: the command line as a user runs it, and small trials; and how they are shared out to workers.

`make test WORKERS=2` has two workers of pytest-xdist: most of a trial's time is its start, which keeps one core busy.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import LEARNING, flagperf
from hypothesis import HealthCheck, settings

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
GROUPS = {
    "finished": "run",
    "alone": "run",
    "sound": "run",
    "looks": "simchip",
    "ranks": "simchip",
    "simulated": "simchip",
    "specs": "simchip",
    "mixed": "collectives",
    "wheel": "wheel",
    "browser": "page",
    "page_of": "page",
    "real_wheels": "corpus",
}
"""Fixtures that take long to make: tests that use those of one group run in one worker, which makes them once."""
APART = {"trained_arms"}
"""Such fixtures of which each parameter is a group of its own."""

# Before anything imports torch: threads of two workers would else spin, waiting for one another, on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# An example that takes long on a busy machine is no failure.
settings.register_profile("flagperf", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flagperf")


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker of pytest-xdist also where that is turned off."""
    config.addinivalue_line("markers", "xdist_group(name): tests of a name run in one worker")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, so that no worker is left with one when the other is done, and keep fixtures together."""
    if WORKER is None:
        return
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        used = getattr(item, "fixturenames", ())
        groups = {GROUPS[name] for name in used if name in GROUPS}
        groups |= {f"{name} {item.callspec.params[name]}" for name in APART.intersection(used)}  # type: ignore[attr-defined]
        for group in groups:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep FlagPerf's own variables of the caller's shell out of the tests."""
    for name in ("FLAGPERF_PLUGINS", "FLAGPERF_PARENT", "FLAGPERF_HARNESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share one cache over the session, and between its workers, unless the caller has said which.

    The simulated chip, a minute of compiling, is kept between sessions.
    """
    if "FLAGPERF_CACHE" in os.environ:
        return
    base = tmp_path_factory.getbasetemp()
    cache = (base if WORKER is None else base.parent) / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["FLAGPERF_CACHE"] = str(cache)
    if kept := getattr(request.config, "cache", None):
        with suppress(FileExistsError):  # another worker's
            (cache / "simchip").symlink_to(kept.mkdir("simchip"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A real run of ddp and fsdp on two ranks, thirty steps, two trials each, and what it printed with `--json`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = flagperf(
        *("run", "aquila/pretrain", "--engine", "ddp,fsdp", "--ranks", "2", "--trials", "2", "--json"),
        *(*LEARNING, "--set", "protocol.profile=2", "--out", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="session")
def finished_run(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> tuple[Path, dict[str, Any]]:
    """The finished run's folder and its output, decoded."""
    folder, done = finished
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run of the same model on one rank, two trials."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = flagperf("run", "aquila/pretrain", "--engine", "single", "--trials", "2", *LEARNING, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder
