"""Kernel cases under pytest-benchmark: the clock that it reads, and what surrounds the calls that it times."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, reduce
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from flagperf.collect.sweeps import point_of, shown
from flagperf.errors import UsageError
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.schema.sweep import At, Roofs, Samples
from flagperf.schema.trial import Trial
from flagperf.settings import merged, parse_assignment

if TYPE_CHECKING:
    from flagperf.kernels import InputSets
    from flagperf.measure.timer import Timer
    from flagperf.vendor import Runtime, Vendor


def home(path: Path) -> list[Path]:
    """Return the folder of plug-ins that a manifest lies in; nothing for one that is installed or in no such folder."""
    installed = {Path(each).resolve() for each in importlib.import_module("flagperf.cases").__path__}
    return [place.parent for place in path.resolve().parents[:2] if place.name == "cases" and place not in installed]


class RoundClock:
    """Seconds that rounds have taken; whoever times a round reads it before and after.

    Every reading waits for the device, and what is done to make the next round ready is off the clock.
    """

    def __init__(self) -> None:
        self.between: Callable[[], None] = _nothing
        """Called by every reading, off the clock."""
        self.timer: Timer | None = None
        """Of the device; without one the clock is the host's."""
        self._total = 0.0
        self._began = perf_counter()
        self._start: Any = None

    def read(self) -> float:
        """Return the seconds of all rounds so far."""
        self._total += self._stop()
        self.between()
        if self.timer is not None:
            self.timer.synchronize()
            if self.timer.clock == "device":
                self._start = self._event()
        self._began = perf_counter()
        return self._total

    def _stop(self) -> float:
        ended = perf_counter()
        if self._start is None or self.timer is None:
            return ended - self._began
        stop = self._event()
        self.timer.synchronize()
        return float(self._start.elapsed_time(stop)) / 1e3

    def _event(self) -> Any:
        import torch

        event = torch.Event(self.timer.device if self.timer else None, enable_timing=True)
        event.record()
        return event


def _nothing() -> None:
    return None


