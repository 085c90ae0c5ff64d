"""Engines with their layouts: read, completed by what the engine and the preset choose, or refused with the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flagperf.errors import UsageError
from flagperf.schema.contest import Arm
from flagperf.schema.layout import Layout
from flagperf.schema.manifest import CaseManifest, EngineManifest, Preset
from flagperf.schema.protocol import Protocol
from flagperf.vendor import Vendor


def parse_arms(engines: Sequence[str], layout: str) -> list[Arm]:
    """Read `ddp,fsdp:zero=2,micro=4` (and repetitions of it) into arms.

    A part with `=` and no `:` goes on with the layout of the engine before it.
    """
    items: list[str] = []
    for part in (part.strip() for text in engines for part in text.split(",")):
        if "=" in part and ":" not in part:
            if not items:
                raise UsageError(f"--engine begins with a layout, {part!r}.", "For example --engine ddp,fsdp:zero=2")
            items[-1] += ("," if ":" in items[-1] else ":") + part
        elif part:
            items.append(part)
    arms = []
    for item in items:
        name, _, own = item.partition(":")
        keys = {part.partition("=")[0].strip() for part in own.split(",")}
        common = [part for part in layout.split(",") if part.partition("=")[0].strip() not in keys]
        arm = Arm(name.strip(), Layout.parse(",".join([*common, own])))
        if arm in arms:
            raise UsageError(f"The engine {item!r} is given twice.", "Give it once; --trials repeats it.")
        arms.append(arm)
    if not arms:
        raise UsageError("No engine was given.", "For example --engine ddp,fsdp")
    return arms


def check_engine(engine: EngineManifest, vendor: Vendor, dtype: str) -> None:
    """Refuse a data type or a vendor that the engine can't work with."""
    if dtype not in engine.dtypes:
        raise UsageError(
            f"The engine {engine.name!r} doesn't train in {dtype}.", f"It can do {', '.join(engine.dtypes)}: --dtype."
        )
    if dtype in vendor.manifest.limits:
        raise UsageError(
            f"{vendor.name} can't train in {dtype}: {vendor.manifest.limits[dtype]}.", "Choose another: --dtype."
        )
    for operation in engine.collectives:
        if operation in vendor.manifest.lacking:
            raise UsageError(
                f"The engine {engine.name!r} needs {operation}, which {vendor.manifest.backend} on {vendor.name} "
                f"can't do: {vendor.manifest.lacking[operation]}.",
                "Choose an engine that does without it: `flagperf list engines`.",
            )


def complete(
    arm: Arm, engine: EngineManifest, case: CaseManifest, ranks: int, protocol: Protocol, preset: Preset
) -> Layout:
    """Return the arm's layout with the engine's and the preset's choices filled in, or say why it can't be."""
    if engine.kind != case.kind:
        raise UsageError(f"The engine {engine.name!r} runs {engine.kind} cases; {case.name} is a {case.kind} case.")
    if engine.max_ranks is not None and ranks > engine.max_ranks:
        raise UsageError(
            f"The engine {engine.name!r} takes at most {engine.max_ranks} rank; {ranks} were asked for.",
            f"Use --ranks {engine.max_ranks} with it, or another engine: `flagperf list engines`.",
        )
    default = Layout()
    values: dict[str, Any] = {}
    for key in Layout.__struct_fields__:
        value = getattr(arm.layout, key)
        rule = engine.layout.get(key)
        if value is None and rule is not None:
            value = rule.default
        if key != "micro" and value is not None:
            allowed = [int(x) for x in rule.values] if rule else [int(getattr(default, key) or 0)]
            if int(value) not in allowed:
                why = (rule.why if rule else "") or f"it has no {key} of its own"
                nearest = min(allowed, key=lambda x: abs(x - int(value)))
                raise UsageError(
                    f"The engine {engine.name!r} can't do {key}={int(value)}: {why}.",
                    f"The nearest it can do is {key}={nearest}.",
                )
        values[key] = value
    layout = Layout(**values)
    for refusal in engine.refused:
        chosen = {key: int(getattr(layout, key) or 0) for key in (*refusal.least, *refusal.most)}
        if all(chosen[key] >= least for key, least in refusal.least.items()) and all(
            chosen[key] <= most for key, most in refusal.most.items()
        ):
            asked = ",".join(f"{key}={value}" for key, value in chosen.items())
            raise UsageError(
                f"The engine {engine.name!r} can't do {asked}: {refusal.why}.",
                f"The nearest it can do is {refusal.instead}.",
            )
    if ranks % layout.model_parallel:
        raise UsageError(
            f"{ranks} ranks can't be divided into groups of tp·pp = {layout.model_parallel}.",
            f"Use --ranks {layout.model_parallel * max(1, ranks // layout.model_parallel)}.",
        )
    groups = ranks // layout.model_parallel
    if protocol.global_batch % groups or protocol.validation % groups:
        raise UsageError(
            f"A global batch of {protocol.global_batch} and {protocol.validation} validation sequences "
            f"can't be divided over {groups} data-parallel groups.",
            f"For example --set protocol.global_batch={groups * max(1, protocol.global_batch // groups)} "
            f"--set protocol.validation={groups * max(1, protocol.validation // groups)}.",
        )
    share = protocol.global_batch // groups
    micro = layout.micro or next(size for size in range(min(preset.micro, share), 0, -1) if share % size == 0)
    if share % micro:
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        raise UsageError(
            f"micro={micro} doesn't divide the {share} sequences that a data-parallel group takes a step.",
            f"It can be {', '.join(map(str, divisors))}.",
        )
    return msgspec.structs.replace(layout, micro=micro)
