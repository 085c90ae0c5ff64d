"""Trials of sweeps: which providers are measured side by side, at which data types."""

from __future__ import annotations

from collections.abc import Sequence

from flagperf.case import Case
from flagperf.errors import Unavailable, UnknownName, UsageError
from flagperf.plan.options import Options
from flagperf.plan.trials import Size, check_ranks, sized
from flagperf.registry import Registries, installed
from flagperf.schema.layout import Layout
from flagperf.schema.machine import Availability
from flagperf.schema.manifest import CaseManifest, ProviderManifest, Requirement
from flagperf.schema.trial import Trial
from flagperf.vendor import Vendor


def sweep_trial(name: str, options: Options, vendor: Vendor, registries: Registries) -> Trial:
    """Return the trial of a sweep, from which repetitions are made; raise UsageError or Unavailable if it can't be."""
    size = sized(name, options, registries, vendor=vendor)
    if options.layout:
        raise UsageError(f"{name} measures {size.case.kind} points, which have no layout.", "Leave --layout out.")
    ranks = options.ranks or (vendor.default_ranks() if size.case.kind == "collective" else 1)
    check_ranks(ranks, vendor, options)
    trial = Trial(
        id="",
        case=name,
        kind=size.case.kind,
        preset=options.preset,
        vendor=vendor.name,
        engine="+".join(_providers(size, options, vendor)),
        ranks=ranks,
        layout=Layout(),
        dtype=size.dtype,
        seed=size.protocol.seed,
        trial=0,
        protocol=size.protocol,
        settings=size.settings,
        metrics=size.case.metrics,
        threads=vendor.threads(ranks // options.nodes.count),
        memory_limit=options.memory_limit,
        plugins=options.plugins,
    )
    case: Case = registries.cases.load(name)(trial)
    case.check_layout()
    return trial


def provider_states(case: CaseManifest, vendor: Vendor) -> dict[str, Availability]:
    """Return every provider of a case, the vendor's own included, and whether it can be measured on these devices."""
    states = {name: _state(name, each, vendor) for name, each in case.providers.items()}
    for own in vendor.manifest.kernels:
        if case.operation in own.operations and own.entry:
            name = own.provider or own.distribution
            state = installed(name, [Requirement(distribution=own.distribution, versions="", install=own.install)])
            states.setdefault(name, state)
    return states


def _state(name: str, provider: ProviderManifest, vendor: Vendor) -> Availability:
    if provider.device_types and vendor.manifest.device_type not in provider.device_types:
        only = ", ".join(provider.device_types)
        reason = f"it works on devices of torch's type {only}, not {vendor.manifest.device_type}"
        return Availability(name=name, available=False, reason=reason)
    return installed(name, provider.requires)


def _providers(size: Size, options: Options, vendor: Vendor) -> Sequence[str]:
    """Return the providers to measure: those asked for, which must be there, or all that are."""
    states = provider_states(size.case, vendor)
    asked = [part.strip() for text in options.engines for part in text.split(",") if part.strip()]
    for name in asked:
        if name not in states:
            raise UnknownName(f"provider of {size.case.name}", name, states)
        if not states[name].available:
            remedy = states[name].remedy
            raise Unavailable(
                f"The provider {name!r} can't be measured here: {states[name].reason}.",
                f"Get it: {remedy}" if remedy else "",
            )
    if len(asked) != len(set(asked)):
        raise UsageError(f"A provider is given twice: {', '.join(asked)}.", "Give it once; rounds repeat it.")
    own = size.case.providers
    device = vendor.manifest.device_type
    rare = {name for name, each in own.items() if not each.default or device in each.optional_on}
    chosen = asked or [name for name, state in states.items() if state.available and name not in rare]
    if not chosen:
        why = "; ".join(f"{state.name}: {state.reason}" for state in states.values())
        raise Unavailable(f"No provider of {size.case.name} can be measured here: {why}")
    if options.baseline:
        if options.baseline not in chosen:
            raise UnknownName("provider of this run", options.baseline, chosen)
        chosen = [options.baseline, *(name for name in chosen if name != options.baseline)]
    return chosen
