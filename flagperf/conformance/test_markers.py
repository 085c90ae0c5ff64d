"""Markers: what tells a vendor's devices, and what keeps them from being taken for another's."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from flagperf.conformance.check import Problems, check
from flagperf.conformance.kit import Kit
from flagperf.detection import claims, owner_by_name
from flagperf.errors import FlagPerfError
from flagperf.schema.chip import Chip

_PLAIN_TORCH = ("2.6.0", "2.13.0", "2.13.0+cpu")


@check(
    "Without a marker that shows a device, none is ever looked for.",
    "Give [markers] PCI ids or device nodes, or a tool; an environment variable only for simulated devices.",
    part="markers",
)
def test_something_shows_a_device(kit: Kit) -> Problems:
    manifest = kit.accelerator.manifest
    markers = manifest.markers
    if not (markers.pci or markers.nodes or markers.environment or manifest.tools):
        yield "no PCI id, no device node, no tool, no variable"


@check(
    "PCI ids are compared as the kernel prints them.",
    "Write `vendor:device` in four lower-case hex digits each; `*` may stand for the device's.",
    part="markers",
)
def test_pci_ids_are_well_formed(kit: Kit) -> Problems:
    for pattern in kit.manifest.markers.pci:
        if not re.fullmatch(r"[0-9a-f]{4}:[0-9a-f*?\[\]-]{1,12}", pattern):
            yield f"{pattern!r} isn't like 10de:*"


@check(
    "Device nodes are looked for, never opened; a pattern that isn't below /dev finds something else.",
    "Give absolute paths below /dev; for a numbered node `[0-9]*`, so that a control node doesn't count.",
    part="markers",
)
def test_nodes_are_below_dev(kit: Kit) -> Problems:
    for pattern in kit.manifest.markers.nodes:
        if not pattern.startswith("/dev/") or pattern in ("/dev/*", "/dev/dri/*"):
            yield f"{pattern!r} isn't this vendor's node"


@check(
    "Files tell rivals apart that use the same device type and tools.",
    "Give absolute paths that only this maker's software installs.",
    part="markers",
)
def test_files_are_absolute(kit: Kit) -> Problems:
    for pattern in kit.manifest.markers.files:
        if not pattern.startswith("/") or pattern in ("/*", "/opt/*", "/usr/*", "/usr/local/*"):
            yield f"{pattern!r} is no path of this vendor's alone"


@check(
    "A device is this vendor's only if it's called so; a pattern for any name would claim everybody's.",
    "Give what the tool calls the products, as `nvidia *`: at least two letters of a name.",
    part="markers",
)
def test_names_are_the_vendors(kit: Kit) -> Problems:
    manifest = kit.accelerator.manifest
    if not manifest.markers.names:
        yield "[markers] has no names"
    for pattern in manifest.markers.names:
        if len(re.sub(r"\[.*?\]|[*? ]", "", pattern)) < 2:
            yield f"{pattern!r} matches almost any name"


@check(
    "A device whose own name its vendor doesn't claim is shown as nobody's.",
    "Add a pattern to `names`, or mend the names in chips.toml.",
    part="markers",
)
def test_own_chips_are_claimed(kit: Kit) -> Problems:
    manifest = kit.accelerator.manifest
    for chip in _chips(kit):
        # Of a name that may begin with anything, the tool puts the vendor's in front.
        exact = [name for name in chip.names if not name.startswith("*")]
        names = [re.sub(r"\[(.)[^\]]*\]", r"\1", name).replace("*", "") for name in exact]
        if names and not any(claims(manifest, name) for name in names):
            yield f"{chip.chip}, which the tool calls {', '.join(chip.names)}"


@check(
    "A wrong name on a report is the worst that can happen: another maker's chip under this vendor's name.",
    "Make the pattern in `names` longer until it no longer matches the other's product.",
    part="markers",
)
def test_no_other_vendors_chip_is_claimed(kit: Kit) -> Problems:
    manifest, vendors = kit.accelerator.manifest, kit.registries.vendors
    for other in vendors.all():
        if other.name == manifest.name:
            continue
        try:
            chips = [chip for chip in vendors.chips(other.name) if chip.vendor == other.name]
        except FlagPerfError:  # another adapter's broken table is that adapter's failure
            continue
        for name in dict.fromkeys(name.replace("*", "") for chip in chips for name in chip.names):
            if owner_by_name(name, vendors.all()) == manifest.name:
                yield f"{name!r} is {other.name}'s"


@check(
    "Two vendors with the same pattern can't be told apart by it.",
    "Give a longer pattern, or one that only this maker's products match.",
    part="markers",
)
def test_no_name_pattern_is_another_vendors(kit: Kit) -> Problems:
    own = set(kit.accelerator.manifest.markers.names)
    for other in kit.registries.vendors.all():
        for pattern in sorted(own & set(other.markers.names)) if other.name != kit.name else ():
            yield f"{pattern!r} is also {other.name}'s"


@check(
    "Two vendors with one PCI id are one vendor to the kernel, and to whoever reads the report.",
    "Give the maker's own vendor id, and the device ids where another maker has the same.",
    part="markers",
)
def test_no_pci_id_is_another_vendors(kit: Kit) -> Problems:
    own = set(kit.accelerator.manifest.markers.pci)
    for other in kit.registries.vendors.all():
        for pattern in sorted(own & set(other.markers.pci)) if other.name != kit.name else ():
            yield f"{pattern!r} is also {other.name}'s"


@check(
    "A torch that anyone may have installed shows no device, and would hide that a torch of the maker's is needed.",
    "Give a pattern that only the maker's own builds match: `*+corex*`.",
    part="markers",
)
def test_plain_torch_is_no_marker(kit: Kit) -> Problems:
    pattern = kit.accelerator.manifest.markers.distributions.get("torch", "")
    for version in _PLAIN_TORCH:
        if fnmatchcase(version, pattern):
            yield f"{pattern!r} matches {version}"


def _chips(kit: Kit) -> list[Chip]:
    return [chip for chip in kit.registries.vendors.chips(kit.name) if chip.vendor == kit.name]
