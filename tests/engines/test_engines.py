"""Engines train the same model: same weights, same tokens, same losses; and what the journals say of it."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers import LEARNING, TINY, called, flagperf, started

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


def test_ddp_and_fsdp_have_the_same_losses_over_the_first_30_steps(
    finished_run: tuple[Path, dict[str, Any]],
) -> None:
    run, _ = finished_run
    ddp, fsdp = losses(run, "000-ddp"), losses(run, "001-fsdp")
    assert len(ddp) == 30
    assert max(abs(a - b) for a, b in zip(ddp, fsdp, strict=True)) < 1e-3
    norms = [gradient_norms(run, trial) for trial in ("000-ddp", "001-fsdp")]
    assert max(abs(a - b) / a for a, b in zip(*norms, strict=True)) < 1e-3  # one global norm, shards or not
    assert max(norms[0]) > 0.2  # so that gradients were clipped, by the same factor
    assert ddp[-1] < ddp[0] - 0.1  # it learns: two models that stand still would agree as well
    assert fingerprint(run, "000-ddp") == fingerprint(run, "001-fsdp") != 0


def test_two_ranks_read_and_learn_what_one_does(finished_run: tuple[Path, dict[str, Any]], alone: Path) -> None:
    """What layouts, micro-batches and data types come to, `test_fairness.py` holds to a reference in float64."""
    run, _ = finished_run
    one = losses(alone, "000-single")
    for trial in ("000-ddp", "001-fsdp"):
        assert max(abs(a - b) for a, b in zip(one, losses(run, trial), strict=True)) < 1e-3, trial
        assert fingerprint(alone, "000-single") == fingerprint(run, trial)


def test_a_different_seed_is_a_different_run(alone: Path) -> None:
    assert losses(alone, "000-single") != losses(alone, "001-single")  # each trial has a seed of its own
    assert fingerprint(alone, "000-single") != fingerprint(alone, "001-single")


@pytest.mark.nightly
def test_compiled_blocks_learn_the_same(alone: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs g++")
    done = flagperf(
        *("run", "aquila/pretrain", "--engine", "single:compile=1", "--trials", "1", *LEARNING, "--steps", "4"),
        *("--out", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stderr
    plain, compiled = losses(alone, "000-single")[:6], losses(tmp_path / "run", "000-single")
    assert max(abs(a - b) for a, b in zip(plain, compiled, strict=True)) < 1e-3


@pytest.mark.parametrize(
    "shared", [pytest.param(True, marks=pytest.mark.nightly), False], ids=["one folder", "two folders"]
)
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
        shown = called("results", str(folders[0]), "--json")
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
    shown = called("results", str(tmp_path / "node0"), "--json")
    assert shown.returncode == 0, shown.stdout
    assert json.loads(shown.stdout)["results"][0]["verdict"] == "valid"
