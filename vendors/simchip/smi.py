"""Prints the state of the simulated devices as JSON: `python -m flagperf.vendors.simchip.smi [SECONDS]`.

Utilisation, power and temperature are means over the seconds, 0.2 unless said.
"""

from __future__ import annotations

import sys
import time

import msgspec

from .readings import Meter
from .settings import read_settings


def main(arguments: list[str]) -> int:
    """Read twice and print the second reading."""
    meter = Meter(read_settings())
    meter.read()
    time.sleep(float(arguments[0]) if arguments else 0.2)
    print(msgspec.json.format(msgspec.json.encode(meter.read()), indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
