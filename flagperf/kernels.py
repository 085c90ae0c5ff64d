"""The kernel protocol of one rank: every provider at every point, in turn, checked against float64."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch

from flagperf.context import RankContext
from flagperf.kernel import KernelCase, Unsupported
from flagperf.measure.inputs import Inputs
from flagperf.measure.roofs import last_level_cache, measured_roofs
from flagperf.measure.timer import Timer, in_turn
from flagperf.schema.event import Key
from flagperf.schema.sweep import Accuracy, At, PointVerdict, Samples
from flagperf.vendor import Runtime

Function = Callable[..., Any]
_FREE = 0.8
"""Share of the free memory that a point may be predicted to need."""
_SETS = 64
"""Input sets at most."""
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|OutOfMemory", re.I)


def measure_kernels(context: RankContext, case: KernelCase) -> None:
    """Measure a trial's providers at all points and journal what was seen; one that fails doesn't stop the others."""
    runtime, journal, trial = context.runtime, context.journal, context.trial
    providers = {name: provider(context, name) for name in trial.providers}
    points = case.points()
    journal.write(Key.SWEEP, {"points": len(points), "providers": trial.providers})
    journal.write(Key.ROOFS, measured_roofs(runtime, [str(at.get("dtype", "fp32")) for at in points]))
    timer = Timer(runtime.device, runtime.synchronize)
    for at in points:
        context.barrier()
        for samples in measure_point(context, case, at, providers, timer):
            journal.write(Key.SAMPLES, samples)


def provider(context: RankContext, name: str) -> Function:
    """Return a provider's function: the case's own, or one that the vendor brings for the case's operation."""
    registries, trial = context.registries, context.trial
    manifest = registries.cases.get(trial.case)
    if name in manifest.providers:
        function: Function = registries.cases.load_entry(trial.case, manifest.providers[name].entry)
        return function
    for own in registries.vendors.get(trial.vendor).kernels:
        if own.entry and name == (own.provider or own.distribution):
            brought: Function = registries.vendors.load_entry(trial.vendor, own.entry)
            return brought
    raise LookupError(f"{trial.case} has no provider {name!r}")


def measure_point(
    context: RankContext, case: KernelCase, at: At, providers: dict[str, Function], timer: Timer
) -> Iterator[Samples]:
    """Measure providers at one point; yields each one's samples, those that couldn't be measured first."""
    runtime, trial = context.runtime, context.trial
    dims = case.dims(at)
    work = case.work(dims)
    runs: dict[str, _Run] = {}
    try:
        sets = _Sets(case, dims, trial.seed, runtime)
    except (MemoryError, RuntimeError) as error:
        if not _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        for name in providers:
            yield Samples(at=at, provider=name, verdict="too big", why=f"the inputs don't fit: {error}")
        return
    for name, function in providers.items():
        needed = case.memory(dims, name)
        if needed > (room := _FREE * free_memory(runtime) / context.local_ranks):
            why = f"it needs {needed / 2**30:,.1f} GiB beyond its inputs; {room / 2**30:,.1f} GiB are free for it"
            yield Samples(at=at, provider=name, verdict="too big", why=why, facts={"predicted_bytes": needed})
            continue
        try:
            runs[name] = _Run(case, sets, function, runtime)
        except Exception as error:  # a provider may raise anything; what it is goes into the journal
            yield Samples(at=at, provider=name, verdict=_kind(error), why=f"{type(error).__name__}: {error}"[:500])
    taken = in_turn(
        timer,
        {name: run.call for name, run in runs.items()},
        warmup=trial.protocol.warmup,
        rounds=trial.protocol.steps,
        seconds=trial.protocol.seconds,
        before=lambda name: runs[name].poison(),
    )
    for name, run in runs.items():
        rounds = taken[name]
        last = (len(rounds.seconds) * rounds.calls - 1) % len(sets)
        accuracy = worst(run.accuracy, sets.judge(rounds.result, last))
        right = accuracy.wrong == 0
        yield Samples(
            at=at,
            provider=name,
            seconds=rounds.seconds,
            calls=rounds.calls,
            clock="host" if timer.clock == "host" else "device",
            host_seconds=[] if timer.clock == "host" else rounds.host_seconds,
            uncertainty=timer.uncertainty(rounds.calls),
            first=run.first,
            flops=work.flops,
            bytes=work.bytes,
            memory=run.memory,
            accuracy=accuracy,
            verdict="valid" if right else "wrong",
            why="" if right else f"{accuracy.wrong} of {accuracy.elements} elements are outside the tolerance",
            facts={"input_sets": len(sets)},
        )


