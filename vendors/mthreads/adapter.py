"""Moore Threads, read through `mthreads-gmi`."""

from __future__ import annotations

from flagperf.accelerator import Accelerator
from flagperf.parsing.smi import smi_readings
from flagperf.schema.reading import Readings


class Mthreads(Accelerator):
    """MTT cards. The plain table has no power; `-q --json` has."""

    def parse(self, text: str, command: str = "") -> Readings:
        """Return the devices of `mthreads-gmi`'s JSON, its table or its lists."""
        return smi_readings(text, command)