class Bench:
    """Measures the kernel cases of a session on one device, opened when the first one is measured."""

    def __init__(
        self, folders: Sequence[Path], *, preset: str, vendor: str, providers: str, settings: Sequence[str]
    ) -> None:
        self.registries = Registries(folders)
        self.folders, self.preset, self.vendor = folders, preset, vendor
        self.providers = providers
        self.settings: dict[str, Any] = reduce(merged, map(parse_assignment, settings), {})
        self.clock = RoundClock()
        self._roofs: dict[str, Roofs] = {}
        self._sets: tuple[object, InputSets] | None = None
        self._adapter: Vendor | None = None

    def plan(self, case: str, path: Path) -> Trial:
        """Return the trial that `flagperf run` would make of a case; raise FlagPerfError if it can't be."""
        cases = self.registries.cases
        if case not in cases.names() and str(path) not in cases.broken:
            raise UsageError(
                f"{path} lies in no folder of cases.", "Put it into a folder called cases, or into one in that."
            )
        if (place := cases.place(case)).resolve() != path.resolve():
            raise UsageError(f"The case {case!r} of {path} is found at {place}.", "Rename one of them.")
        engines = [self.providers] if self.providers else []
        options = Options(cases=[case], preset=self.preset, vendor=self.vendor, engines=engines, settings=self.settings)
        trial = plan(options, self.registries).trials[0]
        self._adapter = self._adapter or self.registries.vendors.adapter(trial.vendor)
        return trial

    def points(self, trial: Trial) -> list[At]:
        """Return a trial's points."""
        points: list[At] = self._case(trial).points()
        return points

    def group(self, trial: Trial, at: At) -> str:
        """Return what a point is called: its providers stand in one table."""
        return f"{trial.case} {shown(at)}"

    def devices(self) -> dict[str, Any]:
        """Return the vendor with what its devices are called."""
        adapter = self._adapter
        return {} if adapter is None else {adapter.name: [device.name for device in adapter.devices()]}

    def measure(self, benchmark: Any, trial: Trial, at: At, provider: str) -> None:
        """Have pytest-benchmark time a provider at a point; skips or fails the test where there is nothing to time."""
        from flagperf.kernels import ProviderRun, check_room, not_measured, provider_of

        function = provider_of(self.registries, trial, provider)
        try:
            sets = self._inputs(trial, at)
            check_room(self._runtime, sets, provider)
            run = ProviderRun(provider, sets, function)
        except Exception as error:  # a provider may raise anything
            told = not_measured(at, provider, error)
            benchmark.skipped = True  # that it wasn't used is no fault of the test's
            if told.verdict == "failed":
                raise
            pytest.skip(f"{told.verdict}: {told.why}")
        result, number, turned = None, -1, -1

        def call() -> None:
            nonlocal result, number
            number += 1
            result = run.call(number)

        def between() -> None:
            nonlocal turned
            if number > turned:  # a round has been made since
                turned = number
                run.turn(entered)

        with sets.grad_mode(), ExitStack() as entered:
            run.turn(entered)
            self.clock.between = between
            try:
                benchmark(call)
            finally:
                self.clock.between = _nothing
        samples = run.judged(result, number)
        if benchmark.stats is not None:
            samples = self._timed(samples, benchmark)
            roofs = self._measured_roofs(sets.dtype)
            benchmark.extra_info.update(_told(trial, samples, roofs))
        if samples.verdict != "valid":
            benchmark.has_error = True  # it takes part in no table and no file
            pytest.fail(f"{provider} is wrong at {shown(at)}: {samples.why}", pytrace=False)

    def _timed(self, samples: Samples, benchmark: Any) -> Samples:
        timer, calls = self._timer, benchmark.stats.iterations
        return msgspec.structs.replace(
            samples,
            seconds=list(benchmark.stats.stats.data),
            calls=calls,
            clock=timer.clock,
            uncertainty=timer.uncertainty(calls),
        )

    def _case(self, trial: Trial) -> Any:
        return self.registries.cases.load(trial.case)(trial)

    def _inputs(self, trial: Trial, at: At) -> InputSets:
        """Return a point's inputs: those of the item before, where it was of the same point."""
        from flagperf.kernels import InputSets

        key = (trial, at)
        if self._sets is None or self._sets[0] != key:
            self._sets = None  # before others are made
            _ = self._timer
            self._sets = (key, InputSets(self._case(trial), at, trial.seed, self._runtime))
        return self._sets[1]

    @cached_property
    def _runtime(self) -> Runtime:
        adapter = self._adapter
        assert adapter is not None, "nothing is measured that wasn't planned"
        os.environ.update(adapter.manifest.variables(""))
        return adapter.runtime(0, 1, adapter.threads(1))

    @cached_property
    def _timer(self) -> Timer:
        """The device's timer; from now on the clock reads it, and its overhead is that of pytest-benchmark's loop."""
        from flagperf.kernels import Rotation, kernel_timer

        timer = self.clock.timer = kernel_timer(self._runtime)
        empty, calls = Rotation([_nothing] * 2, 1), 2000
        result, number = None, -1

        def call() -> None:
            nonlocal result, number
            number += 1
            result = empty(number)

        def loop() -> float:
            began = perf_counter()
            for _ in range(calls):
                call(*())
            return perf_counter() - began

        timer.overhead = median(loop() for _ in range(11)) / calls
        return timer

    def _measured_roofs(self, dtype: str) -> Roofs:
        from flagperf.measure.roofs import measured_roofs

        if dtype not in self._roofs:
            self._roofs[dtype] = measured_roofs(self._runtime, [dtype])
        return self._roofs[dtype]


def _told(trial: Trial, samples: Samples, roofs: Roofs) -> dict[str, Any]:
    """Return what goes into pytest-benchmark's JSON: metrics for people, and all that importing it needs."""
    point = point_of([samples], [roofs])
    metrics = {f"{name} ({value.unit})": value.value for name, value in point.metrics.items()}
    apart = msgspec.structs.replace(samples, seconds=[])  # they're in pytest-benchmark's own data
    return {
        **metrics,
        **({"bound": point.bound} if point.bound else {}),
        "flagperf": msgspec.to_builtins({"trial": trial, "samples": apart, "roofs": roofs}),
    }
