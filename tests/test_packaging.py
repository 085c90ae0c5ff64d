"""The wheel: nothing but `flagperf` in site-packages, and it works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from helpers import ROOT, TINY
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flagperf.registry import Registries

pytestmark = pytest.mark.slow
APART = {"vllm", "sglang"}
"""Distributions that pin a torch of their own, and so live in an environment of their own."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git would give to a stranger: no build folder, no leftovers."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.glob("*.whl")
    return built


def test_it_holds_nothing_but_flagperf(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"flagperf"}
    for needed in (
        "flagperf/metrics.toml",
        "flagperf/py.typed",
        "flagperf/engines/ddp.toml",
        "flagperf/data/bilingual.toml",
        "flagperf/submit/rules/1.yaml",
        "flagperf/cases/aquila/pretrain.toml",
        "flagperf/vendors/cpu/cpu.toml",
        "flagperf/vendors/simchip/device/simchip.cpp",
        "flagperf/reports/page.py",
    ):
        assert needed in names
    assert not [name for name in names if "test" in name.split("/")]


def test_its_extras_and_the_pins_fit_what_the_engines_need(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(archive.read(name).decode("utf-8"))
    required = [Requirement(line) for line in told.get_all("Requires-Dist", [])]

    def of(extra: str) -> dict[str, Requirement]:
        return {each.name: each for each in required if each.marker is None or _holds(each.marker, extra)}

    whole = {"deepspeed", "megatron", "inference", "onnxruntime", "openvino", "quantized"}
    assert of("all")["flagperf"].extras == whole  # not bmtrain: pyproject.toml says why
    offered = {name: each for extra in (*whole, "bmtrain") for name, each in of(extra).items()}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"bmtrain", "deepspeed", "megatron-core", "torch"} <= offered.keys() & pins.keys()
    for engine in Registries().engines.all():
        for need in (need for need in engine.requires if need.distribution not in APART):
            assert pins[need.distribution] in offered[need.distribution].specifier, engine.name
            assert pins[need.distribution] in SpecifierSet(need.versions), engine.name


def _holds(marker: Marker, extra: str) -> bool:
    """Whether a marker holds where every wheel is to be had."""
    here = {"extra": extra, "python_version": "3.11", "platform_machine": "x86_64", "sys_platform": "linux"}
    return marker.evaluate(here)


def test_it_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed alone into a new environment that sees this one's other packages, run from elsewhere."""
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (own,) = place.glob("lib/python*/site-packages")
    theirs = next(path for path in sys.path if path.endswith("site-packages"))
    # Everything of the outer environment but its editable flagperf, which is found by a hook of its own.
    (own / "outer.pth").write_text(theirs + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(place / "bin" / "flagperf"), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    where = subprocess.run(
        [python, "-c", "import flagperf.cases, flagperf.reports; print(flagperf.cases.__path__[0])"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.strip().startswith(str(own))
    assert "aquila/pretrain" in run("list", "cases").stdout
    trial = run("run", "aquila/pretrain", "--engine", "single", "--trials", "1", "--json", *TINY)
    assert trial.returncode == 0, trial.stderr
    output = json.loads(trial.stdout)
    assert output["results"][0]["verdict"] == "valid"
    assert (tmp_path / output["run"] / "report.html").stat().st_size > 100_000
