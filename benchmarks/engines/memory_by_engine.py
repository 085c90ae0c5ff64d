"""Memory a rank by engine and ZeRO stage, measured, beside what the engine's ledger predicts.

    python benchmarks/engines/memory_by_engine.py [--engine fsdp:zero=3 …] [--dtype fp32 …] [--accumulate 1] [--json]

One short trial each of about 118 million parameters on two ranks. The allocator's peak is compared with the prediction;
the resident set has Python, torch and libraries in it besides. glibc keeps freed memory, which hides what ZeRO saves;
two of its settings make it give everything back, at the price of speed, so no speed is told here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LAYOUTS = [
    *("ddp", "fsdp:zero=2", "fsdp:zero=3", "fsdp:zero=3,recompute=1"),
    *("bmtrain:zero=2", "bmtrain:zero=3", "bmtrain:zero=2,offload=1", "bmtrain:zero=3,offload=1"),
    *("deepspeed:zero=0", "deepspeed:zero=1", "deepspeed:zero=2", "deepspeed:zero=3"),
    *("deepspeed:zero=1,offload=1", "deepspeed:zero=2,offload=1", "deepspeed:zero=3,offload=1"),
    *("megatron:zero=0", "megatron:zero=1", "megatron:tp=2", "megatron:pp=2"),
    *("megatron-deepspeed:zero=2", "megatron-deepspeed:zero=2,tp=2"),
]
MODEL = {"dim": 768, "layers": 12, "heads": 12, "vocab_size": 16384, "seq_len": 256, "rotary": "half"}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
AIM = 0.15
MIB = 2**20


def run(arm: str, dtype: str, accumulate: int, *options: str) -> Any:
    """Return what `flagperf run … --json` prints for one arm."""
    command = [sys.executable, "-m", "flagperf", "run", "aquila/pretrain", "--preset", "tiny", "--engine", arm]
    command += ["--ranks", "2", "--trials", "1", "--warmup", "2", "--steps", "1", "--dtype", dtype, "--json"]
    for key, value in MODEL.items():
        command += ["--set", f"model.{key}={value}"]
    command += ["--layout", "micro=2", "--set", f"protocol.global_batch={4 * accumulate}"]
    command += ["--set", "protocol.validation=4", "--set", "protocol.profile=0", "--set", "data.source=synthetic"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=os.environ | MALLOC, check=False)
    if not done.stdout:
        sys.exit(f"{arm}: {done.stderr}")
    return json.loads(done.stdout)


def measure(arm: str, dtype: str, accumulate: int) -> dict[str, Any]:
    """Return an arm's prediction and measurement in MiB."""
    planned = run(arm, dtype, accumulate, "--dry-run")["trials"][0]
    with tempfile.TemporaryDirectory() as folder:
        result = run(arm, dtype, accumulate, "--out", str(Path(folder) / "run"))["results"][0]
    if result["verdict"] != "valid":
        return {"arm": arm, "dtype": dtype, "invalid": result["reasons"][0]["message"]}
    values = {name.removeprefix("memory_"): metric["value"] for name, metric in result["metrics"].items()}
    # On a CPU the allocator counts what is offloaded too: device and host are one there.
    device = "estimated_bytes_per_rank", "estimated_host_bytes_per_rank"
    predicted = sum(planned[name] for name in device[: 2 if result["vendor"] == "cpu" else 1]) / MIB
    return {
        "arm": arm,
        "dtype": dtype,
        "parameters": planned["parameters"],
        "predicted": predicted,
        "allocated": values["peak_allocated"],
        "ratio": predicted / values["peak_allocated"],
        "resident": values["peak_rss"],
        **{name: values[name] for name in ("weights", "gradients", "optimizer", "offloaded", "activations")},
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", action="append", help="an engine with its layout; repeat it (default: all)")
    parser.add_argument("--dtype", action="append", help="fp32, bf16 or fp16; repeat it (default: fp32 and bf16)")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    columns = ["predicted", "allocated", "ratio", "resident", "weights", "gradients", "optimizer", "offloaded"]
    columns.append("activations")
    if not options.json:
        print(f"MiB a rank; predicted ÷ allocated within {AIM:.0%} is the aim\n")
        print(f"{'engine':30} {'dtype':5} {' '.join(f'{name:>11}' for name in columns)}")
    rows = []
    for arm in options.engine or LAYOUTS:
        for dtype in options.dtype or ["fp32", "bf16"]:
            row = measure(arm, dtype, options.accumulate)
            rows.append(row)
            if options.json:
                continue
            told = [
                f"{row[name]:11.3f}" if name == "ratio" else f"{row[name]:11.0f}" for name in columns if name in row
            ]
            print(f"{arm:30} {dtype:5} {' '.join(told) or row['invalid']}", flush=True)
    far = [row for row in rows if abs(row.get("ratio", 0) - 1) > AIM]
    if options.json:
        print(json.dumps({"rows": rows, "aim": AIM, "met": not far}))
    else:
        print(f"\n{len(rows) - len(far)} of {len(rows)} predictions within {AIM:.0%}")


if __name__ == "__main__":
    main()
