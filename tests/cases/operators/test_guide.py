"""The guide to cases tells the truth: what it shows works as it stands, in both languages."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT, flagperf
from typer.testing import CliRunner

from flagperf.cli.app import app


def blocks(kind: str, page: str = "cases.md") -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)


def test_both_languages_show_the_same() -> None:
    for kind in ("sh", "toml", "python"):
        assert blocks(kind) == blocks(kind, "cases.zh.md") != []


@pytest.mark.parametrize("line", [line for block in blocks("sh")[:2] for line in block.splitlines()])
def test_its_commands_can_be_planned(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0] == "run" and "--dry-run" not in words:
        words.append("--dry-run")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_its_examples_measure(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "cases" / "my"
    folder.mkdir(parents=True)
    for name, text in zip(("my.toml", "gelu.toml", "gelu.py"), [*blocks("toml"), *blocks("python")], strict=True):
        (folder / name).write_text(text)
        assert len(text.splitlines()) < 60
    planned, measured = (shlex.split(line)[1:] for line in blocks("sh")[-1].splitlines())
    done = flagperf(*planned, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [each["case"] for each in json.loads(done.stdout)["trials"]] == ["my/*", "my/gelu_bias"]
    done = flagperf(*measured, "--steps", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert [point["verdict"] for point in result["points"]] == ["valid"] * 8
