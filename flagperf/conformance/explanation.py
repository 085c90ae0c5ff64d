"""Puts together what is known of a vendor: from its manifest, from this host and from the table of chips."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import msgspec

from flagperf.detection import Evidence, Host, detect, evidence
from flagperf.errors import FlagPerfError
from flagperf.registry import Registries
from flagperf.schema.chip import Chip
from flagperf.schema.explanation import ExplainedKernels, ExplainedTool, ExplainedVariable, ExplainOutput, Kind, Marker
from flagperf.schema.machine import Availability, Device
from flagperf.schema.manifest import Markers, VendorManifest
from flagperf.vendor import Vendor

_KINDS: dict[str, Kind] = {
    "pci": "PCI id",
    "nodes": "device node",
    "files": "file",
    "environment": "variable",
    "names": "name",
}


def explain(name: str, registries: Registries) -> ExplainOutput:
    """Return all that is known of a vendor; one whose code is broken is explained by its manifest alone."""
    vendors, host = registries.vendors, Host()
    manifest, every = vendors.get(name), vendors.all()
    availability, devices = _asked(name, registries)
    chips = [chip for chip in vendors.chips(name) if chip.vendor == name]
    shared = {"": manifest.environment, **{case: each.environment for case, each in manifest.cases.items()}}
    return ExplainOutput(
        vendor=name,
        title=manifest.title,
        title_zh=manifest.title_zh,
        summary=manifest.summary,
        path=str(vendors.place(name)),
        availability=availability,
        devices=devices,
        found=_found(manifest, every, host, devices),
        markers=list(_markers(manifest, every, host)),
        tools=[
            ExplainedTool(
                command=shlex.join(tool.command),
                timeout=tool.timeout,
                adds=tool.adds,
                path=host.which(tool.command[0]),
            )
            for tool in manifest.tools
        ],
        device_type=manifest.device_type,
        backend=manifest.backend,
        plugin=manifest.plugin,
        plugin_installed=host.has_module(manifest.plugin) if manifest.plugin else None,
        torch=host.version("torch"),
        visible_devices=manifest.visible_devices,
        visible_now=host.environ.get(manifest.visible_devices) if manifest.visible_devices else None,
        install=manifest.install,
        environment=[
            ExplainedVariable(name=key, value=each.value, why=each.why, why_zh=each.why_zh, case=case)
            for case, variables in shared.items()
            for key, each in variables.items()
        ],
        limits=manifest.limits,
        lacking=manifest.lacking,
        container=manifest.container,
        kernels=[
            ExplainedKernels(
                distribution=each.distribution, operations=each.operations, version=host.version(each.distribution)
            )
            for each in manifest.kernels
        ],
        cases=manifest.cases,
        chips=chips,
        unknown=list(_unknown(manifest, chips)),
    )


def _asked(name: str, registries: Registries) -> tuple[Availability, list[Device]]:
    try:
        adapter: Vendor = registries.vendors.adapter(name)
        return adapter.availability(), adapter.devices()
    except FlagPerfError as error:
        return Availability(name=name, available=False, reason=error.message, remedy=error.hint), []
    except Exception as error:  # an adapter may raise anything
        return Availability(
            name=name, available=False, reason=f"its adapter failed: {type(error).__name__}: {error}"
        ), []


def _found(manifest: VendorManifest, every: list[VendorManifest], host: Host, devices: list[Device]) -> str:
    detection = detect(manifest, every, host)
    if detection.found:
        sure = "no other vendor has all of these" if detection.sure else "others have these too: names decide"
        return f"{', '.join(detection.evidence.devices())}; {sure}"
    # A host's own cores need no marker.
    return "it needs no marker" if devices and not detection.evidence.devices() else detection.reason


def _markers(manifest: VendorManifest, every: list[VendorManifest], host: Host) -> Iterator[Marker]:
    """Yield each pattern with what it finds here, and who else has it."""
    others = [other for other in every if other.name != manifest.name]

    def also(field: str, pattern: str) -> list[str]:
        return [other.name for other in others if pattern in getattr(other.markers, field)]

    for field, kind in _KINDS.items():
        for pattern in getattr(manifest.markers, field):
            alone = msgspec.convert({field: [pattern]}, Markers)
            found = getattr(_here(manifest, alone, host), field, [])  # names are compared with a device's, not found
            yield Marker(kind=kind, pattern=pattern, found=found, also=also(field, pattern))
    for name, pattern in manifest.markers.distributions.items():
        found = _here(manifest, Markers(distributions={name: pattern}), host).distributions
        alike = [other.name for other in others if other.markers.distributions.get(name) == pattern]
        yield Marker(kind="distribution", pattern=f"{name} {pattern}", found=found, also=alike)
    for tool in dict.fromkeys(tool.command[0] for tool in manifest.tools):
        found = [path] if (path := host.which(tool)) else []
        alike = [other.name for other in others if any(each.command[0] == tool for each in other.tools)]
        yield Marker(kind="tool", pattern=tool, found=found, also=alike)


def _here(manifest: VendorManifest, markers: Markers, host: Host) -> Evidence:
    return evidence(msgspec.structs.replace(manifest, markers=markers, tools=[]), host)


def _unknown(manifest: VendorManifest, chips: list[Chip]) -> Iterator[str]:
    """Yield what the adapter leaves open, in words."""
    if manifest.device_type == "cpu":
        return
    markers = manifest.markers
    for what, value in (
        ("the PCI ids of its devices", markers.pci),
        ("the device nodes of its driver", markers.nodes),
        ("the variable that limits the devices", manifest.visible_devices),
        ("how to get a torch for its devices", manifest.install),
        ("a tool that prints its devices", manifest.tools),
        ("how a container is shown its devices", manifest.container.options),
        ("an image with its software", manifest.container.image),
        ("data types that it can't compute in", manifest.limits),
        ("the rated peaks of its chips", chips),
    ):
        if not value:
            yield what
    for chip in chips:
        missing = [
            name.removesuffix("_tflops")
            for name in ("fp32_tflops", "bf16_tflops", "fp16_tflops")
            if getattr(chip, name) is None
        ]
        if missing:
            yield f"the rated peak of the {chip.chip} in {', '.join(missing)}"
