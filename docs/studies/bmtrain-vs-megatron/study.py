"""Measures BMTrain and Megatron + DeepSpeed over links of several bandwidths, by `flagperf run --link`.

`sudo make study`, or `python docs/studies/bmtrain-vs-megatron/study.py [--quick]` as root on Linux with iproute2.
Each of two ranks has cores and a network namespace of its own, with a link that is shaped both ways. Three questions:
how much does overlapping communication bring at which bandwidth; which layout of each engine is the fastest within
which memory; and what is the largest ratio that any of this gives. Writes `measured.json` beside itself, from which
`tables.py` makes the tables of the text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flagperf import links
from flagperf.collect.store import Store
from flagperf.errors import FlagPerfError

HERE = Path(__file__).parent
BANDWIDTHS = [None, 1000, 500]
"""Mbit/s each way; None: as fast as the machine copies."""
WITH_LAYOUTS = [None, 500]
"""Where the layouts are measured; slower ones take hours: micro-batches of 1 gather all weights often."""
OVERLAP = [
    "bmtrain:zero=3,overlap=1",
    "bmtrain:zero=3,overlap=0",
    "bmtrain:zero=2,overlap=1",
    "bmtrain:zero=2,overlap=0",
]
LAYOUTS = [
    *("bmtrain:zero=2,micro=8", "bmtrain:zero=3,micro=8", "bmtrain:zero=3,micro=4", "bmtrain:zero=3,micro=2"),
    *("bmtrain:zero=3,micro=1", "bmtrain:zero=3,micro=8,recompute=1", "bmtrain:zero=3,micro=1,recompute=1"),
    "bmtrain:zero=3,micro=1,recompute=1,offload=1",
    *("megatron-deepspeed:zero=2,micro=8", "megatron-deepspeed:zero=2,micro=4", "megatron-deepspeed:zero=2,micro=2"),
    *("megatron-deepspeed:zero=2,micro=1", "megatron-deepspeed:zero=2,micro=8,recompute=1"),
    *("megatron-deepspeed:zero=2,micro=1,recompute=1", "megatron-deepspeed:zero=2,tp=2,micro=8"),
    *("megatron-deepspeed:zero=2,tp=2,micro=1", "megatron-deepspeed:zero=2,tp=2,micro=8,recompute=1"),
    "megatron-deepspeed:zero=2,tp=2,micro=1,recompute=1",
]
BATCH = 16


def main() -> int:
    """Measure, and write what was measured."""
    options = _options()
    try:
        links.check()
    except FlagPerfError as error:
        print(error, file=sys.stderr)
        return 2
    bandwidths = [mbit or None for mbit in options.mbit or ()] or BANDWIDTHS
    measured: dict[str, list[dict[str, Any]]] = {"overlap": [], "layouts": []}
    if options.mbit and options.output.exists():  # the others stay as they were measured
        for question, rows in json.loads(options.output.read_text("utf-8")).items():
            again = question in options.question
            measured[question] = [row for row in rows if not (again and row["mbit"] in bandwidths)]
    with tempfile.TemporaryDirectory() as scratch:
        for bandwidth in bandwidths:
            for question, arms, trials in (("overlap", OVERLAP, 3), ("layouts", LAYOUTS, 1)):
                if question not in options.question or (question == "layouts" and bandwidth not in WITH_LAYOUTS):
                    continue
                print(f"{question} at {bandwidth or 'full'} Mbit/s …", flush=True)
                folder = Path(scratch) / f"{question}-{bandwidth or 0}"
                for row in measure(folder, arms, bandwidth, 1 if options.quick else trials, options.steps):
                    measured[question].append({"mbit": bandwidth, **row})
                options.output.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    return 0


def measure(folder: Path, arms: Sequence[str], mbit: int | None, trials: int, steps: int) -> Iterator[dict[str, Any]]:
    """Run the arms on two ranks with a link of this bandwidth between them; yield what each trial came to."""
    command = [
        *(sys.executable, "-m", "flagperf", "run", "aquila/pretrain", "--preset", "tiny", "--ranks", "2"),
        *("--link", "full" if mbit is None else f"{mbit}mbit", "--trials", str(trials), "--steps", str(steps)),
        *("--warmup", "3", "--keep-going", "--out", str(folder), "--set", "data.source=synthetic"),
        *("--set", f"protocol.global_batch={BATCH}", "--set", "protocol.validation=2"),
        *(part for arm in arms for part in ("--engine", arm)),
    ]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # what failed is in the results
    for result in Store([folder]).results():
        yield {
            "arm": f"{result.engine}:{result.layout}",
            "trial": result.trial,
            "verdict": result.verdict,
            "why": "; ".join(reason.message for reason in result.reasons),
            **{name: value.value for name, value in result.metrics.items() if name in KEPT},
        }


KEPT = {
    *("tokens_per_second", "step_time", "memory_peak_allocated", "loss_final"),
    *("communication_time", "communication_exposed"),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one trial of each")
    parser.add_argument("--mbit", type=int, action="append", help="this bandwidth alone, 0 for no limit; repeat it")
    parser.add_argument("--question", nargs="+", choices=["overlap", "layouts"], default=["overlap", "layouts"])
    parser.add_argument("--steps", type=int, default=6, help="measured steps a trial")
    parser.add_argument("--output", type=Path, default=HERE / "measured.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
