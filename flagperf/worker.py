"""What a rank does: `python -m flagperf.worker trial.json`, started by the node's agent."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import msgspec

from flagperf import links
from flagperf.context import RankContext
from flagperf.errors import FlagPerfError
from flagperf.journal import Journal
from flagperf.processes import die_with_parent, exit_by
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.trial import Trial


def main() -> int:
    """Run one rank of one trial; what goes wrong is in its journal and in the exit status."""
    die_with_parent()
    if name := os.environ.get(links.NETWORK):
        links.enter(name, os.environ["LOCAL_RANK"])  # before anything opens a socket or starts a thread that does
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the launcher asks a hung rank where it is
    spec = Path(sys.argv[1])
    trial = msgspec.json.decode(spec.read_bytes(), type=Trial)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if trial.memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (trial.memory_limit, trial.memory_limit))
    try:
        header = {"role": "rank", "trial": trial.id, "rank": rank, "world_size": world}
        with Journal(spec.parent / f"rank{rank}.journal", header) as journal:
            try:
                _run(trial, journal)
            except Exception as error:
                trace = traceback.format_exc()
                print(trace, file=sys.stderr, flush=True)
                told = {
                    "kind": type(error).__name__,
                    "message": error.message if isinstance(error, FlagPerfError) else str(error),
                    "hint": error.hint if isinstance(error, FlagPerfError) else "",
                }
                journal.write(Key.ERROR, {**told, "traceback": trace[-4000:]})
                return 1
            journal.write(Key.RUN_STOP, {"status": "success"})
    except OSError as error:  # the journal itself can't be written
        print(f"{spec.parent}: {error}", file=sys.stderr, flush=True)
        return os.EX_IOERR
    return 0


def _run(trial: Trial, journal: Journal) -> None:
    journal.write(Key.INIT_START)
    journal.write("seed", trial.seed)
    context = rank_context(trial, journal)
    context.registries.cases.load(trial.case)(trial).run(context)


def rank_context(trial: Trial, journal: Journal) -> RankContext:
    """Return this rank's place in the trial, by the environment that torch elastic gave it, and open its device."""
    local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    registries = Registries([Path(folder) for folder in trial.plugins])
    vendor = registries.vendors.adapter(trial.vendor)
    return RankContext(
        trial=trial,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        local_ranks=local_ranks,
        runtime=vendor.runtime(local_rank, max(local_ranks, trial.slots), trial.threads),
        journal=journal,
        registries=registries,
    )


if __name__ == "__main__":
    exit_by(main)
