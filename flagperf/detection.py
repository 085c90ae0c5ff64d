"""Which vendors' hardware is on this host, told by markers: without starting a tool or importing anything.

Some stacks pose as another one: they use its torch device type, ship its tools or answer for its library. So a vendor
is believed only as far as its markers reach, and refused where a rival's contradict them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from flagperf.schema.chip import Chip
from flagperf.schema.manifest import VendorManifest

_ACCELERATOR_CLASSES = ("0x03", "0x12", "0x0b40")
"""PCI base classes: display controller, processing accelerator, co-processor. A maker's bridges don't count."""


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Where markers are looked for."""

    root: Path = Path("/")
    environ: Mapping[str, str] = os.environ
    version: Callable[[str], str | None] = _installed
    """Version of an installed distribution, or None."""

    def glob(self, patterns: Iterable[str]) -> list[str]:
        """Return the paths that match patterns of absolute paths, sorted."""
        found = {path for pattern in patterns for path in self.root.glob(pattern.lstrip("/"))}
        return sorted(f"/{path.relative_to(self.root)}" for path in found)

    def accelerators(self) -> list[str]:
        """Return the `vendor:device` ids of the host's PCI displays and accelerators."""
        ids = []
        for device in sorted(self.root.glob("sys/bus/pci/devices/*")):
            try:
                kind, maker, model = ((device / name).read_text().strip() for name in ("class", "vendor", "device"))
            except OSError:  # taken out while we looked
                continue
            if kind.startswith(_ACCELERATOR_CLASSES):
                ids.append(f"{maker.removeprefix('0x')}:{model.removeprefix('0x')}")
        return ids

    def has_module(self, name: str) -> bool:
        """Whether a top-level module could be imported; it isn't."""
        return importlib.util.find_spec(name.partition(".")[0]) is not None

    def which(self, tool: str) -> str | None:
        """Return where a tool is on PATH."""
        return shutil.which(tool, path=self.environ.get("PATH", os.defpath))


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is told beside its own manifest."""

    host: Host = Host()
    vendors: Sequence[VendorManifest] = ()
    """All that are known, to tell them apart."""
    chips: Sequence[Chip] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The markers of one vendor that a host has."""

    pci: list[str] = []
    nodes: list[str] = []
    tools: list[str] = []
    files: list[str] = []
    environment: list[str] = []
    distributions: list[str] = []

    def devices(self) -> list[str]:
        """Return what can show that there is a device."""
        return [*self.environment, *(f"PCI {identity}" for identity in self.pci), *self.nodes, *self.tools]


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a vendor's devices are to be asked for."""

    found: bool
    sure: bool = False
    """False where a rival has the same markers: then only devices with a name of this vendor's are its own."""
    evidence: Evidence = Evidence()
    reason: str = ""
    """Why not, where not found."""
    torch: str = ""
    """Why the installed torch can't drive these devices, if it is known not to."""


def evidence(manifest: VendorManifest, host: Host) -> Evidence:
    """Return a vendor's markers on this host."""
    markers = manifest.markers
    distributions = []
    for name, pattern in markers.distributions.items():
        version = host.version(name)
        if version is not None and fnmatchcase(version, pattern):
            distributions.append(f"{name} {version}")
    tools = dict.fromkeys(tool.command[0] for tool in manifest.tools)
    return Evidence(
        pci=[one for one in host.accelerators() if any(fnmatchcase(one, pattern) for pattern in markers.pci)],
        nodes=host.glob(markers.nodes),
        tools=[name for name in tools if host.which(name)],
        files=host.glob(markers.files),
        environment=[name for name in markers.environment if host.environ.get(name)],
        distributions=distributions,
    )


def detect(manifest: VendorManifest, rivals: Sequence[VendorManifest], host: Host) -> Detection:
    """Weigh a vendor's markers against those of all others: PCI ids before device nodes before software."""
    own = evidence(manifest, host)
    if not own.devices():
        return Detection(found=False, evidence=own, reason=f"no marker of it: {_sought(manifest) or 'it names none'}")
    if own.environment:
        return Detection(found=True, sure=True, evidence=own)
    theirs = {rival.name: evidence(rival, host) for rival in rivals if rival.name != manifest.name}
    for refusal in (_by_pci, _by_nodes, _by_software):
        if reason := refusal(manifest, own, theirs):
            return Detection(found=False, evidence=own, reason=reason)
    alone = _alone(own, theirs)
    sure = bool(own.pci or alone.nodes or alone.tools or alone.files or alone.distributions)
    return Detection(found=True, sure=sure, evidence=own, torch=_torch(manifest, rivals, host))


