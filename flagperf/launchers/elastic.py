"""The agent of one node: torch elastic over `flagperf.worker`, reporting how each rank ended.

`python -m flagperf.launchers.elastic trial.json --ranks 2` is what every launcher ends in. A rank that is alone has
nobody to meet: it is started as it is, without the seconds that importing torch takes.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from flagperf import links
from flagperf.processes import die_with_parent
from flagperf.schema.trial import RankExit, Trial

_MEETING = 120
"""Seconds that nodes wait for one another."""
_GRACE = 30
"""Seconds that a lone rank gets to end after SIGTERM."""
_TOLD = 4000
"""Characters of what a lone rank printed last that are told when it fails."""


def main() -> int:
    """Run this node's ranks; the exit status is 0 only if all of them ended with 0."""
    options = _options()
    die_with_parent()  # before torch, which takes seconds to import
    if name := os.environ.get(links.NETWORK):
        links.enter(name, links.SWITCH)
    trial = msgspec.json.decode(options.trial.read_bytes(), type=Trial)
    os.environ["FLAGPERF_PARENT"] = str(os.getpid())  # to the ranks
    os.environ.setdefault("OMP_NUM_THREADS", str(trial.threads))  # else torch elastic sets 1 and warns
    output = options.trial.parent / "output"
    output.mkdir(exist_ok=True)
    if options.ranks == options.nodes == 1:
        failures = _alone(options.trial, output)
    else:
        failures = _together(options, trial, output)
    if failures and options.exits is not None:
        os.write(options.exits, msgspec.json.encode(failures))
    return int(bool(failures))


def _alone(trial: Path, output: Path) -> list[RankExit]:
    """Run the only rank there is; return how it failed, if it did."""
    signal.signal(signal.SIGTERM, _end)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": 0}
    meeting = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in meeting.items()}
    with (output / "stdout.log").open("wb") as out, (output / "stderr.log").open("wb") as err:
        command = [sys.executable, "-m", "flagperf.worker", str(trial)]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        try:
            status = process.wait()
        except _Ended:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            process.kill()
            sys.exit("ended by SIGTERM")
    if status == 0:
        return []
    if status != 1:  # with which a rank ends that has journalled why
        print((output / "stderr.log").read_text("utf-8", "replace")[-_TOLD:], file=sys.stderr)
    return [RankExit(rank=0, exit_code=status, message=signal.Signals(-status).name if status < 0 else "")]


class _Ended(BaseException):
    """SIGTERM has come."""


def _end(number: int, frame: object) -> None:
    raise _Ended


def _together(options: argparse.Namespace, trial: Trial, output: Path) -> list[RankExit]:
    """Run this node's ranks under torch elastic; return how those failed that did."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
        return [
            RankExit(
                rank=rank, exit_code=failure.exitcode, message=failure.signal_name() if failure.exitcode < 0 else ""
            )
            for rank, failure in sorted(error.failures.items())
        ]
    except SignalException as ended:
        sys.exit(f"ended by {ended}")
    return []


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
