"""What attention holds in memory: torch's flash against naive attention, one head, measured as `flagperf run` does.

    python benchmarks/attention_memory.py [--seq 8192] [--rounds 3] [--dtype fp32]

Each round measures both in turn, in the order A B, B A, …; bytes are those that a call holds at most beyond its inputs,
counted by torch's allocator. Ends with 1 unless flash holds at most a tenth of what naive does in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from flagperf.kernels import peak_of
from flagperf.measure.inputs import Inputs
from flagperf.plan import Options, plan
from flagperf.registry import Registries

MOST = 0.1
PROVIDERS = ("naive", "flash")


def main() -> int:
    """Measure both providers and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq", type=int, default=8192, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--json", action="store_true", help="print one object")
    asked = parser.parse_args()
    import torch

    registries = Registries()
    shape = {"batch": 1, "heads": 1, "kv_heads": 1, "head_dim": 64}
    sweep = {"shape": ["one-head"], "dtype": [asked.dtype], "causal": [True], "seq": [asked.seq]}
    options = Options(cases=["attention/forward"], settings={"shapes": {"one-head": shape}, "sweep": sweep})
    trial = plan(options, registries).trials[0]
    case: Any = registries.cases.load(trial.case)(trial)
    runtime = registries.vendors.adapter(trial.vendor).runtime(0, 1, trial.threads)
    dims = case.dims(case.points()[0])
    inputs = case.inputs(dims, Inputs(trial.seed, asked.dtype, runtime.device))
    entries = registries.cases.get(trial.case).providers
    calls = {name: registries.cases.load_entry(trial.case, entries[name].entry) for name in PROVIDERS}
    if not asked.json:
        print(f"attention/forward on {trial.vendor}, {asked.seq} tokens, one head of 64, {asked.dtype}, causal")
    rounds: list[dict[str, int]] = []
    for number in range(asked.rounds):
        held: dict[str, int] = {}
        for name in PROVIDERS if number % 2 == 0 else reversed(PROVIDERS):
            with torch.no_grad():
                peak = peak_of(runtime, lambda name=name: calls[name](*inputs, **case.arguments(dims)))
            if not peak:
                print("the allocator of this torch doesn't count", file=sys.stderr)
                return 1
            held[name] = peak
        rounds.append(held)
        if not asked.json:
            print(f"  round {number}: " + ", ".join(f"{name} {held[name] / 2**20:,.1f} MiB" for name in PROVIDERS))
    ratios = [held["flash"] / held["naive"] for held in rounds]
    good = max(ratios) <= MOST
    if asked.json:
        print(json.dumps({"bytes": rounds, "ratios": ratios, "aim": MOST, "good": good}))
        return 0 if good else 1
    print(f"flash ÷ naive: {min(ratios):.4f} to {max(ratios):.4f} in {len(ratios)} rounds; at most {MOST}: {good}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
