"""Whose devices a run uses."""

from __future__ import annotations

from flagperf.errors import UsageError
from flagperf.registry import Registries
from flagperf.vendor import Vendor


def choose_vendor(name: str, registries: Registries) -> Vendor:
    """Return the vendor's adapter; `auto` is the accelerator that can be used here, else the CPU."""
    if name != "auto":
        vendor: Vendor = registries.vendors.adapter(name)
        usable = vendor.availability()
        if not usable.available:
            raise UsageError(
                f"The vendor {name!r} can't be used here: {usable.reason}.",
                usable.remedy or "`flagperf devices` shows what this machine has.",
            )
        return vendor
    usable_ones = _usable(registries)
    accelerators = [vendor for vendor in usable_ones if vendor.manifest.device_type != "cpu"]
    if len(accelerators) > 1:
        names = [vendor.name for vendor in accelerators]
        raise UsageError(f"This machine has devices of {' and '.join(names)}.", f"Say which: --vendor {names[0]}")
    for vendor in accelerators or usable_ones:
        return vendor
    raise UsageError("No vendor can be used here.", "`flagperf doctor` says why.")


def _usable(registries: Registries) -> list[Vendor]:
    """Vendors whose devices can be used; an adapter that fails must not keep the others from being found."""
    found = []
    for manifest in registries.vendors.all():
        try:
            vendor: Vendor = registries.vendors.adapter(manifest.name)
            if vendor.availability().available:
                found.append(vendor)
        except Exception as error:  # an adapter may raise anything
            registries.vendors.broken[manifest.name] = f"{type(error).__name__}: {error}"
    return found
