"""Each check of the kit seen red: on an adapter from the template that is broken in just that place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conformance_adapters import change, declared, problems, whole

from flagperf.conformance import test_telemetry
from flagperf.conformance.kit import Kit

TOML, CODE, CHIPS = "mychip.toml", "adapter.py", "chips.toml"
Break = Callable[[Path], None]


def edit(*changes: tuple[str, str, str]) -> Break:
    """Replace texts in files."""

    def breaking(folder: Path) -> None:
        for file, old, new in changes:
            change(folder, file, old, new)

    return breaking


def add(file: str, text: str) -> Break:
    """Add to a file's end."""

    def breaking(folder: Path) -> None:
        with (folder / file).open("a") as stream:
            stream.write(text)

    return breaking


def gone(file: str) -> Break:
    """Remove a file."""
    return lambda folder: (folder / file).unlink()


def method(code: str) -> Break:
    """Add a method to the adapter's class."""
    return add(CODE, "\n" + "".join(f"    {line}\n" for line in code.splitlines()))


def parses(code: str) -> Break:
    """Have the parser do this with `said`, what it should return, `text`, and `self`."""
    return edit(
        (
            CODE,
            "return first_with_devices(text, [readings(records, _NAMES)])",
            f"said = first_with_devices(text, [readings(records, _NAMES)])\n        {code}\n        return said",
        )
    )


REPLACED = """import msgspec; replace = msgspec.structs.replace
        said = replace(said, devices=[replace(device, {}) for device in said.devices])"""
LIAR = """
def devices(self):
    from flagperf.schema.machine import Device
    self.around.host.environ  # noqa: B018
    Mychip.asked = getattr(Mychip, "asked", 0) + 1
    return [Device(vendor="other", index=0, name=f"mychip {Mychip.asked}") for _ in range(2)]
def facts(self):
    return {"cards": {1, 2}}
def slots(self):
    return 3
def default_ranks(self):
    return 9
def availability(self):
    from flagperf.schema.machine import Availability
    return Availability(name="mychip", available=True)
"""

