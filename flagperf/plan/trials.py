"""Trials: sized by case and preset, completed for an arm, repeated in an interleaved order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from flagperf import links
from flagperf.case import Case
from flagperf.errors import UnknownName, UsageError
from flagperf.metrics import metric
from flagperf.plan.arms import check_engine, complete
from flagperf.plan.options import Options
from flagperf.registry import Registries
from flagperf.schema.contest import Arm
from flagperf.schema.layout import Layout
from flagperf.schema.manifest import CaseManifest, Preset
from flagperf.schema.protocol import Protocol
from flagperf.schema.trial import Trial
from flagperf.settings import merged
from flagperf.vendor import Vendor


class Size(NamedTuple):
    """A case at the size asked for."""

    case: CaseManifest
    preset: Preset
    settings: dict[str, Any]
    protocol: Protocol
    dtype: str


def sized(
    name: str,
    options: Options,
    registries: Registries,
    protocol: dict[str, Any] | None = None,
    vendor: Vendor | None = None,
) -> Size:
    """Return a case at the size asked for; `protocol` goes over the preset's, and the options over that.

    What the vendor chooses for the case goes over the preset's, too.
    """
    manifest = registries.cases.get(name)
    if options.preset not in manifest.presets:
        raise UnknownName(f"preset of {name}", options.preset, manifest.presets)
    preset = manifest.presets[options.preset]
    if vendor is not None and (own := vendor.manifest.cases.get(name)) is not None:
        preset = msgspec.structs.replace(preset, micro=own.micro or preset.micro, dtype=own.dtype or preset.dtype)
    rules = _protocol(manifest, preset, protocol or {}, options)
    case: type[Case] = registries.cases.load(name)
    asked = {key: value for key, value in options.settings.items() if key != "protocol"}
    proper = merged(manifest.settings, preset.settings)
    if options.dtype and "dtype" in proper.get("sweep", {}):  # a sweep's data types are an axis
        proper = merged(proper, {"sweep": {"dtype": options.dtype.split(",")}})
    settings = case.check(merged(proper, asked))
    dtype = options.dtype or preset.dtype
    swept = settings["sweep"].get("dtype", []) if "sweep" in settings else [dtype]
    for each in swept:
        if each not in manifest.dtypes:
            raise UnknownName(f"dtype of {name}", str(each), manifest.dtypes)
    dtype = "+".join(map(str, swept))
    for each in manifest.metrics:
        metric(each)
    return Size(manifest, preset, settings, rules, dtype)


def _protocol(manifest: CaseManifest, preset: Preset, contest: dict[str, Any], options: Options) -> Protocol:
    named = {key: getattr(options, key) for key in ("trials", "steps", "warmup", "seed", "timeout")}
    over = {key: value for key, value in named.items() if value is not None}
    asked = options.settings.get("protocol", {})
    if not isinstance(asked, dict):
        raise UsageError("protocol is a group of settings.", "For example --set protocol.global_batch=16")
    whole = {**msgspec.to_builtins(manifest.protocol), **preset.protocol, **contest, **asked, **over}
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


def check_ranks(ranks: int, vendor: Vendor, options: Options) -> None:
    """Raise UsageError for a number of ranks that this machine or these nodes can't have."""
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


def check_link(vendor: Vendor, options: Options, registries: Registries) -> None:
    """Raise UsageError or Unavailable where links can't be shaped as asked for."""
    if options.link is None:
        return
    if options.nodes.count > 1 or not registries.launchers.get(options.launcher).links:
        raise UsageError(
            "--link gives each rank of one machine a link of its own; ranks on several hosts have real ones.",
            "Leave out --link, or --nodes and --launcher.",
        )
    if not vendor.manifest.sockets:
        raise UsageError(
            f"{vendor.manifest.backend}, by which {vendor.name} devices talk, has other ways than the host's network.",
            "--link is for --vendor cpu, and for others whose manifest says `sockets = true`.",
        )
    with links.network(1, options.link):  # says what the kernel lacks before anything is started
        pass


def template(arm: Arm, size: Size, vendor: Vendor, ranks: int, options: Options, registries: Registries) -> Trial:
    """Return an arm's trial, nothing left open, from which repetitions are made; raise UsageError if it can't be."""
    engine = registries.engines.require(arm.engine)
    check_engine(engine, vendor, size.dtype)
    trial = Trial(
        id="",
        case=size.case.name,
        preset=options.preset,
        vendor=vendor.name,
        engine=arm.engine,
        ranks=ranks,
        layout=complete(arm, engine, size.case, ranks, size.protocol, size.preset),
        dtype=size.dtype,
        seed=size.protocol.seed,
        trial=0,
        protocol=size.protocol,
        settings=size.settings,
        metrics=size.case.metrics,
        threads=vendor.threads(ranks // options.nodes.count),
        rated_flops=vendor.rated(size.dtype),
        memory_limit=options.memory_limit,
        plugins=options.plugins,
    )
    case: Case = registries.cases.load(size.case.name)(trial)
    case.check_layout()
    return trial


def rank_count(arms: Sequence[Arm], vendor: Vendor, options: Options, registries: Registries) -> int:
    """Return how many ranks all arms get; raise UsageError for a number that this machine or these nodes can't have."""
    engines = [registries.engines.get(arm.engine) for arm in arms]
    ranks = options.ranks or (1 if all(engine.max_ranks == 1 for engine in engines) else vendor.default_ranks())
    check_ranks(ranks, vendor, options)
    return ranks


def interleaved(templates: Sequence[Trial], first: int) -> list[Trial]:
    """Repeat arms in the order A B B A A B …, so that drift of the machine falls on all alike; ids count from `first`.

    Trials with the same number have the same seed.
    """
    order: list[tuple[int, Trial]] = []
    for number in range(templates[0].protocol.trials):
        order += [(number, each) for each in (templates if number % 2 == 0 else reversed(templates))]
    return [
        msgspec.structs.replace(
            each, id=trial_id(first + place, each), trial=number, seed=each.protocol.seed + number, purpose="measure"
        )
        for place, (number, each) in enumerate(order)
    ]


def trial_id(place: int, trial: Trial) -> str:
    """Return the name of the trial at this place of a run."""
    what = [plain(trial.case)] if trial.swept else [trial.engine, *([trial.scenario] if trial.scenario else [])]
    return "-".join([f"{place:03d}", *what])


def plain(case: str) -> str:
    """Return a case's name, or a pattern of names, as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", case.replace("*", "all"))


def alone(name: str, options: Options, registries: Registries) -> Trial:
    """Return a preset as a trial of one rank that shards nothing: what its size is judged by."""
    size = sized(name, options, registries)
    return Trial(
        id="",
        case=name,
        preset=options.preset,
        vendor="",
        engine="",
        ranks=1,
        layout=Layout(zero=0, micro=size.preset.micro),
        dtype=size.dtype,
        seed=size.protocol.seed,
        trial=0,
        protocol=size.protocol,
        settings=size.settings,
        metrics=[],
        threads=1,
    )
