"""Looks at the simulated device in a process of its own, since torch can't forget it: prints one JSON object.

`python simchip_device.py` prints what each function here returns, by its name, or how it failed.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from flagperf.vendors.simchip import torch_device as simchip
from flagperf.vendors.simchip.readings import Meter
from flagperf.vendors.simchip.settings import Fault

DEVICE = torch.device("simchip", 0)
LOOKS: dict[str, Callable[[], Any]] = {}


def look(function: Callable[[], Any]) -> Callable[[], Any]:
    LOOKS[function.__name__] = function
    return function


def refused(call: Callable[[], Any]) -> list[str]:
    """Return the kind and the text of the error that a call ends in."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


@look
def devices() -> Any:
    here = torch.accelerator.current_accelerator()
    second = torch.ones(2, device="simchip:1") + 1
    with torch.accelerator.device_index(1):
        inside = str(torch.empty(1, device="simchip").device)
    return [str(here), torch.accelerator.device_count(), str(second.device), inside, torch.simchip.current_device()]


@look
def memory() -> Any:
    """Known blocks come and go; the peak is that of the time since the reset."""
    count = torch.accelerator.memory_allocated
    before = count()
    gone = torch.empty(30 * 2**20, dtype=torch.uint8, device=DEVICE)
    del gone
    torch.accelerator.reset_peak_memory_stats()
    base = torch.accelerator.max_memory_allocated() - before
    one = torch.empty(1000, 1001, device=DEVICE)
    view = one.t()[3:]
    two = one + 1  # made by an operator
    held = count() - before
    peak = torch.accelerator.max_memory_allocated() - before
    del one
    kept = count() - before  # the view keeps it
    del view, two
    left = count() - before
    free, total = torch.accelerator.get_memory_info()
    reserved = torch.accelerator.memory_reserved()
    torch.accelerator.empty_cache()
    given_back = reserved - torch.accelerator.memory_reserved()
    other = torch.accelerator.memory_allocated(1)
    return {
        "base": base,
        "held": held,
        "peak": peak,
        "kept": kept,
        "left": left,
        "free": free,
        "total": total,
        "reserved": reserved,
        "given_back": given_back,
        "other": other,
    }


@look
def resized_storage() -> Any:
    """FSDP gives memory back and takes it again so."""
    tensor = torch.ones(1000, device=DEVICE)
    sizes = [torch.accelerator.memory_allocated()]
    tensor.untyped_storage().resize_(0)
    sizes.append(torch.accelerator.memory_allocated())
    tensor.untyped_storage().resize_(4000)
    sizes.append(torch.accelerator.memory_allocated())
    return [size - sizes[1] for size in sizes]


@look
def out_of_memory() -> Any:
    return [
        refused(lambda: torch.empty(2**31, dtype=torch.uint8, device=DEVICE)),
        torch.ones(2, device=DEVICE).sum().item(),
    ]


@look
def clock() -> Any:
    """Work of 0.2 s: what a timer sees that doesn't wait, what one sees that does, and what events say."""
    first, second = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
    torch.accelerator.synchronize()
    began = time.perf_counter()
    first.record()
    simchip.occupy(0.2)
    second.record()
    careless = time.perf_counter() - began
    early = refused(lambda: first.elapsed_time(second))
    torch.accelerator.synchronize()
    careful = time.perf_counter() - began
    return {"careless": careless, "careful": careful, "events": first.elapsed_time(second) / 1e3, "early": early}


@look
def streams() -> Any:
    """Two streams work at once; one waits for another only when told to."""
    other = torch.Stream(device=DEVICE)
    main = torch.accelerator.current_stream()
    start, ends = torch.Event(enable_timing=True), [torch.Event(enable_timing=True) for _ in range(3)]
    start.record()
    with other:
        simchip.occupy(0.1)
        ends[0].record(other)
    simchip.occupy(0.05)
    ends[1].record(main)
    main.wait_stream(other)
    ends[2].record(main)
    torch.accelerator.synchronize()
    return [start.elapsed_time(end) / 1e3 for end in ends]


