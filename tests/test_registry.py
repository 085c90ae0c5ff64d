"""Plug-ins are found by manifest, loaded on demand, and a broken one breaks no other."""

from __future__ import annotations

import textwrap
from pathlib import Path

import planted
import pytest

from flagperf.errors import PluginError, Unavailable, UnknownName
from flagperf.registry import Registries, availability
from flagperf.schema.manifest import Manifest, Requirement

ENGINE = """
name = "{name}"
kind = "training"
title = "Mine"
summary = "an engine from a folder"
entry = ".mine:Mine"
"""


def folder(tmp_path: Path, name: str, text: str, code: str = "class Mine: pass\n") -> Path:
    engines = tmp_path / "engines"
    engines.mkdir(parents=True, exist_ok=True)
    (engines / "mine.toml").write_text(text.format(name=name))
    (engines / "mine.py").write_text(code)
    return tmp_path


def test_what_is_built_in_is_found() -> None:
    registries = Registries()
    assert {"single", "ddp", "fsdp"} <= set(registries.engines.names())
    assert "aquila/pretrain" in registries.cases.names()
    assert "cpu" in registries.vendors.names()
    assert "local" in registries.launchers.names()


def test_a_folder_adds_to_it(tmp_path: Path) -> None:
    registries = Registries([folder(tmp_path, "mine", ENGINE)])
    assert registries.engines.load("mine").__name__ == "Mine"
    assert "ddp" in registries.engines.names()


def test_two_of_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    registries = Registries([folder(tmp_path, "ddp", ENGINE)])
    with pytest.raises(PluginError) as error:
        registries.engines.names()
    assert "flagperf/engines/ddp.toml" in str(error.value) and str(tmp_path) in str(error.value)


def test_a_manifest_that_cant_be_read_breaks_no_other(tmp_path: Path) -> None:
    registries = Registries([folder(tmp_path, "mine", ENGINE + "colour = 'red'\n")])
    assert "ddp" in registries.engines.names()
    assert "mine" not in registries.engines.names()
    assert any("colour" in why for why in registries.engines.broken.values())
    with pytest.raises(PluginError, match="colour"):
        registries.engines.get("mine")


def test_an_import_that_fails_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    registries = Registries([folder(tmp_path, "mine", ENGINE, "1 / 0\n")])
    assert "mine" in registries.engines.names()
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        registries.engines.load("mine")


def test_a_missing_distribution_comes_with_the_command_that_gets_it(tmp_path: Path) -> None:
    text = ENGINE + '[[requires]]\ndistribution = "nowhere-to-be-had"\ninstall = "pip install nowhere-to-be-had"\n'
    registries = Registries([folder(tmp_path, "mine", text)])
    with pytest.raises(Unavailable) as error:
        registries.engines.load("mine")
    assert "pip install nowhere-to-be-had" in error.value.hint


@pytest.mark.parametrize(("versions", "good"), [(">=0.1", True), (">=999", False), ("", True), ("==0.1", False)])
def test_a_package_of_another_version_is_told(versions: str, good: bool) -> None:
    need = Requirement(distribution="msgspec", versions=versions, install="pip install msgspec")
    manifest = Manifest(name="x", title="x", summary="x", entry="x:y", requires=[need])
    assert availability(manifest).available is good


