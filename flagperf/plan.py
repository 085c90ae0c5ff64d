"""Case + options → trials, in an interleaved order; what can be refused is refused here, before anything starts."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from flagperf._version import __version__
from flagperf.case import Case
from flagperf.errors import UnknownName, UsageError
from flagperf.metrics import metric
from flagperf.registry import Registries
from flagperf.schema.layout import Layout
from flagperf.schema.manifest import CaseManifest, EngineManifest, Preset, Protocol
from flagperf.schema.trial import Nodes, Run, Trial
from flagperf.settings import merged
from flagperf.vendor import Vendor


class Arm(msgspec.Struct, frozen=True):
    """One side of a comparison: an engine and the layout asked for."""

    engine: str
    layout: Layout


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; `None` leaves it to the case."""

    cases: list[str]
    preset: str = "tiny"
    engines: list[str]
    """`ddp` or `fsdp:zero=2,micro=4`."""
    layout: str = ""
    """For every engine, under what the engine's own item says."""
    vendor: str = "auto"
    ranks: int | None = None
    oversubscribe: bool = False
    trials: int | None = None
    steps: int | None = None
    warmup: int | None = None
    dtype: str | None = None
    seed: int | None = None
    settings: dict[str, Any] = {}
    timeout: float | None = None
    memory_limit: int | None = None
    launcher: str = "local"
    nodes: Nodes = Nodes()
    plugins: list[str] = []
    baseline: str | None = None


def plan(options: Options, registries: Registries, *, commit: str | None = None) -> Run:
    """Return the run that the options ask for; raise UsageError or Unavailable for one that can't be."""
    vendor = choose_vendor(options.vendor, registries)
    arms = parse_arms(options.engines, options.layout)
    registries.launchers.get(options.launcher)
    trials: list[Trial] = []
    for name in options.cases:
        trials += _trials(name, arms, vendor, options, registries, first=len(trials))
    now = datetime.now(UTC)
    return Run(
        id=f"{now:%Y%m%d-%H%M%S}-{options.cases[0].replace('/', '-')}-{options.preset}",
        created=now.isoformat(timespec="seconds"),
        command=list(sys.argv),
        flagperf=__version__,
        commit=commit,
        launcher=options.launcher,
        trials=trials,
        baseline=_baseline(options, arms, trials),
    )


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


def _baseline(options: Options, arms: Sequence[Arm], trials: Sequence[Trial]) -> str:
    """Return how the baseline is called in results: its engine, with the layout where that engine stands twice."""
    named = options.baseline or arms[0].engine
    matching = [arm for arm in arms if arm.engine == named]
    if ":" in named:
        matching = [arm for arm in arms if arm in parse_arms([named], options.layout)]
    if not matching:
        known = [f"{arm.engine}:{arm.layout}" if str(arm.layout) else arm.engine for arm in arms]
        raise UnknownName("engine of this run", named, known)
    chosen = matching[0]
    if sum(arm.engine == chosen.engine for arm in arms) == 1:
        return chosen.engine
    return trials[arms.index(chosen)].arm  # the first trials of a run are its arms in order


def choose_vendor(name: str, registries: Registries) -> Vendor:
    """Return the vendor's adapter; `auto` is the accelerator that can be used here, else the CPU."""
    if name != "auto":
        vendor: Vendor = registries.vendors.load(name)(registries.vendors.get(name))
        usable = vendor.availability()
        if not usable.available:
            raise UsageError(
                f"The vendor {name!r} can't be used here: {usable.reason}.",
                usable.remedy or "`flagperf devices` shows what this machine has.",
            )
        return vendor
    usable_ones = _usable(registries)
    accelerators = [vendor for vendor in usable_ones if vendor.manifest.device_type != "cpu"]
    for vendor in accelerators or usable_ones:
        return vendor
    raise UsageError("No vendor can be used here.", "`flagperf doctor` says why.")


def _usable(registries: Registries) -> list[Vendor]:
    """Vendors whose devices can be used; an adapter that fails must not keep the others from being found."""
    found = []
    for manifest in registries.vendors.all():
        try:
            vendor: Vendor = registries.vendors.load(manifest.name)(manifest)
            if vendor.availability().available:
                found.append(vendor)
        except Exception as error:  # an adapter may raise anything
            registries.vendors.broken[manifest.name] = f"{type(error).__name__}: {error}"
    return found


def _trials(
    name: str, arms: Sequence[Arm], vendor: Vendor, options: Options, registries: Registries, first: int
) -> list[Trial]:
    """Return one case's trials in the order A B B A A B …, so that drift of the machine falls on all arms alike."""
    manifest, preset, settings, protocol, dtype = _sized(name, options, registries)
    engines = [registries.engines.require(arm.engine) for arm in arms]
    ranks = options.ranks or (1 if all(engine.max_ranks == 1 for engine in engines) else vendor.default_ranks())
    _check_ranks(ranks, vendor, options)
    local = ranks // options.nodes.count
    for engine in engines:
        _check_engine(engine, vendor, dtype)
    layouts = [
        _layout(arm, engine, manifest, ranks, protocol, preset) for arm, engine in zip(arms, engines, strict=True)
    ]
    order = itertools.chain.from_iterable(
        [(trial, arm) for arm in (range(len(arms)) if trial % 2 == 0 else reversed(range(len(arms))))]
        for trial in range(protocol.trials)
    )
    trials = [
        Trial(
            id=f"{first + number:03d}-{arms[arm].engine}",
            case=name,
            preset=options.preset,
            vendor=vendor.name,
            engine=arms[arm].engine,
            ranks=ranks,
            layout=layouts[arm],
            dtype=dtype,
            seed=protocol.seed + trial,
            trial=trial,
            protocol=protocol,
            settings=settings,
            metrics=manifest.metrics,
            threads=vendor.threads(local),
            rated_flops=vendor.manifest.rated.get(dtype),
            memory_limit=options.memory_limit,
            plugins=options.plugins,
        )
        for number, (trial, arm) in enumerate(order)
    ]
    case = registries.cases.load(name)
    for each in trials[: len(arms)]:
        case(each).check_layout()
    return trials


