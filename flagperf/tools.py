"""Running a vendor's tool: no shell, plain English, bounded in time and output, and never an exception."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import msgspec

MOST_BYTES = 16 * 2**20
"""What a tool may print; of more, the rest is left unread and the tool is ended."""


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What came of running a tool."""

    command: list[str]
    stdout: bytes = b""
    stderr: bytes = b""
    status: int | None = None
    """Exit status, negative for a signal; None where it didn't start or was ended."""
    problem: str = ""
    """Why it has no status."""


def run_tool(command: Sequence[str], timeout: float, environ: Mapping[str, str] | None = None) -> ToolOutput:
    """Run a tool in a session of its own; after `timeout` seconds it and all that it started are killed."""
    argv = list(command)
    environ = os.environ if environ is None else environ
    program = shutil.which(argv[0], path=environ.get("PATH", os.defpath))
    if program is None:
        return ToolOutput(command=argv, problem=f"{argv[0]} isn't on PATH")
    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environ, "LC_ALL": "C", "LANGUAGE": "C", "TERM": "dumb"},
            start_new_session=True,
        )
    except OSError as error:
        return ToolOutput(command=argv, problem=f"{argv[0]} can't be run: {error.strerror or error}")
    with process, _known(process):
        assert process.stdout is not None and process.stderr is not None
        problem = ""
        printed: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
        try:
            problem = _read(printed, time.monotonic() + timeout, timeout)
            if not problem:
                process.wait(timeout)
        except subprocess.TimeoutExpired:  # it closed its output, and then hung
            problem = f"no end within {timeout:g} s"
        finally:
            # Not waited for yet, so that its number is still its own, even if it has ended and what it started hasn't.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    out, err = (bytes(part) for part in printed.values())
    if problem:
        return ToolOutput(command=argv, stdout=out, stderr=err, problem=f"{argv[0]}: {problem}")
    return ToolOutput(command=argv, stdout=out, stderr=err, status=process.returncode)


_running: set[subprocess.Popen[bytes]] = set()


@contextlib.contextmanager
def _known(process: subprocess.Popen[bytes]) -> Iterator[None]:
    _running.add(process)
    try:
        yield
    finally:
        _running.discard(process)


def kill_tools() -> None:
    """Kill the tools that run in other threads, with all that they started: for a process that is about to end."""
    for process in list(_running):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _read(printed: dict[IO[bytes], bytearray], deadline: float, timeout: float) -> str:
    """Read until both ends are closed; return what kept that from happening, or nothing."""
    with selectors.DefaultSelector() as selector:
        for stream in printed:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                return f"no answer within {timeout:g} s"
            for key, _ in ready:
                block = os.read(key.fd, 65536)
                buffer = printed[key.fileobj]  # type: ignore[index]
                buffer += block
                if not block:
                    selector.unregister(key.fileobj)
                elif len(buffer) > MOST_BYTES:
                    del buffer[MOST_BYTES:]
                    return f"more than {MOST_BYTES // 2**20} MiB of output"
    return ""
