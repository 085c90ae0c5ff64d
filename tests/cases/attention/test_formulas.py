"""Work and sizes of attention, counted by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.cases.attention.formulas import lengths, pairs
from flagperf.kernel import KernelCase, Work
from flagperf.plan import Options, plan
from flagperf.registry import Registries

SMALL = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "seq": 3, "dtype": "fp32", "causal": True}
CASES = ("forward", "backward", "decode", "varlen")


@pytest.fixture(scope="module")
def cases() -> dict[str, KernelCase]:
    """The four cases at their smallest preset."""
    registries = Registries()
    made = {}
    for name in CASES:
        trial = plan(Options(cases=[f"attention/{name}"], vendor="cpu"), registries).trials[0]
        made[name] = registries.cases.load(trial.case)(trial)
    return made


def test_a_mask_leaves_the_triangle_with_its_diagonal() -> None:
    assert [pairs(seq, True) for seq in (1, 2, 3, 4)] == [1, 3, 6, 10]
    assert pairs(4, False) == 16


def test_work_by_hand(cases: dict[str, KernelCase]) -> None:
    """2 sequences, 4 heads of 8 that share 2 of keys, 3 tokens, 4 bytes each."""
    # 12 pairs a head, each 8 multiplications and additions in Q Kᵀ and as many in P V: 4 · 12 · 32.
    # q and the output have 192 elements, k and v 96.
    assert cases["forward"].work(SMALL) == Work(flops=1536, bytes=(192 + 192 + 96 + 96) * 4)
    assert cases["forward"].work(SMALL | {"causal": False}).flops == 4 * 4 * 18 * 8
    # Five products of 768; q, k, v, the output and its gradient read, three gradients written.
    assert cases["backward"].work(SMALL) == Work(flops=3840, bytes=(192 + 96 + 96 + 192 + 192 + 192 + 96 + 96) * 4)
    # 6 cached tokens; q and the output have 64 elements.
    assert cases["decode"].work(SMALL) == Work(flops=768, bytes=(64 + 64 + 96 + 96) * 4)
    assert cases["decode"].work(SMALL | {"dtype": "bf16"}).bytes == (64 + 64 + 96 + 96) * 2


def test_work_of_packed_sequences_is_that_of_each(cases: dict[str, KernelCase]) -> None:
    sizes = SMALL | {"batch": 3, "seq": 40}
    alone = [cases["forward"].work(sizes | {"batch": 1, "seq": length, "dtype": "fp32"}) for length in lengths(sizes)]
    assert cases["varlen"].work(sizes) == Work(*map(sum, zip(*alone, strict=True)))


@given(st.integers(1, 64), st.integers(1, 4096))
def test_lengths_are_the_same_every_time_and_the_longest_is_first(batch: int, seq: int) -> None:
    told = lengths({"batch": batch, "seq": seq})
    assert told == lengths({"batch": batch, "seq": seq})
    assert len(told) == batch
    assert told[0] == seq == max(told)
    assert min(told) >= max(1, seq // 8)


def test_lengths_differ() -> None:
    assert len(set(lengths({"batch": 8, "seq": 512}))) > 4


def test_only_those_that_hold_scores_are_predicted_to(cases: dict[str, KernelCase]) -> None:
    large = SMALL | {"seq": 16384, "heads": 52, "batch": 1, "dtype": "bf16"}
    assert cases["forward"].memory(large, "naive") == 2 * 52 * 16384**2 * 2
    assert cases["forward"].memory(large, "flash") == 0
    assert cases["backward"].memory(large, "math") > cases["forward"].memory(large, "math")
    assert cases["decode"].memory(large, "naive") == 2 * 52 * 16384 * 2


def test_the_four_say_nothing_twice() -> None:
    """Providers, types and shapes stand in one manifest; packed sequences name other functions for them."""
    manifests = {name: Registries().cases.get(f"attention/{name}") for name in CASES}
    first = manifests["forward"]
    for name, manifest in manifests.items():
        assert manifest.like == ("" if manifest is first else "forward.toml")
        assert manifest.dtypes == first.dtypes
        assert manifest.settings["shapes"] == first.settings["shapes"]
        shared = {key: each for key, each in manifest.providers.items() if key in first.providers}
        assert list(shared) == list(first.providers)
        for key, each in shared.items():
            module = ".packed" if name == "varlen" else ".providers"
            assert each.entry.startswith(f"{module}:")
            other: Any = first.providers[key]
            assert msgspec.structs.replace(each, entry="") == msgspec.structs.replace(other, entry="")
        assert manifest.presets.keys() >= {"tiny", "aquila-7b", "aquila-33b", "aquila2-34b"}
        assert all(preset.settings["sweep"] for preset in manifest.presets.values())


def test_a_provider_that_is_not_there_says_how_to_get_it() -> None:
    from flagperf.plan.sweeps import provider_states

    registries = Registries()
    told = provider_states(registries.cases.get("attention/forward"), registries.vendors.adapter("nvidia"))
    assert "pip install flash-attn" in told["flash-attn"].remedy
    assert "isn't installed" in told["flash-attn-3"].reason
    on_cpu = provider_states(registries.cases.get("attention/forward"), registries.vendors.adapter("cpu"))
    assert "not cpu" in on_cpu["flash-attn"].reason
    on_ascend = provider_states(registries.cases.get("attention/decode"), registries.vendors.adapter("ascend"))
    assert "torch-npu isn't installed" in on_ascend["npu_incre_flash_attention"].reason
    assert "npu_fusion_attention" not in on_ascend
