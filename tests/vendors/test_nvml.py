"""NVML's ABI in C, loaded by the real pynvml: from `flagperf devices` through telemetry to results and the report."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from collect import runs
from helpers import flagperf
from nvml_cards import HANGS, LOST, Card, Cards, build

from flagperf.collect.trials import TrialRecord, read_trial
from flagperf.journal import Reader
from flagperf.reports import data, page
from flagperf.schema.event import Key
from flagperf.schema.reading import Reading
from flagperf.vendors.nvidia import library as adapter

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

SOUND = Card(power_mw=200_000, utilisation=90)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def cards(library: Path, tmp_path: Path) -> Cards:
    """A pretended host with NVML."""
    return Cards(tmp_path, library)


@pytest.fixture
def here(cards: Cards, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cards]:
    """The same in this process: loaded before, the library is found by its name."""
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    monkeypatch.setenv("NVML_STATE", str(cards.state))
    adapter._library.cache_clear()
    yield cards
    adapter._library.cache_clear()


def read() -> list[Reading]:
    said = adapter.read_nvml()
    assert said is not None and said.error is None
    return said.devices


def test_what_a_card_doesnt_support_is_unknown(here: Cards) -> None:
    here.put([replace(SOUND, energy_mj=5_000, pid=7, pid_mib=512), replace(SOUND, mig=1, ecc=3, throttle=0x40 | 0x4)])
    first, second = read()
    assert (first.power_w, first.energy_j, first.utilisation_pct, first.temperature_c) == (200.0, 5.0, 90, 50)
    assert (first.memory_total_mib, first.memory_used_mib, first.clock_mhz, first.memory_clock_mhz) == (
        *(81920, 1024),
        *(1410, 1593),
    )
    assert first.processes is not None and [(one.pid, one.memory_mib) for one in first.processes] == [(7, 512)]
    assert (first.throttled, first.ecc_uncorrected, first.bus_id) == ([], 0, "00000000:07:00.0")
    assert (second.utilisation_pct, second.energy_j, second.ecc_uncorrected) == (None, None, 3)
    assert second.throttled == ["hardware thermal slowdown", "software power cap"]
    assert second.faulty is None


def test_error_events_are_told_once(here: Cards) -> None:
    here.put([SOUND, SOUND])
    assert [device.xid for device in read()] == [None, None]
    here.put([SOUND, replace(SOUND, xid=79, xid_count=2)])
    assert [device.xid for device in read()] == [None, [79, 79]]
    assert [device.xid for device in read()] == [None, None]


def test_a_card_that_hangs_or_is_lost_leaves_the_others(here: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    here.put([SOUND, SOUND, SOUND])
    assert [device.faulty for device in read()] == [None] * 3
    monkeypatch.setattr(adapter, "_CALL_TIMEOUT", 0.3)
    here.put([replace(SOUND, state=HANGS), replace(SOUND, state=LOST), replace(SOUND, power_mw=150_000)])
    for _ in range(3):
        hung, lost, sound = read()
        assert hung.faulty == "NVML: no answer within 0.3 s" and hung.power_w is None
        assert lost.faulty == "NVML: GPU is lost"
        assert (sound.faulty, sound.power_w) == (None, 150.0)
    monkeypatch.setattr(adapter, "_CALL_TIMEOUT", 10.0)
    here.put([SOUND, SOUND, SOUND])
    until = time.monotonic() + 20
    while [device.faulty for device in read()] != [None] * 3:  # the call that hung comes back, and is dropped
        assert time.monotonic() < until
        time.sleep(0.02)


def replace(card: Card, **changes: int) -> Card:
    """Return a card that differs in some fields."""
    return msgspec.structs.replace(card, **changes)


def test_devices_shows_the_cards(cards: Cards) -> None:
    cards.put([replace(SOUND, mig=1), replace(SOUND, state=LOST)])
    done = flagperf("devices", "--json", env=cards.environment)
    assert done.returncode == 0, done.stderr
    found = [device for device in json.loads(done.stdout)["devices"] if device["vendor"] == "nvidia"]
    assert [(device["name"], device["state"]) for device in found] == [
        ("NVIDIA A100-SXM4-80GB", "ok"),
        ("unknown", "faulty: NVML: GPU is lost"),
    ]
    assert found[0]["facts"]["chip"], found[0]


def watched(cards: Cards, folder: Path, ranks: int, change: Callable[[int, int], None]) -> TrialRecord:
    """Have the real telemetry process watch a trial; `change(step, pid)` is called at the beginning of each step.

    The trial's steps are made here, in real time; a child of this process stands for the ranks'.
    """
    trial = runs.trial(vendor="nvidia", ranks=ranks, protocol=runs.protocol(telemetry=0.1))
    out = folder.with_suffix(".journal")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    command = [sys.executable, "-m", "flagperf.measure.telemetry", "--out", str(out), "--parent", str(os.getpid())]
    change(-1, child.pid)
    telemetry = subprocess.Popen([*command, "--interval", "0.1", "--vendor", "nvidia"], env=cards.environment)
    took: dict[int, float] = {}

    def seconds(trial: object, rank: int, step: int) -> float:
        if rank == 0:
            began = time.monotonic()
            change(step, child.pid)
            time.sleep(0.2)
            took[step] = time.monotonic() - began
        return took[step]

    try:
        until = time.monotonic() + 60
        while not (out.exists() and b'"devices":[' in out.read_bytes()):
            assert time.monotonic() < until and telemetry.poll() is None
            time.sleep(0.02)
        runs.write_run(folder, runs.run([trial]), seconds=seconds)
        telemetry.send_signal(signal.SIGTERM)
        assert telemetry.wait(20) == 0
    finally:
        for process in (child, telemetry):
            process.kill()
            process.wait()
    out.replace(folder / "trials" / trial.id / "telemetry.journal")
    return read_trial(folder, runs.run([trial]), trial)


@pytest.mark.slow
def test_the_energy_of_cards_is_that_of_their_counter_or_their_power(cards: Cards, tmp_path: Path) -> None:
    began = time.monotonic()

    def change(step: int, pid: int) -> None:
        counted = replace(SOUND, energy_mj=int((time.monotonic() - began) * 500_000) + 1)
        first = replace(SOUND, mig=1, pid=pid)
        counted = replace(counted, utilisation=0 if step < 0 else 90)
        cards.put([first, counted, replace(SOUND, power_mw=900_000)])

    record = watched(cards, tmp_path / "run", 2, change)
    assert record.result.verdict == "valid", record.result.reasons
    by_power, by_counter = record.result.facts["device_energy"]  # the third card is no rank's
    taken = record.ranks[0].steps
    window = float(taken.seconds[taken.measured].sum())
    assert (by_power["source"], by_counter["source"]) == ("power", "counter")
    assert by_power["covered"] > 0.95 and by_power["joules"] == pytest.approx(200 * window, rel=0.02)
    assert by_counter["joules"] == pytest.approx(500 * window, rel=0.3)
    metrics = record.result.metrics
    assert metrics["energy"].value == pytest.approx(by_power["joules"] + by_counter["joules"])
    assert metrics["tokens_per_joule"].value == pytest.approx(
        sum(rank.steps.tokens[rank.steps.measured].sum() for rank in record.ranks) / metrics["energy"].value
    )
    codes = {note.code for note in record.result.notes}
    assert not codes & {"foreign_load", "processes_unknown", "device_lost", "device_throttled", "energy_unknown"}


@pytest.mark.slow
def test_what_befalls_cards_is_told_with_the_result(cards: Cards, tmp_path: Path) -> None:
    def change(step: int, pid: int) -> None:
        busy = replace(SOUND, pid=pid, pid_mib=1000, clock=1410 if step < 7 else 900)
        if step >= 6:
            busy = replace(busy, throttle=0x40, ecc=2, xid=48, xid_count=1, pid2=1, pid2_mib=4000)
        cards.put([busy, replace(SOUND, state=LOST if step >= 5 else 0)])

    record = watched(cards, tmp_path / "run", 2, change)
    told = {note.code: note.message for note in record.result.notes}
    assert "hardware thermal slowdown" in told["device_throttled"]
    assert "Device 0 had 2 new memory errors" in told["ecc_errors"]
    assert "1 errors of device 0" in told["device_errors"] and "48" in told["device_errors"]
    assert "from 1410 to 900 MHz" in told["clocks_fell"]
    assert "1 with 4000 MiB" in told["foreign_load"] and "Device 0" in told["foreign_load"]
    assert "Device 1" in told["device_lost"] and "GPU is lost" in told["device_lost"]
    assert "device 1 is known for" in told["energy_unknown"]
    assert "energy" not in record.result.metrics and "tokens_per_joule" not in record.result.metrics
    assert "devices.1" in told["telemetry_gaps"]
    shown = page.render([data.load(tmp_path / "run")])
    for code in ("foreign_load", "device_lost", "ecc_errors", "device_throttled"):
        assert told[code] in shown
    assert "Power, a line a device" in shown and "设备功率" in shown
    assert f'"{record.trial.id} 0"' in shown and f'"{record.trial.id} 1"' in shown
    place = tmp_path / "run" / "trials" / record.trial.id / "telemetry.journal"
    last = list(Reader(place))[-1]
    assert last.key == Key.TELEMETRY_COST
    assert last.value["sources"]["devices"]["read"] > 10 and last.value["sources"]["devices.1"]["failed"] > 1
