"""Trials of inference cases: engines under scenarios."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from flagperf.case import Case
from flagperf.errors import UnknownName, UsageError
from flagperf.plan.arms import check_engine
from flagperf.plan.options import Options
from flagperf.plan.trials import Size, check_ranks, sized
from flagperf.registry import Registries
from flagperf.schema.contest import Arm
from flagperf.schema.inference import Scenario, told
from flagperf.schema.layout import Layout
from flagperf.schema.trial import Trial
from flagperf.vendor import Vendor

if TYPE_CHECKING:
    from flagperf.inference.engine import InferenceEngine


def inference_templates(
    name: str, arms: Sequence[Arm], options: Options, vendor: Vendor, registries: Registries
) -> Iterator[list[Trial]]:
    """Yield a scenario's trials, one an engine, from which repetitions are made; raise UsageError where they can't be.

    Trials of one scenario are interleaved with each other: they are what is compared.
    """
    size = sized(name, options, registries, vendor=vendor)
    scale = 1.0 if options.scale is None else options.scale
    if not 0 < scale <= 1 or math.isnan(scale):
        raise UsageError(f"--scale is {scale:g}; it is above 0, and at most 1.", "For example --scale 0.01")
    if (options.ranks or 1) != 1:
        raise UsageError(f"{name} runs on one rank; --ranks {options.ranks} was given.", "Leave --ranks out.")
    check_ranks(1, vendor, options)
    for scenario in _scenarios(size, options):
        yield [_template(arm, scenario, scale, size, vendor, options, registries) for arm in arms]


def _template(
    arm: Arm, scenario: Scenario, scale: float, size: Size, vendor: Vendor, options: Options, registries: Registries
) -> Trial:
    engine = registries.engines.get(arm.engine)
    case = size.case
    if engine.kind != case.kind:
        raise UsageError(f"The engine {engine.name!r} runs {engine.kind} cases; {case.name} is an {case.kind} case.")
    if case.task not in engine.tasks:
        raise UsageError(f"The engine {engine.name!r} can't {case.task}.", "Choose another: `flagperf list engines`.")
    if arm.layout != Layout():
        raise UsageError(f"The engine {engine.name!r} takes no layout; {arm} was asked for.")
    runs: type[InferenceEngine] = registries.engines.load(arm.engine)  # says what is missing before anything starts
    check_engine(engine, vendor, size.dtype)
    trial = Trial(
        id="",
        case=case.name,
        kind=case.kind,
        preset=options.preset,
        vendor=vendor.name,
        engine=arm.engine,
        ranks=1,
        layout=Layout(),
        dtype=size.dtype,
        seed=size.protocol.seed,
        trial=0,
        scenario=scenario,
        scale=scale,
        protocol=size.protocol,
        settings=size.settings,
        metrics=told(scenario, case.metrics),
        threads=vendor.threads(1),
        memory_limit=options.memory_limit,
        plugins=options.plugins,
    )
    made: Case = registries.cases.load(case.name)(trial)
    made.check_layout()
    runs.check(trial)
    return trial


def _scenarios(size: Size, options: Options) -> list[Scenario]:
    """Return the scenarios asked for, or the case's own."""
    case = size.case
    asked = options.scenarios or list(map(str, case.scenario))
    if asked == ["all"]:
        asked = list(map(str, case.scenarios))
    for name in asked:
        if name not in case.scenarios:
            raise UnknownName(f"scenario of {case.name}", name, map(str, case.scenarios))
    if len(asked) != len(set(asked)):
        raise UsageError(f"A scenario is given twice: {', '.join(asked)}.", "Give it once; --trials repeats it.")
    return cast(list[Scenario], asked)
