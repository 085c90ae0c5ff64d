"""Kernel cases under pytest: collected, timed by pytest-benchmark, judged; and whoever has none isn't disturbed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import Any, ClassVar

import planted
import pytest
import scipy.stats  # noqa: F401  pytester forgets what is imported while it runs, and this can't be imported twice
import torch
from helpers import ROOT

from flagperf.collect.pytest_benchmark import Imported, read_files
from flagperf.kernels_benchmark import RoundClock
from flagperf.measure import roofs
from flagperf.schema.sweep import Roofs

pytest_plugins = ["pytester"]
QUICK = ("-p", "no:xdist", "-p", "no:cacheprovider", "--benchmark-max-time=0.005", "--benchmark-min-rounds=3")


@pytest.fixture
def here(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with the planted case in it, and roofs that needn't be measured."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)  # pytest-benchmark takes an inner run for a worker's
    told = Roofs(flops={"fp32": 1e12}, bandwidth=1e11)
    monkeypatch.setattr(roofs, "measured_roofs", lambda *_: told)
    planted.plant(pytester.path)
    return pytester


def run(here: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return here.runpytest_inprocess(*QUICK, *arguments)


def test_each_provider_at_each_point_is_an_item_judged_by_the_protocol(here: pytest.Pytester) -> None:
    done = run(here, "cases/planted/double.toml", "--benchmark-only", "--benchmark-json=told.json", "-rs")
    done.assert_outcomes(passed=1, failed=len(planted.WRONG) + 3, skipped=3)
    done.stdout.fnmatch_lines(["*double?fp32-1000-right?*"])
    done.stdout.fnmatch_lines(["*stale is wrong at dtype=fp32 n=1000: * elements are outside the tolerance*"])
    done.stdout.fnmatch_lines(["*SKIPPED*too big: it needs * GiB beyond its inputs*"])
    done.stdout.fnmatch_lines(["*SKIPPED*unsupported: it takes fp16 only"])
    told = json.loads((here.path / "told.json").read_text())
    assert list(told["machine_info"]["flagperf"]) == ["cpu"]
    (only,) = told["benchmarks"]  # what is wrong is in no file
    assert only["name"] == "double[fp32-1000-right]"
    assert only["params"] == {"dtype": "fp32", "n": 1000, "provider": "right"}
    assert only["group"] == "planted/double dtype=fp32 n=1000"
    extra = only["extra_info"]
    median = only["stats"]["median"]
    assert extra["bandwidth (GB/s)"] == pytest.approx(8000 / median / 1e9)
    assert extra["roofline_share (ratio)"] == pytest.approx(8000 / 1e11 / median)
    assert extra["bound"] == "memory"
    assert extra["error_absolute (1)"] == 0
    assert extra["flagperf"]["samples"]["memory"] >= 4000
    assert extra["flagperf"]["samples"]["uncertainty"] > 0


def test_what_it_wrote_is_imported_whole(here: pytest.Pytester) -> None:
    run(here, "cases", "-k", "right", "--benchmark-json=told.json").assert_outcomes(passed=2)
    data = [each["stats"] for each in json.loads((here.path / "told.json").read_text())["benchmarks"]]
    parts = read_files([here.path / "told.json"])
    assert [part.trial.case for part in parts] == ["planted/double", "planted/slope"]
    for part, stats in zip(parts, data, strict=True):
        assert isinstance(part, Imported) and part.roofs is not None
        (samples,) = part.samples
        assert samples.seconds == stats["data"] and samples.calls == stats["iterations"]
        assert (samples.at, samples.provider) == ({"dtype": "fp32", "n": 1000}, "right")
        assert samples.verdict == "valid" and samples.bytes == 8000 and samples.accuracy is not None


def test_options(here: pytest.Pytester) -> None:
    """pytest's own, pytest-benchmark's and ours."""
    done = run(here, "cases", "--collect-only", "-q", "-k", "right", "--flagperf-set", "sweep.n=[10, 20]")
    done.stdout.fnmatch_lines(
        ["cases/planted/double.toml::double?fp32-10-right?", "cases/planted/double.toml::double?fp32-20-right?"]
    )
    done = run(here, "cases/planted/double.toml", "--flagperf-provider", "right,near", "--benchmark-disable")
    done.assert_outcomes(passed=1, failed=1)  # judged though not timed
    done = run(here, "cases", "-k", "right and double", "--benchmark-skip")
    done.assert_outcomes(skipped=1)
    done = run(here, "cases", "-k", "right", "--benchmark-group-by=param:n", "--benchmark-columns=median")
    done.stdout.fnmatch_lines(["*benchmark 'n=1000': 2 tests*"])
    done.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--flagperf-preset", "tinny"), "*Did you mean 'tiny'?*"),
        (("--flagperf-provider", "rite"), "*provider of planted/double*right*"),
        (("--flagperf-set", "sweep.n"), "*key=value*"),
        (("--flagperf-vendor", "nvdia"), "*Did you mean 'nvidia'?*"),
        (("-p", "no:benchmark", "-o", "addopts="), "*pip install 'flagperf?kernels?'*"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_planned_is_told_without_a_traceback(
    here: pytest.Pytester, options: tuple[str, ...], told: str
) -> None:
    timing = () if "no:benchmark" in options else QUICK[4:]
    done = here.runpytest_inprocess(*QUICK[:4], *timing, "cases/planted/double.toml", *options)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([told])
    done.stdout.no_fnmatch_line("*Traceback*")


def test_a_manifest_that_lies_nowhere_in_particular(here: pytest.Pytester) -> None:
    """It's no case of any folder of plug-ins, and how to make it one is told."""
    (here.path / "cases").rename(here.path / "elsewhere")
    done = run(here, "elsewhere")
    done.assert_outcomes(errors=2)
    done.stdout.fnmatch_lines(["*folder called cases*"])


