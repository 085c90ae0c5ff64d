"""The simulated device: what torch and the harness rely on in a device that is neither the CPU nor CUDA.

torch can't forget a device once it knows it, so that all looks are taken in processes of their own, one for many tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import LEARNING, flagperf

from flagperf.collect.compare import compare_runs
from flagperf.collect.runs import read_run
from flagperf.collect.trials import read_trial
from flagperf.detection import Host
from flagperf.errors import FlagPerfError
from flagperf.registry import Registries
from flagperf.schema.result import Result
from flagperf.vendors.simchip import build
from flagperf.vendors.simchip.readings import _LAYOUT, Meter
from flagperf.vendors.simchip.settings import Fault, Settings, read_settings

HERE = Path(__file__).parent
MIB = 2**20


@pytest.fixture(scope="session")
def simchip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a host with two simulated devices, whose library is built."""
    if build.compiler() is None:
        if os.environ.get("CI"):
            pytest.fail("no C++ compiler (on CI nothing may be left out)")
        pytest.skip("no C++ compiler")
    build.build()
    return {
        **os.environ,
        "SIMCHIP_DEVICES": "2",
        "SIMCHIP_MEMORY_MIB": "1024",
        "SIMCHIP_STATE": str(tmp_path_factory.mktemp("simchip")),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def looks(simchip: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What `simchip_device.py` saw."""
    done = subprocess.run(
        [sys.executable, str(HERE / "simchip_device.py")], capture_output=True, text=True, env=simchip, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def ranks(simchip: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks of `simchip_ranks.py` saw."""
    store = str(tmp_path_factory.mktemp("store") / "store")
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "simchip_ranks.py"), str(rank), store],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=simchip,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def seen(looks: dict[str, dict[str, Any]], name: str) -> Any:
    assert "error" not in looks[name], looks[name].get("error")
    return looks[name]["value"]


slow = pytest.mark.slow


@slow
def test_torch_knows_two_devices(looks: dict[str, Any]) -> None:
    assert seen(looks, "devices") == ["simchip", 2, "simchip:1", "simchip:1", 0]


@slow
def test_memory_is_counted_to_the_byte(looks: dict[str, Any]) -> None:
    found, block = seen(looks, "memory"), 4 * 1000 * 1001
    assert found["base"] == 0  # what was there and went before the reset is no part of the peak
    assert (found["held"], found["peak"], found["kept"], found["left"]) == (2 * block, 2 * block, 2 * block, 0)
    assert found["total"] == 1024 * MIB
    assert found["reserved"] >= 30 * MIB and found["reserved"] % (2 * MIB) == 0
    assert found["free"] == found["total"] - found["reserved"]
    assert found["given_back"] >= 28 * MIB
    assert found["other"] == 0 or found["other"] < 1024
    assert seen(looks, "resized_storage") == [4000, 0, 4000]


@slow
def test_more_than_the_memory_is_refused_and_nothing_is_broken_by_it(looks: dict[str, Any]) -> None:
    (kind, text), after = seen(looks, "out_of_memory")
    assert kind == "OutOfMemoryError" and "2048 MiB" in text and "1024 MiB" in text
    assert after == 2


@slow
def test_a_timer_that_doesnt_wait_is_caught_and_events_tell_the_work(looks: dict[str, Any]) -> None:
    found = seen(looks, "clock")
    assert found["careless"] < 0.2 <= found["careful"]
    assert found["events"] == pytest.approx(0.2, abs=0.05)
    assert "completed" in found["early"][1]


@slow
def test_streams_work_side_by_side_until_one_waits(looks: dict[str, Any]) -> None:
    other, main, joined = seen(looks, "streams")
    assert other >= 0.1
    assert 0.05 <= main < other
    assert joined >= other - 1e-6


@slow
def test_speeds_are_billed(looks: dict[str, Any]) -> None:
    ten, product, copied = seen(looks, "speeds")
    assert ten >= 0.2
    assert product >= 2 * 64**3 / 1e6
    assert copied >= 2**20 / 1e7


@slow
def test_faults(looks: dict[str, Any]) -> None:
    found = seen(looks, "faults")
    assert found["wrong"] == pytest.approx([2.0, 2.2])
    assert found["full"] == ["", "", "OutOfMemoryError"]  # memory is taken before the operator is launched
    assert found["after"] == 8.0


