"""Snapshots of the machine, and what they say against a trial."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import flagperf
from flagperf.measure.environment import Environment, Foreign, differences, git_commit, snapshot, variables

BURN = "import os, sys\nprint(os.getpid(), flush=True)\nwhile True: pass"


@pytest.fixture
def orphan() -> Iterator[int]:
    """A process that burns a core and doesn't descend from this one: its parent has gone."""
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}, '--password=hunter2'])"
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.wait()
    yield pid
    os.kill(pid, 9)


def test_a_foreign_process_that_burns_the_cpu_is_seen(orphan: int, tmp_path: Path) -> None:
    seen = snapshot(tmp_path, window=0.5)
    mine = [process for process in seen.foreign if process.pid == orphan]
    assert mine, seen.foreign
    assert mine[0].percent > 2
    assert mine[0].name.startswith("python")
    assert seen.foreign_percent >= mine[0].percent - 0.2
    assert "hunter2" not in msgspec.json.encode(seen).decode()


def test_the_same_process_is_ours_when_named(orphan: int, tmp_path: Path) -> None:
    assert orphan not in [process.pid for process in snapshot(tmp_path, [orphan], window=0.3).foreign]


def test_our_children_are_not_foreign(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid not in [process.pid for process in snapshot(tmp_path, window=0.3).foreign]
    finally:
        child.kill()
        child.wait()


def test_snapshot_knows_software_and_machine(tmp_path: Path) -> None:
    seen = snapshot(tmp_path, window=0.05)
    assert seen.packages["torch"]
    assert seen.cores == len(os.sched_getaffinity(0))
    assert seen.memory_available and seen.memory_total and seen.memory_available < seen.memory_total
    assert seen.disk_free and seen.limits["nofile"]
    assert seen.foreign_percent >= 0
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Environment) == seen
    assert snapshot(tmp_path / "not there", window=0.01).disk_free is None


def test_only_variables_that_steer_a_run_are_kept() -> None:
    given = {
        "OMP_NUM_THREADS": "2",
        "MKL_DEBUG": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "ASCEND_RT_VISIBLE_DEVICES": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "x",
        "TORCH_API_TOKEN": "hunter2",
        "HOME": "/root",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
    }
    assert set(variables(given.items())) == {
        "OMP_NUM_THREADS",
        "MKL_DEBUG",
        "CUDA_VISIBLE_DEVICES",
        "ASCEND_RT_VISIBLE_DEVICES",
        "PYTORCH_CUDA_ALLOC_CONF",
    }


@pytest.fixture
def quiet(tmp_path: Path) -> Environment:
    return msgspec.structs.replace(
        snapshot(tmp_path, window=0.01),
        foreign=[],
        foreign_percent=0.0,
        steal_percent=0.0,
        load=[0.1, 0.1, 0.1],
        cores=4,
        memory_total=100,
        memory_available=50,
        governor="performance",
        throttled=1,
        swapped_pages=10,
    )


def test_nothing_is_said_of_a_quiet_machine(quiet: Environment) -> None:
    assert differences(quiet, quiet) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"foreign_percent": 80.0, "foreign": [Foreign(pid=7, name="cc1plus", percent=80.0)]}, "cc1plus (pid 7) 80 %"),
        ({"load": [9.0, 1.0, 1.0]}, "load rose to 9.0 on 4 cores"),
        ({"governor": "powersave"}, "governor changed from performance to powersave"),
        ({"memory_available": 2}, "only 2.0% of the memory"),
        ({"swapped_pages": 5000}, "swapped 4990 pages"),
        ({"throttled": 4}, "throttled 3 times"),
        ({"steal_percent": 12.5}, "hypervisor took 12.5 %"),
        ({"packages": {}}, "torch changed from"),
    ],
)
def test_each_disturbance_is_told(quiet: Environment, change: dict[str, object], words: str) -> None:
    said = differences(quiet, msgspec.structs.replace(quiet, **change))
    assert any(words in sentence for sentence in said), said


def test_git_commit_tells_a_changed_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "flagperf" / "__init__.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(flagperf, "__file__", str(module))
    assert git_commit() is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_commit() is None
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    module.write_text("changed = True\n")
    assert git_commit() == f"{commit}+dirty"