BROKEN: dict[str, Break] = {
    "folder.nothing_is_left_to_fill_in": add("README.md", "<!-- FILL IN (readme): more -->\n"),
    "folder.is_named_as_the_vendor": lambda folder: (folder / TOML).rename(folder / "other.toml") and None,
    "folder.name_is_plain": edit((TOML, 'name = "mychip"', 'name = "My Chip"')),
    "folder.is_a_package": gone("__init__.py"),
    "folder.entry_can_be_loaded": add(CODE, "1 / 0\n"),
    "folder.entry_is_a_vendor": add(
        CODE, "\nclass Mychip:\n    def __init__(self, manifest, around):\n        self.name = 'other'\n"
    ),
    "folder.imports_torch_nowhere_at_its_top": add(CODE, "try:\n    pass\nfinally:\n    pass\nimport torch_mychip\n"),
    "folder.adapter_is_short": add(CODE, "# more\n" * 150),
    "folder.runs_no_text": add(CODE, "def wild(text):\n    return eval(text)\n"),
    "folder.says_how_to_get_a_torch": edit((TOML, 'install = "pip install mychip"', 'install = ""')),
    "folder.plugin_is_a_module_name": edit((TOML, '"torch_mychip"', '"torch-mychip"')),
    "manifest.can_be_read": edit((TOML, "[markers]", "colour = 'red'\n[markers]")),
    "manifest.has_titles_in_two_languages": edit((TOML, 'title_zh = "Mychip"', 'title_zh = ""')),
    "manifest.summary_is_one_sentence": edit((TOML, "through torch.", "through torch")),
    "manifest.device_type_is_a_word": edit((TOML, 'device_type = "mychip"', 'device_type = "my chip"')),
    "manifest.backend_is_for_the_devices": edit((TOML, '"mychipccl"', '"gloo"')),
    "manifest.visible_devices_is_a_variable": edit((TOML, 'visible_devices = ""', 'visible_devices = "my devices"')),
    "manifest.variables_have_reasons": add(TOML, '[environment.X]\nvalue = "1"\nwhy = "it hangs without it"\n'),
    "manifest.variables_are_the_vendors_own": add(TOML, '[environment.RANK]\nvalue = "1"\nwhy = "no reason at all"\n'),
    "manifest.limits_have_reasons": edit((TOML, "[limits]", '[limits]\nfp63 = "no such units"')),
    "manifest.lacking_operations_have_reasons": add(TOML, '[lacking]\nall_reduce = ""\n'),
    "manifest.container_has_no_more_rights_than_it_needs": edit((TOML, "--device=/dev/mychip0", "--privileged")),
    "manifest.container_is_told": edit((TOML, '"--device=/dev/mychip0"', "")),
    "manifest.kernels_name_what_they_compute": add(
        TOML, '[[kernels]]\ndistribution = "k"\nmodule = "k"\noperations = []\n'
    ),
    "manifest.choices_for_cases_are_within_their_rules": add(TOML, '[cases."no/case"]\nwhy = "it is faster"\n'),
    "manifest.tools_end_in_time": edit((TOML, "timeout = 10.0", "timeout = 100.0")),
    "manifest.tools_need_no_shell": edit((TOML, '"--csv"]', '"--csv", "|", "cat"]')),
    "manifest.first_tool_stands_alone": edit((TOML, "timeout = 10.0", "adds = true")),
    "markers.something_shows_a_device": edit(
        (TOML, 'nodes = ["/dev/mychip[0-9]*"]', ""),
        (TOML, '[[tools]]\ncommand = ["mychip-smi", "--csv"]\ntimeout = 10.0', ""),
    ),
    "markers.pci_ids_are_well_formed": edit((TOML, "pci = []", 'pci = ["0x10DE:*"]')),
    "markers.nodes_are_below_dev": edit((TOML, '"/dev/mychip[0-9]*"', '"/dev/*"')),
    "markers.files_are_absolute": edit((TOML, "files = []", 'files = ["/opt/*"]')),
    "markers.names_are_the_vendors": edit((TOML, '["mychip*"]', '["m*"]')),
    "markers.own_chips_are_claimed": edit((CHIPS, "mychip 1*", "ourchip 1*")),
    "markers.no_other_vendors_chip_is_claimed": edit((TOML, '["mychip*"]', '["mychip*", "a100*"]')),
    "markers.no_name_pattern_is_another_vendors": edit((TOML, '["mychip*"]', '["mychip*", "nvidia*"]')),
    "markers.no_pci_id_is_another_vendors": edit((TOML, "pci = []", 'pci = ["10de:*"]')),
    "markers.plain_torch_is_no_marker": add(TOML, '[markers.distributions]\ntorch = "2.*"\n'),
    "detection.finds_nothing_on_a_bare_host": method(LIAR),
    "detection.says_why_it_is_not_available": method(LIAR),
    "detection.has_no_slot_on_a_bare_host": method(LIAR),
    "detection.its_own_markers_are_recognised": edit(
        (TOML, 'nodes = ["/dev/mychip[0-9]*"]', ""),
        (TOML, '[[tools]]\ncommand = ["mychip-smi", "--csv"]\ntimeout = 10.0', ""),
    ),
    "detection.indices_are_unique": method(LIAR),
    "detection.is_the_same_each_time": method(LIAR),
    "detection.devices_are_this_vendors": method(LIAR),
    "detection.facts_are_json": method(LIAR),
    "detection.counts_are_sound": method(LIAR),
    "parser.samples_have_expected_values": gone("samples/mychip-smi.json"),
    "parser.reads_samples_right": edit(("samples/mychip-smi.json", "311.0", "312.0")),
    "parser.invents_no_number": parses(REPLACED.format("power_w=123.4")),
    "parser.takes_a_text_cut_anywhere": parses('assert not text or text.endswith("67\\n")'),
    "parser.reads_a_copied_sample_alike": parses('said = said if text.startswith("index") else said.__class__()'),
    "parser.bears_any_text": parses("said.devices[0]"),
    "parser.bears_a_mangled_sample": parses("assert len(said.devices) == 2"),
    "parser.values_are_plausible": parses(REPLACED.format("utilisation_pct=512")),
    "parser.indices_of_a_sample_are_unique": parses(REPLACED.format("index=0")),
    "parser.remembers_nothing": parses(
        'said = said.__class__(devices=said.devices, error=f"{self.__dict__.setdefault(text, len(self.__dict__))}"); '
        "self.__dict__[text] += 1"
    ),
    "telemetry.says_that_no_device_answers": method("def sample(self):\n    return []"),
    "telemetry.bears_a_tool_that": method(
        "def readings(self):\n    return self.parse('index, name\\n0, mychip 1\\n1, mychip 1\\n')"
    ),
    "telemetry.shows_the_devices_of_its_samples": parses("said = said.__class__()"),
    "telemetry.samples_are_fields_of_a_reading": method("def sample(self):\n    return [{'watts': 3}]"),
    "telemetry.answers_in_time": method("def sample(self):\n    import time\n    time.sleep(0.1)\n    return []"),
    "peaks.chips_are_in_the_table": gone(CHIPS),
    "peaks.figures_have_a_source": edit((CHIPS, "memory_gb = 64", "fp32_tflops = 10")),
    "peaks.figures_have_confidence": edit((CHIPS, "memory_gb = 64", "fp32_tflops = 10")),
    "peaks.figures_are_plausible": edit((CHIPS, "memory_gb = 64", "fp32_tflops = 312e12")),
    "peaks.narrower_types_are_not_slower": edit((CHIPS, "memory_gb = 64", "fp32_tflops = 100\nfp16_tflops = 20")),
    "peaks.names_are_patterns_of_lower_case": edit((CHIPS, "mychip 1*", "MyChip 1*")),
    "peaks.limits_and_peaks_agree": edit(
        (CHIPS, "memory_gb = 64", "fp64_tflops = 1"), (TOML, "[limits]", '[limits]\nfp64 = "no such units"')
    ),
    "peaks.devices_here_are_known_chips": method(LIAR),
    "readme.is_there": gone("README.md"),
    "readme.chinese_is_chinese": lambda f: (f / "README.zh.md").write_text((f / "README.md").read_text()) and None,
    "readme.begins_with_a_title": edit(("README.md", "# Mychip\n", "Mychip\n")),
    "readme.covers_devices_and_what_is_read": edit(("README.md", "**Memory**: what", "**RAM**: what")),
    "readme.names_what_is_needed": edit((TOML, '"mychipccl"', '"otherccl"')),
    "readme.names_the_variables": add(TOML, '[environment.MYCHIP_X]\nvalue = "1"\nwhy = "it hangs without it"\n'),
    "readme.tells_the_limits": edit((TOML, "[limits]", '[limits]\nfp64 = "no such units"')),
}
PARAMETERS = {
    "parser.reads_a_copied_sample_alike": {"how": "a prompt before"},
    "parser.bears_any_text": {"kind": "binary"},
    "parser.bears_a_mangled_sample": {"how": "every other line"},
    "telemetry.bears_a_tool_that": {"how": "fails"},
    **{name: {"name": "README.md"} for name in BROKEN if name.startswith("readme.")},
    "readme.chinese_is_chinese": {},
}


