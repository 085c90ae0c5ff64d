"""The GEMM peak, measured for real, and how it is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flagperf.errors import FlagPerfError
from flagperf.measure.peak import DEVICE_SHAPES, SHAPES, SLOW, _shapes, measured_peak, pulse


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flagperf.measure.peak", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_module_prints_one_object_and_a_pulse_is_near_it() -> None:
    done = run("--dtype", "fp32", "--threads", "1", "--seconds", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert (peak["dtype"], peak["threads"]) == ("fp32", 1)
    assert peak["timings"] >= 1

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speed = pulse(torch.device("cpu"), "fp32", seconds=0.1)
    finally:
        torch.set_num_threads(threads)
    # A unit or a formula that is wrong is further off than any noise.
    assert peak["flops_per_second"] / 20 < speed < peak["flops_per_second"] * 20


def test_an_unknown_vendor_is_a_usage_error() -> None:
    done = run("--vendor", "cpuu", "--json")
    assert done.returncode == 2
    assert "Did you mean 'cpu'" in done.stderr
    assert done.stdout == ""


def test_measured_once_then_kept_and_made_anew_when_spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path))
    stages: list[str] = []

    def progress(stage: str, done: float | None) -> None:
        stages.append(stage)

    first = measured_peak("cpu", "fp32", 1, 2, progress)
    assert len(stages) == 1
    (path,) = (tmp_path / "peaks").iterdir()
    kept = json.loads(path.read_text())
    assert kept["peak"]["flops_per_second"] == first * 2  # the machine's, of which each of two ranks has half
    assert kept["key"]["ranks"] == 2

    kept["peak"]["flops_per_second"] = 4e9
    path.write_text(json.dumps(kept))
    assert measured_peak("cpu", "fp32", 1, 2, progress) == 2e9
    assert len(stages) == 1

    for spoilt in ("{", json.dumps({**kept, "key": {**kept["key"], "torch": "0.0"}})):
        path.write_text(spoilt)
        assert measured_peak("cpu", "fp32", 1, 2, progress) != 2e9
    assert len(stages) == 3
    assert [entry.name for entry in (tmp_path / "peaks").iterdir()] == [path.name]


def test_a_cache_that_cant_be_written_costs_only_the_keeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("FLAGPERF_CACHE", str(blocked))
    assert measured_peak("cpu", "fp32", 1, 1, lambda stage, done: None) > 1e8
    assert "can't be kept" in capsys.readouterr().err


def test_a_measurement_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path))
    with pytest.raises(FlagPerfError, match="couldn't be measured") as failure:
        measured_peak("cpu", "fp4", 1, 1, lambda stage, done: None)
    assert "invalid choice: 'fp4'" in failure.value.hint


def test_a_slow_accelerator_is_given_a_cpus_shapes() -> None:
    import torch

    meta = torch.device("meta")  # multiplies in no time
    assert _shapes(meta, "fp32", lambda: None) == DEVICE_SHAPES
    assert _shapes(meta, "fp32", lambda: time.sleep(2 * SLOW)) == SHAPES