class _Sets:
    """The input sets of a point: one where the caches are to be warm, enough to overflow them where they aren't."""

    def __init__(self, case: KernelCase, dims: dict[str, Any], seed: int, runtime: Runtime) -> None:
        self.case, self.arguments = case, case.arguments(dims)
        make = Inputs(seed, str(dims.get("dtype", "fp32")), runtime.device)
        self.inputs = [case.inputs(dims, make)]
        if dims.get("cache") == "cold":
            size = sum(tensor.nbytes for tensor in self.inputs[0])
            wanted = -(-2 * last_level_cache(runtime.device) // max(size, 1)) + 1
            room = int(free_memory(runtime) / 8 // max(size, 1))
            while len(self.inputs) < min(wanted, _SETS, max(room, 1)):
                self.inputs.append(case.inputs(dims, make))
        self.tolerance = case.tolerances[str(dims.get("dtype", "fp32"))]
        self._references: dict[int, tuple[torch.Tensor, ...]] = {}
        if case.backward:
            for tensor in (tensor for several in self.inputs for tensor in several):
                tensor.requires_grad_(tensor.is_floating_point())

    def __len__(self) -> int:
        return len(self.inputs)

    def judge(self, result: Any, number: int) -> Accuracy:
        """Hold a result for the set of this number against float64."""
        if number not in self._references:
            self._references[number] = self._reference(number)
        return compare(tensors(result), self._references[number], self.tolerance)

    def _reference(self, number: int) -> tuple[torch.Tensor, ...]:
        exact = tuple(
            tensor.detach().cpu().double() if tensor.is_floating_point() else tensor.detach().cpu()
            for tensor in self.inputs[number]
        )
        if not self.case.backward:
            with torch.no_grad():
                return tensors(self.case.reference(*exact, **self.arguments))
        wanted = [tensor.requires_grad_() for tensor in exact if tensor.is_floating_point()]
        out = self.case.reference(*exact, **self.arguments)
        return torch.autograd.grad(out, wanted, upstream(out))


class _Run:
    """A provider at a point: the call to be timed, and what was seen of it before the clock started."""

    def __init__(self, case: KernelCase, sets: _Sets, function: Function, runtime: Runtime) -> None:
        self.case, self.sets, self.function = case, sets, function
        self.graphs: dict[int, tuple[Any, list[torch.Tensor], Any]] = {}
        runtime.synchronize()
        began = time.perf_counter()
        result = self.whole(0)
        runtime.synchronize()
        self.first = time.perf_counter() - began
        self.accuracy = sets.judge(result, 0)
        self.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors(result)]
        del result
        self.memory = peak_of(runtime, lambda: self.whole(0))

    def call(self, number: int) -> Any:
        """Make the call of this number: with gradients, of a graph that was made off the clock."""
        place = number % len(self.sets)
        if not self.case.backward:
            with torch.no_grad():
                return self.function(*self.sets.inputs[place], **self.sets.arguments)
        if place not in self.graphs:
            self.graphs[place] = self._graph(place)
        out, wanted, upwards = self.graphs[place]
        return torch.autograd.grad(out, wanted, upwards, retain_graph=True)

    def whole(self, number: int) -> Any:
        """Compute from the inputs on: gradients with their forward pass."""
        if not self.case.backward:
            return self.call(number)
        out, wanted, upwards = self._graph(number)
        return torch.autograd.grad(out, wanted, upwards)

    def poison(self) -> None:
        """Leave NaN where the allocator will put the results: memory that a call doesn't write then shows."""
        for shape, dtype, device in self.like:
            if dtype.is_floating_point:
                torch.full(shape, float("nan"), dtype=dtype, device=device)

    def _graph(self, place: int) -> tuple[Any, list[torch.Tensor], Any]:
        inputs = self.sets.inputs[place]
        out = self.function(*inputs, **self.sets.arguments)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        return out, wanted, upstream(out)


def upstream(out: torch.Tensor) -> torch.Tensor:
    """Return the gradient that comes from above: the same for every provider, neither constant nor zero."""
    count = out.numel()
    values = torch.arange(count, dtype=torch.float64).mul_(0.61803398875).remainder_(1.0).sub_(0.5)
    return values.reshape(out.shape).to(out.dtype).to(out.device)


def tensors(result: Any) -> tuple[torch.Tensor, ...]:
    """Return a result's tensors: one, or those of a sequence."""
    if isinstance(result, torch.Tensor):
        return (result,)
    return tuple(each for each in result if isinstance(each, torch.Tensor))


def compare(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], tolerance: tuple[float, float]) -> Accuracy:
    """Count the elements outside the tolerance; NaN and infinity are right only where the reference has them."""
    absolute, relative = tolerance
    wrong = elements = 0
    largest = magnitude = 0.0
    finite = True
    if len(got) != len(wanted):
        raise ValueError(f"{len(got)} results, not {len(wanted)}")
    for have, right in zip(got, wanted, strict=True):
        if have.shape != right.shape:
            raise ValueError(f"a result has the shape {tuple(have.shape)}, not {tuple(right.shape)}")
        # In parts, so that the float64 copies stay small beside what was measured.
        for a, b in zip(_parts(have.detach()), _parts(right), strict=True):
            a = a.cpu().to(b.dtype)
            elements += a.numel()
            wrong += int((~torch.isclose(a, b, rtol=relative, atol=absolute, equal_nan=True)).sum())
            if b.is_floating_point():
                known = torch.isfinite(b)
                away = (a[known] - b[known]).abs()
                finite = finite and bool(torch.isfinite(away).all())
                if away.numel():
                    largest = max(largest, float(away.max()))
                    magnitude = max(magnitude, float(b[known].abs().max()))
    return Accuracy(
        max_absolute=largest if finite else None,
        max_relative=largest / magnitude if finite and magnitude else (0.0 if finite else None),
        absolute=absolute,
        relative=relative,
        wrong=wrong,
        elements=elements,
    )


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor.reshape(-1), 2**22)


