"""Plans: the order of trials, what is filled in, and everything that is refused before a process starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import UnknownName, UsageError
from flagperf.plan import Options, choose_vendor, parse_arms, plan
from flagperf.registry import Registries
from flagperf.schema.layout import Layout
from flagperf.schema.trial import Nodes


def planned(**options: Any) -> Any:
    return plan(Options(**{"cases": ["aquila/pretrain"], "engines": ["single"], **options}), Registries())


def test_trials_are_interleaved_so_that_drift_falls_on_all_arms_alike() -> None:
    run = planned(engines=["ddp,fsdp"], ranks=2, trials=3)
    assert [trial.engine for trial in run.trials] == ["ddp", "fsdp", "fsdp", "ddp", "ddp", "fsdp"]
    assert [trial.id for trial in run.trials] == [f"{n:03d}-{t.engine}" for n, t in enumerate(run.trials)]
    for number in range(3):
        pair = [trial for trial in run.trials if trial.trial == number]
        assert {trial.engine for trial in pair} == {"ddp", "fsdp"}
        assert len({trial.seed for trial in pair}) == 1
    assert len({trial.seed for trial in run.trials}) == 3
    assert run.baseline == "ddp"


def test_the_layout_is_complete_when_it_is_planned() -> None:
    run = planned(engines=["ddp", "fsdp"], ranks=2, trials=1)
    assert [trial.layout.zero for trial in run.trials] == [0, 3]
    assert all(trial.layout.micro == 4 for trial in run.trials)


@pytest.mark.parametrize(
    ("texts", "layout", "arms"),
    [
        (["ddp,fsdp"], "", [("ddp", Layout()), ("fsdp", Layout())]),
        (["ddp,fsdp:zero=2,micro=2"], "", [("ddp", Layout()), ("fsdp", Layout(zero=2, micro=2))]),
        (
            ["fsdp:zero=2", "fsdp:zero=3"],
            "micro=1",
            [("fsdp", Layout(zero=2, micro=1)), ("fsdp", Layout(zero=3, micro=1))],
        ),
        (["ddp:micro=2"], "micro=4,recompute=1", [("ddp", Layout(micro=2, recompute=True))]),
    ],
)
def test_arms_are_read(texts: list[str], layout: str, arms: list[tuple[str, Layout]]) -> None:
    assert [(arm.engine, arm.layout) for arm in parse_arms(texts, layout)] == arms


@given(st.text(max_size=30))
def test_any_engine_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_arms([text], "")


def test_two_arms_of_one_engine_have_names_that_tell_them_apart() -> None:
    run = planned(engines=["fsdp:zero=2,fsdp:zero=3"], ranks=2, trials=1)
    assert len({trial.arm for trial in run.trials}) == 2
    assert run.baseline == run.trials[0].arm


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cases": ["aquila/pretran"]}, "Did you mean 'aquila/pretrain'?"),
        ({"engines": ["dpp"]}, "Did you mean 'ddp'?"),
        ({"preset": "tinny"}, "Did you mean 'tiny'?"),
        ({"vendor": "cpuu"}, "Did you mean 'cpu'?"),
        ({"launcher": "locl"}, "Did you mean 'local'?"),
        ({"dtype": "fp64"}, "fp32"),
        ({"settings": {"model": {"dmi": 64}}}, "Did you mean 'model.dim'?"),
        ({"settings": {"protocol": {"step": 64}}}, "Did you mean 'steps'?"),
        ({"settings": {"model": {"dim": 100, "heads": 3}}}, "heads"),
        ({"settings": {"data": {"vocab_size": 9000}}}, "model.vocab_size"),
        ({"engines": ["ddp"], "ranks": 2, "layout": "zero=2"}, "nearest it can do is zero=0"),
        ({"engines": ["ddp"], "ranks": 2, "layout": "tp=2"}, "can't do tp=2"),
        ({"engines": ["ddp"], "ranks": 2, "layout": "micro=3"}, "It can be 1, 2, 4"),
        ({"engines": ["single"], "ranks": 2}, "at most 1 rank"),
        ({"engines": ["ddp"], "ranks": 2, "settings": {"protocol": {"global_batch": 7}}}, "protocol.global_batch=6"),
        ({"engines": ["ddp"], "ranks": 4096}, "--oversubscribe"),
        ({"warmup": 1}, "at least 2"),
        ({"steps": 0}, "at least 1"),
        ({"engines": ["ddp", "ddp"]}, "twice"),
        ({"engines": [","]}, "No engine"),
        ({"baseline": "fsdp"}, "fsdp"),
        ({"engines": ["ddp"], "ranks": 3, "nodes": Nodes(count=2, rendezvous="h:1")}, "evenly"),
        ({"engines": ["ddp"], "ranks": 2, "nodes": Nodes(count=2)}, "--rdzv"),
        ({"engines": ["ddp"], "ranks": 2, "nodes": Nodes(count=2, rendezvous="host")}, "HOST:PORT"),
        ({"settings": {"protocol": 5}}, "protocol.global_batch"),
        ({"settings": {"protocol": {"minimum_effect": -1}}}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"settings": {"protocol": {"telemetry": 0}}}, "0.01"),
        ({"engines": ["ddp"], "ranks": 2, "nodes": Nodes(count=2, index=2, rendezvous="h:1")}, "--node-rank"),
    ],
    ids=str,
)
def test_what_cant_be_is_refused_with_the_way_out(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(**options)
    assert told in str(error.value)


def test_ranks_may_share_cores_if_one_insists() -> None:
    many = len(os.sched_getaffinity(0)) * 2
    run = planned(
        engines=["ddp"],
        ranks=many,
        oversubscribe=True,
        settings={"protocol": {"global_batch": many, "validation": many}},
    )
    assert run.trials[0].ranks == many and run.trials[0].threads == 1


def test_an_unknown_name_lists_the_good_ones() -> None:
    with pytest.raises(UnknownName) as error:
        planned(engines=["nccl"])
    assert all(name in error.value.hint for name in ("ddp", "fsdp", "single"))


@pytest.mark.parametrize("where", ["import", "constructor", "availability"])
def test_a_broken_adapter_doesnt_keep_auto_from_the_cpu(tmp_path: Path, where: str) -> None:
    code = {
        "import": "raise RuntimeError('broken')\n",
        "constructor": "class V:\n    def __init__(self, manifest, around): raise RuntimeError('broken')\n",
        "availability": "class V:\n    def __init__(self, manifest, around): self.manifest = manifest\n"
        "    def availability(self): raise RuntimeError('broken')\n",
    }
    adapter = tmp_path / "vendors" / "aaa"
    adapter.mkdir(parents=True)
    (adapter / "adapter.py").write_text(code[where])
    (adapter / "aaa.toml").write_text(
        'name = "aaa"\ntitle = "A"\nsummary = "-"\nentry = ".adapter:V"\ndevice_type = "aaa"\nbackend = "aaa"\n'
    )
    registries = Registries([tmp_path])
    assert choose_vendor("auto", registries).name == "cpu"
    assert "broken" in registries.vendors.broken["aaa"]


def test_what_a_vendor_says_of_itself_is_planned_with_or_refused(tmp_path: Path) -> None:
    """Its data types, its choices for a case, and that nobody can know which of two makers' devices are meant."""
    for name in ("aaa", "bbb"):
        adapter = tmp_path / "vendors" / name
        adapter.mkdir(parents=True)
        (adapter / "adapter.py").write_text(
            "from flagperf.schema.machine import Device\nfrom flagperf.vendor import Vendor\n"
            "class V(Vendor):\n    def devices(self):\n        return [Device(vendor=self.name, index=0, name='X')]\n"
            "    def rated(self, dtype):\n        return {'bf16': 1e12}.get(dtype)\n"
        )
        (adapter / f"{name}.toml").write_text(
            f'name = "{name}"\ntitle = "A"\nsummary = "-"\nentry = ".adapter:V"\ndevice_type = "aaa"\nbackend = "aaa"\n'
            '[limits]\nfp32 = "it has no such unit"\n'
            '[environment.EVERYWHERE]\nvalue = "1"\nwhy = "-"\n'
            '[cases."aquila/pretrain"]\nmicro = 2\ndtype = "bf16"\nwhy = "its memory"\n'
            '[cases."aquila/pretrain".environment.HERE]\nvalue = "2"\nwhy = "-"\n'
        )
    registries = Registries([tmp_path])
    options = {"cases": ["aquila/pretrain"], "engines": ["single"], "vendor": "aaa"}
    (trial,) = plan(Options(**options, trials=1), registries).trials
    assert (trial.layout.micro, trial.rated_flops) == (2, 1e12)
    assert trial.dtype == "bf16"  # the preset says fp32
    (trial,) = plan(Options(**options, trials=1, layout="micro=1"), registries).trials
    assert trial.layout.micro == 1
    assert registries.vendors.get("aaa").variables("aquila/pretrain") == {"EVERYWHERE": "1", "HERE": "2"}
    assert registries.vendors.get("aaa").variables("another") == {"EVERYWHERE": "1"}
    with pytest.raises(UsageError, match="no such unit"):
        plan(Options(**options, dtype="fp32"), registries)
    with pytest.raises(UsageError, match="aaa and bbb"):
        choose_vendor("auto", registries)