def test_runs_without_kernels_are_left_alone(here: pytest.Pytester) -> None:
    """In a process of its own: what is imported there is nothing but the plug-in itself."""
    here.makepyfile(
        test_light="import sys\ndef test_light():\n"
        "    assert 'flagperf.kernels_pytest' in sys.modules\n"
        "    heavy = {'torch', 'numpy', 'msgspec', 'flagperf.registry', 'flagperf.kernels_benchmark'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    for name, text in {"a": "kind = 'kernel'", "b": "kind = ", "c": "[kind]\nkernel = 1", "d": "\x00\xff"}.items():
        (here.path / f"{name}.toml").write_text(text, "latin-1")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ignore=cases"],
        cwd=here.path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


class Timed:
    """A device with a clock that only we set: 3 s pass in a round, 10 s in whatever is done between rounds."""

    clock = "host"
    device = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.synchronized = 0
        monkeypatch.setattr("flagperf.kernels_benchmark.perf_counter", lambda: self.now)

    def synchronize(self) -> None:
        self.synchronized += 1

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_the_clock_stands_still_between_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: Any = Timed(monkeypatch)
    clock = RoundClock()
    clock.timer = timed
    clock.between = lambda: timed.passes(10.0)
    for _ in range(3):
        start = clock.read()
        timed.passes(3.0)
        assert clock.read() - start == pytest.approx(3.0)
    assert timed.synchronized == 6


class Events:
    """torch.Event on a device whose events are a second apart by its own clock, which is read once a round is over."""

    made: ClassVar[list[Events]] = []

    def __init__(self, device: object, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.made.append(self)

    def elapsed_time(self, other: Events) -> float:
        return 1000.0 * (self.made.index(other) - self.made.index(self))


def test_a_devices_own_events_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: Any = Timed(monkeypatch)
    timed.clock = "device"
    monkeypatch.setattr(torch, "Event", Events)
    clock = RoundClock()
    clock.timer = timed
    start = clock.read()
    timed.passes(99.0)  # the host's clock says nothing
    assert clock.read() - start == pytest.approx(1.0)


def test_the_commands_of_the_guide_collect(here: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "cases.md").read_text("utf-8")
    lines = re.findall(r"^pytest .*$", text, re.M)
    assert len(lines) == 3
    monkeypatch.chdir(ROOT)
    wanted = [256, 8, 42]
    for line, count in zip(lines, wanted, strict=True):
        words = [word.replace("told.json", str(here.path / "told.json")) for word in shlex.split(line)[1:]]
        done = here.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", "-q", f"--rootdir={ROOT}", *words)
        assert done.ret == 0
        assert sum("::" in each for each in done.outlines) == count


def test_our_own_tests_collect_no_case() -> None:
    told = (ROOT / "pyproject.toml").read_text()
    assert 'testpaths = ["tests"]' in told
    assert not [path for path in (ROOT / "tests").rglob("*.toml") if 'kind = "kernel"' in path.read_text()]
