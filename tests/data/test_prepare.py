"""Preparing: once, whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flagperf.data import (
    DamagedData,
    DataSettings,
    NotPrepared,
    Prepared,
    cache,
    listing,
    open_tokens,
    prepare,
    recipe,
    verify,
)
from flagperf.data.megatron import write_indexed
from flagperf.errors import FlagPerfError, UnknownName, UsageError

SYNTHETIC = DataSettings(source="synthetic", tokens=100_000)

# Prepares, and holds still at the first token written until the file named last in its arguments is there.
SLOW = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from flagperf.data import DataSettings, prepare

    def report(stage, done):
        print(stage, flush=True)
        while stage == "writing tokens" and not Path(sys.argv[1]).exists():
            time.sleep(0.02)

    print(prepare(DataSettings(source="synthetic", tokens=100_000), report).meta.fingerprint)
""")


def slow(go: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOW, str(go)], stdout=subprocess.PIPE, text=True)


def stages(settings: DataSettings) -> tuple[list[str], Prepared]:
    shown: list[str] = []
    prepared = prepare(settings, lambda stage, done: shown.append(stage))
    return list(dict.fromkeys(shown)), prepared


def test_prepared_once_then_opened() -> None:
    with pytest.raises(NotPrepared) as caught:
        open_tokens(SYNTHETIC)
    assert caught.value.hint == "Run: flagperf data prepare synthetic --tokens=100000"
    shown, prepared = stages(SYNTHETIC)
    assert shown == ["writing tokens"]
    again, reopened = stages(SYNTHETIC)
    assert again == []
    assert reopened.meta == prepared.meta == open_tokens(SYNTHETIC).meta == verify(SYNTHETIC).meta
    assert (reopened.train == prepared.train).all() and not reopened.train.flags.writeable
    assert prepared.train.dtype == np.uint16
    assert len(prepared.train) == prepared.meta.tokens("train")


def test_a_killed_process_leaves_nothing_that_is_used(tmp_path: Path, cache_folder: Path) -> None:
    process = slow(tmp_path / "never")
    assert process.stdout and process.stdout.readline() == "writing tokens\n"
    other = cache_folder / "data" / ".building-another-corpus"
    other.mkdir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list((cache_folder / "data").glob(".building-synthetic*"))) == 1
    with pytest.raises(NotPrepared):
        open_tokens(SYNTHETIC)
    assert [each.path for each in listing()] == [None, None]
    assert prepare(SYNTHETIC).meta.tokens("train")
    assert not list((cache_folder / "data").glob(".building-*"))


def test_a_second_process_waits_and_uses_what_the_first_made(tmp_path: Path, cache_folder: Path) -> None:
    go = tmp_path / "go"
    first = slow(go)
    assert first.stdout and first.stdout.readline() == "writing tokens\n"
    second = slow(go)
    assert second.stdout
    assert second.stdout.readline() == "waiting for another process that prepares the same\n"
    go.touch()
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert outputs[1] == outputs[0][-1:] == [open_tokens(SYNTHETIC).meta.fingerprint]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train.tokens", "validation.tokens", "meta.json", "tokenizer.json", "SHA256SUMS"])
def test_a_flipped_byte_is_found_named_and_mended(small_recipe: recipe.Recipe, name: str) -> None:
    settings = DataSettings(chinese=0.5)
    prepared = prepare(settings)
    before = prepared.train.copy()
    flip(prepared.path / name)
    named = ": " if name == "SHA256SUMS" else name  # there, the file whose sum it spoilt is named
    for look in (open_tokens, verify, lambda _: verify(prepared.path)):
        with pytest.raises(DamagedData, match=named) as caught:
            look(settings)
        if name != "meta.json":
            assert caught.value.hint == "Make it again: flagperf data prepare bilingual --chinese=0.5"
    assert "making it again" in stages(settings)[0][0]
    assert (verify(settings).train == before).all()


@pytest.mark.parametrize("name", ["train.tokens", "meta.json", "SHA256SUMS"])
def test_a_missing_file_is_found(name: str) -> None:
    prepared = prepare(SYNTHETIC)
    (prepared.path / name).unlink()
    with pytest.raises(DamagedData, match=name):
        open_tokens(SYNTHETIC)


def test_an_unchanged_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(SYNTHETIC)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(cache, "sha256_of", refuse)
    open_tokens(SYNTHETIC)
    with pytest.raises(AssertionError, match="was read again"):
        verify(SYNTHETIC)
    os.utime(prepared.path / "train.tokens")
    with pytest.raises(AssertionError, match=r"train\.tokens was read again"):
        open_tokens(SYNTHETIC)


def test_a_full_disk(tmpfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmpfs("size=512k")
    monkeypatch.setenv("FLAGPERF_CACHE", str(folder / "cache"))
    with pytest.raises(FlagPerfError, match=f"Not enough disk space in {folder}") as caught:
        prepare(DataSettings(source="synthetic", tokens=1_000_000))
    assert "FLAGPERF_CACHE" in caught.value.hint
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) == 0
    assert [each.path for each in listing()] == [None, None]


