"""How quickly the command line answers, against `python -c "import torch"`, interleaved in one run.

python benchmarks/start_up.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

FLAGPERF = str(Path(sys.executable).with_name("flagperf"))
COMMANDS = {
    "flagperf --help": [FLAGPERF, "--help"],
    "flagperf list engines": [FLAGPERF, "list", "engines"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Time each command in turn, several times, and print ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds + 1):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first fills the cache
    ratios = {name: value / medians["import torch"] for name, value in medians.items()}
    if options.json:
        print(json.dumps({"ratios": ratios, "seconds": medians, "rounds": options.rounds}))
        return
    for name, ratio in ratios.items():
        print(f"{name:24} {medians[name]:.3f} s  {ratio:.3f} of importing torch")


if __name__ == "__main__":
    main()
