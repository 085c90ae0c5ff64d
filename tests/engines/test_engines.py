"""Engines train the same model: same weights, same tokens, same losses; and what the journals say of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY, flagperf, started

from flagperf.journal import Reader

pytestmark = pytest.mark.slow


def losses(run: Path, trial: str) -> list[float]:
    """Return the loss of the global batch at each step: the mean over ranks of equal shares."""
    ranks = [
        [event.value["loss"] for event in Reader(path) if event.key == "step"]
        for path in sorted((run / "trials" / trial).glob("rank*.journal"))
    ]
    return [sum(column) / len(column) for column in zip(*ranks, strict=True)]


def gradient_norms(run: Path, trial: str) -> list[float]:
    """Return rank 0's global gradient norm before clipping, at each step; ranks must all have the same."""
    ranks = [
        [event.value["gradient_norm"] for event in Reader(path) if event.key == "step"]
        for path in sorted((run / "trials" / trial).glob("rank*.journal"))
    ]
    assert ranks[0] == pytest.approx(ranks[-1], rel=1e-6)
    return ranks[0]


def fingerprint(run: Path, trial: str) -> int:
    """Return the sum of the ranks' token fingerprints."""
    total = 0
    for path in (run / "trials" / trial).glob("rank*.journal"):
        total += sum(int(event.value["fingerprint"], 16) for event in Reader(path) if event.key == "tokens_seen")
    return total % 2**128


def run(folder: Path, *options: str) -> dict[str, Any]:
    done = flagperf("run", "aquila/pretrain", "--trials", "1", "--json", "--out", str(folder), *options, timeout=600)
    assert done.returncode == 0, done.stderr
    output: dict[str, Any] = json.loads(done.stdout)
    assert all(result["verdict"] == "valid" for result in output["results"])
    return output


def test_ddp_and_fsdp_have_the_same_losses_over_the_first_30_steps(tmp_path: Path) -> None:
    quick = ("--set", "optimizer.clip=0.2", "--set", "optimizer.learning_rate=5e-3")
    run(tmp_path / "run", *TINY, *quick, "--engine", "ddp,fsdp", "--ranks", "2", "--steps", "28")
    ddp, fsdp = losses(tmp_path / "run", "000-ddp"), losses(tmp_path / "run", "001-fsdp")
    assert len(ddp) == 30
    assert max(abs(a - b) for a, b in zip(ddp, fsdp, strict=True)) < 1e-3
    norms = [gradient_norms(tmp_path / "run", trial) for trial in ("000-ddp", "001-fsdp")]
    assert max(abs(a - b) / a for a, b in zip(*norms, strict=True)) < 1e-3  # one global norm, shards or not
    assert max(norms[0]) > 0.2  # so that gradients were clipped, by the same factor
    assert ddp[-1] < ddp[0] - 0.1  # it learns: two models that stand still would agree as well
    assert fingerprint(tmp_path / "run", "000-ddp") == fingerprint(tmp_path / "run", "001-fsdp") != 0


@pytest.mark.parametrize(
    ("dtype", "band", "arms"),
    [
        ("fp32", 2e-4, "ddp:micro=1,ddp:micro=4,fsdp:zero=2,fsdp:zero=3,micro=2,recompute=1"),
        ("bf16", 1e-2, "ddp:micro=2,fsdp:zero=3"),
    ],
)
def test_layouts_change_nothing_but_the_work(tmp_path: Path, dtype: str, band: float, arms: str) -> None:
    run(tmp_path / "many", *TINY, "--engine", arms, "--ranks", "2", "--dtype", dtype)
    run(tmp_path / "one", *TINY, "--engine", "single", "--dtype", dtype)
    reference = losses(tmp_path / "one", "000-single")
    seen = {fingerprint(tmp_path / "one", "000-single")}
    for trial in (tmp_path / "many" / "trials").iterdir():
        other = losses(tmp_path / "many", trial.name)
        assert max(abs(a - b) / a for a, b in zip(reference, other, strict=True)) < band, trial.name
        seen.add(fingerprint(tmp_path / "many", trial.name))
    assert len(seen) == 1  # one rank or two, micro-batches of any size: the same tokens at the same places


def test_a_different_seed_is_a_different_run(tmp_path: Path) -> None:
    run(tmp_path / "run", *TINY, "--trials", "2")  # each trial has a seed of its own
    assert losses(tmp_path / "run", "000-single") != losses(tmp_path / "run", "001-single")
    assert fingerprint(tmp_path / "run", "000-single") != fingerprint(tmp_path / "run", "001-single")


def test_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs g++")
    run(tmp_path / "run", *TINY, "--engine", "single,single:compile=1")
    plain, compiled = (losses(tmp_path / "run", trial) for trial in ("000-single", "001-single"))
    assert max(abs(a - b) for a, b in zip(plain, compiled, strict=True)) < 1e-3


@pytest.mark.parametrize("shared", [True, False], ids=["one folder", "two folders"])
def test_two_nodes_meet_on_one_machine(tmp_path: Path, shared: bool) -> None:
    """Two harnesses, as on two hosts, with a file system in common or without: one rank each, one model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        *("run", "aquila/pretrain", *TINY, "--engine", "ddp", "--ranks", "2", "--trials", "1", "--nodes", "2"),
        *("--rdzv", f"127.0.0.1:{port}", "--json"),
    )
    folders = [tmp_path / f"node{0 if shared else index}" for index in range(2)]
    nodes = [started(*options, "--node-rank", str(index), "--out", str(folders[index])) for index in range(2)]
    ends = [node.communicate(timeout=400) for node in nodes]
    if shared:
        assert "Traceback" not in ends[0][1] + ends[1][1]
        shown = flagperf("results", str(folders[0]), "--json")
        assert shown.returncode == 0, shown.stdout
        assert json.loads(shown.stdout)["results"][0]["verdict"] == "valid"
        return
    for index, (_, err) in enumerate(ends):
        # Each node has the journals of its own ranks alone, and says so rather than call that a result.
        assert f"Rank {1 - index} left no journal" in err and "another node" in err, err
    for index in range(2):
        (journal,) = (tmp_path / f"node{index}" / "trials" / "000-ddp").glob("rank*.journal")
        assert [event.key for event in Reader(journal)][-1] == "run_stop"
    # Copied together they are one result.
    shutil.copytree(tmp_path / "node1" / "trials", tmp_path / "node0" / "trials", dirs_exist_ok=True)
    shown = flagperf("results", str(tmp_path / "node0"), "--json")
    assert shown.returncode == 0, shown.stdout
    assert json.loads(shown.stdout)["results"][0]["verdict"] == "valid"


def test_every_engine_gathers_the_canonical_weights(tmp_path: Path) -> None:
    """Before the first step they are the case's initial ones, checked in each rank; after three they agree."""
    assert flagperf("data", "prepare", "synthetic", "--vocab-size", "512", "--tokens", "65536").returncode == 0
    for engine in ("ddp", "fsdp"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
                *(str(Path(__file__).with_name("gather.py")), engine, str(tmp_path)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    ddp, fsdp, before = (np.load(tmp_path / f"{name}.npz") for name in ("ddp", "fsdp", "ddp-before"))
    assert set(ddp.files) == set(fsdp.files)
    assert sum(ddp[name].size for name in ddp.files) > 100_000
    for name in ddp.files:
        np.testing.assert_allclose(ddp[name], fsdp[name], atol=1e-5, err_msg=name)
    assert any(np.abs(ddp[name] - before[name]).max() > 1e-4 for name in ddp.files)  # they have moved