@look
def speeds() -> Any:
    """Seconds that the virtual clock gives to 10 operators, a matrix product and a copy, above the host's own."""

    def took(work: Callable[[], Any]) -> float:
        first, second = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
        torch.accelerator.synchronize()
        first.record()
        work()
        second.record()
        torch.accelerator.synchronize()
        return first.elapsed_time(second) / 1e3

    x, big = torch.ones(64, 64, device=DEVICE), torch.empty(2**20, dtype=torch.uint8, device=DEVICE)
    simchip.configure(delay=0.02)
    ten = took(lambda: [x.neg() for _ in range(10)])
    simchip.configure(delay=0.0, flops=1e6)
    product = took(lambda: x @ x)
    simchip.configure(flops=0.0, bytes=1e7)
    copied = took(lambda: big.clone())
    simchip.configure(bytes=0.0)
    return [ten, product, copied]


@look
def faults() -> Any:
    x = torch.ones(2, 2, device=DEVICE)
    simchip.configure(faults=[Fault(kind="wrong", operator="mm", factor=1.1, after=simchip.operators() + 1)])
    products = [(x @ x)[0, 0].item() for _ in range(2)]
    simchip.configure(faults=[Fault(kind="out_of_memory", after=simchip.operators() + 1)])
    full = [refused(lambda: x + 1)[0] for _ in range(3)]
    simchip.configure(faults=[])
    return {"wrong": products, "full": full, "after": (x + 1).sum().item()}


@look
def strangers() -> Any:
    """A tensor left on the CPU or on another device is refused; a number is not."""
    x = torch.ones(3, device=DEVICE)
    return [
        *(refused(lambda: x + torch.ones(3))[1], refused(lambda: x + torch.ones(3, device="simchip:1"))[1]),
        (x + torch.tensor(1.0)).sum().item(),
    ]


@look
def seeds() -> Any:
    torch.manual_seed(1)
    state = torch.simchip.get_rng_state()
    one = torch.rand(5, device=DEVICE)
    torch.simchip.set_rng_state(state)
    again = torch.rand(5, device=DEVICE)
    mask = torch.nn.functional.dropout(torch.ones(1000, device=DEVICE), 0.5)
    return [one.equal(again), one.equal(torch.rand(5, device=DEVICE)), (mask > 0).float().mean().item()]


@look
def training() -> Any:
    """Losses and gradient norms of a few steps of a small decoder, on the CPU and on the device, fp32 and autocast."""

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(64, 32)
            self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(32) for _ in range(4))
            self.qkv = torch.nn.ModuleList(torch.nn.Linear(32, 96, bias=False) for _ in range(2))
            self.mlp = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.SiLU(), torch.nn.Linear(64, 32)) for _ in range(2)
            )

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens[:, :-1])
            turn = torch.polar(torch.ones(15, 4), torch.outer(torch.arange(15.0), torch.logspace(0, -1, 4))).to(
                x.device
            )
            for layer in range(2):
                q, k, v = (
                    part.unflatten(-1, (4, 8)).transpose(1, 2)
                    for part in self.qkv[layer](self.norms[2 * layer](x)).chunk(3, -1)
                )
                q, k = (
                    torch.view_as_real(torch.view_as_complex(part.float().unflatten(-1, (4, 2)).contiguous()) * turn)
                    .flatten(-2)
                    .to(v.dtype)
                    for part in (q, k)
                )
                mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + mixed.transpose(1, 2).flatten(-2)
                x = x + self.mlp[layer](self.norms[2 * layer + 1](x))
            logits = x @ self.embed.weight.t()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def losses(device: str, narrow: bool) -> list[float]:
        torch.manual_seed(0)
        model = Decoder()
        data = torch.randint(64, (5, 4, 16))
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        found = []
        for batch in data.to(device):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=narrow):
                loss = model(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found += [loss.item(), norm.item()]
        return found

    return {str(narrow): [losses(device, narrow) for device in ("cpu", "simchip")] for narrow in (False, True)}


OPERATORS = """
    add mul div sum mean cumsum softmax log_softmax nn.functional.layer_norm nn.functional.cross_entropy matmul bmm
    addmm baddbmm einsum nn.functional.linear nn.functional.embedding nn.functional.silu nn.functional.gelu where
    gather scatter_add index_select index_add index_put masked_fill masked_select nonzero sort topk cat stack split
    chunk unbind transpose permute as_strided narrow view_as_complex flip roll tril triu repeat expand amax argmax
    norm linalg.vector_norm linalg.qr linalg.solve clamp pow rsqrt sgn conj real isnan unique searchsorted
    nn.functional.conv2d nn.functional.max_pool2d nn.functional.scaled_dot_product_attention nn.functional.one_hot
    nn.functional.batch_norm nn.functional.pad cdist logsumexp diff histc arange zeros_like resize_as_
"""


@look
def operators() -> Any:
    """Operators whose results or gradients aren't the CPU's, or aren't on the device; and how many were looked at."""
    from torch.testing._internal.common_methods_invocations import op_db

    names, found, wrong = set(OPERATORS.split()), set(), {}
    for op in op_db:
        if op.name not in names or op.name in found:
            continue
        found.add(op.name)
        dtype = next(t for t in (torch.float32, torch.complex64, torch.int64) if t in op.dtypes)
        grad = op.supports_autograd and dtype is not torch.int64
        try:
            for number, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=grad)):
                if number == 3:
                    break
                _compare(op, sample)
        except Exception as error:
            wrong[op.name] = f"{type(error).__name__}: {error}"[:300]
    return {"missing": sorted(names - found), "wrong": wrong}