def test_an_entry_point_adds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somebodys_engines"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "theirs.toml").write_text(ENGINE.format(name="theirs").replace(".mine:Mine", ".theirs:Theirs"))
    (package / "theirs.py").write_text("class Theirs: pass\n")
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""\
            [flagperf.engines]
            theirs = somebodys_engines
            """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = Registries()
    assert registries.engines.load("theirs").__name__ == "Theirs"


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'fsdp'"):
        Registries().engines.get("fsdp2")


def test_two_folders_of_one_name_dont_hide_each_other(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", "first", ENGINE, "class Mine: place = 'first'\n")
    second = folder(tmp_path / "b", "second", ENGINE, "class Mine: place = 'second'\n")
    registries = Registries([first, second])
    assert registries.engines.load("first").place == "first"
    assert registries.engines.load("second").place == "second"


@pytest.mark.parametrize("target", ["gone_package.engines", "gone_package", "not a name", "json"])
def test_an_entry_point_that_leads_nowhere_breaks_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flagperf.engines]\ntheirs = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registries().engines
    assert "ddp" in registry.names()
    if target != "json":  # a package, if one without manifests
        assert target in registry.broken


def test_after_a_clash_of_names_nothing_is_half_known(tmp_path: Path) -> None:
    registries = Registries([folder(tmp_path, "ddp", ENGINE)])
    for _ in range(2):
        with pytest.raises(PluginError):
            registries.engines.names()


FAMILY = """
name = "mine/*"
kind = "kernel"
title = "Mine"
title_zh = "我的"
summary = "a family of cases"
entry = ".mine:Mine"
members = "things"
dtypes = ["fp32"]
metrics = ["kernel_time"]
protocol = { warmup = 2, steps = 2, trials = 1, seed = 1 }
presets.tiny.summary = "small"
settings.depth = 3
[settings.things]
one = { size = 1 }
two = { size = 2 }
"""


def family(tmp_path: Path, text: str) -> Registries:
    (tmp_path / "cases" / "mine").mkdir(parents=True)
    (tmp_path / "cases" / "mine" / "mine.toml").write_text(text)
    (tmp_path / "cases" / "mine" / "mine.py").write_text("class Mine: pass\n")
    return Registries([tmp_path])


def test_members_of_a_manifest_are_cases_with_that_member_only(tmp_path: Path) -> None:
    cases = family(tmp_path, FAMILY).cases
    assert {"mine/*", "mine/one", "mine/two"} <= set(cases.names())
    one, whole = cases.get("mine/one"), cases.get("mine/*")
    assert one.settings == {"depth": 3, "things": {"one": {"size": 1}}}
    assert whole.settings == {"depth": 3, "things": {"one": {"size": 1}, "two": {"size": 2}}}
    assert (one.family, one.title, one.title_zh, one.members) == ("mine/*", "Mine: one", "我的：one", "")
    assert cases.load("mine/one").__name__ == "Mine"
    assert cases.digest("mine/one") == cases.digest("mine/*")


@pytest.mark.parametrize(("line", "name"), [("three = 3", "three"), ('"a/b" = {}', "a/b"), ('"*" = {}', "*")])
def test_a_broken_member_breaks_no_other(tmp_path: Path, line: str, name: str) -> None:
    cases = family(tmp_path, FAMILY + line).cases
    assert {"mine/*", "mine/one", "mine/two"} <= set(cases.names())
    assert [path for path in cases.broken if path.endswith(f"mine.toml [{name}]")]
    if name == "three":
        with pytest.raises(PluginError, match="no table"):
            cases.get("mine/three")


def test_a_family_without_members_or_that_cant_be_read_is_told(tmp_path: Path) -> None:
    cases = family(tmp_path, FAMILY.replace('members = "things"', 'members = "others"')).cases
    for name in ("mine/*", "mine/one"):
        with pytest.raises(PluginError, match=r"settings\.others"):
            cases.get(name)


def test_a_member_called_like_another_case_is_refused_with_both_places(tmp_path: Path) -> None:
    alone = FAMILY.replace("mine/*", "mine/one").replace('members = "things"', "")
    (tmp_path / "b" / "cases").mkdir(parents=True)
    (tmp_path / "b" / "cases" / "alone.toml").write_text(alone)
    (tmp_path / "a").mkdir()
    family(tmp_path / "a", FAMILY)
    with pytest.raises(PluginError) as error:
        Registries([tmp_path / "a", tmp_path / "b"]).cases.names()
    assert "mine.toml" in str(error.value) and "alone.toml" in str(error.value)


def test_a_manifest_is_like_another_one_but_for_what_it_says(tmp_path: Path) -> None:
    place = planted.plant(tmp_path).parent
    more = '[presets.large]\nsummary = "more"\n[providers.right]\ntitle = "Right"\n[protocol]\nsteps = 9\n'
    (place / "more.toml").write_text((place / "slope.toml").read_text().replace("slope", "more") + more)
    double, other = (Registries([tmp_path]).cases.get(f"planted/{name}") for name in ("double", "more"))
    assert (other.title, other.dtypes, other.metrics) == ("Slope", double.dtypes, double.metrics)
    assert (other.protocol.steps, other.protocol.warmup) == (9, double.protocol.warmup)
    assert list(other.providers) == list(double.providers)
    assert (other.providers["right"].title, other.providers["right"].entry) == ("Right", ".double:right")
    assert list(other.presets) == ["tiny", "large"]


@pytest.mark.parametrize("name", ["gone.toml", "../double.toml", "", "like.toml"])
def test_a_manifest_that_is_like_none_is_told(tmp_path: Path, name: str) -> None:
    place = planted.plant(tmp_path).parent
    (place / "like.toml").write_text(f'name = "planted/like"\nlike = "{name}"\n')
    registries = Registries([tmp_path])
    assert {"planted/double", "planted/slope"} <= set(registries.cases.names())
    with pytest.raises(PluginError, match="planted/like"):
        registries.cases.get("planted/like")
