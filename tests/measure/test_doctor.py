"""`flagperf doctor` and `flagperf devices`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from helpers import flagperf

from flagperf.measure.environment import snapshot
from flagperf.measure.host import CgroupLimits, read_host
from flagperf.measure.noise import checks


def test_doctor_prints_one_object_and_nothing_else() -> None:
    done = flagperf("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["host"]["cpu_model"] in [device["name"] for device in report["devices"]]
    assert {state["name"]: state["available"] for state in report["vendors"]}["cpu"]
    assert {check["name"] for check in report["checks"]} >= {"foreign load", "frequency governor", "disk", "compiler"}
    assert "torch" not in report
    assert report["packages"]["torch"]


def test_doctor_deep_tries_torch() -> None:
    report = json.loads(flagperf("doctor", "--deep", "--json").stdout)
    assert report["torch"]["matmul"] == "right"
    assert "gloo" in report["torch"]["backends"]


def test_doctor_for_a_reader() -> None:
    done = flagperf("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("Machine", "Software", "Devices", "Fit for measuring?", read_host().cpu_model):
        assert word in done.stdout


def test_a_broken_vendor_is_shown_and_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "vendors" / "doctor_broken"
    folder.mkdir(parents=True)
    for place in (folder.parent, folder):
        (place / "__init__.py").write_text("")
    (folder / "broken.toml").write_text(
        'name = "broken"\ntitle = "B"\nsummary = "B"\nentry = ".adapter:B"\ndevice_type = "cpu"\nbackend = "gloo"\n'
    )
    (folder / "adapter.py").write_text("raise RuntimeError('driver exploded')\n")
    (folder / "unread.toml").write_text("name = \n")
    late = (folder / "broken.toml").read_text().replace('"broken"', '"late"').replace(".adapter:B", ".late:Late")
    (folder / "late.toml").write_text(late)
    (folder / "late.py").write_text(
        "from flagperf.vendor import Vendor\n\n"
        "class Late(Vendor):\n    def devices(self):\n        raise OSError('tool hung')\n"
    )
    done = flagperf("--plugins", str(tmp_path), "devices", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [device["vendor"] for device in found["devices"]] == ["cpu"]
    states = {state["name"]: state for state in found["vendors"]}
    assert "driver exploded" in states["broken"]["reason"]
    assert "tool hung" in states["late"]["reason"]
    assert any(name.endswith("unread.toml") and not state["available"] for name, state in states.items())
    assert "driver exploded" in flagperf("--plugins", str(tmp_path), "devices").stdout


@pytest.mark.parametrize(
    ("machine", "state", "name", "words"),
    [
        ({"governor": "powersave"}, {}, "frequency governor", "powersave"),
        ({"cgroup": CgroupLimits(version=2, cores=0.5)}, {}, "cgroup limits", "0.5 cores"),
        ({}, {"foreign_percent": 95.0}, "foreign load", "95 %"),
        ({}, {"disk_free": 1}, "disk", "0.0 GiB"),
        ({}, {"swap_used": 2**31}, "swap", "2.0 GiB"),
        ({"virtualization": "virtual machine"}, {"steal_percent": 20.0}, "virtualization", "20.0 %"),
    ],
)
def test_a_noisy_machine_is_warned_of(
    tmp_path: Path, machine: dict[str, object], state: dict[str, object], name: str, words: str
) -> None:
    host = msgspec.structs.replace(read_host(), **machine)
    now = msgspec.structs.replace(snapshot(tmp_path, window=0.01), **state)
    (check,) = [check for check in checks(host, now, []) if check.name == name]
    assert check.status == "warn"
    assert words in check.finding
    assert check.advice