@slow
def test_a_lost_device_stays_lost_and_says_so(looks: dict[str, Any]) -> None:
    found = seen(looks, "lost")
    assert [kind for kind, _ in found["told"]] == ["", "", "AcceleratorError", "AcceleratorError"]
    assert "device 1 is lost" in found["told"][2][1] and found["waiting"][0] == "AcceleratorError"
    assert found["faulty"] == "the device is lost"
    assert found["other"] == 2


@slow
def test_tensors_of_another_device_are_refused(looks: dict[str, Any]) -> None:
    host, second, number = seen(looks, "strangers")
    assert "same device" in host and "cpu" in host
    assert "same device" in second and "simchip:1" in second
    assert number == 6


@slow
def test_seeds(looks: dict[str, Any]) -> None:
    again, next_one, kept = seen(looks, "seeds")
    assert again and not next_one
    assert 0.4 < kept < 0.6


@slow
def test_operators_give_what_the_cpu_gives(looks: dict[str, Any]) -> None:
    assert seen(looks, "operators") == {"missing": [], "wrong": {}}


@slow
def test_a_decoder_trains_with_the_cpus_losses(looks: dict[str, Any]) -> None:
    found = seen(looks, "training")
    cpu, device = found["False"]
    assert device == pytest.approx(cpu, rel=1e-5)
    cpu, device = found["True"]  # the two have different lists of operators that stay in fp32
    assert device == pytest.approx(cpu, rel=2e-2)
    assert cpu[0] > cpu[-2]


@slow
def test_telemetry_reads_memory_and_load(looks: dict[str, Any]) -> None:
    first, second = seen(looks, "reading")
    assert first["memory_used_mib"] >= 4 and first["memory_total_mib"] == 1024
    assert first["utilisation_pct"] > 50 and first["power_w"] > 150
    assert second["utilisation_pct"] < 50
    assert first["facts"] == {"simulated": True} and len(first["processes"]) == 1


@slow
def test_collectives_are_right_in_each_data_type(ranks: list[dict[str, Any]]) -> None:
    assert [rank["wrong"] for rank in ranks] == [{}, {}]


@slow
@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_does(ranks: list[dict[str, Any]], wrap: str) -> None:
    for rank in ranks:
        assert rank["losses"][wrap] == pytest.approx(rank["losses"]["single"], rel=1e-5)


# Through the harness


def test_it_isnt_there_unless_asked_for() -> None:
    vendors = Registries().vendors
    plain = vendors.adapter("simchip", Host(environ={}))
    assert plain.devices() == [] and "SIMCHIP_DEVICES" in plain.availability().reason
    two = vendors.adapter("simchip", Host(environ={"SIMCHIP_DEVICES": "2", "SIMCHIP_DELAY": "1e-5"}))
    assert [device.name for device in two.devices()] == ["simchip (simulated, 1e-05 s an operator)"] * 2
    assert two.slots() == 2 and "simulated" in two.facts()


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    adapter = Registries().vendors.adapter("simchip", Host(environ={"SIMCHIP_DEVICES": "1"}))
    state = adapter.availability()
    assert not state.available and "compiler" in state.reason and "g++" in state.remedy
    with pytest.raises(FlagPerfError, match="no C\\+\\+ compiler"):
        build.build()


def test_a_failed_build_shows_the_compilers_complaint_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\necho 'simchip.cpp:1: error: no such header' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(FlagPerfError) as failed:
        build.build()
    assert "no such header" in failed.value.hint
    assert not list((tmp_path / "cache").rglob("*.so*"))


def test_settings_are_read_and_bad_ones_refused() -> None:
    environ = {
        "SIMCHIP_DEVICES": "3",
        "SIMCHIP_FLOPS": "1e9",
        "SIMCHIP_FAULTS": "lost device=1 after=5; wrong factor=2",
    }
    told = read_settings(environ)
    assert (told.devices, told.flops) == (3, 1e9)
    assert told.faults == [Fault(kind="lost", device=1, after=5), Fault(kind="wrong", factor=2.0)]
    for bad in ({"SIMCHIP_DEVICES": "17"}, {"SIMCHIP_DEVICES": "x"}, {"SIMCHIP_FAULTS": "melted"},
                {"SIMCHIP_FAULTS": "lost when=5"}, {"SIMCHIP_MEMORY_MIB": "-1"}):  # fmt: skip
        with pytest.raises(FlagPerfError, match="can't be used"):
            read_settings(bad)


