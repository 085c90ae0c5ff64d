"""What a process does while an adapter looks for its devices, as the interpreter's own audit events tell it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
_PSEUDO = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/tty", "/dev/fd/", "/dev/shm/")


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen."""

    started: list[str]
    """Programs."""
    opened: list[str]
    """Device nodes."""
    written: list[str]
    """Files opened for writing."""
    connected: list[str]
    imported: list[str]
    """Of the modules that are not to be imported: torch's and the plug-in."""
    libraries: list[str]
    """Shared libraries loaded through ctypes."""
    environment: list[str]
    """Variables that were set or changed."""
    cpu_seconds: float


class _Seen:
    def __init__(self) -> None:
        self.on = False
        self.started: list[str] = []
        self.opened: list[str] = []
        self.written: list[str] = []
        self.connected: list[str] = []
        self.libraries: list[str] = []

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _STARTS:
            self.started.append(f"{event} {details[:2]}")
        elif event == "socket.connect":
            self.connected.append(str(details[1]))
        elif event == "ctypes.dlopen" and details[0]:
            self.libraries.append(str(details[0]))
        elif event == "open" and isinstance(details[0], str | bytes | os.PathLike):
            path, mode, flags = os.fsdecode(details[0]), details[1], details[2]
            if path.startswith("/dev/") and not path.startswith(_PSEUDO):
                self.opened.append(path)
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if (writes or (isinstance(mode, str) and set(mode) & set("wax+"))) and "__pycache__" not in path:
                self.written.append(path)

    @contextmanager
    def looking(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


def watch(vendor: str, folders: list[Path]) -> Audit:
    """Find the adapters, make this one's and have it weigh its markers; return what this process did meanwhile.

    Its tools aren't asked: that is what comes after detection, and starts programs by intent.
    """
    from flagperf.accelerator import Accelerator
    from flagperf.registry import Registries

    seen, before, began = _Seen(), dict(os.environ), time.process_time()
    sys.addaudithook(seen)
    with seen.looking():
        adapter = Registries(folders).vendors.adapter(vendor)
        if isinstance(adapter, Accelerator):
            _ = adapter.detection
        else:
            adapter.devices()
    taken = time.process_time() - began
    changed = sorted(key for key in {*before, *os.environ} if before.get(key) != os.environ.get(key))
    plugin = adapter.manifest.plugin
    wanted = ["torch", *([plugin] if plugin else [])]
    return Audit(
        started=seen.started,
        opened=seen.opened,
        written=seen.written,
        connected=seen.connected,
        imported=[name for name in wanted if name in sys.modules],
        libraries=seen.libraries,
        environment=changed,
        cpu_seconds=taken,
    )
