"""The kernel protocol of one rank: every provider at every point, in turn, checked against float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import msgspec
import psutil
import torch

from flagperf.context import RankContext
from flagperf.kernel import KernelCase, Unsupported
from flagperf.measure.inputs import DTYPES, Inputs
from flagperf.measure.memory import short_of_memory
from flagperf.measure.roofs import last_level_cache, measured_roofs
from flagperf.measure.timer import Rounds, Timer, in_turn
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.sweep import Accuracy, At, PointVerdict, Samples
from flagperf.schema.trial import Trial
from flagperf.vendor import Runtime

Function = Callable[..., Any]
_FREE = 0.8
"""Share of the free memory that a point may be predicted to need."""
_SETS = 1024
"""Input sets at most."""


def measure_kernels(context: RankContext, case: KernelCase) -> None:
    """Measure a trial's providers at all points and journal what was seen; one that fails doesn't stop the others."""
    runtime, journal, trial = context.runtime, context.journal, context.trial
    providers = {name: provider_of(context.registries, trial, name) for name in trial.providers}
    points = case.points()
    journal.write(Key.SWEEP, {"points": len(points), "providers": trial.providers})
    journal.write(Key.ROOFS, measured_roofs(runtime, [str(at.get("dtype", "fp32")) for at in points]))
    timer = kernel_timer(runtime)
    for at in points:
        context.barrier()
        for samples in measure_point(context, case, at, providers, timer):
            journal.write(Key.SAMPLES, samples)


def provider_of(registries: Registries, trial: Trial, name: str) -> Function:
    """Return a provider's function: the case's own, or one that the vendor brings for the case's operation."""
    manifest = registries.cases.get(trial.case)
    if name in manifest.providers:
        function: Function = registries.cases.load_entry(trial.case, manifest.providers[name].entry)
        return function
    for own in registries.vendors.get(trial.vendor).kernels:
        if own.entry and manifest.operation in own.operations and name == (own.provider or own.distribution):
            brought: Function = registries.vendors.load_entry(trial.vendor, own.entry)
            return brought
    raise LookupError(f"{trial.case} has no provider {name!r}")


def kernel_timer(runtime: Runtime) -> Timer:
    """Return a timer whose overhead has in it what choosing a call's inputs takes."""
    timer = Timer(runtime.device, runtime.synchronize)
    empty = Rotation([partial(_nothing, None)] * 2, 1)
    timer.overhead = median(timer.round(empty, 2000).host_seconds for _ in range(11))
    return timer


def _nothing(argument: None) -> None:
    return None


def measure_point(
    context: RankContext, case: KernelCase, at: At, providers: dict[str, Function], timer: Timer
) -> Iterator[Samples]:
    """Measure providers at one point; yields each one's samples, those that couldn't be measured first."""
    protocol = context.trial.protocol
    runs: dict[str, ProviderRun] = {}
    try:
        sets = InputSets(case, at, context.trial.seed, context.runtime)
    except Exception as error:
        if _kind(error) != "too big":
            raise
        for name in providers:
            yield Samples(at=at, provider=name, verdict="too big", why=f"the inputs don't fit: {error}")
        return
    for name, function in providers.items():
        try:
            check_room(context.runtime, sets, name, context.local_ranks)
            runs[name] = ProviderRun(name, sets, function)
        except Exception as error:  # a provider may raise anything; what it is goes into the journal
            yield not_measured(at, name, error)
    taken: dict[str, Rounds] = {}
    while runs and not taken:
        try:
            with sets.grad_mode(), ExitStack() as entered:
                taken = in_turn(
                    timer,
                    {name: run.call for name, run in runs.items()},
                    warmup=protocol.warmup,
                    rounds=protocol.steps,
                    seconds=protocol.seconds,
                    before=lambda name: runs[name].turn(entered),
                )
        except Exception as error:  # the others begin again without it
            failed = [name for name, run in runs.items() if run.call.failed]
            if not failed:
                raise
            for name in failed:
                del runs[name]
                yield not_measured(at, name, error)
    for name, run in runs.items():
        rounds = taken[name]
        try:
            samples = run.judged(rounds.result, len(rounds.seconds) * rounds.calls - 1)
        except Exception as error:
            yield not_measured(at, name, error)
            continue
        yield msgspec.structs.replace(
            samples,
            seconds=rounds.seconds,
            calls=rounds.calls,
            clock=timer.clock,
            host_seconds=[] if timer.clock == "host" else rounds.host_seconds,
            uncertainty=timer.uncertainty(rounds.calls),
        )


