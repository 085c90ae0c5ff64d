"""Which chip a device is: exactly or not at all; and what follows for the rated peak."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from helpers import ROOT

from flagperf.chips import identify, read_table
from flagperf.errors import PluginError
from flagperf.registry import Registries
from flagperf.schema.chip import Chip

CHIPS = read_table(ROOT / "vendors")


@pytest.mark.parametrize(
    ("vendor", "name", "memory", "chip", "bf16"),
    [
        ("nvidia", "NVIDIA H100 80GB HBM3", 81559, "H100-80GB-SXM5", 989.4),
        ("nvidia", "NVIDIA A100-SXM4-80GB", 81920, "A100-80GB-SXM4", 312),
        ("nvidia", "NVIDIA A100-SXM4-40GB", 40960, "A100-40GB-SXM4", 312),
        ("gaudi", "HL-225", 98304, "Gaudi2", 432),
        # A card of two dies: each is a device, with half of the card's peak and memory.
        ("cambricon", "MLU370-X8", 23374, "MLU370-X8", 48),
        # No source gives a bf16 peak.
        ("ascend", "910B2", 65536, "Ascend 910B2", None),
    ],
)
def test_a_chip_is_known_by_name_and_memory(
    vendor: str, name: str, memory: float, chip: str, bf16: float | None
) -> None:
    found, why = identify(vendor, name, memory, CHIPS)
    assert found is not None and found.chip == chip, why
    assert found.flops("bf16") == (None if bf16 is None else bf16 * 1e12)


@pytest.mark.parametrize(
    ("vendor", "name", "memory", "why"),
    [
        ("nvidia", "NVIDIA H100 PCIe", 81559, "no chip in the table"),
        ("nvidia", "NVIDIA H100 80GB HBM3", 40960, "but the table has"),
        ("nvidia", "NVIDIA GeForce RTX 4090 D", 24564, "no chip in the table"),
        ("nvidia", "NVIDIA GeForce RTX 40...", 24564, "no chip in the table"),
        ("iluvatar", "NVIDIA H100 80GB HBM3", 81559, "no chip in the table"),
        ("nvidia", None, 81559, "its name isn't known"),
    ],
)
def test_a_device_that_isnt_surely_a_chip_is_none(vendor: str, name: str | None, memory: float, why: str) -> None:
    found, told = identify(vendor, name, memory, CHIPS)
    assert found is None and why in told


def test_two_chips_of_one_name_are_told_apart_by_memory_or_not_at_all() -> None:
    common = {"vendor": "v", "names": ["x"], "source": "-", "confidence": "low"}
    small, large = (msgspec.convert({"chip": f"X{size}", "memory_gb": size, **common}, Chip) for size in (16, 32))
    assert identify("v", "X", 32768, [small, large])[0] == large
    found, why = identify("v", "X", None, [small, large])
    assert found is None and "X16 or X32" in why


def test_every_chip_is_of_a_vendor_here_has_a_source_and_no_name_of_another() -> None:
    vendors = set(Registries().vendors.names())
    names = [(chip.vendor, name) for chip in CHIPS for name in chip.names]
    assert len(CHIPS) > 40 and {chip.vendor for chip in CHIPS} <= vendors
    assert all(chip.source for chip in CHIPS)
    assert len(names) == len(set(names))


def test_a_broken_table_says_where(tmp_path: Path) -> None:
    (tmp_path / "chips.toml").write_text('[[chips]]\nvendor = "v"\nchip = "X"\nnames = []\nconfidence = "sure"\n')
    with pytest.raises(PluginError, match="table of chips"):
        read_table(tmp_path)
