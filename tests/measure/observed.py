"""Two ranks: what the profiler says when a rank is late for a collective.

`python observed.py FOLDER`. Rank 1 is late twice: rank 0 waits for it idly, then computing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from forks import run_ranks

from flagperf.measure.communication import StepProfiler

LATE = 0.5


def main(folder: Path) -> None:
    """Observe both steps and write what was seen of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    seen = {}
    for name in ("idle", "busy"):
        dist.barrier()
        with StepProfiler(torch.device("cpu")) as profiler, profiler.step():
            called = folder / f"{name}.called"
            if rank == 1:  # late from when the other has called, however busy the machine is
                while not called.exists():
                    time.sleep(0.01)
                time.sleep(LATE)
            work = dist.all_reduce(torch.ones(1000), async_op=True)
            assert work is not None
            called.touch()
            began = time.monotonic()
            while name == "busy" and rank == 0 and time.monotonic() < began + 2 * LATE:
                torch.mm(torch.ones(300, 300), torch.ones(300, 300))
            work.wait()
        seen[name] = profiler.observed()
        if rank == 0:
            assert profiler.export(folder / name / "rank0.trace.json.gz") == ""
    (folder / f"{rank}.json").write_bytes(msgspec.json.encode({"late": LATE, **seen}))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_ranks(2, lambda: main(Path(sys.argv[1]))))
