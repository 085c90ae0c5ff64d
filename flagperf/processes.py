"""Making sure that no process outlives the one that wants it. Linux does it by prctl; elsewhere these do nothing."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


def _prctl(option: int, value: Any) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    """Have this process get SIGTERM when the one that started it is gone, even if that was killed.

    The parent puts its process number into the environment as FLAGPERF_PARENT, so that one which is gone already is
    noticed as well.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.environ.get("FLAGPERF_PARENT")
    if parent and os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def end_at_once() -> None:
    """Have this process, when it ends, end with status 1 and without Python's clean-up.

    It is for native threads that can't be stopped: where they still run, cleaning up crashes.
    """
    atexit.register(_end, 1)


def exit_by(main: Callable[[], int]) -> NoReturn:
    """Run a program and exit with the status that it returns, without taking apart modules that are gone anyhow.

    That takes a second where torch is among them. What has been registered to be done at exit is done.
    """
    status = 1  # of a program that raises
    atexit.register(lambda: _end(status))  # registered first, so called last
    status = main()
    sys.exit(status)


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def become(command: list[str]) -> NoReturn:
    """Turn into another program, one that gets SIGTERM when the process that started this one is gone."""
    die_with_parent()
    os.execvp(command[0], command)


@contextlib.contextmanager
def adopted_orphans() -> Iterator[None]:
    """Be the parent of descendants whose own parent dies meanwhile, so that they can be found and ended."""
    before = ctypes.c_int(0)
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, before.value)


if __name__ == "__main__":  # python -m flagperf.processes COMMAND …
    become(sys.argv[1:])
