"""The agent of one node: torch elastic over `flagperf.worker`, reporting how each rank ended.

`python -m flagperf.launchers.elastic trial.json --ranks 2` is what every launcher ends in.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from flagperf import links
from flagperf.processes import die_with_parent
from flagperf.schema.trial import RankExit, Trial

_MEETING = 120
"""Seconds that nodes wait for one another."""


def main() -> int:
    """Run this node's ranks; the exit status is 0 only if all of them ended with 0."""
    options = _options()
    die_with_parent()  # before torch, which takes seconds to import
    if name := os.environ.get(links.NETWORK):
        links.enter(name, links.SWITCH)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    trial = msgspec.json.decode(options.trial.read_bytes(), type=Trial)
    os.environ["FLAGPERF_PARENT"] = str(os.getpid())  # to the ranks
    os.environ.setdefault("OMP_NUM_THREADS", str(trial.threads))  # else torch elastic sets 1 and warns
    output = options.trial.parent / "output"
    output.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=options.ranks,
        run_id=trial.id,
        **_rendezvous(options),
        local_addr=links.address(links.SWITCH) if links.NETWORK in os.environ else None,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(output), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "flagperf.worker", str(options.trial))
    except ChildFailedError as error:
        failures = [
            RankExit(
                rank=rank, exit_code=failure.exitcode, message=failure.signal_name() if failure.exitcode < 0 else ""
            )
            for rank, failure in sorted(error.failures.items())
        ]
        if options.exits is not None:
            os.write(options.exits, msgspec.json.encode(failures))
        return 1
    except SignalException as ended:
        print(f"ended by {ended}", file=sys.stderr)
        return 1
    return 0


def _rendezvous(options: argparse.Namespace) -> dict[str, Any]:
    """Return how nodes meet: one alone at a free port; several at a fixed address, ranks in the order of the nodes."""
    if options.nodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "rdzv_configs": {"is_host": True}}
    where = {"rank": options.node_rank, "timeout": _MEETING}
    return {"rdzv_backend": "static", "rdzv_endpoint": options.rdzv, "rdzv_configs": where}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trial", type=Path)
    parser.add_argument("--ranks", type=int, required=True, help="on this node")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rdzv", default="", help="HOST:PORT of the first node, if there are several")
    parser.add_argument("--exits", type=int, help="file descriptor that takes the ranks' exits as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
