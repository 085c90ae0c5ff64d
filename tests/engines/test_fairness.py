"""One recipe for all engines, a test a rule: each is held to the recipe's own definition, in float64, not to another.

Every rule here was broken by a trainer that Aquila was compared with. An engine joins by its line in ARMS.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import fair, reference
from helpers import ROOT, flagperf

from flagperf.registry import Registries, availability

pytestmark = pytest.mark.slow

ARMS: dict[str, tuple[str, ...]] = {
    "single": ("fp32:", "fp32:micro=1,recompute=1", "fp16:"),
    "ddp": ("fp32:", "fp32:micro=1", "fp32:recompute=1", "bf16:", "fp16:", "fp16!:"),
    "fsdp": ("fp32:zero=3", "fp32:zero=2,micro=1", "fp32:zero=3,recompute=1", "bf16:", "fp16:", "fp16!:zero=3"),
    "bmtrain": (
        *("fp32:zero=3", "fp32:zero=2,micro=1", "fp32:zero=3,micro=1,overlap=0", "fp32:zero=3,recompute=1"),
        *("fp32:zero=2,recompute=1,overlap=0,micro=1", "fp32:zero=2,offload=1", "fp32:zero=3,offload=1,micro=1"),
        *("fp32:zero=3,tp=2", "fp32:zero=2,tp=2,micro=2,recompute=1", "fp32:zero=2,pp=2"),
        *(
            "bf16:zero=3",
            "bf16:zero=2,offload=1",
            "bf16:zero=3,tp=2",
            "bf16:zero=2,pp=2",
            "fp16:zero=3",
            "fp16:zero=2,offload=1",
        ),
    ),
    "deepspeed": (
        *("fp32:zero=2", "fp32:zero=0,micro=1", "fp32:zero=1,micro=1", "fp32:zero=2,micro=1", "fp32:zero=3,micro=1"),
        *("fp32:zero=0,recompute=1", "fp32:zero=3,recompute=1,overlap=0"),
        *("fp32:zero=1,offload=1,micro=1", "fp32:zero=2,offload=1,overlap=0", "fp32:zero=3,offload=1"),
        *("bf16:zero=1", "bf16:zero=2", "bf16:zero=3", "fp16:zero=1", "fp16:zero=2", "fp16:zero=3"),
        *("fp16!:zero=2", "fp16!:zero=3"),
        *("bf16:zero=0", "fp16:zero=0", "fp16!:zero=0"),  # last: DeepSpeed never forgets that it was asked for autocast
    ),
    "megatron": (
        *("fp32:zero=0", "fp32:zero=0,micro=1,overlap=0", "fp32:zero=1,micro=1", "fp32:zero=1,recompute=1,overlap=0"),
        *("fp32:tp=2,micro=1", "fp32:tp=2,sp=1,recompute=1,zero=1", "fp32:pp=2,micro=1", "fp32:pp=2,recompute=1"),
        *("bf16:zero=1", "bf16:tp=2,sp=1", "bf16:pp=2,micro=2", "fp16:zero=1", "fp16:tp=2", "fp16!:zero=1"),
    ),
    "megatron-deepspeed": (
        *("fp32:zero=2", "fp32:zero=1,micro=1", "fp32:zero=2,tp=2,micro=1", "fp32:zero=3,tp=2,recompute=1"),
        *("fp32:zero=2,recompute=1,overlap=0", "fp32:zero=2,tp=2,offload=1", "fp32:zero=3,offload=1,micro=1"),
        *("bf16:zero=1", "bf16:zero=2,tp=2", "bf16:zero=3", "fp16:zero=2,tp=2"),
    ),
    "megatron on four": (
        *("fp32:tp=2,micro=2", "fp32:tp=2,pp=2,micro=1", "fp32:pp=2,zero=1,micro=2", "fp32:tp=2,sp=1,zero=1"),
        "bf16:tp=2,zero=1",
        *("megatron-deepspeed fp32:zero=2,tp=2,micro=2", "megatron-deepspeed fp32:zero=3,tp=2"),
        "megatron-deepspeed bf16:zero=2,tp=2",
    ),
}
"""What each engine is tried in; the first is what its others are compared with. `!`: gradients overflow at first."""
RANKS = {"single": 1, "megatron on four": 4}
"""Two for all others."""
NIGHTLY = {"megatron on four"}
LAST = str(len(fair.RATES) - 1)


@dataclass
class Arm:
    """What the ranks of one arm did."""

    name: str
    ranks: list[dict[str, Any]]
    weights: dict[str, np.ndarray]
    """By when and name: `start/norm.weight`, `0/norm.weight` after the first step, …"""

    @property
    def leaders(self) -> list[dict[str, Any]]:
        return [rank for rank in self.ranks if rank["leader"]]

    @property
    def losses(self) -> np.ndarray:
        """Of the global batch, a step: its groups have equal shares."""
        return np.mean([[step[0] for step in rank["steps"]] for rank in self.leaders], axis=0)

    def norms(self, rank: dict[str, Any]) -> np.ndarray:
        return np.array([step[1] for step in rank["steps"]])

    def off(self, wanted: dict[str, Any], when: str = LAST) -> float:
        """How far the farthest weight is from where it should be, relative to how far its tensor moved at all."""
        far = []
        for name, value in wanted.items():
            start = truth().start[name].numpy()
            far.append(np.abs(self.weights[f"{when}/{name}"] - value).max() / np.abs(value - start).max())
        return float(max(far))


@cache
def truth() -> reference.Reference:
    """The recipe in float64."""
    return trained()


def trained(**broken: bool) -> reference.Reference:
    torch.set_num_threads(1)
    return reference.train(fair.task(fair.trial("single", "", "fp32", 1)), fair.RATES, **broken)


def weights(of: reference.Reference, step: int = -1) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in of.weights[step].items()}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where engines leave what they did; the corpus is made."""
    assert flagperf("data", "prepare", "synthetic", "--vocab-size", "512", "--tokens", "65536").returncode == 0
    return tmp_path_factory.mktemp("fair")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.nightly] * (name in NIGHTLY)) for name in ARMS]
)
def trained_arms(request: pytest.FixtureRequest, folder: Path) -> list[Arm]:
    """What an engine did in each of its arms, all trained in one start of its ranks."""
    name: str = request.param
    first = name.split()[0]
    for engine in {first, *(arm.split()[0] for arm in ARMS[name] if " " in arm)}:
        installed = availability(Registries().engines.get(engine))
        if not installed.available:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{installed.reason}: {installed.remedy}")
    here = folder / name
    here.mkdir()
    ranks = RANKS.get(name, 2)
    done = subprocess.run(
        [sys.executable, str(Path(fair.__file__)), str(ranks), str(here), first, *ARMS[name]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return [
        Arm(
            f"{name} {arm}",
            [json.loads((here / f"{number}-{rank}.json").read_text()) for rank in range(ranks)],
            dict(np.load(here / f"{number}.npz")),
        )
        for number, arm in enumerate(ARMS[name])
    ]


@pytest.fixture(scope="module")
def arms(trained_arms: list[Arm]) -> list[Arm]:
    """Those that learn."""
    return [arm for arm in trained_arms if "!" not in arm.name]


def exact(arms: list[Arm]) -> list[Arm]:
    return [arm for arm in arms if " fp32:" in arm.name]


def test_the_rules_can_tell_right_from_wrong() -> None:
    """Without clipping, and with norms decayed, the reference itself ends where no engine may."""
    right = Arm("right", [], {f"{LAST}/{name}": value for name, value in weights(truth()).items()})
    for broken in ({"clipped": False}, {"decayed_norms": True}):
        assert right.off(weights(trained(**broken))) > 0.1, broken
    assert min(truth().norms) > 2 * fair.SETTINGS["optimizer"]["clip"]  # so that every step was clipped


def test_every_engine_starts_from_the_canonical_weights_to_the_bit(arms: list[Arm]) -> None:
    for arm in arms:
        names = {name.removeprefix("start/") for name in arm.weights if name.startswith("start/")}
        assert names == set(truth().start), arm.name
        for name, value in truth().start.items():
            assert np.array_equal(arm.weights[f"start/{name}"], value.float().numpy()), (arm.name, name)


def test_every_engine_reads_the_same_tokens_at_the_same_places(arms: list[Arm]) -> None:
    for arm in arms:
        read = sum(int(rank["digest"]) for rank in arm.leaders)
        assert read == truth().digest, arm.name
        assert sum(rank["share"] for rank in arm.leaders) == 8, arm.name  # the global batch, whatever the micro-batch


def test_the_loss_is_the_mean_over_the_tokens_of_the_global_batch(arms: list[Arm]) -> None:
    for arm in exact(arms):
        np.testing.assert_allclose(arm.losses, truth().losses, rtol=1e-5, err_msg=arm.name)


def test_narrow_types_learn_the_same_within_a_percent(arms: list[Arm]) -> None:
    for arm in arms:
        np.testing.assert_allclose(arm.losses, truth().losses, rtol=1e-2, err_msg=arm.name)
        assert arm.off(weights(truth())) < 0.05, arm.name  # most of it from rounding what is near zero
        assert not any(step[2] for rank in arm.ranks for step in rank["steps"]), arm.name


def test_what_overflows_in_fp16_is_left_out_and_got_over(trained_arms: list[Arm]) -> None:
    """Weights so large that the first gradients overflow: the loss scale is halved until they don't."""
    for arm in (arm for arm in trained_arms if "!" in arm.name):
        for rank in arm.ranks:
            steps = rank["steps"]
            skipped = [left_out for _, _, left_out, _ in steps]
            assert skipped[0] and not skipped[-1], arm.name
            assert all(np.isfinite(norm) or left_out for _, norm, left_out, _ in steps), arm.name
            for (_, _, left_out, scale), (_, _, _, following) in itertools.pairwise(steps):
                assert following == (scale / 2 if left_out else scale), arm.name
        for number in (number for number, left_out in enumerate(skipped) if left_out):
            before = str(number - 1) if number else "start"
            for name in truth().start:
                now = arm.weights[f"{number}/{name}"]
                assert np.array_equal(now, arm.weights[f"{before}/{name}"]), (arm.name, number, name)


def test_updates_are_those_of_adamw_with_the_gradient_of_the_whole_batch(arms: list[Arm]) -> None:
    """After every step: β, ε, decay of matrices alone, one clipping by the global norm; micro-batches of any size."""
    for arm in exact(arms):
        for step in range(len(fair.RATES)):
            assert arm.off(weights(truth(), step), str(step)) < 1e-3, (arm.name, step)


def test_the_learning_rate_is_the_one_given_for_the_step(arms: list[Arm]) -> None:
    """Where it is zero nothing moves; a scheduler of the engine's own, or a step per micro-batch, would move it."""
    still = fair.RATES.index(0.0)
    for arm in arms:
        moved = []
        for name in truth().start:
            now, before, after = (arm.weights[f"{step}/{name}"] for step in (still, still - 1, still + 1))
            assert np.array_equal(now, before), (arm.name, name)
            moved.append(not np.array_equal(now, after))
        assert all(moved), arm.name


def test_the_gradient_norm_told_is_the_accurate_one_from_before_clipping(arms: list[Arm]) -> None:
    for arm in arms:
        for rank in arm.ranks:
            tolerance = 1e-6 if " fp32:" in arm.name else 1e-2
            np.testing.assert_allclose(arm.norms(rank), truth().norms, rtol=tolerance, err_msg=arm.name)


def test_judging_the_model_changes_nothing_and_sees_the_weights_of_the_step(arms: list[Arm]) -> None:
    """That it changes nothing is in the updates after it, which the test above holds to the reference."""
    for arm in exact(arms):
        micro = int(arm.name.partition("micro=")[2][:1] or 4)
        assert arm.leaders[0]["judged"] == pytest.approx(judged(micro), rel=1e-5), arm.name


@cache
def judged(micro: int) -> float:
    """The reference's loss of the first sequences of the batch after the last."""
    task = fair.task(fair.trial("single", "", "fp32", 1))
    model = task.model(recompute=False).double()
    model.load_state_dict(truth().weights[fair.JUDGED])
    with torch.no_grad():
        return float(model(*task.batch(len(fair.RATES), 0, micro)))


def test_recomputation_and_offloading_change_nothing_but_memory(arms: list[Arm]) -> None:
    first = {name: arms[0].weights[f"{LAST}/{name}"] for name in truth().start}
    for arm in exact(arms):
        assert arm.off(first) < 2e-4, arm.name
        for rank in arm.ranks:
            held = rank["held"]
            assert held["weights"] > 0, arm.name
            assert (held["host"] > 0) == ("offload=1" in arm.name), arm.name
            assert (held["optimizer"] > 0) == ("offload=1" not in arm.name), arm.name
