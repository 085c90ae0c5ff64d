"""Detection: quick, the same each time, and without a trace, so that it can be asked for on any machine at any time."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Problems, check
from flagperf.conformance.kit import Kit
from flagperf.detection import Host

_SECONDS = 2.0


def _bare(root: str) -> Host:
    return Host(root=Path(root), environ={"PATH": "/nowhere"}, version=lambda name: None)


@check(
    "Importing a plug-in starts the vendor's runtime, on machines too that only list or report.",
    "Find devices by markers and tools; import the plug-in in the runtime alone.",
    where="fresh",
)
def test_imports_no_torch(bench: Bench) -> Problems:
    for name in bench.audit.imported:
        yield f"{name} was imported"


@check(
    "A tool takes seconds and may hang or wake a sleeping device; where no marker is, none must be run.",
    "Leave tools to the harness, which runs those of the manifest once markers are there.",
    where="fresh",
)
def test_starts_no_program(bench: Bench) -> Problems:
    yield from bench.audit.started


@check(
    "An open device may be taken from whoever uses it, or be initialised.",
    "Look whether the node is there; don't open it.",
    where="fresh",
)
def test_opens_no_device(bench: Bench) -> Problems:
    yield from bench.audit.opened


@check(
    "Who lists devices expects nothing to be changed, and may not be allowed to change anything.",
    "Keep what must be remembered in memory.",
    where="fresh",
)
def test_writes_no_file(bench: Bench) -> Problems:
    yield from bench.audit.written


@check(
    "A machine without a network must not wait for one.",
    "Leave the network out of the adapter.",
    where="fresh",
)
def test_uses_no_network(bench: Bench) -> Problems:
    yield from bench.audit.connected


@check(
    "A driver's library may start threads, take the device or end the process.",
    "Load the library where a reading is asked for, in `read_library`.",
    where="fresh",
)
def test_loads_no_library(bench: Bench) -> Problems:
    yield from bench.audit.libraries


@check(
    "A variable set here is one of every other adapter and of all programs started later.",
    "Say it in the manifest's [environment], which ranks get.",
    where="fresh",
)
def test_changes_no_variable(bench: Bench) -> Problems:
    yield from bench.audit.environment


@check(
    "`flagperf devices` asks every vendor in turn.",
    "Leave out of the constructor and of detection what takes time.",
    where="fresh",
)
def test_is_quick(bench: Bench) -> Problems:
    if bench.audit.cpu_seconds > _SECONDS:
        yield f"it took {bench.audit.cpu_seconds:.1f} s of CPU time"


@check(
    "A vendor that is found where nothing is takes the place of the one that is there.",
    "Return no device where no marker is.",
    part="markers",
)
def test_finds_nothing_on_a_bare_host(kit: Kit) -> Problems:
    kit.accelerator  # noqa: B018  skips for a host's own cores
    with tempfile.TemporaryDirectory() as root:
        adapter = kit.on(_bare(root))
        if adapter.detection.found or adapter.devices():
            yield f"found {[device.name for device in adapter.devices()]}, by {adapter.detection.evidence.devices()}"


@check(
    "`flagperf devices` says of every vendor that can't be used why.",
    "Return an `Availability` with a reason; `Accelerator` does.",
)
def test_says_why_it_is_not_available(kit: Kit) -> Problems:
    kit.accelerator  # noqa: B018
    with tempfile.TemporaryDirectory() as root:
        usable = kit.on(_bare(root)).availability()
        if usable.available:
            yield "it's available on a host with nothing"
        elif not usable.reason.strip():
            yield "no reason is given"


@check(
    "A run that can start without a device ends in a failure nobody understands.",
    "Return no slot where there is no device.",
)
def test_has_no_slot_on_a_bare_host(kit: Kit) -> Problems:
    kit.accelerator  # noqa: B018
    with tempfile.TemporaryDirectory() as root:
        adapter = kit.on(_bare(root))
        if adapter.slots() or adapter.default_ranks():
            yield f"{adapter.slots()} slots, {adapter.default_ranks()} ranks"


@check(
    "Markers that the vendor itself names must make it look for devices.",
    "Give patterns that match what they are meant for; keep rivals' from matching the same.",
    part="markers",
)
def test_its_own_markers_are_recognised(kit: Kit) -> Problems:
    manifest = kit.accelerator.manifest
    with kit.replayed({tool.command[0]: "exit 3" for tool in manifest.tools if "/" not in tool.command[0]}) as host:
        detection = kit.on(host).detection
    if not detection.found:
        yield f"on a host with all of its markers: {detection.reason}"


@check(
    "Ranks, results and telemetry name a device by its index.",
    "Count from 0 as torch does, each index once.",
)
def test_indices_are_unique(kit: Kit) -> Problems:
    indices = [device.index for device in kit.adapter.devices()]
    if len(set(indices)) != len(indices) or any(index < 0 for index in indices):
        yield f"the indices are {indices}"


@check(
    "A rank's number must mean the same device from one moment to the next.",
    "Return devices in a fixed order.",
)
def test_is_the_same_each_time(kit: Kit) -> Problems:
    first, second = (_asked_anew(kit) for _ in range(2))
    if first != second:
        yield f"first {first}, then {second}"


@check(
    "A device of another vendor's name goes into results as that vendor's.",
    "Fill in `vendor` with `self.name`.",
)
def test_devices_are_this_vendors(kit: Kit) -> Problems:
    for device in kit.adapter.devices():
        if device.vendor != kit.name:
            yield f"device {device.index} is {device.vendor!r}'s"


@check(
    "Facts go into journals and results, which are JSON.",
    "Return dicts, lists, texts and finite numbers from `facts` and `devices`.",
)
def test_facts_are_json(kit: Kit) -> Problems:
    yield from _not_json("facts", kit.adapter.facts())
    yield from _not_json("devices", msgspec.to_builtins(kit.adapter.devices()))


@check(
    "A negative number of ranks or threads, or none where a rank is, ends in a crash.",
    "Return at least one thread, and slots that aren't negative.",
)
def test_counts_are_sound(kit: Kit) -> Problems:
    adapter = kit.adapter
    if adapter.slots() < 0 or not 0 <= adapter.default_ranks() <= max(1, adapter.slots()):
        yield f"{adapter.slots()} slots, {adapter.default_ranks()} ranks by default"
    for ranks in (1, 2, 8, 64):
        if adapter.threads(ranks) < 1:
            yield f"{adapter.threads(ranks)} threads for each of {ranks} ranks"


def _asked_anew(kit: Kit) -> list[tuple[int, str]]:
    around = kit.adapter.around
    return [(each.index, each.name) for each in type(kit.adapter)(kit.manifest, around).devices()]


def _not_json(what: str, value: Any) -> Problems:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"{what}: {error}"
