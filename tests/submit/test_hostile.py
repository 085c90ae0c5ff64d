"""Bundles that strangers could send: each kind is refused for what it is, and nothing is left behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submit import made
from submit.conftest import Check

from flagperf.registry import Registries
from flagperf.schema.submission import BundledFile
from flagperf.submit import archive
from flagperf.submit.bundle import encoded
from flagperf.submit.check import check

_BLOCK = 512


def member(name: str = "adapter/x.py", data: bytes = b"", format_: int = tarfile.USTAR_FORMAT, **fields: Any) -> bytes:
    """One member of a tar archive, as tarfile writes it, with these fields."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(format_, "utf-8", "surrogateescape") + data + bytes(-len(data) % _BLOCK)


def put(before: bytes) -> Callable[[bytes], bytes]:
    """A bundle with this in front of its last member's end, where a reader comes last."""
    return lambda bundle: bundle[: -2 * _BLOCK] + before + bundle[-2 * _BLOCK :]


def first(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """A bundle with other bytes in its first header, whose checksum is right again."""

    def change(bundle: bytes) -> bytes:
        header = bundle[:offset] + value + bundle[offset + len(value) : _BLOCK]
        blank = header[:148] + b" " * 8 + header[156:]
        return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:] + bundle[_BLOCK:]

    return change


def zipped(bundle: bytes) -> bytes:
    """A bundle in a zip archive."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("manifest.json", bundle)
    return whole.getvalue()


def padded(bundle: bytes) -> bytes:
    """A bundle with something in the padding after a file."""
    place = bundle.index(b"\0" * 8, bundle.index(b"SPDX-License"))
    return bundle[:place] + b"x" + bundle[place + 1 :]


ARCHIVES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "out of the bundle": (put(member("../../etc/cron.d/x")), "unsafe_name"),
    "out of a folder": (put(member("adapter/../../x")), "unsafe_name"),
    "absolute": (put(member("/etc/passwd")), "unsafe_name"),
    "a drive": (put(member("C:/x")), "unsafe_name"),
    "a backslash": (put(member("adapter\\x")), "unsafe_name"),
    "control characters in a name": (put(member("adapter/\x1b[2J")), "unsafe_name"),
    "a newline in a name": (put(member("adapter/a\nb")), "unsafe_name"),
    "a name that isn't ASCII": (put(member("adapter/é.py")), "unsafe_name"),
    "a name in no encoding": (put(member("adapter/\udcff.py")), "unsafe_name"),
    "a hidden name": (put(member(".ssh/authorized_keys")), "unsafe_name"),
    "a name for an option": (put(member("adapter/-rf")), "unsafe_name"),
    "an empty part": (put(member("adapter//x")), "unsafe_name"),
    "a name that Windows reserves": (put(member("adapter/con.py")), "unsafe_name"),
    "a name that ends in a dot": (put(member("adapter/x.")), "unsafe_name"),
    "a long name": (put(member("adapter/" + "x" * 90 + "/" + "y" * 98)), "extra_file"),
    "a longer name": (put(member("a" * 110 + "/" + "y" * 98)), "unsafe_name"),
    "a symbolic link": (put(member(type=tarfile.SYMTYPE, linkname="/etc/passwd")), "not_a_file"),
    "a hard link": (put(member(type=tarfile.LNKTYPE, linkname="LICENSE")), "not_a_file"),
    "a character device": (put(member(type=tarfile.CHRTYPE, devmajor=1)), "not_a_file"),
    "a block device": (put(member(type=tarfile.BLKTYPE, devmajor=8)), "not_a_file"),
    "a FIFO": (put(member(type=tarfile.FIFOTYPE)), "not_a_file"),
    "a folder": (put(member(type=tarfile.DIRTYPE)), "not_a_file"),
    "a GNU long name": (put(member("adapter/" + "x" * 300, format_=tarfile.GNU_FORMAT)), "not_a_file"),
    "a pax header": (put(member("adapter/" + "x" * 300, format_=tarfile.PAX_FORMAT)), "not_a_file"),
    "a global pax header": (put(member(type=tarfile.XGLTYPE)), "not_a_file"),
    "a sparse file": (put(member(type=tarfile.GNUTYPE_SPARSE)), "not_a_file"),
    "a type that nobody knows": (put(member(type=b"Z")), "bad_header"),
    "set-user-id": (put(member(mode=0o4755)), "bad_header"),
    "an owner": (put(member(uid=1000, uname="root")), "bad_header"),
    "a time": (put(member(mtime=1_700_000_000)), "bad_header"),
    "a file twice": (put(member("system.yaml")), "duplicate_file"),
    "names that differ in case": (put(member("SYSTEM.yaml")), "duplicate_file"),
    "folders that differ in case": (put(member("Adapter/x.py")), "duplicate_file"),
    "a file where a folder is": (put(member("adapter")), "duplicate_file"),
    "a folder where a file is": (put(member("system.yaml/x")), "duplicate_file"),
    "an extra file": (put(member("adapter/zz.py", b"print()")), "extra_file"),
    "a size beyond the archive": (first(124, b"00077777777\0"), "truncated"),
    "a size beyond the limit": (first(124, b"77777777777\0"), "too_large"),
    "a size in base 256": (first(124, b"\x80" + b"\0" * 3 + b"\x7f" * 8), "bad_header"),
    "a negative size": (first(124, b"-0000000001\0"), "bad_header"),
    "a size in blanks": (first(124, b"        123\0"), "bad_header"),
    "no magic": (first(257, b"\0" * 6), "not_a_bundle"),
    "a wrong checksum": (lambda bundle: bundle[:150] + b"7" + bundle[151:], "bad_header"),
    "something in the padding": (padded, "damaged"),
    "something after the end": (lambda bundle: bundle + b"x", "after_end"),
    "blocks after the end": (lambda bundle: bundle + bytes(8 * _BLOCK), "after_end"),
    "a second archive": (lambda bundle: bundle + bundle, "after_end"),
    "half an end": (lambda bundle: bundle[:-_BLOCK], "truncated"),
    "no end": (lambda bundle: bundle[: -2 * _BLOCK], "truncated"),
    "cut in a file": (lambda bundle: bundle[: len(bundle) // 2], "truncated"),
    "cut in a header": (lambda bundle: bundle[:100], "truncated"),
    "nothing": (lambda bundle: b"", "truncated"),
    "only an end": (lambda bundle: bytes(2 * _BLOCK), "no_manifest"),
    "gzip": (gzip.compress, "not_a_bundle"),
    "bzip2": (bz2.compress, "not_a_bundle"),
    "xz": (lzma.compress, "not_a_bundle"),
    "zip": (zipped, "not_a_bundle"),
    "zstd": (lambda bundle: b"\x28\xb5\x2f\xfd" + bundle, "not_a_bundle"),
    "zeros without end": (lambda bundle: bytes(600), "truncated"),
    "dice": (lambda bundle: bytes(range(256)) * 8, "not_a_bundle"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_is_refused_for_what_it_is(
    kind: str, packed: bytes, checked: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    change, code = ARCHIVES[kind]
    verdict = checked(change(packed))
    assert verdict.verdict == "rejected"
    assert code in [reason.code for reason in verdict.reasons], verdict.reasons
    assert not list(private.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"private", "bundle.tar"}
    assert all("\x1b" not in f"{reason}" and "\n" not in reason.file for reason in verdict.reasons)


def test_too_many_files_are_refused(packed: bytes, checked: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_FILES", 5)
    assert [reason.code for reason in checked(packed).reasons] == ["too_large"]


def test_files_of_the_archive_are_written_nowhere_else(packed: bytes, tmp_path: Path) -> None:
    """Not even where a folder on the way is a link: each file is made anew in a folder of our own."""
    folder = tmp_path / "own"
    folder.mkdir()
    whole = list(archive.extract(io.BytesIO(packed), folder))
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {file.path for file in whole}
    assert all(not path.stat().st_mode & 0o111 for path in folder.rglob("*") if path.is_file())


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_found_wherever_it_is(
    data: st.DataObject, packed: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    flipped = bytearray(packed)
    flipped[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.getbasetemp() / f"flipped-{os.getpid()}.tar"
    path.write_bytes(flipped)
    with pytest.MonkeyPatch.context() as patch:  # that it is found at once is the point: nothing else is looked at
        patch.setattr("flagperf.submit.check._Examination.results", lambda self: [])
        assert check(path, Registries()).verdict == "rejected"


def test_an_untouched_bundle_has_nothing_to_be_found(packed: bytes, checked: Check) -> None:
    """What makes the test above able to fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flagperf.submit.check._Examination.results", lambda self: [])
        assert checked(packed).verdict == "accepted"