def test_a_read_only_cache_serves_what_it_has(tmpfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmpfs("size=8m")
    monkeypatch.setenv("FLAGPERF_CACHE", str(folder))
    prepared = prepare(SYNTHETIC)
    (prepared.path / "verified.json").unlink()
    tmpfs("size=8m,remount,ro")
    assert open_tokens(SYNTHETIC).meta == prepare(SYNTHETIC).meta == prepared.meta
    with pytest.raises(FlagPerfError, match=f"The cache {folder} can't be used"):
        prepare(DataSettings(source="synthetic", tokens=50_000))


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FlagPerfError, match="can't be used") as caught:
        prepare(SYNTHETIC)
    assert "FLAGPERF_CACHE" in caught.value.hint


def write_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"第{number}个文件: file {number}.\n" * 30, "utf-8")
    (folder / "bad.txt").write_bytes(b"caf\xe9 " * 50)
    return folder


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    first = DataSettings(source=str(write_folder(tmp_path / "corpus")), vocab_size=300)
    prepared = prepare(first)
    assert prepared.meta.replaced_bytes == 50
    assert prepared.meta.train["und"].documents + prepared.meta.validation["und"].documents == 41
    copy = DataSettings(source=str(write_folder(tmp_path / "copy") / "../corpus"), vocab_size=300)
    assert open_tokens(copy).path == prepared.path
    (tmp_path / "corpus" / "7.txt").write_text("changed", "utf-8")
    with pytest.raises(NotPrepared, match="isn't prepared"):
        open_tokens(first)
    assert prepare(first).meta.fingerprint != prepared.meta.fingerprint
    assert (open_tokens(DataSettings(source=str(tmp_path / "corpus"), vocab_size=300)).path) != prepared.path
    assert prepare(DataSettings(source=str(tmp_path / "copy"), vocab_size=300)).meta.fingerprint == (
        prepared.meta.fingerprint
    )


def test_megatron_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [[rng.integers(0, 70_000, 100)] for _ in range(50)]
    write_indexed(tmp_path / "corpus", documents, "<i4")
    settings = DataSettings(source=str(tmp_path / "corpus.bin"), vocab_size=70_000)
    prepared = prepare(settings)
    assert prepared.train.dtype == np.uint32
    assert prepared.tokenizer is None and prepared.meta.end_of_document is None
    held_out = {int(start) for start in prepared.validation[::100]}
    kept = np.concatenate([d[0] for d in documents if int(d[0][0]) not in held_out])
    assert (prepared.train == kept).all() and len(held_out) == 1
    with pytest.raises(FlagPerfError, match="outside a vocabulary of 8192") as caught:
        prepare(msgspec.structs.replace(settings, vocab_size=8192))
    assert "data.vocab_size" in caught.value.hint


def test_settings_that_change_the_tokens_have_places_of_their_own(small_recipe: recipe.Recipe) -> None:
    several = [
        DataSettings(),
        DataSettings(chinese=0.2),
        DataSettings(chinese=1.0),
        DataSettings(seed=1),
        DataSettings(vocab_size=512),
        DataSettings(validation=0.1),
    ]
    made = [prepare(settings) for settings in several]
    assert len({each.path for each in made}) == len({each.meta.fingerprint for each in made}) == len(several)
    assert [round(each.meta.share("zh"), 2) for each in made[:3]] == [0.4, 0.2, 1.0]
    assert (made[3].train[:1000] != made[0].train[:1000]).any()
    assert {str(each.path) for each in made} == {each.path for each in listing() if each.path}
    assert prepare(DataSettings(tokens=9999)).path == made[0].path  # the synthetic source's length is nothing to it


def test_listing(cache_folder: Path) -> None:
    assert [(each.name, each.path) for each in listing()] == [("bilingual", None), ("synthetic", None)]
    prepared = prepare(SYNTHETIC)
    (cache_folder / "data" / "foreign").mkdir()
    listed = {each.name: each for each in listing()}
    assert listed["synthetic"].path == str(prepared.path)
    assert listed["synthetic"].tokens == len(prepared.train)
    assert listed["synthetic"].fingerprint == prepared.meta.fingerprint
    assert "meta.json" in (listed["foreign"].problem or "")
    assert listed["bilingual"].description


def test_a_source_that_nothing_goes_by(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'bilingual'"):
        prepare(DataSettings(source="bilingal"))
    with pytest.raises(UsageError, match="There is no file or folder"):
        prepare(DataSettings(source=str(tmp_path / "nothing")))
    with pytest.raises(NotPrepared, match="There is no folder"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize(
    "bad", [{"chinese": 1.1}, {"vocab_size": 256}, {"validation": 0.0}, {"seed": -1}, {"tokens": 10}, {"source": ""}]
)
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"data.{next(iter(bad))} is"):
        DataSettings(**bad)  # type: ignore[arg-type]


def test_nothing_heavy_is_imported_to_list_and_ask() -> None:
    code = (
        "import sys; from flagperf.data import listing; listing()\n"
        "print({'numpy', 'tokenizers', 'torch', 'platformdirs'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
