"""Telemetry: what a device says while it works, from tools that may hang, flood, fail or lie."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from flagperf.accelerator import Accelerator
from flagperf.conformance.bench import Bench
from flagperf.conformance.check import Absent, Problems, check
from flagperf.conformance.kit import Kit, replay_scripts
from flagperf.detection import Host
from flagperf.schema.reading import Reading

_SHORT = 0.5
_LONGEST = 5.0
"""Seconds for one reading of all devices."""
_TROUBLE = {
    "hangs": "exec /bin/sleep 60",
    "closes its output and hangs": "exec >&- 2>&-; exec /bin/sleep 60",
    "fails": "echo 'no driver' >&2; exit 9",
    "floods": "exec /bin/cat /dev/zero",
    "prints nothing": "exit 0",
    "prints rubbish": "echo 'Segmentation fault (core dumped)'; kill -SEGV $$",
}


@check(
    "Telemetry calls this about once a second; what it raises without a reason tells the reader nothing.",
    "Raise OSError with the reason where no device answers; `Accelerator.sample` does.",
)
def test_says_that_no_device_answers(kit: Kit) -> Problems:
    kit.accelerator  # noqa: B018
    with tempfile.TemporaryDirectory() as root:
        adapter = kit.on(Host(root=Path(root), environ={"PATH": "/nowhere"}, version=lambda name: None))
        try:
            said = adapter.sample()
        except OSError as error:
            if not str(error).strip():
                yield "OSError has no reason"
        else:
            yield f"it returns {said} on a host with nothing"


@check(
    "Tools hang, flood and die when a device is lost, just when telemetry matters most.",
    "Leave running tools to the harness: name them in [[tools]] and override nothing but `parse` and `read_library`.",
    part="tools",
)
@pytest.mark.parametrize("how", list(_TROUBLE))
def test_bears_a_tool_that(kit: Kit, how: str) -> Problems:
    scripts = dict.fromkeys(_programs(kit), _TROUBLE[how])
    tools = [msgspec.structs.replace(tool, timeout=_SHORT) for tool in kit.manifest.tools]
    with kit.replayed(scripts) as host:
        said = kit.on(host, tools=tools).readings()
    if said.devices:
        yield f"it names {len(said.devices)} devices"
    elif not said.error:
        yield "it doesn't say what is wrong"


@check(
    "This is the whole way from a marker to a device, as on a customer's machine, but without the device.",
    "Give a sample of the first tool's output with its `command`; mend markers, names or the parser.",
    part="samples",
)
def test_shows_the_devices_of_its_samples(kit: Kit) -> Problems:
    kit.needed_samples()
    manifest = kit.manifest
    samples = {sample.command: sample for sample in reversed(kit.samples) if sample.expected}
    scripts = replay_scripts(list(samples.values()), manifest)
    answered = [tool for tool in manifest.tools if " ".join(tool.command) in samples and not tool.adds]
    if not answered:
        pytest.skip("needs a sample with the `command` of one of the manifest's tools in its .json")
    expected = samples[" ".join(answered[0].command)].expected or {}
    with kit.replayed(scripts) as host:
        adapter = kit.on(host)
        if adapter.read_library() is not None and adapter.read_library() != adapter.readings():
            pytest.skip("needs a host without the maker's library")
        devices, said = adapter.devices(), adapter.readings()
    if [each.index for each in devices] != [each["index"] for each in expected["devices"]]:
        yield f"devices {[each.index for each in devices]}: {said.error or 'no error'}"
    for device, wanted in zip(devices, expected["devices"], strict=False):
        if wanted.get("name") not in (None, device.name):
            yield f"device {device.index} is called {device.name!r}, not {wanted['name']!r}"


@check(
    "Telemetry's journal is read by field and unit: a field of another name is lost.",
    "Return readings; `Accelerator.sample` makes fields of them.",
)
def test_samples_are_fields_of_a_reading(kit: Kit) -> Problems:
    try:
        sample = kit.adapter.sample()
    except OSError as error:
        pytest.skip(f"needs a device: {error}")
    known = {*Reading.__struct_fields__, "visible"} - {"facts"}
    for device in sample:
        for key in device.keys() - known:
            yield f"{key!r} is no field of a reading"
        if "index" not in device:
            yield "a device has no index"
    json.dumps(sample, allow_nan=False)


@check(
    "A reading that takes long is given up, and one that keeps a core busy disturbs what is measured.",
    "Ask for less, or read the maker's library in place of the tool.",
)
def test_answers_in_time(kit: Kit) -> Problems:
    sampled = type(kit.adapter)(kit.manifest, kit.adapter.around)
    began = time.monotonic()
    try:
        sampled.sample()
    except OSError as error:
        pytest.skip(f"needs a device: {error}")
    if (took := time.monotonic() - began) > _LONGEST:
        yield f"it took {took:.1f} s; {_LONGEST:g} s are allowed"


@check(
    "Telemetry runs beside the ranks: a process that starts the vendor's runtime takes memory of the device.",
    "Read the tool or the maker's management library; leave torch and the plug-in alone.",
    where="fresh",
)
def test_starts_no_runtime(bench: Bench) -> Problems:
    if not isinstance(bench.vendor, Accelerator):
        raise Absent("an adapter of accelerators")
    bench.vendor.readings()
    for name in ("torch", bench.manifest.plugin):
        if name and name in sys.modules:
            yield f"{name} was imported"


def _programs(kit: Kit) -> list[str]:
    programs = [tool.command[0] for tool in kit.accelerator.manifest.tools if "/" not in tool.command[0]]
    if not programs:
        pytest.skip("needs a tool; this adapter reads a library alone")
    return programs
