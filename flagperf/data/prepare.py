"""Prepare a corpus once, open it for every run, check it, list what there is."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flagperf._version import __version__
from flagperf.data import cache, recipe
from flagperf.data.cache import DamagedData, corpora_folder, storage_errors
from flagperf.data.origins import SYNTHETIC, TOKENIZER_FILE, Origin, origin_of
from flagperf.data.settings import FORMAT, DataSettings, Meta, Progress
from flagperf.data.stream import SPLITS, token_dtype, token_file, write_splits
from flagperf.errors import FlagPerfError, Unavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

META_FILE = "meta.json"


@dataclass(frozen=True)
class Prepared:
    """A corpus ready to train on; `train` and `validation` are read-only memory maps of token ids."""

    path: Path
    meta: Meta
    train: TokenArray
    validation: TokenArray
    tokenizer: Path | None

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Return [vocab_size] how many bytes of text each token stands for, to turn nats a token into bits a byte.

        The end-of-document token stands for none. Raises FlagPerfError for a source that has no text.
        """
        from flagperf.data.tokenizer import token_bytes

        return token_bytes(self.tokenizer, self.meta)


class NotPrepared(Unavailable):
    """The corpus asked for isn't in the cache yet."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A corpus that is in the cache, or that a recipe could put there: then most fields are None."""

    name: str
    description: str
    tokens: int | None = None  # to train on
    chinese: float | None = None  # share of them, where languages are known
    vocab_size: int | None = None
    fingerprint: str | None = None
    path: str | None = None
    problem: str | None = None  # why a corpus in the cache can't be used


def prepare(settings: DataSettings, progress: Progress | None = None) -> Prepared:
    """Make the corpus in the cache unless it is there and whole; return it.

    Raises FlagPerfError: no network, another file than the recipe's, no disk space, a cache that can't be written.
    """
    report = progress or _silent
    with storage_errors():
        origin = origin_of(settings)
        entry = _entry(origin)

        # Looked at before the lock is taken, so that a prepared cache may be read-only.
        if not entry.exists() or _problem(entry):
            cache.build(
                entry,
                make=lambda folder: _make(folder, origin, settings, report),
                ready=lambda: _ready(entry, report),
                report=report,
            )
        return _open(entry, command(settings))


def open_tokens(settings: DataSettings) -> Prepared:
    """Return a corpus that was prepared before, its files checked.

    Raises NotPrepared naming the command that prepares it, DamagedData naming the file that changed since.
    """
    with storage_errors():
        entry = _entry(origin_of(settings))
        if not entry.exists():
            raise NotPrepared(f"The corpus {settings.source} isn't prepared.", f"Run: {command(settings)}")
        return _open(entry, command(settings))


def made_ready(settings: DataSettings, progress: Progress) -> dict[str, Any]:
    """Prepare a corpus where it isn't yet; return what a reader should know of it, as plain JSON.

    One that was damaged since it was prepared is refused, not made again.
    """
    try:
        prepared = open_tokens(settings)
    except NotPrepared:
        prepared = prepare(settings, progress)
    return {"path": str(prepared.path), **msgspec.to_builtins(prepared.meta)}


def verify(target: DataSettings | Path) -> Prepared:
    """Read every byte of a prepared corpus again and compare hashes; return it when all is well.

    Takes settings or the folder of a prepared corpus. Raises DamagedData naming the bad files and how to rebuild.
    """
    with storage_errors():
        if isinstance(target, DataSettings):
            entry = _entry(origin_of(target))
            if not entry.exists():
                raise NotPrepared(f"The corpus {target.source} isn't prepared.", f"Run: {command(target)}")
            return _open(entry, command(target), remembered=False)
        if not target.is_dir():
            raise NotPrepared(f"There is no folder {target}.", "List what is prepared with: flagperf data list")
        try:
            again = command(_read_meta(target).settings)
        except DamagedData:
            again = ""
        return _open(target, again, remembered=False)


def listing() -> list[Listed]:
    """Return what is in the cache, then the recipes that aren't."""
    listed = []
    for entry in sorted(corpora_folder().glob("[!.]*")):
        if not entry.is_dir():
            continue
        try:
            meta = _read_meta(entry)
        except DamagedData as error:
            listed.append(Listed(name=entry.name, description="", path=str(entry), problem=error.message))
        else:
            listed.append(
                Listed(
                    name=meta.name,
                    description=_description(meta.name),
                    tokens=meta.tokens("train"),
                    chinese=round(meta.share("zh"), 4) if "zh" in meta.train else None,
                    vocab_size=meta.vocab_size,
                    fingerprint=meta.fingerprint,
                    path=str(entry),
                )
            )
    known = {each.name for each in listed}
    unprepared = [name for name in [*recipe.names(), SYNTHETIC] if name not in known]
    listed += [Listed(name=name, description=_description(name)) for name in unprepared]
    return listed