@pytest.mark.parametrize("check", BROKEN)
def test_it_is_green_when_all_is_well_and_red_when_broken(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if check == "telemetry.answers_in_time":
        monkeypatch.setattr(test_telemetry, "_LONGEST", 0.05)
    folder, parameters = whole(tmp_path), PARAMETERS.get(check, {})
    if check not in ("telemetry.samples_are_fields_of_a_reading", "telemetry.answers_in_time") and (
        check != "peaks.devices_here_are_known_chips"  # these need a device
    ):
        assert problems(Kit("mychip", [folder]), check, **parameters) == []
    other = whole(tmp_path / "broken")
    BROKEN[check](other)
    name = "My Chip" if check == "folder.name_is_plain" else "mychip"
    found = problems(Kit(name, [other]), check, **parameters)
    assert found and all(line.strip() for line in found)


FRESH = """
import ctypes, os, socket, subprocess, tempfile, time
subprocess.run(["true"])
open("/dev/full").close()
tempfile.TemporaryFile().close()
socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect_ex("/nowhere")
ctypes.CDLL("libc.so.6")
os.environ["MYCHIP_X"] = "1"
while time.process_time() < 2.9:
    pass
"""


def test_what_an_adapter_does_while_it_looks_for_devices_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYCHIP_X", "0")  # put back at the end
    checks = [name for name, check in declared() if check.where == "fresh"]
    kit = Kit("mychip", [whole(tmp_path)])
    broken = whole(tmp_path / "broken")
    add(CODE, FRESH)(broken)
    change(broken, TOML, '"torch_mychip"', '"json"')  # a plug-in that is imported
    red = Kit("mychip", [broken])
    try:
        for check in checks:
            assert problems(kit, check) == [], check
            assert problems(red, check), check
    finally:
        kit.close()
        red.close()


def test_no_check_is_left_out_here() -> None:
    here = {name for name, check in declared() if check.where == "here"}
    assert here == set(BROKEN)


def test_every_check_says_why_and_how_to_mend_it() -> None:
    checks = dict(declared())
    assert len(checks) >= 60
    for name, check in checks.items():
        assert len(check.why) > 30 and check.why.endswith("."), name
        assert len(check.fix) > 15 and check.fix.endswith((".", "…")), name