def _by_pci(manifest: VendorManifest, own: Evidence, theirs: dict[str, Evidence]) -> str:
    """Say why PCI ids speak against a vendor: it has an id, the host shows ids of others, and none of its."""
    others = {name: each.pci for name, each in theirs.items() if each.pci}
    if own.pci or not manifest.markers.pci or not others:
        return ""
    return f"{_list(own.devices())} would be its, but the PCI ids of this host are of {_told(others)}"


def _by_nodes(manifest: VendorManifest, own: Evidence, theirs: dict[str, Evidence]) -> str:
    """Say why device nodes speak against a vendor: it has none, and others do."""
    others = {name: nodes for name, each in theirs.items() if (nodes := _without(each.nodes, own.nodes))}
    if own.pci or own.nodes or not manifest.markers.nodes or not others:
        return ""
    return f"{_list(own.devices())} would be its, but the device nodes of this host are of {_told(others)}"


def _by_software(manifest: VendorManifest, own: Evidence, theirs: dict[str, Evidence]) -> str:
    """Say why software speaks against a vendor: all that shows its devices is a rival's too, who has more."""
    alone = _alone(own, theirs)
    if own.pci or alone.nodes or alone.tools or alone.files or alone.distributions:
        return ""
    sharing = {
        name: more
        for name, each in theirs.items()
        if {*each.nodes, *each.tools} & {*own.nodes, *own.tools}
        and (
            more := [
                *_without(each.nodes, own.nodes),
                *_without(each.tools, own.tools),
                *each.files,
                *each.distributions,
            ]
        )
    }
    return f"{_list(own.devices())} may be its or another's, and this host has {_told(sharing)}" if sharing else ""


def _torch(manifest: VendorManifest, rivals: Sequence[VendorManifest], host: Host) -> str:
    """Say why the installed torch isn't for these devices: it's built for others, or it lacks the plug-in."""
    version = host.version("torch")
    if version is None:
        return "torch isn't installed"
    if manifest.plugin or fnmatchcase(version, manifest.markers.distributions.get("torch", "")):
        return ""
    for rival in rivals:
        if rival.name != manifest.name and fnmatchcase(version, rival.markers.distributions.get("torch", "")):
            return f"the installed torch {version} is built for {rival.title}"
    return ""


def claims(manifest: VendorManifest, name: str) -> int:
    """Return how exactly a vendor's patterns match a product's name: the length of the longest; 0 for no match."""
    lower = " ".join(name.lower().split())
    return max((len(pattern) for pattern in manifest.markers.names if fnmatchcase(lower, pattern.lower())), default=0)


def owner_by_name(name: str, manifests: Iterable[VendorManifest]) -> str | None:
    """Return which vendor's products are called so; None if nobody's, or more than one's equally."""
    found = sorted(((claims(manifest, name), manifest.name) for manifest in manifests), reverse=True)
    if not found or not found[0][0] or (len(found) > 1 and found[0][0] == found[1][0]):
        return None
    return found[0][1]


def _alone(own: Evidence, theirs: dict[str, Evidence]) -> Evidence:
    """Return the markers that no rival has as well."""
    shared = {one for each in theirs.values() for one in (*each.nodes, *each.tools, *each.files, *each.distributions)}
    return msgspec.structs.replace(
        own,
        nodes=_without(own.nodes, shared),
        tools=_without(own.tools, shared),
        files=_without(own.files, shared),
        distributions=_without(own.distributions, shared),
    )


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    out = set(others)
    return [name for name in names if name not in out]


def _sought(manifest: VendorManifest) -> str:
    """Return what was looked for, as a person would write it."""
    markers = manifest.markers
    pci = [f"PCI {pattern}" for pattern in markers.pci]
    tools = dict.fromkeys(f"`{tool.command[0]}` on PATH" for tool in manifest.tools)
    return _list([*markers.environment, *pci, *markers.nodes, *tools])


def _told(others: dict[str, list[str]]) -> str:
    return " and ".join(f"{name} ({_list(markers)})" for name, markers in sorted(others.items()))


def _list(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
