"""What tests share: the command line as a user runs it, and small trials."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, flagperf


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep FlagPerf's own variables of the caller's shell out of the tests."""
    for name in ("FLAGPERF_PLUGINS", "FLAGPERF_PARENT", "FLAGPERF_HARNESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share one cache over the session unless the caller has said which."""
    if "FLAGPERF_CACHE" not in os.environ:
        os.environ["FLAGPERF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A real run of ddp and fsdp on two ranks, two trials each, and what `--json` printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = flagperf(
        *("run", "aquila/pretrain", "--engine", "ddp,fsdp", "--ranks", "2", "--trials", "2", "--json"),
        *TINY,
        *("--out", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)
