"""Which vendor's devices a host has: by markers, and never by those of a vendor that poses as another."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagperf.detection import Host, claims, detect, owner_by_name
from flagperf.registry import Registries
from flagperf.schema.manifest import VendorManifest

VENDORS = {manifest.name: manifest for manifest in Registries().vendors.all()}
ACCELERATORS = [name for name, manifest in VENDORS.items() if manifest.tools]


def concrete(pattern: str) -> str:
    """Return a name that a pattern of ours matches."""
    return pattern.replace("[0-9]", "0").replace("*", "")


class Machine:
    """A host made of files: PCI devices, device nodes, tools on PATH and installed distributions."""

    def __init__(self, root: Path) -> None:
        self.root, self.versions = root, {"torch": "2.9.0"}
        (root / "bin").mkdir()

    def pci(self, identity: str, kind: str = "0x030200") -> None:
        place = (
            self.root / "sys/bus/pci/devices" / f"0000:{len(list(self.root.glob('sys/bus/pci/devices/*'))):02x}:00.0"
        )
        place.mkdir(parents=True)
        maker, _, model = identity.partition(":")
        for name, value in (("class", kind), ("vendor", f"0x{maker}"), ("device", f"0x{model}")):
            (place / name).write_text(value + "\n")

    def node(self, path: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()

    def tool(self, name: str) -> None:
        (self.root / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (self.root / "bin" / name).chmod(0o755)

    def card(self, vendor: str, pci: bool = True) -> None:
        """Put a vendor's card in, with all that its driver brings."""
        markers = VENDORS[vendor].markers
        for pattern in markers.pci[:1] if pci else []:
            self.pci(pattern.replace("*", "0001" if pattern.endswith(":*") else "801"))
        for pattern in markers.nodes:
            self.node(concrete(pattern))
        for tool in VENDORS[vendor].tools[:1]:
            self.tool(tool.command[0])

    @property
    def host(self) -> Host:
        return Host(root=self.root, environ={"PATH": str(self.root / "bin")}, version=self.versions.get)

    def found(self) -> dict[str, bool]:
        """Return the vendors that are found, and whether surely."""
        every = {name: detect(VENDORS[name], list(VENDORS.values()), self.host) for name in ACCELERATORS}
        return {name: one.sure for name, one in every.items() if one.found}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("vendor", ACCELERATORS)
def test_a_card_is_found_as_its_makers_and_nobody_elses(machine: Machine, vendor: str) -> None:
    machine.card(vendor)
    assert machine.found() == {vendor: True}


@pytest.mark.parametrize("vendor", [name for name in ACCELERATORS if VENDORS[name].markers.nodes])
def test_without_pci_as_in_some_sandboxes_device_nodes_tell(machine: Machine, vendor: str) -> None:
    machine.card(vendor, pci=False)
    found = machine.found()
    if vendor == "amd":  # /dev/kfd is a DCU's too, and so may the tool be: names will have to tell
        assert found == {"amd": False, "hygon": False}
    else:
        assert found == {vendor: True}


POSERS = [name for name in ACCELERATORS if VENDORS[name].device_type == "cuda" and name != "nvidia"]


@pytest.mark.parametrize("pci", [True, False], ids=["pci", "nodes only"])
@pytest.mark.parametrize("poser", POSERS)
def test_a_stand_in_for_nvidias_tool_doesnt_make_an_nvidia(machine: Machine, poser: str, pci: bool) -> None:
    machine.card(poser, pci)
    machine.tool("nvidia-smi")
    detection = detect(VENDORS["nvidia"], list(VENDORS.values()), machine.host)
    assert not detection.found
    assert poser in detection.reason and "nvidia-smi" in detection.reason


def test_a_stand_in_for_nvidias_device_node_doesnt_either(machine: Machine) -> None:
    machine.card("thead")
    machine.node("/dev/nvidia0")
    detection = detect(VENDORS["nvidia"], list(VENDORS.values()), machine.host)
    assert not detection.found and "PCI" in detection.reason


def test_a_dcu_is_no_amd_card_though_it_has_its_node_and_its_tool(machine: Machine) -> None:
    machine.card("hygon", pci=False)
    machine.tool("rocm-smi")
    assert machine.found() == {"hygon": True}
    detection = detect(VENDORS["amd"], list(VENDORS.values()), machine.host)
    assert "hygon" in detection.reason


def test_two_makers_cards_in_one_machine_are_both_found(machine: Machine) -> None:
    machine.card("nvidia")
    machine.card("ascend")
    assert machine.found() == {"nvidia": True, "ascend": True}


def test_a_makers_bridges_network_cards_and_consoles_are_no_accelerators(machine: Machine) -> None:
    machine.pci("1d94:1450", kind="0x060000")  # a bridge of a Hygon processor
    machine.pci("19e5:0222", kind="0x020000")  # a network card of Huawei
    machine.pci("19e5:1711", kind="0x030000")  # the display of Huawei's service processor
    machine.pci("10de:1234", kind="0x040300")  # the sound of an NVIDIA card
    assert machine.found() == {}


def test_a_tool_that_two_makers_call_alike_is_nobodys_surely(machine: Machine) -> None:
    machine.tool("xpu-smi")
    assert machine.found() == {"intel": False, "kunlunxin": False}


@pytest.mark.parametrize("vendor", ACCELERATORS)
def test_a_torch_that_is_built_for_another_maker_is_told(machine: Machine, vendor: str) -> None:
    machine.card(vendor)
    manifests = list(VENDORS.values())
    for other, tag in {"iluvatar": "corex", "metax": "metax", "hygon": "das", "amd": "rocm6", "cpu": "cpu"}.items():
        machine.versions["torch"] = f"2.7.1+{tag}"
        told = detect(VENDORS[vendor], manifests, machine.host).torch
        if vendor == other or VENDORS[vendor].plugin:
            assert told == ""
        else:
            assert VENDORS[other].title in told


def test_detection_reads_files_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ACCELERATORS:
        machine.card(name)
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr("importlib.import_module", lambda name, *_: pytest.fail(f"{name} was imported"))
    assert set(machine.found()) == set(ACCELERATORS)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia"), ("Tesla V100-SXM3-32GB", "nvidia"), ("Iluvatar BI-V150", "iluvatar"),
        ("MetaX C550", "metax"), ("Mars X201", "metax"), ("PPU-ZW810E", "thead"), ("P800 OAM", "kunlunxin"),
        ("DCU K100", "hygon"), ("K100_AI", "hygon"), ("AMD Instinct MI300X", "amd"), ("Radeon Instinct MI50", "amd"),
        ("910B2C", "ascend"), ("MLU370-X8", "cambricon"), ("MTT S5000", "mthreads"), ("HL-225", "gaudi"),
        ("Intel(R) Data Center GPU Max 1100", "intel"), ("Enflame S60G", "enflame"), ("Biren106M", "biren"),
        ("some other card", None), ("", None),
    ],
)  # fmt: skip
def test_a_product_is_its_makers_by_name(name: str, owner: str | None) -> None:
    assert owner_by_name(name, VENDORS.values()) == owner


def test_a_name_that_two_makers_claim_equally_is_nobodys() -> None:
    base = {"title": "-", "summary": "-", "entry": "-", "device_type": "cuda", "backend": "nccl"}
    twins = [VendorManifest(name=name, markers=VENDORS["nvidia"].markers, **base) for name in ("a", "b")]
    assert claims(twins[0], "NVIDIA X") == claims(twins[1], "NVIDIA X") > 0
    assert owner_by_name("NVIDIA X", twins) is None
