"""`flagperf vendor new`, `check` and `explain`, and adapters that are nowhere near the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conformance_adapters import change, whole
from helpers import called

from flagperf.conformance import runner
from flagperf.conformance.explanation import explain
from flagperf.conformance.marks import marks
from flagperf.conformance.template import write_adapter
from flagperf.errors import PluginError, UnknownName, UsageError
from flagperf.registry import Registries

HERE = ["folder", "manifest", "markers", "parser", "peaks", "readme"]
"""The groups that start no process."""


def test_a_new_adapter_passes_but_for_the_parts_to_fill_in(tmp_path: Path) -> None:
    folder = write_adapter("my-chip", tmp_path, Registries())
    assert folder.name == "my_chip"
    found = runner.run_checks("my-chip", [folder], HERE)
    assert not found.conforms
    assert {check.status for check in found.checks} <= {"passed", "to fill in", "skipped"}
    assert "folder.nothing_is_left_to_fill_in" in {c.name for c in found.checks if c.status == "to fill in"}
    assert found.to_fill_in == marks(folder)
    assert {mark.part for mark in found.to_fill_in} == {
        *("identity", "torch", "markers", "tools", "limits", "environment", "container"),
        *("parser", "samples", "peaks", "readme"),
    }


def test_a_whole_adapter_conforms_and_a_broken_one_doesnt(tmp_path: Path) -> None:
    folder, junit = whole(tmp_path), tmp_path / "junit.xml"
    found = runner.run_checks("mychip", [folder], HERE, junit)
    assert found.conforms and found.counts["passed"] >= 70
    assert all(check.problems[0].startswith("needs ") for check in found.checks if check.status == "skipped")
    cases = ElementTree.parse(junit).getroot().findall(".//testcase")
    told = {case.findall("properties/property[@name='check']")[0].get("value") for case in cases}
    assert told == {check.name for check in found.checks}
    change(folder, "mychip.toml", 'title_zh = "Mychip"', 'title_zh = ""')
    broken = runner.run_checks("mychip", [folder], ["manifest"], junit)
    assert not broken.conforms
    (red,) = [check for check in broken.checks if check.status == "failed"]
    assert red.name == "manifest.has_titles_in_two_languages" and red.problems == ["`title_zh` is empty"]
    assert ElementTree.parse(junit).getroot().find("testsuite").get("failures") == "1"  # type: ignore[union-attr]


def test_a_manifest_that_cant_be_read_is_one_failure_and_no_crash(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    change(folder, "mychip.toml", "[markers]", "colour = 'red'\n[markers]")
    found = runner.run_checks("mychip", [folder], HERE)
    assert {check.name for check in found.checks if check.status == "failed"} == {"manifest.can_be_read"}
    assert not found.conforms


def test_its_exit_status_and_json_tell_the_truth(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    arguments = ("vendor", "check", "mychip", "--vendor-path", str(tmp_path), "--group", "readme", "--json")
    done = called(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["conforms"] is True
    (folder / "README.md").unlink()
    done = called(*arguments[:-1])
    assert done.returncode == 1
    assert "readme.is_there" in done.stdout and "fix:" in done.stdout and "doesn't conform" in done.stdout


def test_without_pytest_it_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; sys.argv = ['flagperf', 'vendor', 'check', 'cpu']\n"
        "from flagperf.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'flagperf[conformance]'" in done.stderr and "Traceback" not in done.stderr


def test_pytest_runs_the_kit_by_itself(tmp_path: Path) -> None:
    where = [
        *("-p", "flagperf.conformance.plugin", "--pyargs", "flagperf.conformance.test_readme"),
        "--vendor",
        "mychip",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *where, "--vendor-path", str(whole(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "13 passed" in done.stdout


@pytest.mark.parametrize("name", ["My", "1chip", "my--chip", "my_chip", "../x", "m" * 33, ""])
def test_a_name_that_cant_be_used_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be a vendor's name"):
        write_adapter(name, tmp_path, Registries())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_no_name_given_twice(tmp_path: Path) -> None:
    write_adapter("mychip", tmp_path, Registries())
    with pytest.raises(UsageError, match="is there already"):
        write_adapter("mychip", tmp_path, Registries())
    with pytest.raises(UsageError, match=r"vendors/cpu/cpu\.toml"):
        write_adapter("cpu", tmp_path, Registries())


def test_an_adapter_is_found_in_its_folder_or_the_one_above(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    for place in ([folder], [tmp_path], [folder, tmp_path]):
        registry = Registries(place).vendors
        assert registry.adapter("mychip").name == "mychip"
        assert [chip.chip for chip in registry.chips("mychip")] == ["Mychip 1"]
        assert {"adapter.py", "mychip.toml", "chips.toml", "README.md"} <= registry.files("mychip").keys()
        assert not registry.broken


def test_the_commands_take_it_from_there(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    done = called(
        "vendor", "parse", "mychip", str(folder / "samples/mychip-smi.txt"), "--vendor-path", str(folder), "--json"
    )
    assert [device["power_w"] for device in json.loads(done.stdout)["devices"]] == [91.5, 311.0]
    done = called("devices", "--vendor-path", str(folder), "--json")
    assert "mychip" in {state["name"] for state in json.loads(done.stdout)["vendors"]}


def test_one_of_a_known_name_is_refused_with_both_places(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    change(folder, "mychip.toml", 'name = "mychip"', 'name = "cpu"')
    with pytest.raises(PluginError) as error:
        Registries([folder]).vendors.names()
    assert str(folder) in str(error.value) and "vendors/cpu/cpu.toml" in str(error.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("mychip.toml", "name = ["),
        ("adapter.py", "1 / 0"),
        ("chips.toml", "[[chips]]\nchip = 3"),
        ("adapter.py", "x = ("),
    ],
)
def test_a_broken_adapter_breaks_no_other(tmp_path: Path, file: str, text: str) -> None:
    good, bad = whole(tmp_path / "good"), whole(tmp_path / "bad", "badchip")
    (bad / file.replace("mychip", "badchip")).write_text(text)
    registry = Registries([good, bad]).vendors
    assert registry.adapter("mychip").devices() == [] and registry.adapter("cpu").devices()
    with pytest.raises(PluginError):
        registry.adapter("badchip")


def test_an_installed_package_brings_an_adapter(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    folder = whole(source)
    (source / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'flagperf-mychip'\nversion = '1.0'\n"
        "[project.entry-points.'flagperf.vendors']\nmychip = 'mychip'\n"
        "[tool.setuptools]\npackages = ['mychip']\n"
        "[tool.setuptools.package-data]\nmychip = ['*.toml', '*.md', 'samples/*']\n"
    )
    assert folder.parent == source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(target), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = (
        "import json; from flagperf.registry import Registries; from flagperf.conformance.runner import run_checks\n"
        "from pathlib import Path; v = Registries().vendors\n"
        "c = run_checks('mychip', [], ['folder', 'parser', 'readme', 'peaks'])\n"
        "print(json.dumps([str(v.place('mychip')), v.adapter('mychip').availability().available, c.conforms, "
        "[x.problems for x in c.checks if x.status == 'failed']]))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(target)}
    )
    assert json.loads(shown.stdout) == [str(target / "mychip/mychip.toml"), False, True, []], shown.stderr


def test_explain_tells_what_is_here_and_what_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole(tmp_path)
    tool = tmp_path / "bin/mychip-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nexec /bin/cat {folder}/samples/mychip-smi.txt\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    said = explain("mychip", Registries([folder]))
    assert [device.name for device in said.devices] == ["mychip 1", "mychip 1"]
    found = {marker.pattern: marker.found for marker in said.markers}
    assert found["mychip-smi"] == [str(tool)] and found["/dev/mychip[0-9]*"] == []
    assert "mychip-smi" in said.found and said.tools[0].path == str(tool)
    assert said.availability.reason == "torch's plug-in torch_mychip isn't installed"
    assert "the PCI ids of its devices" in said.unknown and "the variable that limits the devices" in said.unknown
    assert "the rated peak of the Mychip 1 in fp32, bf16, fp16" in said.unknown


def test_explain_names_rivals_that_look_for_the_same() -> None:
    said = explain("hygon", Registries())
    assert {marker.pattern: marker.also for marker in said.markers}["rocm-smi"] == ["amd"]


def test_what_isnt_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'nvidia'"):
        runner.run_checks("nvidai", [])
    done = called("vendor", "check", "cpu", "--group", "parsing")
    assert done.returncode == 2 and "Did you mean 'parser'" in done.stderr
