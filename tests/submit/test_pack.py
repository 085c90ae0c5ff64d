"""Packing: the same bytes each time, what goes in and what stays out, the form, and signatures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from submit import made
from submit.conftest import Check

from flagperf.errors import FlagPerfError, Unavailable, UsageError
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.machine import Device
from flagperf.schema.submission import BundleManifest, Signature
from flagperf.submit import archive, signing, strict, system
from flagperf.submit.bundle import encoded
from flagperf.submit.pack import pack


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The made run, to be changed, beside its form."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run.parent / "system.yaml", tmp_path)
    return tmp_path / "run"


def bundle(folder: Path, name: str = "b.tar", key: Path | None = None) -> bytes:
    """Pack a run."""
    output = folder.parent / name
    pack([folder], "cpu", folder.parent / "system.yaml", output, Registries(), private_key=key)
    return output.read_bytes()


def test_a_run_that_keeps_the_rules_is_accepted(packed: bytes, checked: Check) -> None:
    verdict = checked(packed)
    assert verdict.verdict == "accepted", verdict.reasons
    assert verdict.reasons == []
    assert (verdict.vendor, verdict.division, verdict.rules, verdict.system) == ("cpu", "closed", "1", "Made 1")
    assert [result.trial for result in verdict.results] == [
        *("000-ddp", "001-fsdp", "002-fsdp", "003-ddp", "004-ddp", "005-fsdp")
    ]
    assert all(0 < result.metrics["mfu"] <= 1 for result in verdict.results)
    assert "no_rated_peak" in [note.code for note in verdict.notes]


def test_packing_twice_gives_the_same_bytes(copy: Path, packed: bytes) -> None:
    """Wherever the run lies, whenever it was written there, whatever else is there."""
    for path in copy.rglob("*"):
        if path.is_file():
            path.chmod(0o755)
    (copy / "report.html").write_text("x")
    (copy / "trials" / "000-ddp" / "output").mkdir()
    (copy / "trials" / "000-ddp" / "output" / "stderr.log").write_text("my password")
    (copy / ".lock").touch()
    assert bundle(copy) == bundle(copy, "c.tar") == packed


def test_what_ranks_printed_stays_out_and_is_told(copy: Path) -> None:
    (copy / "trials" / "000-ddp" / "output").mkdir()
    (copy / "trials" / "000-ddp" / "output" / "stderr.log").write_text("my password")
    told = pack([copy], "cpu", copy.parent / "system.yaml", copy.parent / "b.tar", Registries())
    assert b"my password" not in (copy.parent / "b.tar").read_bytes()
    assert [Path(name).name for name in told.left_out] == ["stderr.log"]
    assert {file.path.split("/")[0] for file in told.files} == {
        "adapter",
        "runs",
        "LICENSE",
        "results.json",
        "system.yaml",
    }
    assert (copy.parent / "b.tar").stat().st_size == told.size


def test_any_tar_reads_a_bundle(packed: bytes) -> None:
    """And `assemble`, which the other tests forge with, makes what `pack` makes."""
    assert made.assemble(made.contents(packed)) == packed


def test_a_variable_that_a_journal_leaves_out_is_never_packed(copy: Path) -> None:
    journal = {"harness.journal": (copy / "harness.journal").read_bytes()}
    made.set_line(journal, "harness.journal", Key.ENVIRONMENT, "value.variables", {"OMP_API_TOKEN": "s3cret"})
    (copy / "harness.journal").write_bytes(journal["harness.journal"])
    with pytest.raises(UsageError, match="OMP_API_TOKEN") as error:
        bundle(copy)
    assert "s3cret" not in str(error.value)


def test_a_link_is_not_followed(copy: Path) -> None:
    (copy / "trials" / "000-ddp" / "rank7.journal").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="is a link"):
        bundle(copy)
    assert not list(copy.parent.glob("*.tar")) and not list(copy.parent.glob(".b.tar*"))


def test_runs_of_another_vendor_are_refused(copy: Path) -> None:
    with pytest.raises(UsageError, match="not of nvidia only"):
        pack([copy], "nvidia", copy.parent / "system.yaml", copy.parent / "b.tar", Registries())


def test_a_run_given_twice_is_refused(copy: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        pack([copy, copy], "cpu", copy.parent / "system.yaml", copy.parent / "b.tar", Registries())


def test_a_bundle_too_large_to_be_read_is_not_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match="fewer runs"):
        bundle(copy)


def test_the_form_fills_itself_in_and_marks_the_rest(tmp_path: Path) -> None:
    device = Device(vendor="acme", index=0, name="X 1", memory_total_mib=65536.0, driver="1.2")
    text, left = system.form([device, msgspec.structs.replace(device, index=1)])
    values = strict.yaml_document(text.encode()).value
    own = values["accelerator"]
    assert (own["name"], own["count_per_host"], own["memory_gib"], own["driver"]) == ("X 1", 2, 64.0, "1.2")
    assert values["host"]["cores"] >= 1 and values["software"]["packages"]["numpy"]
    assert {"name", "submitter", "licence", "cooling", "host.network"} <= set(left)
    path = tmp_path / "system.yaml"
    system.write(path, text)
    with pytest.raises(UsageError) as error:
        system.read(path)
    lines = text.split("\n")
    for field in left:
        number = next(
            i for i, line in enumerate(lines, 1) if line.strip().startswith(f"{field.split('.')[-1]}: 'FILL IN")
        )
        assert f"line {number}: {field}" in str(error.value)
    with pytest.raises(UsageError, match="is there already"):
        system.write(path, text)


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        ({"host__cores": "two"}, "  cores: two", "Expected `int`"),
        ({"status": "soon"}, "status: soon", "Invalid enum value"),
        ({"colour": "red"}, "colour: red", "unknown field"),
        ({"accelerator__clocks": "fast"}, "  clocks: fast", "Invalid enum value"),
    ],
)
def test_a_form_with_a_fault_is_refused_with_the_line(
    change: dict[str, str], line: str, words: str, tmp_path: Path
) -> None:
    data = made.form(**change)
    (tmp_path / "system.yaml").write_bytes(data)
    with pytest.raises(FlagPerfError, match=words) as error:
        system.read(tmp_path / "system.yaml")
    assert f"line {data.decode().split(chr(10)).index(line) + 1}:" in str(error.value)


def test_a_signed_bundle_is_accepted_with_its_key_only(copy: Path, checked: Check, tmp_path: Path) -> None:
    private = tmp_path / "key"
    public, told = signing.keygen(private)
    assert private.stat().st_mode & 0o77 == 0
    signed = bundle(copy, key=private)
    assert signed == bundle(copy, "c.tar", key=private)
    assert checked(signed).signed_by == checked(signed, signing.read_key(public)).signed_by == told
    other = signing.read_key(signing.keygen(tmp_path / "other")[0])
    assert [reason.code for reason in checked(signed, other).reasons] == ["other_key"]
    assert [reason.code for reason in checked(bundle(copy, "d.tar"), told).reasons] == ["not_signed"]


def test_a_signature_of_another_manifest_is_refused(files: made.Contents, checked: Check, tmp_path: Path) -> None:
    private = tmp_path / "key"
    _, told = signing.keygen(private)
    good = made.manifest(files)
    signature = signing.sign(encoded(good), signing.read_key(private))

    def signed(manifest: BundleManifest, signature: Signature | bytes) -> bytes:
        data = signature if isinstance(signature, bytes) else encoded(signature)
        with (tmp_path / "signed.tar").open("wb") as file:
            archive.write(
                file, {"manifest.json": encoded(manifest), "signature.json": data, **dict(sorted(files.items()))}
            )
        return (tmp_path / "signed.tar").read_bytes()

    def codes(bundle: bytes) -> list[str]:
        return [reason.code for reason in checked(bundle, told).reasons]

    assert codes(signed(good, signature)) == []
    assert codes(signed(made.manifest(files, flagperf="9"), signature)) == ["bad_signature"]
    forged = msgspec.structs.replace(signature, signature="0" * 128)
    assert codes(signed(good, forged)) == ["bad_signature"]
    assert codes(signed(good, msgspec.structs.replace(signature, public_key="zz"))) == ["bad_signature"]
    upper = msgspec.structs.replace(signature, signature=signature.signature.upper())
    assert codes(signed(good, upper)) == ["bad_signature"]
    assert codes(signed(good, json.dumps(msgspec.to_builtins(signature)).encode())) == ["malformed"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    signing.keygen(tmp_path / "key")
    before = (tmp_path / "key").read_text()
    with pytest.raises(UsageError, match="never overwritten"):
        signing.keygen(tmp_path / "key")
    assert (tmp_path / "key").read_text() == before


@pytest.mark.parametrize("content", [b"", b"x" * 64, b"\xff" * 64, b"-----BEGIN PRIVATE KEY-----\n", b"0" * 63])
def test_what_is_no_key_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="no Ed25519 key"):
        signing.read_key(tmp_path / "key")


def test_without_cryptography_a_signature_is_noted_but_no_key_is_taken_on_trust(
    copy: Path, checked: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, told = signing.keygen(tmp_path / "key")
    signed = bundle(copy, key=tmp_path / "key")
    monkeypatch.setattr(signing, "available", lambda: False)
    verdict = checked(signed)
    assert (verdict.verdict, verdict.signed_by) == ("accepted", "")
    assert "signature_unchecked" in [note.code for note in verdict.notes]
    assert [reason.code for reason in checked(signed, told).reasons] == ["signature_unchecked"]
    with pytest.raises(Unavailable, match="cryptography"):
        signing.keygen(tmp_path / "other")
