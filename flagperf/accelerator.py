"""What every accelerator's adapter does alike: find its devices by markers, ask its tools, say what can't be used.

An adapter brings `parse`; one whose maker has a library that reads faster than the tool brings `read_library` too.
"""

from __future__ import annotations

import functools
import shlex
from typing import Any

import msgspec

from flagperf.chips import identify
from flagperf.detection import Detection, claims, detect, owner_by_name
from flagperf.parsing.text import complaint, decode
from flagperf.schema.chip import Chip
from flagperf.schema.machine import Availability, Device
from flagperf.schema.manifest import Tool
from flagperf.schema.reading import Reading, Readings
from flagperf.tools import run_tool
from flagperf.vendor import Vendor


class Accelerator(Vendor):
    """The devices of one maker, read through its tools."""

    _places: dict[int, int] | None = None
    _believed: frozenset[str] = frozenset()

    def read_library(self) -> Readings | None:
        """Return what the maker's library says, or None where there is no such library. Never raises."""
        return None

    @functools.cached_property
    def detection(self) -> Detection:
        """Which markers this host has, and whether they are this vendor's."""
        return detect(self.manifest, self.around.vendors, self.around.host)

    @functools.cached_property
    def found(self) -> Readings:
        """What was read when first asked for; `readings` reads anew."""
        return self.readings()

    def readings(self) -> Readings:
        """Read all devices now, through the library or the tools, and keep those that are surely this vendor's."""
        if not self.detection.found:
            return Readings(error=self.detection.reason)
        said = self.read_library()
        if said is None or not said.devices:
            said = self._read_tools(said)
        return self._own(said)

    def devices(self) -> list[Device]:
        """Return the devices found, with the chip each is where the table knows it."""
        return [self._device(reading) for reading in self.found.devices]

    def availability(self) -> Availability:
        """Say whether trials can run: devices that answer, and a torch that is made for them."""
        said, remedy = self.found, self.manifest.install
        if not said.devices:
            absent = not self.detection.evidence.devices()
            return Availability(name=self.name, available=False, reason=said.error or "no device found", absent=absent)
        if all(device.faulty for device in said.devices):
            return Availability(name=self.name, available=False, reason="every device is faulty")
        if self.detection.torch:
            return Availability(name=self.name, available=False, reason=self.detection.torch, remedy=remedy)
        if self.manifest.plugin and not self.around.host.has_module(self.manifest.plugin):
            reason = f"torch's plug-in {self.manifest.plugin} isn't installed"
            return Availability(name=self.name, available=False, reason=reason, remedy=remedy)
        return Availability(name=self.name, available=True, version=said.driver or "")

    def sample(self) -> list[dict[str, Any]]:
        """Return what each device says now; raise OSError with the reason where none answers.

        `visible` is its place among those that processes here see, as it was when first asked: of a device that is
        lost meanwhile it must stay.
        """
        said = self.readings()
        if not said.devices:
            raise OSError(said.error or "no device found")
        if self._places is None:
            self._places = {device.index: place for place, device in enumerate(self._visible(said.devices))}
        readings = []
        for device in said.devices:
            place = self._places.get(device.index)
            known = {key: value for key, value in device.known().items() if key != "facts"}
            readings.append(known if place is None else {**known, "visible": place})
        return readings

    def facts(self) -> dict[str, Any]:
        """Return how the devices were found and read, the driver and the chips."""
        if not self.found.devices:
            return {}
        chips = [self._chip(device) for device in self.found.devices]
        return {
            "driver": self.found.driver,
            "source": self.found.source,
            "evidence": self.detection.evidence.devices(),
            "chips": [chip.chip if chip else why for chip, why in chips],
        }

    def chip(self) -> Chip | None:
        """Return which chip the devices are, if all are the same one and the table knows it."""
        chips = [self._chip(device)[0] for device in self.found.devices]
        return chips[0] if chips and all(chip == chips[0] for chip in chips) else None

    def rated(self, dtype: str) -> float | None:
        """Return the rated dense peak of the devices, FLOP/s, if all are the same chip and a source says it."""
        chip = self.chip()
        return None if chip is None else chip.flops(dtype)

    def slots(self) -> int:
        """Return how many devices this process may use: sound ones, within what the environment makes visible."""
        return len(self._visible(self.found.devices))

    def _visible(self, devices: list[Reading]) -> list[Reading]:
        """Return the sound devices that the environment makes visible, in its order."""
        sound = [device for device in devices if not device.faulty]
        named = self.around.host.environ.get(self.manifest.visible_devices) if self.manifest.visible_devices else None
        if named is None:
            return sound
        wanted = [part.strip() for part in named.split(",") if part.strip()]
        chosen = [one for part in wanted for one in sound if part == str(one.index) or _is_uuid(part, one)]
        return list({one.index: one for one in chosen}.values())

    def _read_tools(self, before: Readings | None) -> Readings:
        """Ask the tools in their order; what none could answer is told with each one's reason."""
        problems = [before.error] if before and before.error else []
        said: Readings | None = None
        for tool in self.manifest.tools:
            if said is not None and not (tool.adds and any(_lacks(device) for device in said.devices)):
                continue
            answer = self._ask(tool)
            if not answer.devices:
                problems.append(answer.error or f"`{answer.source}` named no device")
            else:
                said = answer if said is None else said.and_also(answer)
        if said is not None:
            return said
        return Readings(error="; ".join(dict.fromkeys(problems)) or "its manifest names no tool")

    def _ask(self, tool: Tool) -> Readings:
        """Run one tool and parse what it prints."""
        source = shlex.join(tool.command)
        output = run_tool(tool.command, tool.timeout, self.around.host.environ)
        if output.problem:
            return Readings(error=output.problem, source=source)
        said = self.parse(decode(output.stdout), source)
        if said.devices and output.status == 0:
            return msgspec.structs.replace(said, source=source)
        why = said.error or complaint(decode(output.stderr)) or complaint(decode(output.stdout), any_line=True)
        if output.status != 0:
            why = f"`{source}` ended with status {output.status}" + (f": {why}" if why else "")
        # A tool that lost one card of eight says so by its status, and still tells of the seven.
        return msgspec.structs.replace(said, error=why or None, source=source)

    def _own(self, said: Readings) -> Readings:
        """Return the readings of devices that are this vendor's by name; where one isn't, none is believed."""
        vendors = [*(v for v in self.around.vendors if v.name != self.name), self.manifest]
        named = {device.name for device in said.devices if device.name}  # one that is lost may not tell it any more
        for name in (named or {""}) - self._believed:  # telemetry asks often, and weighing names takes longest
            owner = owner_by_name(name, vendors)
            if owner not in (None, self.name):
                why = f"{said.source} names a {name!r}, which is {owner}'s: this is a stand-in"
                return Readings(error=why, source=said.source)
            if not self.detection.sure and not claims(self.manifest, name):
                why = f"{said.source} names a {name!r}, and nothing else here says whose it is"
                return Readings(error=why, source=said.source)
        self._believed = self._believed | named
        return said

    def _device(self, reading: Reading) -> Device:
        chip, why = self._chip(reading)
        facts = {key: value for key, value in reading.known().items() if key not in _COLUMNS}
        facts["chip"] = chip.chip if chip else None
        facts["chip_source" if chip else "chip_unknown"] = f"{chip.source} ({chip.confidence})" if chip else why
        return Device(
            vendor=self.name,
            index=reading.index,
            name=reading.name or "unknown",
            memory_total_mib=reading.memory_total_mib,
            memory_used_mib=reading.memory_used_mib,
            driver=self.found.driver,
            state=f"faulty: {reading.faulty}" if reading.faulty else "ok",
            facts=facts,
        )

    def _chip(self, reading: Reading) -> tuple[Chip | None, str]:
        return identify(self.name, reading.name, reading.memory_total_mib, self.around.chips)


def _lacks(reading: Reading) -> bool:
    """Whether a tool left out what another may tell."""
    sought = (reading.name, reading.memory_total_mib, reading.memory_used_mib, reading.utilisation_pct, reading.power_w)
    return not reading.faulty and (None in sought or reading.temperature_c is None)


_COLUMNS = ("index", "name", "memory_total_mib", "memory_used_mib")


def _is_uuid(part: str, reading: Reading) -> bool:
    """Whether a part of the visible devices is the beginning of a device's UUID, as CUDA takes it."""
    return len(part) >= 8 and reading.uuid is not None and reading.uuid.startswith(part)
