"""A server of our own: started on a free port of the loopback, watched until it's ready, ended with all it started."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from flagperf.errors import FlagPerfError

_READY = 1800.0
"""Seconds until it must be ready: weights of hundreds of gigabytes are read meanwhile."""
_GRACE = 4.0
"""Seconds that it has to end by itself."""
_TOLD = 15.0
"""Seconds between two lines that say it's still starting."""
_TAIL = 15
"""Lines of its output that an error shows."""


def _inherited() -> dict[str, str]:
    """Return the environment without what tells a process that it's a rank: a server would take it for itself."""
    ranks = re.compile(r"(|LOCAL_|GROUP_|ROLE_)(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
    return {name: value for name, value in os.environ.items() if not ranks.fullmatch(name)}


def free_port() -> int:
    """Return a port of the loopback that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server's process with its children; `log` gets all that they print."""

    def __init__(self, name: str, command: Sequence[str], port: int, environment: Mapping[str, str], log: Path) -> None:
        self.name, self.port, self.log = name, port, log
        self.seconds = 0.0
        """That it took until it was ready."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flagperf.processes", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_inherited(), **environment, "FLAGPERF_PARENT": str(os.getpid())},
            )

    def wait(self, path: str = "/health") -> None:
        """Wait until it answers at `path`; raise FlagPerfError, with what it printed last, if it ends before."""
        began = told = time.monotonic()
        while not self._healthy(path):
            if self._process.poll() is not None:
                raise FlagPerfError(
                    f"{self.name} ended with status {self._process.returncode} before it was ready:\n{self._tail()}",
                    f"All that it printed is in {self.log}.",
                )
            now = time.monotonic()
            if now - began > _READY:
                raise FlagPerfError(f"{self.name} isn't ready after {_READY:.0f} s.", f"See what it prints: {self.log}")
            if now - told > _TOLD:
                told = now
                print(f"{self.name} has been starting for {now - began:.0f} s", flush=True)
            time.sleep(0.25)
        self.seconds = time.monotonic() - began

    def peak_rss(self) -> int | None:
        """Return the sum of the peaks of its processes' resident memory, bytes; pages they share count in each."""
        total = 0
        for process in self._family():
            with suppress(OSError, ValueError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
        return total or None

    def end(self) -> None:
        """End it and whatever it started, first gently."""
        family = self._family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=_GRACE)
        self._process.wait()

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def _healthy(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _tail(self) -> str:
        lines = self.log.read_bytes()[-(2**16) :].decode("utf-8", "replace").splitlines()
        return "\n".join("".join(letter for letter in line if letter.isprintable())[:300] for line in lines[-_TAIL:])