def command(settings: DataSettings) -> str:
    """Return the command line that prepares these settings."""
    changed = [
        f"--{name.replace('_', '-')}={getattr(settings, name)}"
        for name in DataSettings.__struct_fields__
        if name != "source" and getattr(settings, name) != getattr(DataSettings(), name)
    ]
    return " ".join(["flagperf data prepare", shlex.quote(settings.source), *changed])


def _ready(entry: Path, report: Progress) -> bool:
    if not entry.exists():
        return False
    if problem := _problem(entry):
        report(f"making it again, for {problem}", None)
    return not problem


def _problem(entry: Path) -> str:
    try:
        _open(entry, "")
    except DamagedData as error:
        return error.message
    return ""


def _make(folder: Path, origin: Origin, settings: DataSettings, report: Progress) -> None:
    stream = origin.open(folder, report)
    counts = write_splits(folder, stream, settings.vocab_size, settings.validation, report)
    hashes = {split: cache.sha256_of(token_file(folder, split)) for split in SPLITS}
    if origin.expected and hashes != msgspec.to_builtins(origin.expected):
        raise FlagPerfError(
            f"The tokens made from {origin.name} aren't the recipe's: train {hashes['train'][:12]}…, validation "
            f"{hashes['validation'][:12]}…, by tokenizers {metadata.version('tokenizers')}.",
            "Install another version of tokenizers: 0.20.0, 0.21.4, 0.22.2 and 0.23.3 are known to agree.",
        )
    tokenizer = folder / TOKENIZER_FILE
    packages = ["numpy", "tokenizers"] if tokenizer.exists() else ["numpy"]
    meta = Meta(
        format=FORMAT,
        name=origin.name,
        settings=settings,
        identity=origin.identity,
        fingerprint=_fingerprint(origin.identity, hashes),
        vocab_size=settings.vocab_size,
        end_of_document=stream.end_of_document,
        dtype=token_dtype(settings.vocab_size).name,
        train=counts["train"],
        validation=counts["validation"],
        tokenizer_sha256=cache.sha256_of(tokenizer) if tokenizer.exists() else None,
        replaced_bytes=stream.replaced_bytes,
        entropy=stream.entropy,
        versions={
            "flagperf": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    )
    (folder / META_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n")


def _open(entry: Path, again: str, remembered: bool = True) -> Prepared:
    import numpy as np

    try:
        cache.check(entry, remembered)
        meta = _read_meta(entry)
        for split in SPLITS:
            size = token_file(entry, split).stat().st_size
            if size != meta.tokens(split) * np.dtype(meta.dtype).itemsize:
                raise DamagedData(f"{token_file(entry, split)} has {size} bytes, not what {META_FILE} says.")
    except DamagedData as error:
        raise DamagedData(error.message, f"Make it again: {again}" if again else f"Remove {entry}.") from error
    dtype = np.dtype(meta.dtype).newbyteorder("<")
    tokenizer = entry / TOKENIZER_FILE
    return Prepared(
        path=entry,
        meta=meta,
        train=np.memmap(token_file(entry, "train"), dtype, "r"),
        validation=np.memmap(token_file(entry, "validation"), dtype, "r"),
        tokenizer=tokenizer if meta.tokenizer_sha256 else None,
    )


def _read_meta(entry: Path) -> Meta:
    try:
        return msgspec.json.decode((entry / META_FILE).read_bytes(), type=Meta)
    except FileNotFoundError:
        raise DamagedData(f"{entry} has no {META_FILE}: it isn't a prepared corpus.") from None
    except msgspec.DecodeError as error:
        raise DamagedData(f"{entry / META_FILE} can't be read: {error}.") from error


def _entry(origin: Origin) -> Path:
    name = re.sub(r"[^\w.-]+", "-", origin.name).strip(".-")[:64] or "corpus"
    return corpora_folder() / f"{name}-{_fingerprint(origin.identity, {})[:16]}"


def _fingerprint(identity: dict[str, str | int | float], hashes: dict[str, str]) -> str:
    known = msgspec.json.encode({"format": FORMAT, **identity, **hashes}, order="sorted")
    return hashlib.sha256(known).hexdigest()


def _description(name: str) -> str:
    if name in recipe.names():
        return recipe.load(name).description
    return "Made up, learnable, needs no network" if name == SYNTHETIC else ""


def _silent(stage: str, done: float | None) -> None:
    pass
