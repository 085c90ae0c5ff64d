"""The checks that need a device: green on the simulated one, and each seen red on one whose runtime lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conformance_adapters import declared, problems

from flagperf.conformance.kit import Kit
from flagperf.vendors.simchip import build

pytestmark = pytest.mark.slow

MANIFEST = """
name = "badchip"
title = "Badchip"
title_zh = "Badchip"
summary = "A device whose runtime lies."
entry = ".adapter:Badchip"
device_type = "wrongchip"
backend = "simccl"
plugin = "flagperf.vendors.simchip.torch_device"
[markers]
environment = ["BADCHIP_DEVICES"]
names = ["badchip*"]
[limits]
bf16 = "so it says"
"""

ADAPTER = '''
"""An adapter of the simulated device that does everything wrong that a check is there to see."""

import time

from flagperf.accelerator import Accelerator
from flagperf.schema.event import Memory
from flagperf.schema.reading import Reading, Readings
from flagperf.vendor import Runtime


class Badchip(Accelerator):
    def read_library(self):
        return Readings(devices=[Reading(index=i, name=f"badchip {i}") for i in range(2)])

    def rated(self, dtype):
        return 1.0

    def runtime(self, local_rank, local_ranks, threads):
        return Bad(self.manifest, local_rank, local_ranks)


PEAKS = [5, 5, 5, 0, 1 << 40, 5, 1 << 40, 5, 5, -1]
"""What is reported, one call after another: in the order in which the test asks."""


class Bad(Runtime):
    def __init__(self, manifest, rank, ranks):
        import flagperf.vendors.simchip.torch_device
        import torch
        import torch.distributed as dist

        self.device = torch.device("simchip", rank)
        torch.accelerator.set_device_index(1 - rank)
        self.backend = "simccl" if ranks > 1 else "nobackend"
        self.rank = rank
        self.right = torch.nn.functional.silu
        if ranks == 1:
            torch.manual_seed = lambda seed: None
            torch.Tensor.clone = lambda tensor: tensor + 1
            torch.mm = self.wrong
            torch.Event = type("Event", (torch.Event,), {"elapsed_time": lambda self, other: -1.0})
            torch.accelerator.memory_allocated = lambda device: 7
            torch.accelerator.get_memory_info = lambda device: (5, 3)
            step = torch.optim.AdamW.step
            torch.optim.AdamW.step = lambda self: step(self) if self.param_groups[0]["params"][0].is_cpu else None
            torch.nn.functional.silu = self.noisy
        else:
            nothing = type("Work", (), {"wait": lambda self: None})()
            for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
                setattr(dist, name, lambda *given, **named: nothing)
            for name in ("send", "recv", "barrier"):
                setattr(dist, name, lambda *given, **named: None)

    def wrong(self, left, right, out=None):
        import torch
        from flagperf.vendors.simchip.torch_device import occupy

        if not left.is_cpu:
            occupy(0.02)
        return torch.add(left @ right, 0 if left.is_cpu else 1, out=out)

    def noisy(self, x):
        import torch

        return self.right(x) + (0 if x.is_cpu else torch.tensor(time.perf_counter() % 1).to(x.dtype).to(x.device))

    def synchronize(self):
        time.sleep(0.05)

    def reset_peak_memory(self):
        pass

    def memory(self):
        return Memory(peak_allocated=PEAKS.pop(0), peak_rss=1)

    def facts(self):
        return {"device": self.device}
'''

FIRST = [
    *("memory.peak_follows_an_allocation", "memory.peak_remembers_what_was_freed"),
    *("memory.peak_counts_what_is_alive_at_once", "memory.peak_is_reset", "memory.says_where_the_peak_is_from"),
    "memory.figures_are_consistent",
]
PARAMETERS = {
    "runtime.copies_are_exact": {"dtype": "float32"},
    "runtime.limits_are_true": {"dtype": "bf16"},
    "operators.agree_with_float64": {"name": "mm"},
    "operators.adamw_agrees_with_float64": {"foreach": "foreach"},
    "training.losses_match_the_hosts": {"dtype": "fp32"},
    "collectives.all_reduce": {"operation": "sum", "dtype": "fp32"},
    **{
        f"collectives.{name}": {"dtype": "fp32"}
        for name in ("all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "send_and_recv")
    },
}


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    if build.compiler() is None:
        if os.environ.get("CI"):
            pytest.fail("no C++ compiler (on CI nothing may be left out)")
        pytest.skip("no C++ compiler")
    (tmp_path / "badchip").mkdir()
    (tmp_path / "badchip/badchip.toml").write_text(MANIFEST)
    (tmp_path / "badchip/adapter.py").write_text(ADAPTER)
    for name, value in (("SIMCHIP_DEVICES", "2"), ("BADCHIP_DEVICES", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SIMCHIP_STATE", str(tmp_path / "state"))
    return Kit("badchip", [tmp_path])


@pytest.mark.parametrize("where", ["device", "group"])
def test_each_check_of_a_device_is_red_on_one_that_lies(bad: Kit, where: str) -> None:
    checks = [name for name, check in declared() if check.where == where]
    asked = [*(name for name in FIRST if name in checks), *(name for name in checks if name not in FIRST)]
    try:
        found = {name: problems(bad, name, **PARAMETERS.get(name, {})) for name in asked}
    finally:
        bad.close()
    assert [name for name, wrong in found.items() if not wrong] == []
    # The check has seen it, and not fallen over itself.
    fallen = {name for name, wrong in found.items() if any("Error: " in line for line in wrong)}
    assert fallen <= {"runtime.facts_are_json"}