def test_readings_of_the_dead_are_removed_and_foreign_files_left(tmp_path: Path) -> None:
    settings = Settings(devices=1, state=str(tmp_path))
    (tmp_path / "99-x").write_bytes(b"something else")
    (tmp_path / f"{2**22 + 1}-0").write_bytes(_LAYOUT.pack(b"simchip1", 2**22 + 1, 0, 1, 2, 3, 4, 5, 0))
    (tmp_path / f"{os.getpid()}-0").write_bytes(_LAYOUT.pack(b"simchip1", os.getpid(), 0, 1, 2, 3 * MIB, 4, 5, 1))
    (reading,) = Meter(settings).read()
    assert reading.memory_used_mib == 3 and reading.faulty and reading.utilisation_pct is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["99-x", f"{os.getpid()}-0"])


def test_what_the_tool_prints_is_parsed(tmp_path: Path) -> None:
    adapter = Registries().vendors.adapter("simchip", Host(environ={"SIMCHIP_DEVICES": "2"}))
    readings = Meter(Settings(devices=2, state=str(tmp_path))).read()
    assert adapter.parse(msgspec.json.encode(readings).decode()).devices == readings
    assert adapter.parse("no devices").error and adapter.parse("[3]").error


def trial(environment: dict[str, str], folder: Path, engine: str, ranks: int) -> Result:
    """Run one trial on simulated devices, without the profiler, and return its result."""
    done = flagperf(
        *("run", "aquila/pretrain", "--vendor", "simchip", "--engine", engine, "--ranks", str(ranks), "--trials", "1"),
        *(*LEARNING, "--out", str(folder)),
        env=environment,
    )
    (result,) = load_results(folder)
    assert result.verdict == "invalid" or "The devices are simulated" in done.stdout, done.stdout
    return result


def gate(candidate: list[Result], baseline: list[Result]) -> set[str]:
    """Return what comparisons of two runs hold against them."""
    return {note.code for comparison in compare_runs(candidate, baseline) for note in comparison.notes}


@pytest.fixture(scope="session")
def sound(simchip: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result of a trial in which nothing goes wrong."""
    return trial(simchip, tmp_path_factory.mktemp("sound") / "run", "fsdp", 2)


@slow
def test_a_trial_has_the_cpus_losses_and_says_that_it_is_simulated(
    sound: Result, finished_run: tuple[Path, dict[str, Any]]
) -> None:
    assert sound.verdict == "valid", sound.reasons
    assert "simulated" in [note.code for note in sound.notes]
    for name in ("loss_final", "loss_validation"):
        expected = load_results(finished_run[0])[0].metrics[name].value
        assert sound.metrics[name].value == pytest.approx(expected, rel=1e-5)
    assert sound.metrics["memory_peak_allocated"].value > 0
    assert "losses_differ" not in gate([sound], [sound])


@slow
def test_the_accuracy_gate_sees_a_wrong_operator(simchip: dict[str, str], sound: Result, tmp_path: Path) -> None:
    wrong = trial({**simchip, "SIMCHIP_FAULTS": "wrong operator=mm factor=10"}, tmp_path / "run", "fsdp", 2)
    assert wrong.verdict == "valid", wrong.reasons  # nothing in the trial itself gives it away
    assert "losses_differ" in gate([wrong], [sound])


@slow
@pytest.mark.parametrize(
    ("fault", "engine", "failing", "code"),
    [
        ("out_of_memory device=1 after=300", "ddp", 1, "out_of_memory"),
        ("lost device=0 after=300", "single", 0, "device_lost"),
    ],
)
def test_a_fault_of_one_rank_is_the_trials_reason(
    simchip: dict[str, str], tmp_path: Path, fault: str, engine: str, failing: int, code: str
) -> None:
    result = trial({**simchip, "SIMCHIP_FAULTS": fault}, tmp_path / "run", engine, failing + 1)
    assert result.verdict == "invalid"
    assert result.reasons[0].code == code and f"Rank {failing}" in result.reasons[0].message, result.reasons


def load_results(folder: Path) -> list[Result]:
    run = read_run(folder)
    return [read_trial(folder, run, trial).result for trial in run.trials]
