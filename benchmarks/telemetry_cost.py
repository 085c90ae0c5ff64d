"""What telemetry costs: CPU time of its process in percent of one core, at several sampling rates.

Example: python benchmarks/telemetry_cost.py --seconds 10 --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flagperf.journal import Reader
from flagperf.schema.event import Key


def measure(interval: float, seconds: float, ranks: int) -> dict[str, Any]:
    """Watch `ranks` sleeping children for `seconds`; start-up, which is paid once, is told apart from sampling."""
    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) for _ in range(ranks)]
    costs = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Two lengths of the same thing: their difference has no start-up in it.
            for length in (0.2, seconds):
                out = Path(folder) / f"{length}.journal"
                command = [sys.executable, "-m", "flagperf.measure.telemetry", "--out", str(out)]
                command += ["--parent", str(os.getpid()), "--interval", str(interval), "--vendor", "cpu"]
                process = subprocess.Popen(command)
                while not out.exists():
                    time.sleep(0.01)
                time.sleep(length)
                process.terminate()
                process.wait()
                costs.append(next(event.value for event in Reader(out) if event.key == Key.TELEMETRY_COST))
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    short, long = costs
    spent = long["cpu_seconds"] - short["cpu_seconds"]
    samples = long["samples"] - short["samples"]
    return {
        "rate_hz": 1 / interval,
        "percent_of_a_core": 100 * spent / (long["wall_seconds"] - short["wall_seconds"]),
        "milliseconds_a_sample": 1000 * spent / samples,
        "start_up_seconds": short["cpu_seconds"],
        "samples": samples,
        "missed": long["missed"],
        "ranks": ranks,
        "processes_on_host": sum(name.isdigit() for name in os.listdir("/proc")),  # noqa: PTH208
    }


def main() -> None:
    """Print the cost at 1 and 10 samples a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each rate is watched")
    parser.add_argument("--ranks", type=int, default=2, help="child processes watched")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = [measure(interval, options.seconds, options.ranks) for interval in (1.0, 0.1)]
    if options.json:
        print(json.dumps({"telemetry_cost": rows}))
        return
    for row in rows:
        print(
            f"{row['rate_hz']:4.0f} Hz: {row['percent_of_a_core']:.2f} % of a core, "
            f"{row['milliseconds_a_sample']:.2f} ms a sample over {row['samples']}, missed {row['missed']}, "
            f"start-up {row['start_up_seconds']:.2f} s once"
        )


if __name__ == "__main__":
    main()
