"""Specification cases on the CPU: what they count, what they say isn't there, and what goes wrong on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measure.benches import probe

from flagperf.errors import UsageError
from flagperf.measure import sensors
from flagperf.measure.watts import device_watts, host_watts, watts_during
from flagperf.plan import Options, alone
from flagperf.registry import Registries
from flagperf.schema.chip import Chip
from flagperf.specifications import Bench, best_sizes

SPECS = [name for name in Registries().cases.names() if name.startswith("spec/")]
SMALL = {"search": 0.05, "smallest": 64, "largest": 128}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Whatever a rank sets in this process is as it was."""
    count, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(count)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("name", SPECS)
def test_every_preset_can_be_planned_and_rates_what_the_table_of_chips_has(name: str) -> None:
    registries = Registries()
    manifest = registries.cases.get(name)
    assert manifest.title_zh and manifest.protocol.region_zh
    for preset in manifest.presets:
        trial = alone(name, Options(cases=[name], preset=preset, engines=[]), registries)
        case = registries.cases.load(name)(trial)
        figures = {case.figure(case.dims(at)) for at in case.points()}
        assert figures - {""} <= set(Chip.__struct_fields__)
    assert len(SPECS) == 6


def test_products_are_counted_checked_and_the_best_size_is_told(tmp_path: Path) -> None:
    found = {s["at"]["dtype"]: s for s in probe(tmp_path, "spec/gemm", **SMALL)}
    assert list(found) == ["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
    for dtype in ("fp64", "fp32"):
        one = found[dtype]
        size = one["facts"]["size"]
        assert one["verdict"] == "valid", one["why"]
        assert one["flops"] == 2 * size["m"] * size["n"] * size["k"]
        assert one["accuracy"]["wrong"] == 0 and one["accuracy"]["elements"] == 16 * 64
        assert one["figure"] == f"{dtype}_tflops" and one["facts"]["sizes_tried"] >= 1
        assert all(edge % 64 == 0 for edge in size.values()) and len(one["seconds"]) >= 3
    assert found["tf32"]["verdict"] == "unsupported" and "it has none" in found["tf32"]["why"]
    # A host may multiply the short types or not; that it doesn't is no failure.
    assert {found[dtype]["verdict"] for dtype in ("fp16", "bf16", "fp8", "int8")} <= {"valid", "unsupported"}
    assert found["int8"]["figure"] == "int8_tops"


def test_a_product_that_is_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.mm

    def wrong(left: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return right(left, other, out=out).mul_(1.01)

    monkeypatch.setattr(torch, "mm", wrong)
    (one,) = probe(tmp_path, "spec/gemm", sweep={"dtype": ["fp32"]}, **SMALL)
    assert one["verdict"] == "wrong" and "outside the tolerance" in one["why"]


@pytest.mark.parametrize("says", ["no kernel for this", "out of memory"])
def test_a_dtype_that_cant_be_multiplied_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(torch, "_int_mm", refuse)
    (one,) = probe(tmp_path, "spec/gemm", sweep={"dtype": ["int8"]}, **SMALL)
    assert one["verdict"] == "unsupported" and says in one["why"]


def test_what_is_only_emulated_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "quick", lambda self, call: 0.04)
    (one,) = probe(tmp_path, "spec/gemm", sweep={"dtype": ["fp8"]}, **SMALL)
    assert one["verdict"] == "unsupported" and "a product of 512 would take 20 s" in one["why"]


def test_sizes_that_dont_fit_are_left_out_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "free", lambda self: 2.2 * 3 * 4 * 128**2)
    (one,) = probe(tmp_path, "spec/gemm", sweep={"dtype": ["fp32"]}, search=0.2, smallest=64, largest=4096)
    assert one["verdict"] == "valid" and one["facts"]["size"]["m"] <= 320
    monkeypatch.setattr(Bench, "free", lambda self: 3 * 4 * 64**2 * 2.0)
    (none,) = probe(tmp_path / "none", "spec/gemm", sweep={"dtype": ["fp32"]}, search=0.2, smallest=256, largest=512)
    assert none["verdict"] == "too big" and "not even the smallest" in none["why"]


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 30))
def test_a_search_goes_uphill_and_leaves_out_what_cant_be_measured(peak: tuple[int, int], limit: int) -> None:
    def rate(size: tuple[int, ...]) -> float | None:
        tried.append(size)
        away = sum(abs(a / 64 - b) for a, b in zip(size, peak, strict=True))
        return None if max(size) > 64 * limit else 1000.0 - away

    tried: list[tuple[int, ...]] = []
    sizes = best_sizes(rate, [(64 * 2**step,) * 2 for step in range(6)], 64, 60.0)
    assert all(max(size) <= 64 * limit for size in sizes)
    assert len(tried) == len(set(tried)) and all(edge % 64 == 0 for size in tried for edge in size)
    away = [sum(abs(a / 64 - b) for a, b in zip(size, peak, strict=True)) for size in sizes]
    assert away == sorted(away)


