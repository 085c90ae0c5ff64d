"""AMD's library read through a binding of its shape, made here: what it answers, refuses, and never answers."""

from __future__ import annotations

import enum
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from flagperf.vendors.amd import library


class AmdSmiException(Exception):
    """What the binding raises for whatever goes wrong."""


class Kinds(enum.Enum):
    """Where a temperature is measured."""

    EDGE = 0
    HOTSPOT = 1


class Binding(ModuleType):
    """The functions of amdsmi that are used, of devices `a`, `b`, …"""

    def __init__(self, devices: str) -> None:
        super().__init__("amdsmi")
        self.AmdSmiException, self.AmdSmiTemperatureType = AmdSmiException, Kinds
        self.AmdSmiTemperatureMetric = enum.Enum("AmdSmiTemperatureMetric", ["CURRENT"])
        self.devices, self.broken, self.release = devices, "", threading.Event()
        self.hanging: set[str] = set()
        self.starts = 0

    def amdsmi_init(self) -> None:
        self.starts += 1
        self._wait("init")
        if self.broken:
            raise AmdSmiException(self.broken)

    def amdsmi_get_processor_handles(self) -> list[str]:
        return list(self.devices)

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, Any]:
        self._wait(handle)
        return {"market_name": f"Card {handle}"}

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> dict[str, Any]:
        return {"vram_total": 65536, "vram_used": 1024}

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        return {"average_socket_power": "N/A", "current_socket_power": 95}

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, Any]:
        raise AmdSmiException("not supported")

    def amdsmi_get_temp_metric(self, handle: str, kind: Kinds, metric: Any) -> Any:
        if kind is Kinds.EDGE:
            raise AmdSmiException("not supported")
        return 41

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        return f"uuid-{handle}"

    def amdsmi_get_gpu_device_bdf(self, handle: str) -> str:
        return "0000:01:00.0"

    def _wait(self, what: str) -> None:
        if what in self.hanging:
            self.release.wait(60)


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Binding]:
    """A host with two cards, and little patience."""
    made = Binding("ab")
    monkeypatch.setitem(sys.modules, "amdsmi", made)
    monkeypatch.setattr(library, "_START_TIMEOUT", 0.5)
    monkeypatch.setattr(library, "_CALL_TIMEOUT", 0.5)
    yield made
    made.release.set()


def test_what_a_card_has_is_read_and_what_it_hasnt_is_unknown(binding: Binding) -> None:
    for _ in range(2):
        said = library.read_amdsmi()
        assert said is not None and said.error is None and said.source == "amdsmi"
        assert [each.name for each in said.devices] == ["Card a", "Card b"]
        first = said.devices[0]
        assert (first.memory_total_mib, first.memory_used_mib) == (65536, 1024)
        assert (first.power_w, first.temperature_c, first.utilisation_pct) == (95, 41, None)
        assert (first.uuid, first.bus_id, first.faulty) == ("uuid-a", "0000:01:00.0", None)
    assert binding.starts == 1


def test_a_card_that_never_answers_is_faulty_and_holds_up_no_other(binding: Binding) -> None:
    binding.hanging = {"b"}
    for _ in range(2):
        said = library.read_amdsmi()
        assert said is not None
        assert [each.faulty for each in said.devices] == [None, "amdsmi: no answer within 0.5 s"]
        assert said.devices[0].power_w == 95


def test_a_library_that_cant_be_started_says_why_and_is_tried_again(binding: Binding) -> None:
    binding.broken = "driver not loaded"
    said = library.read_amdsmi()
    assert said is not None and said.error == "amdsmi: driver not loaded"
    binding.broken = ""
    said = library.read_amdsmi()
    assert said is not None and len(said.devices) == 2


def test_a_library_that_hangs_at_its_start_is_given_up(binding: Binding) -> None:
    binding.hanging = {"init"}
    said = library.read_amdsmi()
    assert said is not None and said.error == "amdsmi: no answer within 0.5 s" and said.devices == []


def test_without_the_binding_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert library.read_amdsmi() is None
