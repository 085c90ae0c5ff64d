"""Launcher `local`: one torch elastic agent on this machine."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import psutil

from flagperf.errors import FlagPerfError
from flagperf.launchers import Launcher
from flagperf.links import network
from flagperf.processes import adopted_orphans
from flagperf.schema.trial import Outcome, RankExit, Trial

_GRACE = 5.0
"""Seconds that processes get to end after SIGTERM."""
_MARK = "FLAGPERF_HARNESS"
"""Environment variable by which everything that was started for a trial can be told, adopted or not."""
_TAIL = 40
"""Lines of the agent's output kept for the error message."""


class Local(Launcher):
    """Runs the agent as a child, and sleeps in `select` until it ends, prints, or has taken too long."""

    def command(self, trial: Trial, folder: Path) -> list[str]:
        """Return the agent's command line."""
        here = trial.ranks // self.nodes.count
        return [
            *(sys.executable, "-m", "flagperf.launchers.elastic", str(folder / f"trial{self.nodes.suffix}.json")),
            *("--ranks", str(here), "--nodes", str(self.nodes.count), "--node-rank", str(self.nodes.index)),
            *(("--rdzv", self.nodes.rendezvous) if self.nodes.rendezvous else ()),
        ]

    def launch(
        self, trial: Trial, folder: Path, environment: dict[str, str], timeout: float, tick: Callable[[], None]
    ) -> Outcome:
        """Run the trial; see the contract."""
        if self.nodes.rendezvous and self.nodes.index == 0:
            _check_port(self.nodes.rendezvous)
        with ExitStack() as stack:
            stack.enter_context(adopted_orphans())
            if trial.link is not None:
                environment = {**environment, **stack.enter_context(network(trial.ranks, trial.link)).environment}
            return self._launch(trial, folder, environment, timeout, tick)

    def _launch(
        self, trial: Trial, folder: Path, environment: dict[str, str], timeout: float, tick: Callable[[], None]
    ) -> Outcome:
        began = time.monotonic()
        exits_read, exits_write = os.pipe()
        process = subprocess.Popen(
            [*self.command(trial, folder), "--exits", str(exits_write)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "FLAGPERF_PARENT": str(os.getpid()), _MARK: str(os.getpid())},
            pass_fds=[exits_write],
            start_new_session=True,  # a Ctrl-C at the terminal reaches the harness alone, which ends the ranks itself
        )
        os.close(exits_write)
        tail: deque[str] = deque(maxlen=_TAIL)
        status = "finished"
        try:
            if not _watch(process, began + timeout, tail, tick):
                status = "timeout"
        except BaseException:
            status = "interrupted"
            raise
        finally:
            _end(process, dump=status == "timeout")
            with os.fdopen(exits_read, "rb") as pipe:
                report = pipe.read()
        exits = msgspec.json.decode(report, type=list[RankExit]) if report else []
        if status == "finished" and (process.returncode != 0 or exits):
            status = "failed"
        return Outcome(
            status=status,
            seconds=time.monotonic() - began,
            exits=exits,
            message=f"no end after {timeout:.0f} s" if status == "timeout" else "",
            stderr_tail="\n".join(tail),
        )


def _watch(process: subprocess.Popen[bytes], deadline: float, tail: deque[str], tick: Callable[[], None]) -> bool:
    """Wait until the agent ends; return whether it did before the deadline."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    ended = os.pidfd_open(process.pid)
    rest = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                ready = [key.fileobj for key, _ in selector.select(min(1.0, left))]
                if process.stdout in ready:
                    chunk = process.stdout.read()
                    if not chunk:
                        selector.unregister(process.stdout)
                    *lines, rest = (rest + (chunk or b"")).split(b"\n")
                    tail.extend(line.decode("utf-8", "replace") for line in lines)
                if ended in ready:
                    rest += process.stdout.read() or b""
                    tail.extend(rest.decode("utf-8", "replace").splitlines())
                    return True
                tick()
    finally:
        os.close(ended)


def _end(process: subprocess.Popen[bytes], *, dump: bool) -> None:
    """End the agent and whatever it started, first gently; with `dump` ranks first write where they are."""
    family = [child for child in psutil.Process().children(recursive=True) if _marked(child)]
    if dump:
        for child in family:
            if child.pid != process.pid:
                _signal(child, signal.SIGUSR1)
        time.sleep(0.5)
    for child in family:
        _signal(child, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(family, timeout=_GRACE)
    for child in stubborn:
        _signal(child, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=_GRACE)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _marked(child: psutil.Process) -> bool:
    """Whether a process belongs to a trial, and not to whoever else uses this interpreter."""
    try:
        return child.environ().get(_MARK) == str(os.getpid())
    except psutil.Error:
        return False


def _signal(child: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):  # it may have ended by itself in the meantime
        child.send_signal(number)


def _check_port(rendezvous: str) -> None:
    """Refuse a rendezvous address that is taken or isn't ours, before ranks wait for it in vain."""
    host, _, port = rendezvous.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise FlagPerfError(
                f"Port {port} on {host} is in use by another process.",
                "Give a free port with --rdzv HOST:PORT, the same on every node.",
            ) from error
        raise FlagPerfError(
            f"Can't listen on {rendezvous}: {error}.", "--rdzv must be an address of the node with --node-rank 0."
        ) from error