@settings(max_examples=100)
@given(st.binary(max_size=3000), st.integers(0, 2))
def test_no_bytes_break_the_reader(data: bytes, repeat: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with suppress(archive.Refused):
            list(archive.extract(io.BytesIO(data + bytes(512 * repeat)), Path(folder)))
        assert sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) <= len(data)


def _unsealed(files: made.Contents) -> bytes:
    whole = io.BytesIO()
    unsealed = msgspec.structs.replace(made.manifest(files), seal="0" * 64)
    archive.write(whole, {"manifest.json": encoded(unsealed), **dict(sorted(files.items()))})
    return whole.getvalue()


def _files(change: Callable[[list[BundledFile]], list[BundledFile]]) -> Callable[[made.Contents], bytes]:
    return lambda files: made.assemble(files, files=change(made.manifest(files).files))


def _without(files: made.Contents) -> bytes:
    rest = {name: data for name, data in files.items() if name != "adapter/README.md"}
    return made.assemble(rest, files=made.manifest(files).files)


MANIFESTS: dict[str, tuple[Callable[[made.Contents], bytes], str]] = {
    "no seal": (_unsealed, "broken_seal"),
    "no chain": (lambda files: made.assemble(files, chain=[]), "broken_chain"),
    "a file that isn't listed": (_files(lambda listed: listed[1:]), "extra_file"),
    "a file that isn't there": (_without, "missing_file"),
    "a file that has no place": (lambda files: made.assemble({**files, "notes.txt": b""}), "extra_file"),
    "a file of another content": (
        lambda files: made.assemble({**files, "LICENSE": b"x"}, files=made.manifest(files).files),
        "altered_file",
    ),
    "a file listed twice": (_files(lambda listed: [*listed, listed[0]]), "manifest_twice"),
    "another order": (_files(lambda listed: listed[::-1]), "wrong_order"),
    "another run": (lambda files: made.assemble(files, runs=["other"]), "wrong_runs"),
    "another vendor": (lambda files: made.assemble(files, vendor="acme"), "other_vendor"),
    "rules that nobody has": (lambda files: made.assemble(files, rules="99"), "unknown_rules"),
    "rules by a path": (lambda files: made.assemble(files, rules="../../etc/x"), "unknown_rules"),
    "a division that isn't": (lambda files: made.assemble(files, division="best"), "malformed"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_forged_manifest_is_refused(kind: str, files: made.Contents, checked: Check) -> None:
    change, code = MANIFESTS[kind]
    assert code in [reason.code for reason in checked(change(files)).reasons]
