"""What telemetry tells of devices: energy with gaps, whose devices they are, foreign load; and hostile journals."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from collect import runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flagperf.collect.devices import LEAST_COVERED, integrated
from flagperf.collect.trials import TrialRecord, read_trial
from flagperf.journal import PREFIX
from flagperf.schema.event import Key

SECOND = 10**9


def telemetry(folder: Path, rows: list[tuple[float, list[dict[str, Any]]]], **more: Any) -> None:
    """Replace a trial's telemetry by samples at seconds of the monotonic clock, all of process 7's descendants."""
    header = {
        "role": "telemetry",
        "pid": 8,
        "parent": 7,
        "interval": 0.1,
        "host": os.uname().nodename,
        **more.pop("header", {}),
    }
    lines = [(0.0, Key.HEADER, header)]
    for at, devices in rows:
        lines.append((at, Key.TELEMETRY, {"tick": 1, "devices": devices, "processes": [{"pid": 9}], **more}))
    lines.append((1e6, Key.TELEMETRY_COST, {"cpu_seconds": 0.1, "wall_seconds": 10.0, "missed": 0, "failed": 0}))
    text = b"".join(
        PREFIX + msgspec.json.encode({"time_ms": 1, "key": key, "value": value, "metadata": {"ns": int(at * SECOND)}})
        + b"\n"
        for at, key, value in lines
    )  # fmt: skip
    folder.write_bytes(text)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, float, float]:
    """A run of one trial on two ranks, and between which seconds of the monotonic clock its steps were measured."""
    folder = runs.write_run(tmp_path / "run", runs.run([runs.trial()]))
    steps = record(folder).ranks[0].steps
    chosen = steps.take(steps.measured)
    return folder, chosen.ns[0] / SECOND - chosen.seconds[0], chosen.ns[-1] / SECOND


def record(folder: Path) -> TrialRecord:
    trial = runs.trial()
    return read_trial(folder, runs.run([trial]), trial)


def place(folder: Path) -> Path:
    return folder / "trials" / runs.trial().id / "telemetry.journal"


def notes(folder: Path) -> dict[str, str]:
    return {note.code: note.message for note in record(folder).result.notes}


def moments(start: float, stop: float, n: int = 21) -> list[float]:
    return np.linspace(start - 0.01, stop + 0.01, n).tolist()


def test_devices_energy_is_the_total_of_the_trials_own_and_the_hosts_is_apart(run: tuple[Path, float, float]) -> None:
    folder, start, stop = run
    devices = [{"index": index, "power_w": 100.0 * (index + 1), "visible": 2 - index} for index in range(3)]
    rows = [(at, devices) for at in moments(start, stop)]
    telemetry(place(folder), rows, energy_joules={"package-0": 5.0})
    found = record(folder).result
    # Two ranks: of the devices in the order that processes see them, 2, 1, 0, they run on the first two.
    assert [each["index"] for each in found.facts["device_energy"]] == [1, 2]
    assert found.metrics["energy"].value == pytest.approx((200 + 300) * (stop - start))
    assert found.metrics["energy_host"].value == 0  # a counter that stood still
    tokens = 10 * 2 * 512
    assert found.metrics["tokens_per_joule"].value == pytest.approx(tokens / found.metrics["energy"].value)
    assert not {"energy_gaps", "energy_unknown"} & notes(folder).keys()


def test_a_gap_is_marked_and_too_many_leave_no_energy(run: tuple[Path, float, float]) -> None:
    folder, start, stop = run
    all_of_them = moments(start, stop, 401)
    for missing, code in ((14, "energy_gaps"), (100, "energy_unknown")):
        rows = [(at, [{"index": 0, "power_w": 50.0}]) for at in all_of_them[:150] + all_of_them[150 + missing :]]
        telemetry(place(folder), rows, header={"interval": 1e-9})
        found = record(folder).result
        covered = found.facts["device_energy"][0]["covered"]
        assert code in notes(folder) and (covered >= LEAST_COVERED) == (code == "energy_gaps")
        if code == "energy_gaps":
            assert found.metrics["energy"].value == pytest.approx(50 * (stop - start))
        else:
            assert "energy" not in found.metrics and "tokens_per_joule" not in found.metrics


def test_a_device_whose_power_nobody_knows_leaves_no_total(run: tuple[Path, float, float]) -> None:
    folder, start, stop = run
    rows = [(at, [{"index": 0, "power_w": 50.0}, {"index": 1}]) for at in moments(start, stop)]
    telemetry(place(folder), rows, energy_joules={"package-0": 1.0})
    found = record(folder).result
    assert "energy" not in found.metrics
    assert found.metrics["energy_host"].unit == "J"


def test_accelerators_that_cant_be_read_dont_get_the_hosts_energy(run: tuple[Path, float, float]) -> None:
    folder, start, stop = run
    rows: list[tuple[float, list[dict[str, Any]]]] = [(at, []) for at in moments(start, stop)]
    telemetry(place(folder), rows, energy_joules={"package-0": 1.0}, unavailable={"devices": "no driver"})
    assert "energy" not in record(folder).result.metrics
    telemetry(place(folder), rows, energy_joules={"package-0": 1.0})
    assert "energy" in record(folder).result.metrics


@pytest.mark.parametrize(
    ("pids", "code", "words"),
    [
        ([9], None, ""),
        ([9, 4711], "foreign_load", "4711 (miner) with 300 MiB"),
        ([4711], "processes_unknown", "4711"),  # none of ours is seen: a container, perhaps
    ],
)
def test_foreign_processes(run: tuple[Path, float, float], pids: list[int], code: str | None, words: str) -> None:
    folder, start, stop = run
    processes = [{"pid": pid, "name": "miner", "memory_mib": 300.0} for pid in pids]
    telemetry(place(folder), [(at, [{"index": 0, "processes": processes}]) for at in moments(start, stop)])
    told = notes(folder)
    assert {"foreign_load", "processes_unknown"} & told.keys() == ({code} if code else set())
    if code:
        assert words in told[code]


def test_a_device_that_tells_nothing_any_more(run: tuple[Path, float, float]) -> None:
    folder, start, stop = run
    times = moments(start, stop, 401)
    rows = [(at, [{"index": 0, "power_w": 1.0}] if place < 200 else []) for place, at in enumerate(times)]
    telemetry(place(folder), rows, header={"interval": 1e-9}, unavailable={"devices": "smi isn't on PATH"})
    assert notes(folder)["device_silent"].endswith("smi isn't on PATH.")


times = st.lists(st.floats(0, 100), min_size=2, max_size=30, unique=True).map(sorted)


@given(times=times, start=st.floats(0, 100), length=st.floats(0.1, 100), watts=st.floats(0, 1e4))
def test_a_constant_power_integrates_to_itself(times: list[float], start: float, length: float, watts: float) -> None:
    ns = np.array(times) * SECOND
    joules, covered = integrated(ns, np.full(len(ns), watts), start * SECOND, (start + length) * SECOND, math.inf)
    overlap = max(0.0, min(times[-1], start + length) - max(times[0], start))
    assert covered == pytest.approx(min(1.0, overlap / length), abs=1e-6)
    assert joules == pytest.approx(watts * overlap, rel=1e-6, abs=1e-4)


@given(times=times, watts=st.lists(st.floats(0, 1e3), min_size=30, max_size=30), longest=st.floats(0, 50))
def test_windows_side_by_side_add_up(times: list[float], watts: list[float], longest: float) -> None:
    ns, power = np.array(times) * SECOND, np.array(watts[: len(times)])
    first, _ = integrated(ns, power, 0, 40 * SECOND, longest * SECOND)
    second, _ = integrated(ns, power, 40 * SECOND, 100 * SECOND, longest * SECOND)
    whole, covered = integrated(ns, power, 0, 100 * SECOND, longest * SECOND)
    assert first + second == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert 0 <= covered <= 1


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
NAMES = [
    *("index", "ns", "visible", "power_w", "energy_j", "clock_mhz", "ecc_uncorrected", "xid", "throttled", "faulty"),
    *("processes", "utilisation_pct", "pid"),
]
devices = st.lists(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3) | values) | values, max_size=3) | values


@given(samples=st.lists(devices, min_size=1, max_size=5), header=st.dictionaries(st.just("interval"), values))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_device_makes_it_raise(
    run: tuple[Path, float, float], samples: list[list[dict[str, Any]]], header: dict[str, Any]
) -> None:
    folder, start, stop = run
    rows = list(zip(moments(start, stop, len(samples)), samples, strict=True))
    telemetry(place(folder), rows, header=header)
    msgspec.json.encode(record(folder).result)
