"""What telemetry costs: CPU time of its process in percent of one core, at several sampling rates.

Of the host alone, and with the cards of an NVML library in C that answers at once (tests/vendors/nvml/nvml.c), read by
the real pynvml: what a driver itself takes to answer isn't in it.

Example: python benchmarks/telemetry_cost.py --seconds 10 --json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flagperf.journal import Reader
from flagperf.schema.event import Key

NVML = Path(__file__).parent.parent / "tests" / "vendors" / "nvml" / "nvml.c"
CARD = "0 300000 1 60 95 81920 40000 1410 1593 0 0 0 1 4000 0 0 0 0\n"
"""A card as `nvml.c` reads it: 300 W, 60 °C, 95 % busy, 40,000 of 81,920 MiB in use, one process."""


def cards(folder: Path, count: int) -> dict[str, str]:
    """Compile the library; return the environment in which there are so many cards."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("There is no C compiler for the NVML library; measure the host alone with --cards 0.")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", f"-Wl,-soname,{library.name}", "-o", library, NVML], check=True
    )
    state, tool = folder / "cards.txt", folder / "nvidia-smi"
    state.write_text(CARD * count)
    tool.write_text("#!/bin/sh\nexit 9\n")  # its being on PATH is the marker of NVIDIA's driver
    tool.chmod(0o755)
    path = f"{folder}:{os.environ.get('PATH', os.defpath)}"
    return {"NVML_STATE": str(state), "LD_LIBRARY_PATH": str(folder), "PATH": path}


def sampled(journal: Path) -> int:
    """Return how many samples are in a journal."""
    return journal.read_bytes().count(b'"key":"telemetry"')


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, all threads, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def measure(interval: float, seconds: float, ranks: int, count: int) -> dict[str, Any]:
    """Watch `ranks` sleeping children for `seconds`; start-up, which is paid once, is told apart from sampling."""
    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) for _ in range(ranks)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | (cards(Path(folder), count) if count else {})
            out = Path(folder) / "telemetry.journal"
            command = [sys.executable, "-m", "flagperf.measure.telemetry", "--out", str(out)]
            command += ["--parent", str(os.getpid()), "--interval", str(interval)]
            command += ["--vendor", "nvidia" if count else "cpu"]
            process = subprocess.Popen(command, env=environment)
            while not (out.exists() and sampled(out) >= 2 and (not count or b'"devices":[' in out.read_bytes())):
                time.sleep(0.05)
            before, first = cpu_seconds(process.pid), sampled(out)
            time.sleep(seconds)
            spent, samples = cpu_seconds(process.pid) - before, sampled(out) - first
            process.terminate()
            process.wait()
            cost = next(event.value for event in Reader(out) if event.key == Key.TELEMETRY_COST)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    return {
        "rate_hz": 1 / interval,
        "percent_of_a_core": 100 * spent / samples / interval,
        "milliseconds_a_sample": 1000 * spent / samples,
        "start_up_seconds": before,
        "samples": samples,
        "missed": cost["missed"],
        "cards": count,
        "readings": cost["sources"]["devices"],
        "ranks": ranks,
        "processes_on_host": sum(name.isdigit() for name in os.listdir("/proc")),  # noqa: PTH208
    }


def main() -> None:
    """Print the cost at 1 and 10 samples a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each rate is watched")
    parser.add_argument("--ranks", type=int, default=2, help="child processes watched")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--cards", type=int, default=2, help="cards of the NVML library, 0 to 8, beside the host alone")
    options = parser.parse_args()
    sources = dict.fromkeys((0, min(options.cards, 8)))
    rows = [measure(rate, options.seconds, options.ranks, count) for count in sources for rate in (1.0, 0.1)]
    if options.json:
        print(json.dumps({"telemetry_cost": rows}))
        return
    for row in rows:
        source = f"NVML, {row['cards']} cards" if row["cards"] else "host alone"
        print(
            f"{source} at {row['rate_hz']:2.0f} Hz: {row['percent_of_a_core']:.2f} % of a core, "
            f"{row['milliseconds_a_sample']:.2f} ms a sample over {row['samples']}, missed {row['missed']}, "
            f"start-up {row['start_up_seconds']:.2f} s once"
        )


if __name__ == "__main__":
    main()