def alone(name: str, options: Options, registries: Registries) -> Trial:
    """Return a preset as a trial of one rank that shards nothing: what its size is judged by."""
    _, preset, settings, protocol, dtype = _sized(name, options, registries)
    return Trial(
        id="",
        case=name,
        preset=options.preset,
        vendor="",
        engine="",
        ranks=1,
        layout=Layout(zero=0, micro=preset.micro),
        dtype=dtype,
        seed=protocol.seed,
        trial=0,
        protocol=protocol,
        settings=settings,
        metrics=[],
        threads=1,
    )


def _sized(
    name: str, options: Options, registries: Registries
) -> tuple[CaseManifest, Preset, dict[str, Any], Protocol, str]:
    """Return a case at the size asked for: its manifest and preset, and settings, protocol and dtype as they'd run."""
    manifest = registries.cases.get(name)
    if options.preset not in manifest.presets:
        raise UnknownName(f"preset of {name}", options.preset, manifest.presets)
    preset = manifest.presets[options.preset]
    protocol = _protocol(manifest, preset, options)
    case: type[Case] = registries.cases.load(name)
    own = {key: value for key, value in options.settings.items() if key != "protocol"}
    settings = case.check(merged(merged(manifest.settings, preset.settings), own))
    dtype = options.dtype or preset.dtype
    if dtype not in manifest.dtypes:
        raise UnknownName(f"dtype of {name}", dtype, manifest.dtypes)
    for each in manifest.metrics:
        metric(each)
    return manifest, preset, settings, protocol, dtype


def _protocol(manifest: CaseManifest, preset: Preset, options: Options) -> Protocol:
    named = {key: getattr(options, key) for key in ("trials", "steps", "warmup", "seed", "timeout")}
    over = {key: value for key, value in named.items() if value is not None}
    asked = options.settings.get("protocol", {})
    if not isinstance(asked, dict):
        raise UsageError("protocol is a group of settings.", "For example --set protocol.global_batch=16")
    whole = {**msgspec.to_builtins(manifest.protocol), **preset.protocol, **asked, **over}
    try:
        protocol = msgspec.convert(whole, Protocol)
    except msgspec.ValidationError as error:
        for key in whole:
            if key not in Protocol.__struct_fields__:
                raise UnknownName("setting of the protocol", key, Protocol.__struct_fields__) from None
        raise UsageError(f"The protocol can't be used: {error}") from None
    if not 0.01 <= protocol.telemetry <= 3600:
        raise UsageError(f"protocol.telemetry is {protocol.telemetry}; it is 0.01 to 3600 seconds.")
    for key, least in {"warmup": 2, "steps": 1, "trials": 1, "global_batch": 1, "validation": 1, "seed": 0}.items():
        if getattr(protocol, key) < least:
            raise UsageError(
                f"{key} is {getattr(protocol, key)}; it must be at least {least}.",
                "Memory is observed on the last warm-up step, when the optimizer's state has been made by another."
                if key == "warmup"
                else "",
            )
    for key in ("minimum_effect", "loss_band", "timeout"):
        if not 0 < getattr(protocol, key) < math.inf:
            raise UsageError(f"{key} is {getattr(protocol, key)}; it must be a number above 0.")
    return protocol


def _check_ranks(ranks: int, vendor: Vendor, options: Options) -> None:
    nodes = options.nodes
    if ranks < 1 or ranks % nodes.count:
        raise UsageError(f"{ranks} ranks can't be spread evenly over {nodes.count} nodes.")
    host, _, port = nodes.rendezvous.rpartition(":")
    if nodes.count > 1 and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(
            "--nodes needs --rdzv HOST:PORT, an address of the first node.", "For example --rdzv node0:29500"
        )
    if not 0 <= nodes.index < nodes.count:
        raise UsageError(f"--node-rank is {nodes.index}; with {nodes.count} nodes it is 0 to {nodes.count - 1}.")
    here, slots = ranks // nodes.count, vendor.slots()
    if here > slots and not options.oversubscribe:
        unit = "cores" if vendor.manifest.device_type == "cpu" else "devices"
        raise UsageError(
            f"{here} ranks on this machine, which has {slots} {unit} to give to {vendor.name}.",
            f"Use --ranks {slots * nodes.count}, or --oversubscribe to let ranks share (their speed then says little).",
        )


def _check_engine(engine: EngineManifest, vendor: Vendor, dtype: str) -> None:
    """Refuse a data type or a vendor that the engine can't work with."""
    if dtype not in engine.dtypes:
        raise UsageError(
            f"The engine {engine.name!r} doesn't train in {dtype}.", f"It can do {', '.join(engine.dtypes)}: --dtype."
        )
    for operation in engine.collectives:
        if operation in vendor.manifest.lacking:
            raise UsageError(
                f"The engine {engine.name!r} needs {operation}, which {vendor.manifest.backend} on {vendor.name} "
                f"can't do: {vendor.manifest.lacking[operation]}.",
                "Choose an engine that does without it: `flagperf list engines`.",
            )


def _layout(
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
        if all(int(getattr(layout, key) or 0) >= least for key, least in refusal.least.items()):
            asked = ",".join(f"{key}={int(getattr(layout, key))}" for key in refusal.least)
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