class DoesNotFit(Exception):
    """Raised where a provider needs more memory than there is, by what its case predicts."""


def check_room(runtime: Runtime, sets: InputSets, provider: str, ranks: int = 1) -> None:
    """Raise DoesNotFit where a provider is predicted to need more memory than is free for each of the host's ranks."""
    needed = sets.kernel.memory(sets.dims, provider)
    if needed > (room := _FREE * free_memory(runtime) / ranks):
        raise DoesNotFit(f"it needs {needed / 2**30:,.1f} GiB beyond its inputs; {room / 2**30:,.1f} GiB are free")


def not_measured(at: At, provider: str, error: Exception) -> Samples:
    """Return what there is to say of a provider that raised an error."""
    why = str(error) if isinstance(error, Unsupported | DoesNotFit) else f"{type(error).__name__}: {error}"
    return Samples(at=at, provider=provider, verdict=_kind(error), why=why[:500])


class InputSets:
    """The input sets of a point: two where the caches are to be warm, enough to overflow them where they aren't.

    A round's calls are given one of the two, and the next round's the other one, so that what a provider kept of
    earlier calls is no right answer. Cold ones take turns with every call; those after the second are copies.
    """

    def __init__(self, case: KernelCase, at: At, seed: int, runtime: Runtime) -> None:
        self.at, self.runtime = at, runtime
        self.dims = dims = case.dims(at)
        self.kernel = kernel = case.kernel(dims)
        self.arguments = kernel.arguments(dims)
        self.work = kernel.work(dims)
        self.dtype = dtype = str(dims.get("dtype", "fp32"))
        self._check_room(DTYPES[dtype].itemsize)
        self.tolerance = kernel.tolerances[dtype]
        self.cold = dims.get("cache") == "cold"
        make = Inputs(seed, dtype, runtime.device)
        self.inputs = [kernel.inputs(dims, make)]
        size = max(1, sum(tensor.nbytes for tensor in self.inputs[0]))
        wanted = -(-2 * last_level_cache(runtime.device) // size) + 1 if self.cold else 2
        room = int(free_memory(runtime) / 8 // size)
        for number in range(1, min(max(wanted, 2), _SETS, max(room, 1))):
            copied = [tensor.clone() for tensor in self.inputs[number - 2]] if number > 1 else None
            self.inputs.append(tuple(copied) if copied else kernel.inputs(dims, make))
        self.facts = {"input_sets": len(self), "input_bytes": size * len(self)}
        self._references: dict[int, tuple[torch.Tensor, ...]] = {}
        if kernel.backward:
            for tensor in (tensor for several in self.inputs for tensor in several):
                tensor.requires_grad_(tensor.is_floating_point())

    def __len__(self) -> int:
        return len(self.inputs)

    def _check_room(self, itemsize: int) -> None:
        """Raise DoesNotFit where inputs and results can't all be there, or not in float64 on the host."""
        size, exact = self.work.bytes, self.work.bytes * 8 / itemsize
        if size > _FREE * free_memory(self.runtime) or exact > _FREE * psutil.virtual_memory().available:
            told = f"{size / 2**30:,.1f} GiB, {exact / 2**30:,.1f} GiB in float64 on the host"
            raise DoesNotFit(f"inputs and results are {told}")

    def grad_mode(self) -> AbstractContextManager[object]:
        """Return the context that calls are made in."""
        return torch.set_grad_enabled(self.kernel.backward)

    def judge(self, result: Any, number: int, place: int | None = None) -> Accuracy:
        """Hold a result for the set of this number, which lay in another one's place if that is said, to float64."""
        inputs = self.inputs[number if place is None else place]
        told = self.kernel.comparable(result, inputs, self.arguments)
        return compare(tensors(told), self.reference(number), self.tolerance)

    def reference(self, number: int) -> tuple[torch.Tensor, ...]:
        """Return the right result for the set of this number, computed once; copies have the first two's."""
        number %= 2
        if number not in self._references:
            self._references[number] = self._reference(number)
        return self._references[number]

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Have the first two sets' values in each other's place: a result kept by address is wrong then."""
        for number in range(2):
            self.reference(number)
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for a, b in zip(*self.inputs[:2], strict=True):
            kept = a.detach().clone()
            a.data.copy_(b.data)
            b.data.copy_(kept)

    def _reference(self, number: int) -> tuple[torch.Tensor, ...]:
        exact = tuple(
            tensor.detach().cpu().double() if tensor.is_floating_point() else tensor.detach().cpu()
            for tensor in self.inputs[number]
        )
        if not self.kernel.backward:
            with torch.no_grad():
                return tensors(self.kernel.reference(*exact, **self.arguments))
        with torch.enable_grad():
            wanted = [tensor.requires_grad_() for tensor in exact if tensor.is_floating_point()]
            out = self.kernel.reference(*exact, **self.arguments)
            return torch.autograd.grad(out, wanted, upstream(out))


class Rotation:
    """The calls of one provider, one an input set, of which every call or every round takes the next."""

    def __init__(self, calls: Sequence[Callable[[], Any]], step: int) -> None:
        self.calls, self.step, self.offset = calls, step, 0
        self.failed = False

    def __call__(self, number: int) -> Any:
        """Make the call of this number."""
        try:
            return self.calls[(self.offset + self.step * number) % len(self.calls)]()
        except Exception:
            self.failed = True
            raise

    def place(self, number: int) -> int:
        """Return which input set that call is given in this round."""
        return (self.offset + self.step * number) % len(self.calls)


class ProviderRun:
    """A provider at a point: the call to be timed, and what was seen of it before the clock started."""

    def __init__(self, provider: str, sets: InputSets, function: Function) -> None:
        self.provider, self.sets = provider, sets
        self.function = sets.kernel.bind(function, sets.inputs[0], sets.arguments)
        self.around: Callable[[], AbstractContextManager[object]] = getattr(self.function, "around", nullcontext)
        """What a round is made in."""
        runtime = sets.runtime
        with sets.grad_mode(), self.around():
            runtime.synchronize()
            began = time.perf_counter()
            result = self._whole(0)
            runtime.synchronize()
            self.first = time.perf_counter() - began
            self.accuracy = sets.judge(result, 0)
            self.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors(result)]
            del result
            self.memory = peak_of(runtime, lambda: self._whole(0))
            self.call = Rotation([self._prepared(place) for place in range(len(sets))], int(sets.cold))
            """What is timed: of gradients, for a graph that was made off the clock."""

    def turn(self, entered: ExitStack) -> None:
        """Before a round, off the clock: enter what it's made in, take the other inputs, leave NaN for the results.

        Memory that a call doesn't write shows then. Two blocks, as the last result is there while the next is made.
        """
        entered.close()
        entered.enter_context(self.around())
        self.call.offset += 1 - self.call.step
        held = []
        for shape, dtype, device in self.like:
            if dtype.is_floating_point:
                held += [torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(2)]

    def judged(self, result: Any, number: int) -> Samples:
        """Return samples without times, with the judgement of the last call's result; `number` is that call's."""
        sets = self.sets
        accuracy = worst(self.accuracy, sets.judge(result, self.call.place(number)))
        if accuracy.wrong == 0 and len(sets) > 1:
            with sets.grad_mode(), self.around(), sets.exchanged():
                accuracy = worst(accuracy, sets.judge(self._whole(0), 1, place=0))
        right = accuracy.wrong == 0
        return Samples(
            at=sets.at,
            provider=self.provider,
            first=self.first,
            flops=sets.work.flops,
            bytes=sets.work.bytes,
            memory=self.memory,
            accuracy=accuracy,
            verdict="valid" if right else "wrong",
            why="" if right else f"{accuracy.wrong} of {accuracy.elements} elements are outside the tolerance",
            facts=sets.facts,
        )

    def _prepared(self, place: int) -> Callable[[], Any]:
        if not self.sets.kernel.backward:
            return partial(self.function, *self.sets.inputs[place], **self.sets.arguments)
        out, wanted, upwards = self._graph(place)
        return partial(torch.autograd.grad, out, wanted, upwards, retain_graph=True)

    def _whole(self, place: int) -> Any:
        """Compute from the inputs on: gradients with their forward pass."""
        if not self.sets.kernel.backward:
            return self._prepared(place)()
        return torch.autograd.grad(*self._graph(place))

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
    if isinstance(error, DoesNotFit) or short_of_memory(error):
        return "too big"
    return "failed"
