"""Every command's `--json`: one object on stdout, nothing else, as docs/schema says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import ROOT, called, flagperf

from flagperf.schema.output import DOCUMENTS, schema

SCHEMAS = ROOT / "docs" / "schema"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_schemas_are_current(name: str) -> None:
    assert (SCHEMAS / f"{name}.json").read_bytes() == schema(name), "run: python -m flagperf.schema.output docs/schema"


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in SCHEMAS.iterdir()} == set(DOCUMENTS)


def valid(name: str, text: str) -> Any:
    value = json.loads(text)
    described = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.validate(value, described)
    # A key that no schema knows would be an undocumented promise.
    known = set(described.get("$defs", {}).get(DOCUMENTS[name].__name__, described).get("properties", {}))
    extra = set(value) - known
    assert not extra or name == "show", extra
    return value


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("doctor", ["doctor"]),
        ("devices", ["devices"]),
        *(
            ("list", ["list", what])
            for what in ("cases", "presets", "surveys", "engines", "vendors", "launchers", "metrics")
        ),
        ("show", ["show", "aquila/pretrain"]),
        ("run-dry", ["run", "aquila/pretrain", "--engine", "ddp,fsdp", "--ranks", "2", "--dry-run"]),
        ("data-list", ["data", "list"]),
        ("vendor-explain", ["vendor", "explain", "nvidia"]),
        ("vendor-parse", ["vendor", "parse", "nvidia", str(ROOT / "README.md")]),
        ("data-prepare", ["data", "prepare", "synthetic", "--tokens", "65536", "--vocab-size", "512"]),
        ("data-verify", ["data", "verify", "synthetic", "--tokens", "65536", "--vocab-size", "512"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_measures_nothing(name: str, arguments: list[str]) -> None:
    done = called(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    valid(name, done.stdout)


@pytest.mark.slow
def test_a_run_and_what_reads_it(finished_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, output = finished_run
    valid("run", json.dumps(output))
    assert [result["verdict"] for result in output["results"]] == ["valid"] * 4
    assert [result["engine"] for result in output["results"]] == ["ddp", "fsdp", "fsdp", "ddp"]
    needed = {
        *("tokens_per_second", "tokens_per_second_per_device", "step_time", "mfu"),
        *("memory_peak_allocated", "memory_peak_rss", "loss_final", "loss_validation"),
    }
    for result in output["results"]:
        assert needed <= set(result["metrics"])
        for metric in result["metrics"].values():
            assert metric["unit"] and metric["direction"] in ("higher", "lower", "none") and metric["n"] >= 1
    assert {row["candidate"] for row in output["comparisons"]} == {"fsdp"}
    assert {row["baseline"] for row in output["comparisons"]} == {"ddp"}

    results = called("results", str(folder), "--json")
    assert results.returncode == 0
    assert valid("results", results.stdout)["results"] == output["results"]
    compared = called("compare", str(folder), "--baseline", "ddp", "--json")
    assert compared.returncode == 0
    assert valid("compare", compared.stdout)["comparisons"] == output["comparisons"]
    swapped = json.loads(called("compare", str(folder), "--baseline", "fsdp", "--json").stdout)["comparisons"]
    for one, other in zip(output["comparisons"], swapped, strict=True):
        assert one["ratio"] * other["ratio"] == pytest.approx(1)
    reported = flagperf("report", str(folder), "-o", str(tmp_path / "page.html"), "--json")
    assert reported.returncode == 0
    valid("report", reported.stdout)
    assert (tmp_path / "page.html").stat().st_size > 100_000
    run = json.loads((folder / "run.json").read_text())
    jsonschema.validate(run, json.loads((SCHEMAS / "file-run.json").read_text()))
    for path in folder.glob("trials/*/trial.json"):
        jsonschema.validate(json.loads(path.read_text()), json.loads((SCHEMAS / "file-trial.json").read_text()))


@pytest.mark.slow
def test_resuming_a_finished_run_measures_nothing_again(finished_run: tuple[Path, dict[str, Any]]) -> None:
    folder, output = finished_run
    shown = called("run", "--resume", str(folder), "--timeout", "77", "--dry-run", "--json")
    assert {trial["protocol"]["timeout"] for trial in json.loads(shown.stdout)["plan"]["trials"]} == {77.0}
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/*.journal")}
    done = flagperf("run", "--resume", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"] == output["results"]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/*.journal")} == before


@pytest.mark.slow
def test_it_tells_how_far_it_is_on_stderr_only(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = finished
    json.loads(done.stdout)
    for told in ("[1/4] 000-ddp", "[4/4] 003-ddp", "valid", "report.html"):
        assert told in done.stderr
