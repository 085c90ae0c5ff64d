"""The CPU as a vendor: devices, slices of the cores, and what torch's allocator held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.registry import Registries
from flagperf.vendor import Vendor
from flagperf.vendors.cpu.adapter import rank_cores

MIB = 2**20

START = """
import json, os, sys, threading
import torch
from flagperf.registry import Registries
vendors = Registries().vendors
cpu = vendors.load("cpu")(vendors.get("cpu"))
def runtime(rank=0, ranks=1, threads=1):
    return cpu.runtime(rank, ranks, threads)
def block(mib):
    return torch.empty(int(mib * 2**20), dtype=torch.uint8)
"""


@pytest.fixture(scope="module")
def cpu() -> Vendor:
    vendors = Registries().vendors
    adapter = vendors.load("cpu")(vendors.get("cpu"))
    assert isinstance(adapter, Vendor)
    return adapter


def in_a_rank(code: str, **environment: str) -> Any:
    """Run code in a fresh process, as a rank is one, and return the JSON it prints."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5", **environment}
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, env=variables, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_device_with_the_hosts_memory(cpu: Vendor) -> None:
    (device,) = cpu.devices()
    assert (device.vendor, device.index) == ("cpu", 0)
    assert device.name
    assert device.memory_total_mib and device.memory_used_mib
    assert 0 < device.memory_used_mib < device.memory_total_mib
    assert cpu.availability().available
    assert 1 <= cpu.slots() <= len(os.sched_getaffinity(0))
    assert cpu.threads(1) == cpu.slots()
    assert cpu.threads(1000) == 1
    assert "torch" not in sys.modules or cpu.sample() == []


def test_the_adapter_answers_without_torch() -> None:
    code = (
        "import sys\nfrom flagperf.registry import Registries\nvendors = Registries().vendors\n"
        "cpu = vendors.load('cpu')(vendors.get('cpu'))\n"
        "cpu.devices(), cpu.facts(), cpu.slots(), cpu.threads(2), cpu.availability()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=64, unique=True), st.integers(1, 80))
def test_slices_cover_the_cores_without_overlap(cores: list[int], ranks: int) -> None:
    slices = [rank_cores(cores, rank, ranks) for rank in range(ranks)]
    if ranks <= len(cores):
        assert [core for piece in slices for core in piece] == cores
        assert max(map(len, slices)) - min(map(len, slices)) <= 1
    else:
        assert all(len(piece) == 1 for piece in slices)
        used = [piece[0] for piece in slices]
        assert set(used) == set(cores)
        assert max(map(used.count, used)) - min(map(used.count, used)) <= 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_ranks_are_bound_to_their_slices_in_every_thread() -> None:
    seen = in_a_rank("""
threading.Thread(target=threading.Event().wait, daemon=True).start()  # one that was there before
seen = []
for number in range(2):
    rank = runtime(number, 2, 1)
    a = torch.randn(512, 512); a @ a
    tasks = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
    seen.append({"tasks": tasks, "threads": torch.get_num_threads(), "cores": rank.facts()["cores"]})
print(json.dumps(seen))
""")
    for rank in seen:
        assert len(rank["tasks"]) >= 2
        assert all(task == sorted(rank["cores"]) for task in rank["tasks"])
        assert rank["threads"] == 1
    assert not set(seen[0]["cores"]) & set(seen[1]["cores"])


def test_the_allocators_peak_is_exact() -> None:
    """Blocks from before and within the step, freed in it, some in another thread; none that was counted long ago."""
    peak, after = in_a_rank("""
r = runtime()
with r.observe_allocation() as earlier:
    lost = block(70)
    earlier.stop()
del lost                                         # nobody counts: it's in torch's total for ever
with r.observe_allocation() as allocation:
    weights, old = block(20), block(10)
    with allocation.observing(False):
        gone = block(500); del gone              # before the step: doesn't count
    with allocation.observing(True):
        small = block(5)                         # 35
        thread = threading.Thread(target=lambda: globals().pop("old")); thread.start(); thread.join()   # 25
        first = block(30)                        # 55
        del first
        second = block(28.5)                     # 53.5
        del second, small
    late = block(700)                            # after the step: doesn't count
    del late
    allocation.stop()
    r.reset_peak_memory()
    memory = allocation.complete(r.memory())
print(json.dumps([memory.peak_allocated, memory.allocated_source]))
""")
    assert abs(peak - 55 * MIB) < 4096
    assert "allocator" in after


def test_a_training_step_is_counted_to_the_byte() -> None:
    """Weights, gradients, two Adam states and what the step itself holds, against a count by hand."""
    seen = in_a_rank("""
r = runtime()
with r.observe_allocation() as allocation:
    n, batch = 1024, 256
    layers = [torch.nn.Linear(n, n, bias=False) for _ in range(6)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for step in range(3):
        with allocation.observing(step == 2):
            optimizer.zero_grad(set_to_none=True)
            model(torch.randn(batch, n)).square().mean().backward()
            optimizer.step()
    allocation.stop()
    memory = allocation.complete(r.memory())
print(json.dumps([memory.peak_allocated, n * n * 4, batch * n * 4]))
""")
    peak, matrix, activation = seen
    # Late in the backward pass: six weights with two Adam states each and all six gradients. Beside these, the input,
    # which the first layer saved, and the gradient of the first layer's output, whose own activation is not freed yet.
    assert 6 * 4 * matrix < peak <= 6 * 4 * matrix + 3 * activation + 65536


def test_buffers_that_cpp_made_are_counted() -> None:
    """DistributedDataParallel copies gradients into buckets, which are made in C++: one more copy of the weights."""
    plain, wrapped = in_a_rank("""
import torch.distributed as dist
r = runtime()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
peaks = []
for wrap in (False, True):
    with r.observe_allocation() as allocation:
        model = torch.nn.Linear(1024, 1024, bias=False)
        if wrap:
            model = torch.nn.parallel.DistributedDataParallel(model)
        for step in range(3):
            with allocation.observing(step == 2):
                model.zero_grad(set_to_none=True)
                model(torch.ones(8, 1024)).sum().backward()
        del model
        allocation.stop()
        peaks.append(allocation.complete(r.memory()).peak_allocated)
print(json.dumps(peaks))
dist.destroy_process_group()
""")
    assert 0.99 * 4 * MIB < wrapped - plain < 1.01 * 4 * MIB


def test_what_isnt_observed_isnt_made_up_and_counting_ends() -> None:
    seen = in_a_rank("""
import ctypes
from pathlib import Path
library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
flag = ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage")
r = runtime()
with r.observe_allocation() as allocation:
    on = flag.value
    allocation.stop()
    off = flag.value
    memory = allocation.complete(r.memory())
big = torch.zeros(300 * 2**20, dtype=torch.uint8); del big
before = r.memory().peak_rss
r.reset_peak_memory()
print(json.dumps({"counting": [on, off], "peak": memory.peak_allocated, "source": memory.allocated_source,
                  "rss": [before, r.memory().peak_rss], "covers": r.facts()["peak_rss_covers"]}))
""")
    assert seen["counting"] == [True, False]
    assert seen["peak"] is None
    assert seen["source"].startswith("not measured")
    before, after = seen["rss"]
    if seen["covers"] == "measured steps":
        assert before - after > 250 * MIB
    else:
        assert after > before - MIB
