"""Checks a bundle in a process of its own that may use only so much time and memory: a stranger's file is a stranger.

`python -m flagperf.submit.confined` is that process: it takes a `Request` on stdin and prints a verdict.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from flagperf.errors import FlagPerfError, UsageError
from flagperf.schema.submission import Finding, SubmitCheckOutput
from flagperf.submit import MEBIBYTES, SECONDS


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the confined process is to do."""

    bundle: str
    key: str | None
    plugins: list[str]
    seconds: int
    mebibytes: int


def check(
    path: Path, plugins: list[Path], key: str | None = None, *, seconds: int = SECONDS, mebibytes: int = MEBIBYTES
) -> SubmitCheckOutput:
    """Check a bundle within limits; one that needs more is refused. Raises UsageError if there is no such file."""
    if not path.exists():
        raise UsageError(f"There is no bundle {path}.", "Make one: flagperf submit pack --help")
    if not path.is_file():
        raise UsageError(f"{path} is no regular file; a bundle is one.")
    request = Request(
        bundle=str(path), key=key, plugins=[str(folder) for folder in plugins], seconds=seconds, mebibytes=mebibytes
    )
    # One thread: others would each reserve memory, and wait by spinning.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flagperf.submit.confined"],
        input=msgspec.json.encode(request),
        capture_output=True,
        env=environment,
        check=False,
    )
    try:
        return msgspec.json.decode(done.stdout, type=SubmitCheckOutput)
    except msgspec.DecodeError:
        return _over(path, done, seconds, mebibytes)


def _over(path: Path, done: subprocess.CompletedProcess[bytes], seconds: int, mebibytes: int) -> SubmitCheckOutput:
    """Say which limit was met; anything else that ended the process is a fault of ours, not of the bundle's."""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        what = f"Checking it takes more than {seconds} s of CPU time, or the system had no more memory"
    elif (said and said[-1].startswith("MemoryError")) or done.returncode in (-signal.SIGSEGV, -signal.SIGABRT):
        what = f"Checking it takes more than {mebibytes} MiB of memory"
    else:
        last = said[-1] if said else f"it ended with {done.returncode}"
        raise FlagPerfError(f"The check itself failed: {last}", "This is a fault of FlagPerf's: please report it.")
    reason = Finding(
        code="over_limits",
        message=f"{what}: it is refused.",
        hint="If you trust where it is from: --seconds, --mebibytes",
    )
    return SubmitCheckOutput(bundle=str(path), verdict="rejected", reasons=[reason])


def main() -> int:
    """Confine this process, check, and print the verdict."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    memory = request.mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (request.seconds, request.seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # From here on what is imported counts, too: the limits are of the whole process.
    from flagperf.registry import Registries
    from flagperf.submit.check import check

    try:
        verdict = check(Path(request.bundle), Registries([Path(folder) for folder in request.plugins]), request.key)
    except FlagPerfError as error:
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    return 0


if __name__ == "__main__":
    sys.exit(main())
