"""What goes wrong in engines, for real: refused before anything starts where that can be, else ended soon and named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, flagperf, leftovers

from flagperf.errors import Unavailable, UsageError
from flagperf.plan import Options, plan
from flagperf.registry import Registries, availability

RUN = ("run", "aquila/pretrain", *TINY, "--trials", "1")

CPU_ALIKE = """
name = "{name}"
title = "A CPU that lacks something"
summary = "-"
entry = "flagperf.vendors.cpu.adapter:Cpu"
device_type = "cpu"
backend = "gloo"

[lacking]
{operation} = "its library has none"
"""

ENGINE_OF = """
name = "{name}"
kind = "training"
title = "-"
summary = "-"
entry = ".{name}:Engine"

[layout]
zero = {{ values = [0], default = 0 }}
"""

# Rank 1 alone asks for more than it may have, in the middle of a step; rank 0 waits for it in a collective.
HUNGRY = """
import resource

import torch

from flagperf.engines.ddp import DDP


class Engine(DDP):
    taken = 0

    def step(self, batches, learning_rate):
        self.taken += 1
        if self.context.rank == 1 and self.taken == 3:
            resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
            torch.zeros(2**30)
        return super().step(batches, learning_rate)
"""

# A learning rate that no model bears: the loss becomes NaN by itself.
DIVERGING = ("--set", "optimizer.learning_rate=1e30", "--set", "optimizer.warmup_steps=1")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of plug-ins, empty."""
    for kind in ("engines", "vendors"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
    return tmp_path / "mine"


def planned(*plugins: Path, **options: Any) -> None:
    plan(Options(cases=["aquila/pretrain"], ranks=2, **options), Registries(list(plugins)))


def needs(engine: str) -> None:
    """Skip where an engine's packages aren't there, but not where the project is judged."""
    installed = availability(Registries().engines.get(engine))
    if not installed.available:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{installed.reason}: {installed.remedy}")


def told(done: Any) -> tuple[dict[str, Any], str]:
    """Return the first result of a run and all its reasons in one text."""
    result: dict[str, Any] = json.loads(done.stdout)["results"][0]
    return result, " ".join(reason["message"] for reason in result["reasons"])


@pytest.mark.parametrize(
    ("layout", "says", "nearest"),
    [
        ("offload=1,zero=0", "leaves the optimizer where the weights are", "offload=1,zero=1"),
        ("compile=1,zero=3", "gather the weights", "compile=1,zero=2"),
        ("tp=2", "megatron-deepspeed", "tp=1"),
        ("pp=2", "megatron", "pp=1"),
    ],
)
def test_a_layout_that_deepspeed_cant_do(layout: str, says: str, nearest: str) -> None:
    needs("deepspeed")
    with pytest.raises(UsageError) as error:
        planned(engines=[f"deepspeed:{layout}"])
    assert says in error.value.message and f"nearest it can do is {nearest}." in error.value.hint


def test_a_package_at_another_version_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "deepspeed-0.18.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Unavailable) as error:
        planned(engines=["deepspeed"])
    assert "deepspeed is 0.18.0; ==0.19.* is needed" in error.value.message
    assert "DS_BUILD_OPS=0 pip install deepspeed==0.19.8" in error.value.hint


def test_ranks_that_the_batch_cant_be_divided_by() -> None:
    needs("deepspeed")
    with pytest.raises(UsageError, match="can't be divided over 2 data-parallel groups"):
        planned(engines=["deepspeed"], settings={"protocol": {"global_batch": 5}})


def test_a_vendor_without_a_collective_that_the_engine_needs(mine: Path) -> None:
    needs("deepspeed")
    text = CPU_ALIKE.format(name="limited", operation="reduce_scatter_tensor")
    (mine / "vendors" / "limited.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        planned(mine, engines=["deepspeed"], vendor="limited")
    assert "needs reduce_scatter_tensor" in error.value.message and "its library has none" in error.value.message
    planned(mine, engines=["ddp"], vendor="limited")  # which does without


@pytest.mark.slow
def test_a_loss_that_isnt_finite_makes_no_result(tmp_path: Path) -> None:
    done = flagperf(*RUN, "--engine", "single", *DIVERGING, "--json", "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    result, reasons = told(done)
    assert result["verdict"] == "invalid" and "isn't finite" in reasons
    assert any(reason["code"] == "loss_not_finite" for reason in result["reasons"])


@pytest.mark.slow
def test_one_rank_out_of_memory_ends_the_trial_and_is_named(tmp_path: Path, mine: Path) -> None:
    (mine / "engines" / "hungry.toml").write_text(ENGINE_OF.format(name="hungry"))
    (mine / "engines" / "hungry.py").write_text(HUNGRY)
    run = tmp_path / "run"
    done = flagperf(
        "--plugins", str(mine), *RUN, "--engine", "hungry", "--ranks", "2", "--steps", "400",
        *("--json", "--out", str(run)),
    )  # fmt: skip
    assert done.returncode == 1
    result, _ = told(done)
    first = result["reasons"][0]
    assert first["code"] == "out_of_memory" and "Rank 1 ran out of memory" in first["message"], result["reasons"]
    assert not any("Rank 0 ran out" in reason["message"] for reason in result["reasons"])
    assert not leftovers(run)


@pytest.mark.nightly
@pytest.mark.slow
def test_deepspeed_needs_no_compiler(tmp_path: Path) -> None:
    """With nothing on the PATH but the shell's own tools, and no extension built before."""
    needs("deepspeed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "uname", "ldconfig"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    environment = {**os.environ, "PATH": str(tools), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    assert shutil.which("g++", path=str(tools)) is None
    done = flagperf(
        *RUN, "--engine", "deepspeed:offload=1", "--ranks", "2", "--json", "--out", str(tmp_path / "run"),
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told(done)[0]["verdict"] == "valid"
    assert not (tmp_path / "extensions").exists()  # nor was anything built
