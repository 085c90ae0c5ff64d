"""simchip as a vendor: found where SIMCHIP_DEVICES says so, read like any maker's chip."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from flagperf.accelerator import Accelerator
from flagperf.schema.machine import Availability
from flagperf.schema.reading import Reading, Readings
from flagperf.vendor import Runtime

from . import build
from .readings import Meter
from .settings import Settings, read_settings


class SimChip(Accelerator):
    """The simulated devices that the environment asks for."""

    @functools.cached_property
    def settings(self) -> Settings:
        """What the devices are like."""
        return read_settings(self.around.host.environ)

    @functools.cached_property
    def _meter(self) -> Meter:
        return Meter(self.settings)

    def read_library(self) -> Readings:
        """Read what processes tell of their devices, as one would ask a maker's library."""
        return Readings(devices=self._meter.read(), driver="simulated", source="simchip's shared memory")

    def parse(self, text: str, command: str = "") -> Readings:
        """Return what `python -m flagperf.vendors.simchip.smi` printed."""
        try:
            return Readings(devices=msgspec.json.decode(text, type=list[Reading]), source=command)
        except ValueError as error:
            return Readings(error=f"not a list of readings: {error}", source=command)

    def availability(self) -> Availability:
        """Say whether trials can run: also whether the device is built or can be."""
        if self.found.devices and not build.library().exists() and build.compiler() is None:
            reason = "its device has to be built, and there is no C++ compiler"
            return Availability(name=self.name, available=False, reason=reason, remedy=self.manifest.install)
        return super().availability()

    def facts(self) -> dict[str, Any]:
        """Return the devices' facts and settings, and first of all that they are simulated."""
        told = msgspec.to_builtins(self.settings)
        return {"simulated": "no such chip exists: speeds say nothing", **super().facts(), "settings": told}

    def runtime(self, local_rank: int, local_ranks: int, threads: int) -> SimRuntime:
        """Return the runtime of one rank, whose operators are computed by `threads` threads of the host."""
        return SimRuntime(self, local_rank, threads)


class SimRuntime(Runtime):
    """A rank's device: torch's device-neutral interfaces do for it."""

    def __init__(self, vendor: SimChip, local_rank: int, threads: int) -> None:
        import torch

        super().__init__(vendor.manifest, local_rank % max(1, vendor.settings.devices))
        torch.set_num_threads(threads)
        self._settings = vendor.settings

    def facts(self) -> dict[str, Any]:
        """Return that the device is simulated, and how."""
        return {"simulated": self._settings.name}