def _compare(op: Any, sample: Any) -> None:
    moved: dict[torch.Tensor, torch.Tensor] = {}  # what is given twice must be one tensor there, too

    def move(value: Any) -> Any:
        if not _is_tensor(value):
            return value
        if value not in moved:
            moved[value] = value.detach().to(DEVICE).requires_grad_(value.requires_grad)
        return moved[value]

    there = sample.transform(move)
    if "device" in there.kwargs:
        there.kwargs["device"] = DEVICE
    here, far = (list(_tensors(op(one.input, *one.args, **one.kwargs))) for one in (sample, there))
    assert len(here) == len(far) and all(x.device == DEVICE for x in far), [str(x.device) for x in far]
    close = {"equal_nan": True, "rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close([x.cpu() for x in far], here, **close)
    leaves = [x for x in moved if x.requires_grad]
    trained = [(x, y) for x, y in zip(here, far, strict=True) if x.requires_grad]
    if trained and leaves:
        sums = [torch.stack([x.abs().sum() for x in side]).sum() for side in zip(*trained, strict=True)]
        ours = torch.autograd.grad(sums[0], leaves, allow_unused=True)
        theirs = torch.autograd.grad(sums[1], [moved[x] for x in leaves], allow_unused=True)
        for x, y in zip(ours, theirs, strict=True):
            assert (x is None) == (y is None)
            if x is not None and y is not None:
                torch.testing.assert_close(y.cpu(), x, **close)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _tensors(value: Any) -> Any:
    if _is_tensor(value):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


@look
def reading() -> Any:
    """What telemetry reads of this process while it works."""
    meter = Meter(simchip._settings)
    block = torch.ones(3 * 2**20, dtype=torch.uint8, device=DEVICE)
    meter.read()
    simchip.occupy(0.1)
    torch.accelerator.synchronize()
    both = [reading.known() for reading in meter.read()]
    del block
    return both


@look
def lost() -> Any:
    """Last: what is lost stays so."""
    x = torch.ones(2, device="simchip:1")
    simchip.configure(faults=[Fault(kind="lost", device=1, after=simchip.operators(1) + 2)])
    told = [refused(lambda: x + 1) for _ in range(4)]
    waiting = refused(lambda: torch.accelerator.synchronize(torch.device("simchip:1")))
    simchip.configure(faults=[])
    faulty = Meter(simchip._settings).read()[1].faulty
    return {"told": told, "waiting": waiting, "other": torch.ones(2, device=DEVICE).sum().item(), "faulty": faulty}


if __name__ == "__main__":
    seen: dict[str, Any] = {}
    for name, function in LOOKS.items():
        try:
            seen[name] = {"value": function()}
        except Exception:
            seen[name] = {"error": traceback.format_exc()}
    print(json.dumps(seen))
