"""Scaling efficiency by hand, what keeps it from being told, and the split of a step."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagperf.collect.scaling import scaling, split
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.schema.metric import MetricValue
from flagperf.schema.result import Reason, Result
from flagperf.schema.trial import Trial

RUN = plan(
    Options(cases=["parallel/throughput"], engines=["ddp"], ranks=4, oversubscribe=True, search=False, trials=3),
    Registries(),
)
TOKENS = 256
"""Of a sequence."""


def result(trial: Trial, seconds: float, **changes: Any) -> Result:
    """A trial whose step took so long."""
    speed = trial.protocol.global_batch * TOKENS / seconds
    usual: dict[str, Any] = {
        **{key: getattr(trial, key) for key in ("case", "preset", "vendor", "engine", "ranks", "dtype", "seed")},
        "trial": trial.trial,
        "id": trial.id,
        "run": RUN.id,
        "layout": str(trial.layout),
        "verdict": "valid",
        "reasons": [],
        "facts": {"tokens_fingerprint": f"{trial.protocol.global_batch}"},
        "metrics": {
            "tokens_per_second": MetricValue(value=speed, unit="tokens/s", direction="higher"),
            "memory_peak_allocated": MetricValue(value=8.0, unit="MiB", direction="lower"),
            "loss_final": MetricValue(value=4.0, unit="nats/token", direction="lower"),
        },
    }
    return Result(**(usual | changes))


def results(seconds: dict[tuple[int, int], float], drift: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[Result]:
    """Results by ranks and global batch; `drift` is the machine's, trial by trial."""
    return [result(t, seconds[t.ranks, t.protocol.global_batch] * drift[t.trial]) for t in RUN.trials]


# T1 = 8 s for 8 sequences. Strong: T2 = 5, T4 = 4 s. Weak: 10 s for 16 on 2, 16 s for 32 on 4.
STEPS = {(1, 8): 8.0, (2, 8): 5.0, (4, 8): 4.0, (2, 16): 10.0, (4, 32): 16.0}


def test_efficiencies_by_hand() -> None:
    points = {(p.kind, p.ranks): p for p in scaling(RUN, results(STEPS))}
    assert points["base", 1].efficiency == 1.0 and points["base", 1].tokens_per_second == 256.0
    told = {key: point.efficiency for key, point in points.items() if key[0] != "base"}
    assert told == pytest.approx({
        ("strong", 2): 8 / (2 * 5),
        ("strong", 4): 8 / (4 * 4),
        ("weak", 2): 8 / 10,
        ("weak", 4): 8 / 16,
    })  # fmt: skip
    for point in points.values():
        assert point.valid == 3 and len(point.trials) == 3 and point.memory_mib == 8.0 and not point.notes
        assert point.threads == RUN.trials[0].threads
    assert points["strong", 2].low == points["strong", 2].high == pytest.approx(0.8)  # no spread at all


def test_a_drift_of_the_machine_cancels_out_of_the_interval() -> None:
    for point in scaling(RUN, results(STEPS, drift=(1.0, 3.0, 0.5)))[1:]:
        assert point.low == pytest.approx(point.efficiency) == point.high and point.pairs == 3


@settings(max_examples=20)
@given(st.lists(st.floats(0.5, 2.0), min_size=15, max_size=15))
def test_the_interval_holds_the_efficiency_whatever_the_noise(noise: list[float]) -> None:
    noisy = [
        result(trial, STEPS[trial.ranks, trial.protocol.global_batch] * factor)
        for trial, factor in zip(RUN.trials, noise, strict=True)
    ]
    for point in scaling(RUN, noisy)[1:]:
        assert point.efficiency is not None and point.low is not None and point.high is not None
        assert 0 < point.low <= point.efficiency <= point.high < math.inf


def test_strong_scaling_that_learns_something_else_is_not_told() -> None:
    def strays(each: Result) -> Result:
        far = {**each.metrics, "loss_final": msgspec.structs.replace(each.metrics["loss_final"], value=4.4)}
        return msgspec.structs.replace(each, metrics=far) if each.ranks == 2 else each

    points = {(p.kind, p.ranks): p for p in scaling(RUN, [strays(each) for each in results(STEPS)])}
    assert points["strong", 2].efficiency is None
    assert [note.code for note in points["strong", 2].notes] == ["losses_differ"]
    assert points["strong", 4].efficiency == 0.5
    assert points["weak", 2].efficiency == pytest.approx(0.8)  # other batches have other losses


def test_what_is_invalid_is_left_out_and_told() -> None:
    lost = {"verdict": "invalid", "reasons": [Reason("out_of_memory", "Rank 1 ran out of memory")], "metrics": {}}
    found = [msgspec.structs.replace(r, **lost) if r.ranks == 4 and r.trial == 0 else r for r in results(STEPS)]
    point = next(p for p in scaling(RUN, found) if (p.kind, p.ranks) == ("strong", 4))
    assert point.valid == 2 and point.pairs == 2 and point.efficiency == 0.5
    assert "left out: Rank 1 ran out of memory" in point.notes[0].message
    none = [msgspec.structs.replace(r, **lost) if r.ranks == 1 else r for r in results(STEPS)]
    assert all(point.efficiency is None for point in scaling(RUN, none))
    assert [note.code for note in scaling(RUN, none)[1].notes] == ["no_pair"]
    assert scaling(RUN, [])[0].efficiency is None
    assert scaling(msgspec.structs.replace(RUN, survey=None), found) == []


def test_ranks_that_share_cores_are_told_of() -> None:
    shared = Reason("oversubscribed", "4 ranks shared 2 cores.")
    found = [msgspec.structs.replace(r, notes=[shared]) if r.ranks == 4 else r for r in results(STEPS)]
    assert {p.ranks for p in scaling(RUN, found) if shared in p.notes} == {4}


def row(seconds: float, compute: float, exposed: float, communication: float) -> dict[str, float]:
    idle = seconds - compute - exposed
    return {"seconds": seconds, "compute": compute, "exposed": exposed, "communication": communication, "idle": idle}


def test_a_split_is_the_mean_over_ranks_of_the_median_trial() -> None:
    shares = [
        [row(1.0, 0.9, 0.05, 0.1), row(1.0, 0.9, 0.05, 0.1)],
        [row(1.0, 0.6, 0.3, 0.5), row(1.0, 0.8, 0.1, 0.2)],
        [row(1.0, 0.1, 0.9, 0.9), row(1.0, 0.1, 0.9, 0.9)],
    ]
    trials = RUN.trials[:3]
    found = split([result(t, 1.0, facts={"steps_profiled": rows}) for t, rows in zip(trials, shares, strict=True)])
    assert found is not None and found.trace == f"trials/{trials[1].id}/output/rank0.trace.json.gz"
    assert (found.compute, found.exposed, found.hidden) == pytest.approx((0.7, 0.2, 0.15))
    assert found.compute + found.exposed + found.idle == pytest.approx(found.seconds)


@pytest.mark.parametrize("rows", [None, [], "none", [{}], [{"seconds": "x"}], [3], {"seconds": 1}], ids=repr)
def test_where_nothing_was_profiled_there_is_no_split(rows: Any) -> None:
    assert split([result(RUN.trials[0], 1.0, facts={"steps_profiled": rows})]) is None
