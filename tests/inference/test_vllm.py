"""The engines `vllm` and `vllm-in-process` with the real vLLM, in an environment of its own: `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import flagperf, leftovers, started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "FLAGPERF_VLLM_PYTHON" not in os.environ, reason="FLAGPERF_VLLM_PYTHON isn't set: make test-vllm"
    ),
]
SMALL = [
    *("run", "aquila/generate", "--set", "data.source=synthetic", "--set", "data.tokens=65536", "--scale", "0.001"),
    *("--set", "model.dim=64", "--set", "model.layers=2", "--set", "model.heads=2", "--set", "load.clients=[1,4]"),
    *("--set", "model.vocab_size=512", "--set", "data.vocab_size=512"),
]
"""Heads of 32: the smallest that vLLM's attention takes on a CPU."""


def shown(folder: Path) -> list[dict[str, Any]]:
    """Return a run's results."""
    done = flagperf("results", str(folder), "--json")
    assert done.stdout, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return results


def servers() -> list[psutil.Process]:
    """Return the processes of vLLM's servers that are there."""
    found = []
    for process in psutil.process_iter():
        try:
            if "vllm.entrypoints" in " ".join(process.cmdline()) or "VLLM::" in process.name():
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def test_it_answers_as_the_reference_does(tmp_path: Path) -> None:
    """Every token, alone and in batches, counted by its id; the server and its children are gone afterwards."""
    run = tmp_path / "run"
    done = flagperf(*SMALL, "--engine", "vllm", "--scenario", "concurrency", "--out", str(run), "--json", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = shown(run)
    assert result["verdict"] == "valid", result["reasons"]
    assert result["metrics"]["token_agreement"]["value"] == 1
    assert result["metrics"]["queries_failed"]["value"] == 0
    assert {point["at"]["clients"] for point in result["points"]} == {1, 4}
    facts = result["facts"]["build"]["facts"]
    assert set(facts["tokens_counted"]) == {"by their ids"}
    assert not servers()


def test_it_answers_so_in_process_too(tmp_path: Path) -> None:
    """By the Python that has vLLM, which must have FlagPerf as well; nothing of the server is started."""
    run = tmp_path / "run"
    command = [os.environ["FLAGPERF_VLLM_PYTHON"], "-m", "flagperf", *SMALL, "--engine", "vllm-in-process"]
    scenarios = ["--scenario", "concurrency,singlestream,offline", "--out", str(run)]
    done = subprocess.run([*command, *scenarios], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = shown(run)
    assert [result["verdict"] for result in results] == ["valid"] * 3, [result["reasons"] for result in results]
    for result in results:
        assert result["metrics"]["token_agreement"]["value"] == 1
        assert result["metrics"]["memory_cache"]["value"] > 0
        assert result["facts"]["build"]["facts"]["vllm"]


def test_a_server_that_is_killed_meanwhile(tmp_path: Path) -> None:
    """Queries that were being answered are counted as lost; the trial is invalid, and says why."""
    run = tmp_path / "run"
    process = started(*SMALL, "--engine", "vllm", "--scenario", "concurrency", "--scale", "0.2", "--out", str(run))
    journal = run / "trials" / "000-vllm-concurrency" / "rank0.journal"
    wait(process, lambda: journal.exists() and b'"key":"run_start"' in journal.read_bytes())
    time.sleep(3)
    for each in servers():
        each.kill()
    process.communicate(timeout=300)
    (result,) = shown(run)
    assert result["verdict"] == "invalid"
    assert {"closed", "connection"} & set(str(result["reasons"]).replace(":", " ").split()), result["reasons"]


def test_nothing_is_left_when_the_harness_is_killed(tmp_path: Path) -> None:
    """Not even by a signal that it can't see."""
    run = tmp_path / "run"
    process = started(*SMALL, "--engine", "vllm", "--scenario", "concurrency", "--scale", "0.2", "--out", str(run))
    wait(process, lambda: bool(servers()))
    time.sleep(5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while (servers() or leftovers(run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not servers()
    assert not leftovers(run)


def wait(process: subprocess.Popen[str], until: Any) -> None:
    """Wait until something is so; fail if the run has ended before."""
    while not until():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
