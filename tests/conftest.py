"""What tests share: the command line as a user runs it, and small trials; and how they are shared out to workers.

`make test WORKERS=2` has two workers of pytest-xdist: most of a trial's time is its start, which keeps one core busy.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, flagperf
from hypothesis import HealthCheck, settings

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
GROUPS = {
    "finished": "run",
    "sound": "run",
    "looks": "simchip",
    "ranks": "simchip",
    "wheel": "wheel",
    "browser": "page",
    "page_of": "page",
    "real_wheels": "corpus",
}
"""Fixtures that take long to make: tests that use those of one group run in one worker, which makes them once."""
APART = {"arms"}
"""Such fixtures of which each parameter is a group of its own."""

# Before anything imports torch: threads of two workers would else spin, waiting for one another, on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# An example that takes long on a busy machine is no failure.
settings.register_profile("flagperf", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flagperf")


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
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share one cache over the session, and between its workers, unless the caller has said which."""
    if "FLAGPERF_CACHE" not in os.environ:
        base = tmp_path_factory.getbasetemp()
        os.environ["FLAGPERF_CACHE"] = str((base if WORKER is None else base.parent) / "cache")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A real run of ddp and fsdp on two ranks, two trials each, and what it printed with `--json`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = flagperf(
        *("run", "aquila/pretrain", "--engine", "ddp,fsdp", "--ranks", "2", "--trials", "2", "--json"),
        *TINY,
        *("--out", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="session")
def finished_run(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> tuple[Path, dict[str, Any]]:
    """The finished run's folder and its output, decoded."""
    folder, done = finished
    return folder, json.loads(done.stdout)
