"""The table of chips, and which of them a device is: by its name and memory, exactly or not at all."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from flagperf.errors import PluginError
from flagperf.schema.chip import Chip

TABLE = "chips.toml"
"""Its name, in an adapter's folder or beside the folders of several."""

_LEAST, _MOST = 0.86, 1.075
"""A device's memory as its tool tells it, over the rated one: less where ECC or firmware takes some, more where the
rated gigabytes are binary ones (2^30 is 1.074 · 10^9)."""


def read_table(folder: Path) -> list[Chip]:
    """Return the chips of a folder's table, none without one; raise PluginError for one that can't be read."""
    path = folder / TABLE
    if not path.is_file():
        return []
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, list[Chip]]).get("chips", [])
    except (OSError, ValueError) as error:  # TOML and validation errors are ValueErrors
        raise PluginError(f"The table of chips {path} can't be read: {error}", "Mend it.") from error


def identify(vendor: str, name: str | None, memory_mib: float | None, chips: Sequence[Chip]) -> tuple[Chip | None, str]:
    """Return the chip that a device is, or None and why that can't be said."""
    if name is None:
        return None, "its name isn't known"
    plain = " ".join(name.lower().split())
    called = [chip for chip in chips if chip.vendor == vendor and any(fnmatchcase(plain, n) for n in chip.names)]
    if not called:
        return None, f"no chip in the table is called {name!r}"
    fitting = [chip for chip in called if _fits(chip, memory_mib)]
    if not fitting:
        sizes = ", ".join(f"{chip.chip} with {chip.memory_gb:g} GB" for chip in called)
        return None, f"{name!r} has {memory_mib or 0:,.0f} MiB, but the table has {sizes}"
    if len(fitting) > 1:
        return None, f"{name!r} may be {' or '.join(chip.chip for chip in fitting)}"
    return fitting[0], ""


def _fits(chip: Chip, memory_mib: float | None) -> bool:
    if memory_mib is None or chip.memory_gb is None:
        return True
    return _LEAST <= memory_mib * 2**20 * chip.devices / (chip.memory_gb * 1e9) <= _MOST
