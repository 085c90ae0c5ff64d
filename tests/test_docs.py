"""Documentation tells the truth: every command shown runs, every link leads somewhere, both languages say the same."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from collect import served
from helpers import ROOT, called, flagperf, needs

PAGES = [
    *("README.md", "README.zh.md", "CONTRIBUTING.md", "docs/architecture.md"),
    *("docs/measuring.md", "docs/measuring.zh.md", "docs/engines.md", "docs/engines.zh.md"),
    *(
        "docs/vendors.md",
        "docs/vendors.zh.md",
        "docs/cases.md",
        "docs/cases.zh.md",
        "docs/reports.md",
        "docs/reports.zh.md",
    ),
    *("docs/collectives.md", "docs/collectives.zh.md", "docs/inference.md", "docs/inference.zh.md"),
    *("docs/studies/bmtrain-vs-megatron/README.md", "docs/studies/bmtrain-vs-megatron/README.zh.md"),
]


def commands(page: str) -> list[str]:
    """Return the `flagperf …` lines of a page's shell blocks, comments left out."""
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL):
        lines += [re.sub(r"\s+#.*", "", line) for line in block.splitlines() if line.startswith("flagperf ")]
    return lines


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_both_languages_show_the_same_commands() -> None:
    for page in ("README", "docs/vendors"):
        assert commands(f"{page}.md") == commands(f"{page}.zh.md") != []
    for page in ("collectives", "measuring", "engines", "inference"):
        assert indented(f"{page}.md") == indented(f"{page}.zh.md") != []


def indented(page: str) -> list[str]:
    """Return the commands that a page of docs/ shows between its paragraphs."""
    return re.findall(r"^    (flagperf .*)$", (ROOT / "docs" / page).read_text("utf-8"), re.M)


def test_the_commands_on_engines_run(tmp_path: Path) -> None:
    needs("bmtrain", "deepspeed", "megatron-core")
    for line in indented("engines.md"):
        done = flagperf(*shlex.split(line)[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_commands_on_inference_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with one run, made up: the others start nothing."""
    served.write(tmp_path / "runs" / "made", served.trials(scenarios=["offline"]))
    monkeypatch.chdir(tmp_path)
    for line in indented("inference.md"):
        words = shlex.split(line)[1:]
        assert words[0] != "run" or "--dry-run" in words
        done = called(*words)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.slow
def test_the_guide_for_vendors_ends_in_an_accepted_bundle(tmp_path: Path) -> None:
    """Its commands as they stand, in order, in an empty folder; the training is short, hence of the open division."""
    if shutil.which("g++") is None:
        assert not os.environ.get("CI"), "g++ is missing (on CI nothing may be left out)"
        pytest.skip("simchip is built with g++: apt-get install g++")
    environment = {
        **os.environ,
        "SIMCHIP_DEVICES": "2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    filled = {"status": "research", "licence": "Apache-2.0"}
    shown = commands("docs/vendors.md")
    readings = subprocess.run(
        [sys.executable, "-m", "flagperf.vendors.simchip.smi"], env=environment, capture_output=True, check=True
    )
    (tmp_path / "smi.txt").write_bytes(readings.stdout)
    for line in shown:
        words = shortened(shlex.split(line))
        if "pack" in words:
            form = tmp_path / "system.yaml"
            form.write_text(
                re.sub(r"(\w+): 'FILL IN[^']*'", lambda m: f"{m[1]}: {filled.get(m[1], 'none')}", form.read_text())
            )
            words += ["--division", "open"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        unfilled = "check" in words and "mychip" in words  # nobody has filled in what was asked for
        assert done.returncode == (1 if unfilled else 0), f"{line}\n{done.stdout}\n{done.stderr}"
        if unfilled:
            assert " 0 failed" in done.stdout and "to fill in" in done.stdout
    assert "Verdict: accepted" in done.stdout and "submit check" in line


def shortened(words: list[str]) -> list[str]:
    """Return a command with one short trial of a small model for each engine: `make bench` runs it in full."""
    if "--trials" not in words:
        return words
    at = words.index("--trials") + 1
    small = ["--set", "model.layers=1", "--set", "model.dim=64"]
    small += ["--set", "protocol.validation=4", "--set", "protocol.profile=0"]
    trials = "2" if "simchip" in words else "1"  # a submission takes two
    return [*words[:at], trials, *words[at + 1 :], "--steps", "3", "--warmup", "2", *small]


def test_targets_named_in_the_pages_exist() -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z-]+)", (ROOT / page).read_text("utf-8")):
            assert target in rules, f"{page} names `make {target}`"


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^{target}\s+\S", done.stdout, re.M), target


def test_every_word_of_the_glossary_that_is_code_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path in re.findall(r"`((?:flagperf|cases|vendors|reports|tests|benchmarks)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.xdist_group("corpus")  # made once for this and the tests of the corpus
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """As they stand, in order, in an empty folder; only the trials are made short by the environment of the case."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shown = commands("README.md")
    # `flagperf run --resume` and `--set data.source=synthetic` are named in the text between the blocks.
    shown.insert(
        shown.index(next(line for line in shown if line.startswith("flagperf results"))),
        "flagperf run --resume runs/first",
    )
    for line in shown:
        words = shortened(shlex.split(line))
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