def worst(a: Accuracy, b: Accuracy) -> Accuracy:
    """Return the one that is further off."""

    def key(each: Accuracy) -> tuple[int, float]:
        return each.wrong, float("inf") if each.max_absolute is None else each.max_absolute

    return max(a, b, key=key)


def peak_of(runtime: Runtime, call: Callable[[], Any]) -> int | None:
    """Return the most bytes that a call held at once beyond what was there before it; None where nothing counts."""
    if runtime.device.type != "cpu":
        runtime.synchronize()
        runtime.reset_peak_memory()
        before = torch.accelerator.memory_allocated(runtime.device)
        call()
        runtime.synchronize()
        peak = runtime.memory().peak_allocated
        return None if peak is None else peak - before
    with runtime.observe_allocation() as allocation:
        with allocation.observing(True):
            call()
        allocation.stop()
        return allocation.complete(runtime.memory()).peak_allocated


def free_memory(runtime: Runtime) -> float:
    """Return the bytes that can still be allocated on the rank's device."""
    if runtime.device.type == "cpu":
        return float(psutil.virtual_memory().available)
    return float(torch.accelerator.get_memory_info(runtime.device)[0])


def _kind(error: Exception) -> PointVerdict:
    if isinstance(error, Unsupported | NotImplementedError):
        return "unsupported"
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
        return "too big"
    return "failed"
