"""The cache of what is prepared once: whole or absent, locked while being made, checked before use."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from flagperf import paths
from flagperf.data.settings import Progress
from flagperf.errors import FlagPerfError

CACHE_VARIABLE = "FLAGPERF_CACHE"
SUMS = "SHA256SUMS"
_BUILDING = ".building-"
_VERIFIED = "verified.json"


class DamagedData(FlagPerfError):
    """A prepared corpus isn't what it was when it was made."""


def corpora_folder() -> Path:
    """Return the folder that has one sub-folder a prepared corpus."""
    return paths.cache() / "data"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the system's refusals to write or read into errors that say what to do."""
    try:
        yield
    except OSError as error:
        root = paths.cache()
        elsewhere = f"Or set {CACHE_VARIABLE} to a folder elsewhere."
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FlagPerfError(
                f"Not enough disk space in {root}: {error.strerror}.", f"Make room. {elsewhere}"
            ) from error
        if where is None or where == root or root in where.parents or where in root.parents:
            raise FlagPerfError(
                f"The cache {root} can't be used: {error}.", f"Give access to it. {elsewhere}"
            ) from error
        raise FlagPerfError(
            f"{where} can't be read: {error.strerror}.", "Check the path and its permissions."
        ) from error


def build(entry: Path, make: Callable[[Path], None], ready: Callable[[], bool], report: Progress) -> None:
    """Make a cache entry by `make(folder)` unless `ready()`: in a folder beside it, moved into place when complete.

    Only one process makes it; another waits and then finds it ready. A process that was killed leaves a folder that
    nobody reads and the next build removes; any other failure leaves nothing.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(entry, report):
        if ready():
            return
        _remove_stale(entry)
        folder = entry.with_name(_BUILDING + entry.name)
        folder.mkdir()
        try:
            make(folder)
            _seal(folder)
            if entry.exists():  # damaged, or ready() would have said so; a reader's memory maps stay valid
                shutil.rmtree(entry)
            folder.rename(entry)
            _sync(entry.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # gone already unless something failed, which is being raised


def made(entry: Path, make: Callable[[Path], None], report: Progress) -> Path:
    """Return a cache entry, made by `make(folder)` where it isn't there or is damaged."""

    def ready() -> bool:
        try:
            check(entry)
        except DamagedData:
            return False
        return True

    if not ready():  # asked before the lock is taken, so that a complete cache may be read-only
        build(entry, make, ready, report)
    return entry


def check(entry: Path, remembered: bool = True) -> None:
    """Raise DamagedData unless each file of the entry has the hash it had when made.

    `remembered`: don't read a file again whose size and times are those of its last good reading.
    """
    try:
        lines = (entry / SUMS).read_text("ascii").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        raise DamagedData(f"{entry} has no file {SUMS}: it isn't complete.") from None
    except ValueError as error:
        raise DamagedData(f"{entry / SUMS} is damaged: {error}.") from error
    hashes = FileHashes(entry / _VERIFIED, trust=remembered)
    bad = []
    for name, digest in sums.items():
        path = entry / name
        if not path.is_file():
            bad.append(f"{name} is missing")
        elif (found := hashes.sha256(path)) != digest:
            bad.append(f"{name} is damaged (SHA-256 {found[:12]}…, was {digest[:12]}… when made)")
    if bad:
        raise DamagedData(f"{entry}: {'; '.join(bad)}.")
    hashes.save()


class FileHashes:
    """SHA-256 of files, remembered by size and times so that an unchanged file isn't read again."""

    def __init__(self, memo: Path, trust: bool = True) -> None:
        self._path = memo
        self._changed = False
        self._memo: dict[str, tuple[int, int, int, str]] = {}
        # A memo that is missing or spoilt costs a second reading of the files, no more.
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            if trust:
                self._memo = msgspec.json.decode(memo.read_bytes(), type=dict[str, tuple[int, int, int, str]])

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, in hex."""
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._memo.get(str(path))
        if known is not None and known[:3] == stamp:
            return known[3]
        digest = sha256_of(path)
        self._memo[str(path)] = (*stamp, digest)
        self._changed = True
        return digest

    def save(self) -> None:
        """Write the memo, unless the cache is read-only or full: then the next reader hashes again."""
        if not self._changed:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(self._memo))
            temporary.replace(self._path)
        except OSError as error:
            if temporary.exists():
                temporary.unlink()
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise


@contextlib.contextmanager
def _locked(entry: Path, report: Progress) -> Iterator[None]:
    lock = FileLock(_lock_path(entry))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that prepares the same", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_path(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _remove_stale(entry: Path) -> None:
    """Remove what killed processes left: folders being built whose lock nobody holds."""
    for folder in entry.parent.glob(_BUILDING + "*"):
        name = folder.name.removeprefix(_BUILDING)
        if name == entry.name:  # its lock is ours
            shutil.rmtree(folder)
            continue
        lock = FileLock(_lock_path(folder.with_name(name)))
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            shutil.rmtree(folder)


def _seal(folder: Path) -> None:
    """Write the hashes of a finished folder's files and see all of it onto the disk."""
    names = sorted(path.name for path in folder.iterdir())
    sums = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(sums, "ascii")
    for name in [*names, SUMS]:
        _sync(folder / name)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
