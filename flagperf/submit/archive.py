"""The file a bundle is: a tar archive of regular files, of which there is exactly one spelling.

Names, sizes and contents settle every byte: no times, owners, links, extensions or compression. Reading compares each
header with the one that writing would make, so whatever else a tar archive can be (a link, a device, a sparse file,
another mode, a flipped bit, something after the end) isn't a bundle, and no case needs a rule of its own.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from flagperf.schema.submission import BundledFile

_BLOCK = 512
_CHUNK = 1 << 20
_END = bytes(2 * _BLOCK)

MOST_BYTES = 256 * 2**20
"""Of a bundle."""
MOST_FILES = 20_000
MOST_NAME = 200
"""Characters of a file's path."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]*")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.CONTTYPE: "a contiguous file",
    tarfile.GNUTYPE_LONGNAME: "a GNU long name",
    tarfile.GNUTYPE_LONGLINK: "a GNU long link",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.XHDTYPE: "a pax header",
    tarfile.XGLTYPE: "a global pax header",
    tarfile.SOLARIS_XHDTYPE: "a Solaris header",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Refused(Exception):
    """A file that is no bundle, or no longer one."""

    def __init__(self, code: str, message: str, file: str = "") -> None:
        super().__init__(message)
        self.code, self.file = code, file


def unsafe(name: str) -> str:
    """Say what is wrong with a path in a bundle; empty if nothing is."""
    if len(name) > MOST_NAME:
        return f"it is longer than {MOST_NAME} characters"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "it is absolute"
    parts = name.split("/")
    if ".." in parts:
        return "it leads out of the bundle"
    for part in parts:
        if not _PART.fullmatch(part):
            return (
                "it isn't plain: letters, digits and . _ + = , - in each part, which begins with a letter, digit or _"
            )
        if part.split(".")[0].lower() in _RESERVED or part.endswith("."):
            return "some systems can't have such a file"
    try:
        _header(name, 0)
    except ValueError:
        return "it is too long for a tar header"
    return ""


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def write(file: IO[bytes], contents: Mapping[str, bytes | Path]) -> None:
    """Write a bundle; the order is the mapping's. Names must be safe."""
    for name, content in contents.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        file.write(_header(name, len(data)))
        file.write(data)
        file.write(bytes(-len(data) % _BLOCK))
    file.write(_END)


def extract(file: IO[bytes], folder: Path) -> Iterator[BundledFile]:
    """Write a bundle's files into an empty private folder, and yield each; raise Refused at the first wrong byte."""
    read = 0
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    while True:
        header = _exactly(file, _BLOCK, "")
        if header == _END[:_BLOCK]:
            if _exactly(file, _BLOCK, "") != _END[_BLOCK:]:
                raise Refused("damaged", "The archive's end is damaged.")
            if file.read(1):
                raise Refused("after_end", "Something comes after the end of the archive.")
            return
        name, size = _understood(header, first=not seen)
        _check_name(name, seen, folders)
        read += _BLOCK + size + -size % _BLOCK
        if read > MOST_BYTES or len(seen) > MOST_FILES:
            raise Refused("too_large", f"The bundle has more than {MOST_BYTES >> 20} MiB or {MOST_FILES} files.", name)
        yield _copy(file, folder, name, size)


def _understood(header: bytes, first: bool) -> tuple[str, int]:
    """Return a header's name and size; raise Refused for one that isn't just what a bundle's writer would make."""
    if first:
        for magic, packer in _COMPRESSED.items():
            if header.startswith(magic):
                raise Refused("not_a_bundle", f"The file is {packer}; a bundle is a plain, uncompressed tar archive.")
    if header[257:262] != b"ustar":
        raise Refused("not_a_bundle" if first else "damaged", "This is no header of a tar archive.")
    name, prefix = (field.split(b"\0", 1)[0].decode("latin-1") for field in (header[:100], header[345:500]))
    name = f"{prefix}/{name}" if prefix else name
    kind = header[156:157]
    if kind in _KINDS:
        raise Refused("not_a_file", f"It is {_KINDS[kind]}; a bundle holds regular files only.", name)
    digits = header[124:135]
    if not re.fullmatch(rb"[0-7]{11}", digits):
        raise Refused("bad_header", "Its header tells no size in plain octal.", name)
    size = int(digits, 8)
    if wrong := unsafe(name):
        raise Refused("unsafe_name", f"The name isn't taken: {wrong}.", name)
    if _header(name, size) != header:
        raise Refused("bad_header", "Its header isn't as `flagperf submit pack` writes it, or was damaged.", name)
    return name, size


def _check_name(name: str, seen: dict[str, str], folders: dict[str, str]) -> None:
    """Refuse a name that some file system can't hold beside those before it."""
    folded = name.casefold()
    if folded in seen:
        what = "twice" if seen[folded] == name else f"beside {seen[folded]}, which differs in case only"
        raise Refused("duplicate_file", f"The file is in the archive {what}.", name)
    if folded in folders:
        raise Refused("duplicate_file", "It is both a file and a folder.", name)
    parts = name.split("/")
    for length in range(1, len(parts)):
        folder = "/".join(parts[:length])
        below = folder.casefold()
        if below in seen:
            raise Refused("duplicate_file", f"{seen[below]} is both a file and a folder.", name)
        if folders.setdefault(below, folder) != folder:
            raise Refused("duplicate_file", f"Its folder differs from {folders[below]} in case only.", name)
    seen[folded] = name


def _copy(file: IO[bytes], folder: Path, name: str, size: int) -> BundledFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    left = size
    with path.open("xb") as out:
        while left:
            chunk = _exactly(file, min(left, _CHUNK), name)
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if any(_exactly(file, -size % _BLOCK, name)):
        raise Refused("damaged", "There is something in the padding after it.", name)
    return BundledFile(path=name, size=size, sha256=digest.hexdigest())


def _exactly(file: IO[bytes], count: int, name: str) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise Refused("truncated", "The archive ends early.", name)
    return data
