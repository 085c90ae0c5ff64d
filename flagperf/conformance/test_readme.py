"""The README, in English and Chinese: what someone with such a card in front of them must know."""

from __future__ import annotations

import re

import pytest

from flagperf.conformance.check import Problems, check
from flagperf.conformance.kit import Kit

_ENGLISH, _CHINESE = "README.md", "README.zh.md"
_TOPICS = {
    "what a device is or how it's found": ("device", "found by", "设备", "发现"),
    "what is read": ("memory", "reads", "存", "读取"),
}


@check(
    "An adapter without a README can be used only by who wrote it.",
    f"Write {_ENGLISH} and {_CHINESE}; vendors/cpu has short ones.",
    part="readme",
)
@pytest.mark.parametrize("name", [_ENGLISH, _CHINESE])
def test_is_there(kit: Kit, name: str) -> Problems:
    if not (kit.folder / name).is_file():
        yield f"there is no {name}"


@check(
    "Half of those who use these chips read Chinese first.",
    "Translate it; a copy of the English text is none.",
    part="readme",
)
def test_chinese_is_chinese(kit: Kit) -> Problems:
    text = _read(kit, _CHINESE)
    if len(re.findall(r"[\u4e00-\u9fff]", text)) < 20:
        yield f"{_CHINESE} is hardly Chinese"


@check(
    "A page without a title isn't found.",
    "Begin with `# ` and the vendor's name.",
    part="readme",
)
@pytest.mark.parametrize("name", [_ENGLISH, _CHINESE])
def test_begins_with_a_title(kit: Kit, name: str) -> Problems:
    if not re.match(r"# \S", _read(kit, name)):
        yield f"{name} doesn't begin with a title"


@check(
    "What counts as a device and where memory figures are from differ from maker to maker, and change every result.",
    "Say what a device is or how it's found, and what is read: memory figures, by which tool.",
    part="readme",
)
@pytest.mark.parametrize("name", [_ENGLISH, _CHINESE])
def test_covers_devices_and_what_is_read(kit: Kit, name: str) -> Problems:
    text = _read(kit, name).lower()
    for topic, words in _TOPICS.items():
        if not any(word in text for word in words):
            yield f"{name} doesn't say {topic}"


@check(
    "Who has a card and no driver, plug-in or tool must learn from this page which.",
    "Name each tool of the manifest, the plug-in and the backend.",
    part="readme",
)
@pytest.mark.parametrize("name", [_ENGLISH, _CHINESE])
def test_names_what_is_needed(kit: Kit, name: str) -> Problems:
    manifest, text = kit.manifest, _read(kit, name)
    programs = [tool.command[0] for tool in manifest.tools]
    for needed in dict.fromkeys([*programs, manifest.plugin.rpartition(".")[2], manifest.backend]):
        if needed and needed not in text:
            yield f"{name} doesn't name {needed}"


@check(
    "A variable that is set for every rank changes what is measured, and has to be told.",
    "Name each variable of [environment] and [cases], and the one that limits the devices.",
    part="readme",
)
@pytest.mark.parametrize("name", [_ENGLISH, _CHINESE])
def test_names_the_variables(kit: Kit, name: str) -> Problems:
    manifest, text = kit.manifest, _read(kit, name)
    names = [*manifest.environment, *(key for case in manifest.cases.values() for key in case.environment)]
    for variable in dict.fromkeys([*names, manifest.visible_devices]):
        if variable and variable not in text:
            yield f"{name} doesn't name {variable}"


@check(
    "Who plans a run must know beforehand what these devices can't do.",
    "Name each data type of [limits] and each operation of [lacking].",
    part="readme",
)
@pytest.mark.parametrize("name", [_ENGLISH, _CHINESE])
def test_tells_the_limits(kit: Kit, name: str) -> Problems:
    text = _read(kit, name)
    for limit in (*kit.manifest.limits, *kit.manifest.lacking):
        if limit not in text:
            yield f"{name} doesn't say that there is no {limit}"


def _read(kit: Kit, name: str) -> str:
    path = kit.folder / name
    if not path.is_file():
        pytest.skip(f"needs {name}")
    return path.read_text("utf-8")