def test_a_search_stops_after_two_that_are_slower_and_when_nothing_fits() -> None:
    tried: list[int] = []

    def rate(size: tuple[int, ...]) -> float | None:
        tried.append(size[0])
        return {64: 1.0, 128: 9.0, 256: 5.0, 512: 4.0}.get(size[0], 0.5)

    assert best_sizes(rate, [(64 * 2**step,) for step in range(6)], 64, 60.0)[0] == (128,)
    assert max(tried) == 512
    assert best_sizes(lambda size: None, [(64,), (128,)], 64, 60.0) == []


def test_memory_counts_the_bytes_that_each_operation_reads_and_writes(tmp_path: Path) -> None:
    sweep = {"operation": ["copy", "triad", "read", "write"], "kib": [96, "memory"]}
    found = {tuple(s["at"].values()): s for s in probe(tmp_path, "spec/memory", sweep=sweep, times=0.01)}
    assert all(s["verdict"] == "valid" for s in found.values()), [s["why"] for s in found.values()]
    for (operation, kib), one in found.items():
        array, arrays = one["facts"]["array_bytes"], {"copy": 2, "triad": 3}.get(operation, 1)
        assert one["bytes"] == array * arrays * one["facts"]["times_a_call"]
        assert kib == "memory" or array * arrays == 96 * 1024
        assert one.get("figure", "") == ("memory_bandwidth_gbs" if kib == "memory" else "")
    assert found["read", 96]["facts"]["times_a_call"] > 10  # else a call is nothing but its start


def test_memory_that_keeps_other_values_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "add", lambda a, b, alpha, out: out)
    sweep = {"operation": ["triad"], "kib": [64]}
    (one,) = probe(tmp_path, "spec/memory", sweep=sweep)
    assert one["verdict"] == "wrong" and "triad left other values" in one["why"]


@pytest.mark.parametrize("sweep", [{"operation": ["scale"]}, {"kib": [0]}, {"kib": ["dram"]}])
def test_what_memory_doesnt_know_is_refused(tmp_path: Path, sweep: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is called"):
        probe(tmp_path, "spec/memory", sweep=sweep)


def test_capacity_stops_at_a_safe_share_of_a_host_and_where_there_is_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "free", lambda self: 100 * 2.0**20)
    (one,) = probe(tmp_path, "spec/capacity", host_share=0.5)
    assert 49 * 2**20 <= one["values"]["capacity"] * 1e9 <= 50 * 2**20
    assert one["facts"]["stopped_at"] == "50% of what the host had available"

    taken, real = [0], torch.empty

    def limited(size: int, **named: Any) -> torch.Tensor:
        if taken[0] + size > 10 * 2**20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        taken[0] += size
        return real(size, **named)

    monkeypatch.setattr(torch, "empty", limited)
    (one,) = probe(tmp_path / "limited", "spec/capacity", host_share=0.5)
    assert one["values"]["capacity"] * 1e9 == 9 * 2**20  # and one for reading them again


def test_a_cpu_has_no_way_to_itself_and_launches_are_timed(tmp_path: Path) -> None:
    copies = probe(tmp_path, "spec/host-device")
    assert len(copies) == 6 and {one["verdict"] for one in copies} == {"unsupported"}
    launches = probe(tmp_path / "launch", "spec/launch")
    assert [one["verdict"] for one in launches] == ["valid"] * 2 and all(one["seconds"] for one in launches)


def test_power_of_a_host_is_its_energy_counters_or_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: object) -> None:
        raise sensors.Absent("this machine shows no RAPL energy counter")

    small = {"shapes": {"load": {"edge": 64}}, "sweep": {"dtype": ["fp32"]}}
    monkeypatch.setattr(sensors.Energy, "__init__", absent)
    found = probe(tmp_path, "spec/power", **small)
    assert {(one["verdict"], one["why"]) for one in found} == {
        ("unsupported", "no power can be read: this machine shows no RAPL energy counter")
    }
    joules = iter(range(0, 100_000, 50))
    monkeypatch.setattr(sensors.Energy, "__init__", lambda self: None)
    monkeypatch.setattr(sensors.Energy, "__call__", lambda self: {"energy_joules": {"package-0": next(joules)}})
    idle, load = probe(tmp_path / "there", "spec/power", **small)
    assert idle["values"]["power_idle"] > 0 and load["values"]["power_load"] > 0
    assert load["figure"] == "tdp_w" and idle.get("figure", "") == ""


def test_watts_are_read_while_the_work_is_done() -> None:
    told = itertools.chain([None, 75.0, 300.0], itertools.repeat(None))
    assert watts_during(lambda: next(told), lambda: None, 0.05, interval=0.001) == [75.0, 300.0]

    def silent() -> float:
        raise OSError("the tool doesn't answer")

    with pytest.raises(OSError, match="doesn't answer"):
        watts_during(silent, lambda: None, 5.0)
    devices = [{"index": 4, "visible": 0, "power_w": 80.0}, {"index": 5, "visible": 1}]
    assert [device_watts(lambda: devices, place)() for place in (0, 1, 2)] == [80.0, None, None]
    energy = iter([{"energy_joules": {"a": 1.0, "b": 0.0}}, {"energy_joules": {"a": 1.5, "b": 0.5}}])
    read = host_watts(lambda: next(energy))
    assert read() is None and (read() or 0.0) > 0
