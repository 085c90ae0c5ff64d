"""The check as users run it: in a process that may use only so much, without torch, and on a real run as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import ROOT, called, flagperf
from submit import made

from flagperf.errors import UsageError
from flagperf.submit import confined

RANK = made.place("trials/000-ddp/rank0.journal")


def lists(files: made.Contents, lines: int, between: bytes) -> bytes:
    """A bundle whose journal is full of lists: small on paper, large in memory, slow where blanks are between."""
    value = b"[" + (b"," + between).join([b"[]"] * 300_000) + b"]"
    line = made.line("x", None, 3600).replace(b'"value":null', b'"value":' + value)
    return made.assemble({**files, RANK: files[RANK] + line * lines})


def test_a_bundle_that_needs_too_much_memory_is_refused(files: made.Contents, tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar"
    path.write_bytes(lists(files, 8, b""))
    verdict = confined.check(path, [], seconds=60, mebibytes=256)
    assert [reason.code for reason in verdict.reasons] == ["over_limits"]
    assert "256 MiB" in verdict.reasons[0].message


def test_a_bundle_that_needs_too_much_time_is_refused(files: made.Contents, tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar"
    path.write_bytes(lists(files, 12, b" "))
    verdict = confined.check(path, [], seconds=2, mebibytes=4096)
    assert [reason.code for reason in verdict.reasons] == ["over_limits"]
    assert "2 s of CPU time" in verdict.reasons[0].message


def test_a_good_bundle_stays_within_the_limits(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    path.write_bytes(packed)
    assert confined.check(path, []).verdict == "accepted"


@pytest.mark.parametrize("name", ["folder", "fifo", "nothing", "/dev/zero"])
def test_what_is_no_file_is_wrong_usage(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError):
        confined.check(tmp_path / name, [])


def test_checking_never_imports_torch(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    path.write_bytes(packed)
    code = (
        "import sys\nfrom pathlib import Path\nfrom flagperf.registry import Registries\n"
        "from flagperf.submit.check import check\n"
        "print(check(Path(sys.argv[1]), Registries()).verdict, [m for m in ('torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == "accepted []\n", done.stderr


def described(path: Path) -> None:
    """Fill in what a form leaves open, as a person would."""
    values: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    given = {"status": "research", "licence": "Apache-2.0", "memory_gib": 1.0, "sockets": 1}
    for part in (values, values["host"], values["accelerator"]):
        for name, value in part.items():
            if isinstance(value, str) and value.startswith("FILL IN"):
                part[name] = given.get(name, "none")
    path.write_text(yaml.safe_dump(values), "utf-8")


def valid(name: str, text: str) -> Any:
    """What a command printed, which must be as docs/schema says."""
    value = json.loads(text)
    jsonschema.validate(value, json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text()))
    return value


@pytest.mark.slow
def test_from_a_real_run_to_an_accepted_bundle(finished_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, output = finished_run
    form, bundle, key = tmp_path / "system.yaml", tmp_path / "bundle.tar", tmp_path / "key"
    left = valid("submit-system", called("submit", "system", "-o", str(form), "--vendor", "cpu", "--json").stdout)
    pack = ["submit", "pack", str(run), "--vendor", "cpu", "--system", str(form), "-o", str(bundle), "--json"]
    assert "cooling" in left["open"]
    undone = called(*pack)
    assert undone.returncode == 2 and "isn't filled in" in undone.stderr and not bundle.exists()
    described(form)
    public = valid("submit-keygen", called("submit", "keygen", str(key), "--json").stdout)["public"]
    packed = flagperf(*pack, "--division", "open", "--sign", str(key))
    assert packed.returncode == 0, packed.stderr
    told = valid("submit-pack", packed.stdout)
    checked = flagperf("submit", "check", str(bundle), "--key", public, "--json")
    verdict = valid("submit-check", checked.stdout)
    assert checked.returncode == 0 and verdict["verdict"] == "accepted", verdict["reasons"]
    assert verdict["seal"] == told["seal"] and verdict["signed_by"] == told["signed_by"] != ""
    claimed = {result["id"]: result["metrics"]["tokens_per_second"]["value"] for result in output["results"]}
    assert {result["trial"]: result["metrics"]["tokens_per_second"] for result in verdict["results"]} == claimed

    assert called(*pack).returncode == 0  # the closed division, whose rules so small a run breaks
    refused = flagperf("submit", "check", str(bundle))
    assert refused.returncode == 1
    for words in ("[rule]", "settings.model.dim", "run.json:", "expected 256; found 64", "Verdict: rejected"):
        assert words in refused.stdout
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert called("submit", "check", str(bundle)).returncode == 1
    assert called("submit", "check", str(tmp_path / "none.tar")).returncode == 2
