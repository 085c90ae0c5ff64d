"""Ranks as forks of a process that has imported torch and more, which takes longer than what tests have ranks do."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path


def run_ranks(count: int, function: Callable[[], object]) -> int:
    """Call a function in each rank, in the environment that torch elastic gives; return 0, or 1 if a rank failed."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threading.active_count() == threads == 1, "a fork has none of the threads that there are"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    left = {_start(rank, count, function) for rank in range(count)}
    failed = False
    while left:
        child, status = os.wait()
        left.discard(child)
        failed = failed or status != 0
        for waiting in left if status else ():  # for the one that has ended
            os.kill(waiting, signal.SIGKILL)
    return int(failed)


def _start(rank: int, count: int, function: Callable[[], object]) -> int:
    """Fork one rank and return its process id."""
    if (child := os.fork()) != 0:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
