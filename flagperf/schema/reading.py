"""What a vendor's tool or library says of its devices at one moment. `None` is what it doesn't say."""

from __future__ import annotations

from typing import Any

import msgspec


class DeviceProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that holds memory of a device."""

    pid: int
    name: str | None = None
    memory_mib: float | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One device's state. Units are in the names; no value is ever made up or carried over from another moment."""

    index: int
    name: str | None = None
    memory_total_mib: float | None = None
    memory_used_mib: float | None = None
    utilisation_pct: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    power_limit_w: float | None = None
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    uuid: str | None = None
    bus_id: str | None = None
    energy_j: float | None = None
    """Of the device's own counter, since the driver was loaded."""
    ecc_uncorrected: int | None = None
    """Errors of the memory that couldn't be corrected, since the driver was loaded."""
    xid: list[int] | None = None
    """Errors that the driver told of since the reading before, by its numbers; None where there were none."""
    throttled: list[str] | None = None
    """Why the clocks are held down, in the tool's words; empty where it says that they aren't."""
    faulty: str | None = None
    """Why the device can't be trusted, where the reading gives it away: its values are then unknown."""
    processes: list[DeviceProcess] | None = None
    facts: dict[str, Any] = {}
    """What else the vendor's tool says of it: ids by which the vendor counts, parts of a device …"""

    def known(self) -> dict[str, Any]:
        """Return what is known, as plain JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in values.items() if value is not None and value != {}}

    def filled(self, other: Reading) -> Reading:
        """Return this reading with what it leaves unknown taken from another one of the same device and moment."""
        told = {name: getattr(other, name) for name in self.__struct_fields__ if getattr(self, name) is None}
        return msgspec.structs.replace(self, **told, facts={**other.facts, **self.facts})


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """All that one source said. `error` is the source's own complaint, or why nothing could be read."""

    devices: list[Reading] = []
    error: str | None = None
    driver: str | None = None
    source: str = ""
    """Where this is from: a command line or a library."""

    def and_also(self, other: Readings) -> Readings:
        """Return these readings, with what they leave unknown taken from another source of the same moment."""
        others = {device.index: device for device in other.devices}
        return msgspec.structs.replace(
            self,
            devices=[one.filled(others[one.index]) if one.index in others else one for one in self.devices],
            driver=self.driver or other.driver,
        )
