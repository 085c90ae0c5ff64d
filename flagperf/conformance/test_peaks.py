"""Rated peaks: what MFU is relative to, and so what a vendor would most like to get wrong."""

from __future__ import annotations

import itertools

import pytest

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Absent, Problems, check
from flagperf.conformance.kit import Kit
from flagperf.schema.chip import Chip

_SLACK = 1.05
_ORDER = ("fp64_tflops", "fp32_tflops", "tf32_tflops", "fp16_tflops", "fp8_tflops")
_FIGURES = (*_ORDER, "bf16_tflops", "int8_tops")
_SIZES = ("memory_gb", "memory_bandwidth_gbs", "interconnect_gbs", "tdp_w")


@check(
    "Without a rated peak a result has no MFU against what was bought.",
    "Add a row a chip to chips.toml, in the adapter's folder or beside it; leave out what no source says. "
    "Where none says anything, have the README say `no rated peak`.",
    part="peaks",
)
def test_chips_are_in_the_table(kit: Kit) -> Problems:
    markers = kit.accelerator.manifest.markers
    if markers.environment and not (markers.pci or markers.nodes):
        pytest.skip("needs a chip that exists; this one is simulated")
    if not [chip for chip in kit.registries.vendors.chips(kit.name) if chip.vendor == kit.name]:
        readme = kit.folder / "README.md"
        if readme.is_file() and "no rated peak" in readme.read_text("utf-8").lower():
            pytest.skip("needs a source of rated peaks; the README says that there is none")
        yield f"no row of chips.toml has vendor = {kit.name!r}"


@check(
    "A figure without a source can't be checked by anybody.",
    "Say which page, sheet or tool it's from; set `confidence` to how well it's known.",
    part="peaks",
)
def test_figures_have_a_source(kit: Kit) -> Problems:
    for chip in _chips(kit):
        figures = [name for name in _FIGURES if getattr(chip, name) is not None]
        if figures and len(chip.source.strip()) < 4:
            yield f"{chip.chip} has figures and no source"


@check(
    "A row with confidence `none` says that nothing was found; figures in it would be used all the same.",
    "Leave the figures out, or say where they are from and how sure they are.",
    part="peaks",
)
def test_figures_have_confidence(kit: Kit) -> Problems:
    for chip in _chips(kit):
        figures = [name for name in _FIGURES if getattr(chip, name) is not None]
        if figures and chip.confidence == "none":
            yield f"{chip.chip}: {', '.join(figures)}"


@check(
    "A figure that is 0, negative or a thousand times off makes an MFU that looks real.",
    "Give TFLOP/s, GB, GB/s and W; leave out what isn't known.",
    part="peaks",
)
def test_figures_are_plausible(kit: Kit) -> Problems:
    for chip in _chips(kit):
        for name in (*_FIGURES, *_SIZES):
            value = getattr(chip, name)
            if value is not None and not 0 < value < 1e5:
                yield f"{chip.chip}: {name} = {value:g}"


@check(
    "A narrower type is never slower; a higher peak for a wider one is from another chip, or counts sparsity.",
    "Give dense figures, each of the same chip.",
    part="peaks",
)
def test_narrower_types_are_not_slower(kit: Kit) -> Problems:
    for chip in _chips(kit):
        known = [(name, getattr(chip, name)) for name in _ORDER if getattr(chip, name) is not None]
        for (wide, slow), (narrow, fast) in itertools.pairwise(known):
            if slow > fast * _SLACK:
                yield f"{chip.chip}: {wide} = {slow:g}, but {narrow} = {fast:g}"


@check(
    "Names are compared in lower case: a pattern with a capital matches nothing.",
    "Write what the tool calls the chip in lower case.",
    part="peaks",
)
def test_names_are_patterns_of_lower_case(kit: Kit) -> Problems:
    for chip in _chips(kit):
        for name in chip.names:
            if name != name.lower() or not name.replace("*", "").strip():
                yield f"{chip.chip}: {name!r}"


@check(
    "A limit says that the chip can't compute so; a rated peak in that type says that it can.",
    "Take one of the two out.",
    part="peaks",
)
def test_limits_and_peaks_agree(kit: Kit) -> Problems:
    for chip in _chips(kit):
        for dtype in kit.manifest.limits:
            if getattr(chip, f"{dtype}_tflops", None) is not None:
                yield f"{chip.chip} has {dtype}_tflops, and {dtype} is one of the vendor's limits"


@check(
    "A device that isn't in the table has no rated peak, no MFU against it, and no name to compare by.",
    "Add its name, as `flagperf devices` shows it, to the chip's `names`, or a row for it.",
    part="peaks",
)
def test_devices_here_are_known_chips(kit: Kit) -> Problems:
    if not _chips(kit) or not kit.adapter.devices():
        pytest.skip("needs a device of this vendor, and a row in the table")
    for device in kit.adapter.devices():
        if not device.facts.get("chip"):
            yield f"device {device.index}, {device.name!r}: {device.facts.get('chip_unknown', 'unknown')}"


@check(
    "An MFU above 100 % is a wrong peak or a wrong clock.",
    "Look at the rated peak's data type, at sparsity, and at what `synchronize` waits for.",
    where="device",
)
def test_no_device_is_faster_than_its_rated_peak(bench: Bench) -> Problems:
    from flagperf.measure.peak import measure

    rated = {dtype: peak for dtype in bench.dtypes() if (peak := bench.vendor.rated(dtype)) is not None}
    if not rated:
        raise Absent("a rated peak of the device here")
    for dtype, peak in rated.items():
        found = measure(bench.runtime.device, dtype, bench.runtime.synchronize, 0.5).flops_per_second
        if found > peak * _SLACK:
            yield f"{dtype}: {found / 1e12:.3g} TFLOP/s measured, {peak / 1e12:.3g} rated"


def _chips(kit: Kit) -> list[Chip]:
    kit.accelerator  # noqa: B018  skips for a host's own cores
    chips = [chip for chip in kit.registries.vendors.chips(kit.name) if chip.vendor == kit.name]
    if not chips:
        pytest.skip("needs a row of this vendor in chips.toml")
    return chips
