"""Engines that are servers of others, started for the trial and then asked as `endpoint` asks."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from flagperf.context import RankContext
from flagperf.engines.endpoint import Endpoint
from flagperf.errors import Unavailable
from flagperf.inference.engine import GenerationTask
from flagperf.inference.servers import Server, free_port
from flagperf.schema.event import Memory
from flagperf.schema.inference import ServerSettings
from flagperf.schema.trial import Trial


class Launched(Endpoint):
    """A server that is started for the trial; a class derived from it says how."""

    title: ClassVar[str]
    module: ClassVar[str]
    """What its Python must be able to import."""
    variable: ClassVar[str]
    """Environment variable that names that Python."""

    def __init__(self, context: RankContext) -> None:
        super().__init__(context)
        self.server, self.checked = ServerSettings(), True
        self._process: Server | None = None

    @classmethod
    def python(cls) -> str:
        """Return the Python that has the server."""
        return os.environ.get(cls.variable) or sys.executable

    @classmethod
    def check(cls, trial: Trial) -> None:
        """Refuse a Python that hasn't the server."""
        # A folder of the name where the command is run is found, too, but has no origin.
        find = (
            f"import importlib.util as u, sys; sys.exit(getattr(u.find_spec({cls.module!r}), 'origin', None) is None)"
        )
        try:
            found = subprocess.run([cls.python(), "-c", find], check=False, timeout=60, capture_output=True).returncode
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{cls.variable} is {cls.python()}, which can't be run: {error}.") from None
        if found != 0:
            raise Unavailable(
                f"{cls.python()} has no module {cls.module!r}.", f"Install it there, or set {cls.variable} to another."
            )

    @abstractmethod
    def command(self, task: GenerationTask, folder: Path, port: int) -> list[str]:
        """Return the server's command line, its Python first; it calls the model `model`."""

    def environment(self, task: GenerationTask) -> dict[str, str]:
        """Return variables that it is given where the caller's environment has none of the name."""
        return {}

    def start(self, task: GenerationTask) -> None:
        """Start the server and wait until it's ready."""
        port = free_port()
        environment = {name: os.environ.get(name, value) for name, value in self.environment(task).items()}
        log = self.context.journal.path.parent / "output" / f"{self.module}.log"
        folder = task.folder()
        command = self.command(task, folder, port)
        self._process = Server(self.title, command, port, environment, log)
        self._process.wait()
        self.connect(f"http://127.0.0.1:{port}/v1", task)
        self._told |= {
            "command": [word if word != str(folder) else folder.name for word in command[1:]],
            "environment": environment,
            "ready": self._process.seconds,
            "peak_rss_covers": "all processes of the server, from its start",
        }

    def memory(self, rank: Memory) -> Memory:
        """Return the peak of the server's processes, from their start on."""
        peak = self._process.peak_rss() if self._process is not None else None
        return Memory(peak_allocated=None, peak_rss=peak)

    def close(self) -> None:
        """Drop the connections and end the server."""
        try:
            super().close()
        finally:
            if self._process is not None:
                self._process.end()
