"""What is in a bundle and under which names; how its table of contents is made and held against it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from flagperf.schema.submission import BundledFile, BundleManifest, Link, Signature
from flagperf.submit import archive, signing, strict
from flagperf.submit.archive import Refused
from flagperf.submit.findings import Findings

S = TypeVar("S", bound=msgspec.Struct)

MANIFEST, SIGNATURE, SYSTEM, LICENCE, RESULTS = (
    *("manifest.json", "signature.json", "system.yaml", "LICENSE", "results.json"),
)
ADAPTER, RUNS = "adapter", "runs"

RUN_FILE = re.compile(r"run\.json|harness(-node[0-9]+)?\.journal")
"""What is taken of a run's folder …"""
TRIAL_FILE = re.compile(r"trial(-node[0-9]+)?\.json|rank[0-9]+\.journal|telemetry(-node[0-9]+)?\.journal")
"""… and of a trial's."""
_NAMES = re.compile(
    rf"{re.escape(SYSTEM)}|{LICENCE}|{re.escape(RESULTS)}|{ADAPTER}/.+"
    rf"|{RUNS}/[^/]+/({RUN_FILE.pattern}|trials/[^/]+/({TRIAL_FILE.pattern}))"
)
_MOST_DOCUMENT = 8 * 2**20
"""Bytes of a JSON document …"""
_MOST_FORM = 256 * 2**10
"""… and of one in YAML or TOML, which take longer to read."""


def encoded(value: msgspec.Struct) -> bytes:
    """Return a struct as the one JSON text that a bundle has for it."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def sha256(data: bytes) -> str:
    """Return a digest in hex."""
    return hashlib.sha256(data).hexdigest()


def chained(files: Iterable[BundledFile]) -> list[Link]:
    """Return the chain over the journals among these files."""
    links: list[Link] = []
    before = ""
    for file in files:
        if file.path.endswith(".journal") and file.path.startswith(f"{RUNS}/"):
            before = sha256(f"{before}\n{file.path}\n{file.sha256}\n".encode())
            links.append(Link(path=file.path, sha256=before))
    return links


def sealed(manifest: BundleManifest) -> BundleManifest:
    """Return a manifest with its seal."""
    seal = sha256(encoded(msgspec.structs.replace(manifest, seal="")))
    return msgspec.structs.replace(manifest, seal=seal)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files lie in a private folder."""

    folder: Path
    files: dict[str, BundledFile]
    manifest: BundleManifest
    signed_by: str = ""

    def read(self, name: str) -> bytes:
        """Return a document's bytes; raise Refused where it isn't there or is larger than any of its kind."""
        if name not in self.files:
            raise Refused("missing_file", "The bundle doesn't have it.", name)
        most = _MOST_FORM if name.endswith((".yaml", ".toml")) else _MOST_DOCUMENT
        if self.files[name].size > most:
            raise Refused("too_large", f"It has more than {most >> 10} KiB.", name)
        return (self.folder / name).read_bytes()

    def json(self, name: str, kind: type[S]) -> S:
        """Return a JSON document, which must be written as the harness writes them; raise Refused or Malformed."""
        data = self.read(name)
        value = strict.json_value(data)
        if msgspec.json.format(data, indent=2) + b"\n" != data:
            raise strict.Malformed("it isn't laid out as FlagPerf writes it: someone has edited it")
        return strict.convert(value, kind, lambda place: strict.json_line_number(data.decode().split("\n"), place))


def opened(path: Path, folder: Path, key: str | None, findings: Findings) -> Bundle | None:
    """Take a bundle apart into an empty private folder and hold it against its own table of contents.

    Returns None where that can't be done; the findings say why.
    """
    try:
        with path.open("rb") as file:
            files = {found.path: found for found in archive.extract(file, folder)}
    except Refused as error:
        findings.refuse(error.code, str(error), file=error.file)
        return None
    if MANIFEST not in files:
        findings.refuse("no_manifest", f"The archive has no {MANIFEST}: it is no bundle.")
        return None
    with findings.at(MANIFEST):
        unlisted = BundleManifest(rules="", division="closed", vendor="", flagperf="", runs=[], files=[], chain=[])
        bundle = Bundle(folder=folder, files=files, manifest=unlisted)
        bundle = dataclasses.replace(bundle, manifest=bundle.json(MANIFEST, BundleManifest))
        _contents(bundle.manifest, list(files.values()), findings)
        return dataclasses.replace(bundle, signed_by=_signature(bundle, key, findings))
    return None


def _contents(manifest: BundleManifest, files: Sequence[BundledFile], findings: Findings) -> None:
    if manifest != sealed(manifest):
        findings.refuse(
            "broken_seal", "The manifest's seal isn't that of the manifest: it was changed.", file=MANIFEST,
            expected=sealed(manifest).seal, found=manifest.seal,
        )  # fmt: skip
    own = (MANIFEST, SIGNATURE)
    listed = {file.path: file for file in manifest.files}
    there = {file.path: file for file in files if file.path not in own}
    if len(listed) < len(manifest.files):
        findings.refuse("manifest_twice", "The manifest lists a file twice.", file=MANIFEST)
    for name in sorted(listed.keys() - there.keys()):
        findings.refuse("missing_file", "The manifest lists it, but it isn't there.", file=name)
    for name in sorted(there.keys() - listed.keys()):
        findings.refuse("extra_file", "The manifest doesn't list it.", file=name)
    for name in sorted(there):
        if not _NAMES.fullmatch(name):
            findings.refuse("extra_file", "A bundle has no such file.", file=name)
    for name in sorted(there.keys() & listed.keys()):
        if there[name] != listed[name]:
            findings.refuse(
                "altered_file", "It isn't the file that was sealed.", file=name,
                expected=f"{listed[name].size} bytes, SHA-256 {listed[name].sha256}",
                found=f"{there[name].size} bytes, SHA-256 {there[name].sha256}",
            )  # fmt: skip
    order = [file.path for file in files]
    proper = [*(name for name in own if name in order), *sorted(there)]
    if order != proper or [file.path for file in manifest.files] != sorted(listed):
        findings.refuse("wrong_order", "The files aren't in the order that `flagperf submit pack` puts them in.")
    if manifest.chain != chained(manifest.files):
        findings.refuse(
            "broken_chain", "The chain over the journals doesn't follow from them: one was left out, added or changed.",
            file=MANIFEST,
        )  # fmt: skip


def _signature(bundle: Bundle, key: str | None, findings: Findings) -> str:
    """Check the signature, if there is one; return the key that it is good for."""
    if SIGNATURE not in bundle.files:
        if key is not None:
            findings.refuse("not_signed", "A key was given, but the bundle isn't signed.", expected=key)
        return ""
    with findings.at(SIGNATURE):
        signature = bundle.json(SIGNATURE, Signature)
        if encoded(signature) != bundle.read(SIGNATURE):
            raise strict.Malformed("it isn't written as FlagPerf writes it")
        if not signing.available():
            tell = findings.note if key is None else findings.refuse
            tell(
                "signature_unchecked", "The signature can't be checked: the package cryptography isn't installed.",
                file=SIGNATURE, hint=signing.INSTALL,
            )  # fmt: skip
        elif not signing.verified(bundle.read(MANIFEST), signature):
            findings.refuse("bad_signature", "The signature isn't one of this manifest by this key.", file=SIGNATURE)
        elif key is not None and signature.public_key != key:
            findings.refuse(
                "other_key", "It is signed by another key than the one given.", file=SIGNATURE, expected=key,
                found=signature.public_key,
            )  # fmt: skip
        else:
            return signature.public_key
    return ""
