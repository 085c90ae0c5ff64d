"""Measures BMTrain and Megatron + DeepSpeed over links of several bandwidths, between two network namespaces.

`sudo make study`, or `python docs/studies/bmtrain-vs-megatron/study.py [--quick]` as root on Linux with iproute2.
Each "host" is a namespace with one rank on cores of its own; `tc tbf` shapes the link between them both ways. Three
questions: how much does overlapping communication bring at which bandwidth; which layout of each engine is the fastest
within which memory; and what is the largest ratio that any of this gives. Writes `measured.json` beside itself, from
which `tables.py` makes the tables of the text.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flagperf.collect.store import Store

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
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMES = ("flagperf-a", "flagperf-b")
BATCH = 16


def main() -> int:
    """Measure, and write what was measured."""
    options = _options()
    if missing := [tool for tool in ("ip", "tc", "taskset") if shutil.which(tool) is None]:
        print(f"{', '.join(missing)} missing: apt-get install iproute2 util-linux", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("Network namespaces need root.", file=sys.stderr)
        return 2
    bandwidths = [mbit or None for mbit in options.mbit or ()] or BANDWIDTHS
    measured: dict[str, list[dict[str, Any]]] = {"overlap": [], "layouts": []}
    if options.mbit and options.output.exists():  # the others stay as they were measured
        for question, rows in json.loads(options.output.read_text("utf-8")).items():
            again = question in options.question
            measured[question] = [row for row in rows if not (again and row["mbit"] in bandwidths)]
    with tempfile.TemporaryDirectory() as scratch:
        for bandwidth in bandwidths:
            with link(bandwidth):
                for question, arms, trials in (("overlap", OVERLAP, 3), ("layouts", LAYOUTS, 1)):
                    if question not in options.question or (question == "layouts" and bandwidth not in WITH_LAYOUTS):
                        continue
                    print(f"{question} at {bandwidth or 'full'} Mbit/s …", flush=True)
                    folder = Path(scratch) / f"{question}-{bandwidth or 0}"
                    for row in measure(folder, arms, 1 if options.quick else trials, options.steps):
                        measured[question].append({"mbit": bandwidth, **row})
                    options.output.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    return 0


@contextmanager
def link(mbit: int | None) -> Iterator[None]:
    """Have two namespaces with a link of this bandwidth between them."""
    _remove()
    try:
        for name in NAMES:
            _ip("netns", "add", name)
        _ip(
            "link",
            "add",
            "flagperf0",
            "netns",
            NAMES[0],
            "type",
            "veth",
            "peer",
            "name",
            "flagperf0",
            "netns",
            NAMES[1],
        )
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "flagperf0")
            for device in ("lo", "flagperf0"):
                _ip("-n", name, "link", "set", device, "up")
            if mbit is not None:
                shaped = ("rate", f"{mbit}mbit", "burst", "256kb", "latency", "200ms")
                subprocess.run(
                    ["tc", "-n", name, "qdisc", "add", "dev", "flagperf0", "root", "tbf", *shaped], check=True
                )
        yield
    finally:
        _remove()


def _remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def measure(folder: Path, arms: Sequence[str], trials: int, steps: int) -> Iterator[dict[str, Any]]:
    """Run the arms on both hosts; yield what each trial came to."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    shares = (cores[:half], cores[half:]) if half else (cores, cores)
    command = [
        *(sys.executable, "-m", "flagperf", "run", "aquila/pretrain", "--preset", "tiny", "--ranks", "2"),
        *("--nodes", "2", "--rdzv", f"{ADDRESSES[0]}:29555", "--trials", str(trials), "--steps", str(steps)),
        *("--warmup", "3", "--keep-going", "--out", str(folder), "--set", "data.source=synthetic"),
        *("--set", f"protocol.global_batch={BATCH}", "--set", "protocol.validation=2"),
        *(part for arm in arms for part in ("--engine", arm)),
    ]
    hosts = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", name, "taskset", "-c", ",".join(map(str, share))),
                *(*command, "--node-rank", str(rank)),
            ],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "flagperf0", "TP_SOCKET_IFNAME": "flagperf0"},
            stdout=subprocess.DEVNULL,
        )
        for rank, (name, share) in enumerate(zip(NAMES, shares, strict=True))
    ]
    for host in hosts:
        host.wait()
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
