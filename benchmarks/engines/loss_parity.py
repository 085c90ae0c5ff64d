"""How far each engine and layout is from `ddp` in loss, at every one of the first 30 steps: `python loss_parity.py`.

Real runs of `flagperf run aquila/pretrain --preset tiny`, from the same weights and tokens, with the case's schedule.
fp32 within 1e-3 nats and bf16 within 1 % are what is asked of every engine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flagperf.collect.store import Store
from flagperf.registry import Registries, availability

TWO = [
    *("fsdp:zero=2", "fsdp:zero=3", "bmtrain:zero=2", "bmtrain:zero=3", "bmtrain:zero=3,overlap=0"),
    *("bmtrain:zero=3,recompute=1", "bmtrain:zero=3,offload=1", "bmtrain:tp=2,zero=2"),
    *("deepspeed:zero=0", "deepspeed:zero=1", "deepspeed:zero=2", "deepspeed:zero=3", "deepspeed:zero=2,offload=1"),
    *("megatron:tp=2", "megatron:pp=2", "megatron:zero=1", "megatron:tp=2,sp=1"),
    *("megatron-deepspeed:zero=2", "megatron-deepspeed:zero=2,tp=2"),
]
FOUR = ["megatron-deepspeed:zero=2,tp=2", "megatron:tp=2,pp=2", "bmtrain:tp=2,zero=3"]


def main() -> int:
    """Print a table a number of ranks; 1 if an engine is outside of what is asked."""
    options = _options()
    here = {engine.name for engine in Registries().engines.all() if availability(engine).available}
    bad = False
    for ranks, arms in ((2, TWO), (4, FOUR)):
        present = [arm for arm in arms if arm.partition(":")[0] in here]
        with tempfile.TemporaryDirectory() as scratch:
            bad |= _compare(Path(scratch) / "run", ranks, present, options)
    return int(bad)


def _compare(folder: Path, ranks: int, arms: list[str], options: argparse.Namespace) -> bool:
    command = [
        *(sys.executable, "-m", "flagperf", "run", "aquila/pretrain", "--preset", "tiny", "--ranks", str(ranks)),
        *("--trials", "1", "--warmup", "2", "--steps", str(options.steps - 2), "--dtype", options.dtype),
        *("--keep-going", "--oversubscribe", "--set", "data.source=synthetic", "--out", str(folder), "--json"),
        *("--set", "protocol.profile=0"),
        *(part for arm in ["ddp", *arms] for part in ("--engine", arm)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    results = json.loads(done.stdout)["results"]
    curves = {trial: curve for (_, trial), curve in Store([folder]).curves().items()}
    base = curves[results[0]["id"]]
    table = Table(
        title=f"{ranks} ranks, {options.dtype}: loss against ddp's over {len(base)} steps", title_justify="left"
    )
    table.add_column("layout", overflow="fold")
    for column in ("largest difference, nats", "relative", "last loss"):
        table.add_column(column, justify="right", no_wrap=True)
    outside = False
    for result in results:
        curve = curves.get(result["id"], {})
        name = f"{result['engine']}:{result['layout']}"
        if result["verdict"] != "valid" or curve.keys() != base.keys():
            table.add_row(name, "invalid", "", "")
            outside = True
            continue
        apart = max(abs(curve[step] - base[step]) for step in base)
        relative = max(abs(curve[step] / base[step] - 1) for step in base)
        outside |= apart > 1e-3 if options.dtype == "fp32" else relative > 0.01
        table.add_row(name, f"{apart:.1e}", f"{relative:.1e}", f"{curve[max(curve)]:.5f}")
    Console(width=120).print(table)
    return outside


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=30)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
