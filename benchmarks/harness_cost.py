"""What the harness adds to a training step: `flagperf run` against a bare script, interleaved in one run.

The bare script trains the same model on the same batches with the same engine class, weights, threads and cores, under
torchrun, with no journal, no telemetry and no parent. Prints the ratio of median step times, flagperf ÷ bare.

    python benchmarks/harness_cost.py --pairs 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flagperf.journal import Reader
from flagperf.statistics import compare_pairs


def main() -> None:
    """Measure, or be the bare script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare)
        return
    harness, plain = [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs):
            place = Path(folder) / str(pair)
            # The first half of the pair is the other one each time, so that drift falls on both alike.
            for which in (0, 1) if pair % 2 else (1, 0):
                (harness if which else plain).append((with_flagperf if which else without)(place, options))
            print(f"pair {pair + 1}: {harness[-1]:.4f} s and {plain[-1]:.4f} s", file=sys.stderr)
    found = compare_pairs(harness, plain, "lower", 0.01)
    if options.json:
        print(json.dumps({"ratio": found.ratio, "low": found.low, "high": found.high, "pairs": options.pairs}))
    else:
        print(
            f"step time, flagperf ÷ bare: {found.ratio:.4f} ({found.low:.4f} … {found.high:.4f}), {options.pairs} pairs"
        )


def with_flagperf(place: Path, options: argparse.Namespace) -> float:
    """Return the median step time of one trial under the harness."""
    run = place.with_name(place.name + "-run")
    subprocess.run(
        [
            *(sys.executable, "-m", "flagperf", "run", "aquila/pretrain", "--engine", "ddp", "--trials", "1"),
            *("--ranks", str(options.ranks), "--steps", str(options.steps), "--warmup", str(options.warmup)),
            *("--set", "data.source=synthetic", "--out", str(run)),
        ],
        check=True,
        capture_output=True,
    )
    ranks = [
        [event.value["seconds"] for event in Reader(path) if event.key == "step" and event.value["measured"]]
        for path in sorted((run / "trials" / "000-ddp").glob("rank*.journal"))
    ]
    return statistics.median(max(column) for column in zip(*ranks, strict=True))


def without(place: Path, options: argparse.Namespace) -> float:
    """Return the median step time of the bare script, started by torchrun as the harness's is."""
    planned = json.loads(
        subprocess.run(
            [
                *(sys.executable, "-m", "flagperf", "run", "aquila/pretrain", "--engine", "ddp", "--trials", "1"),
                *("--ranks", str(options.ranks), "--steps", str(options.steps), "--warmup", str(options.warmup)),
                *("--set", "data.source=synthetic", "--dry-run", "--json"),
            ],
            check=True,
            capture_output=True,
        ).stdout
    )
    trial = planned["plan"]["trials"][0]
    place.mkdir()
    (place / "trial.json").write_text(json.dumps(trial))
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)),
            *(__file__, "--bare", str(place)),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": str(trial["threads"])},
    )
    ranks = [json.loads(path.read_text()) for path in sorted(place.glob("rank*.json"))]
    return statistics.median(max(column) for column in zip(*ranks, strict=True))


def bare(place: Path) -> None:
    """Train and write down when each step ended; what someone would write who has no harness."""
    import msgspec
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from flagperf.cases.aquila.pretrain import AquilaPretrain
    from flagperf.cases.aquila.task import AquilaTask
    from flagperf.engines.common import adamw, clip_gradients
    from flagperf.schema.trial import Trial
    from flagperf.vendors.cpu.adapter import rank_cores

    trial = msgspec.json.decode((place / "trial.json").read_bytes(), type=Trial)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.sched_setaffinity(0, rank_cores(sorted(os.sched_getaffinity(0)), rank, world))
    torch.set_num_threads(trial.threads)
    dist.init_process_group("gloo")
    task = AquilaTask(AquilaPretrain(trial).settings, trial)
    model = task.model(recompute=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(task.initial_weight(name, parameter.shape))
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = adamw(parallel, task.optimizer)
    share = task.global_batch // world
    seconds, last = [], 0.0
    for step in range(trial.protocol.warmup + trial.protocol.steps):
        if step == trial.protocol.warmup:
            dist.barrier()
            last = time.perf_counter()
        loss = parallel(*task.batch(step, rank * share, share))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(parallel, task.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate(step)
        optimizer.step()
        loss.item()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    (place / f"rank{rank}.json").write_text(json.dumps(seconds[trial.protocol.warmup :]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
