"""Processes in which a device is tried, one a rank: asked for one check after another, and started anew after a crash.

`python -m flagperf.conformance.bench` is such a process. It reads requests on its standard input and answers on a pipe
of its own, so that what a driver prints disturbs nothing.
"""

from __future__ import annotations

import functools
import importlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from flagperf.conformance.audit import Audit, watch
from flagperf.conformance.check import Absent, Declared, Where, told
from flagperf.processes import die_with_parent
from flagperf.registry import Registries
from flagperf.vendor import Runtime, Vendor

OPENING, CHECK = 600.0, 180.0
"""Seconds that the first answer may take, in which a device is opened and perhaps built, and any other."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A check to make."""

    module: str
    name: str
    parameters: dict[str, str]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found wrong; `absent` is what it would need."""

    problems: list[str] = []
    absent: str = ""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told at its start."""

    where: Where
    vendor: str
    folders: list[str]
    rank: int
    ranks: int
    store: str
    """File by which ranks find one another."""


class Bench:
    """What a check in one of these processes looks at."""

    def __init__(self, setup: Setup, audit: Audit | None = None) -> None:
        self.rank, self.ranks, self._store = setup.rank, setup.ranks, setup.store
        self._audit = audit
        self.registries = Registries([Path(folder) for folder in setup.folders])
        self.vendor: Vendor = self.registries.vendors.adapter(setup.vendor)
        self.manifest = self.vendor.manifest

    @property
    def audit(self) -> Audit:
        """What the process was seen to do while it looked for devices."""
        assert self._audit is not None
        return self._audit

    @functools.cached_property
    def runtime(self) -> Runtime:
        """The rank's device, opened."""
        return self.vendor.runtime(self.rank, self.ranks, self.vendor.threads(self.ranks))

    def join(self) -> None:
        """Join the ranks by the vendor's backend, if they aren't yet."""
        import torch.distributed as dist

        backend = self.runtime.backend
        if not dist.is_initialized():
            dist.init_process_group(backend, init_method=f"file://{self._store}", rank=self.rank, world_size=self.ranks)

    def dtypes(self) -> list[str]:
        """Return the data types that training needs and that the manifest doesn't rule out."""
        return [name for name in ("fp32", "bf16", "fp16") if name not in self.manifest.limits]


class Processes:
    """The ranks of one kind."""

    def __init__(self, where: Where, vendor: str, folders: list[Path], ranks: int, environ: dict[str, str]) -> None:
        self._where, self._vendor, self._folders = where, vendor, [str(folder) for folder in folders]
        self._ranks, self._environ = ranks, environ
        self._processes: list[_Process] = []

    def ask(self, module: str, name: str, parameters: dict[str, str]) -> Answer:
        """Have every rank make a check; return all that they find wrong."""
        timeout = CHECK
        if not self._processes:
            self._start()
            timeout = OPENING
        until = time.monotonic() + timeout
        for process in self._processes:
            process.send(Request(module=module, name=name, parameters=parameters))
        answers = self._answers(until, timeout)
        problems = [
            problem if self._ranks == 1 else f"rank {rank}: {problem}"
            for rank, answer in enumerate(answers)
            for problem in answer.problems
        ]
        return Answer(problems=problems, absent=next((each.absent for each in answers if each.absent), ""))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()
        self._processes = []

    def _start(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="flagperf-ranks-") as file:
            store = file.name
        for rank in range(self._ranks):
            setup = Setup(
                where=self._where,
                vendor=self._vendor,
                folders=self._folders,
                rank=rank,
                ranks=self._ranks,
                store=store,
            )
            self._processes.append(_Process(setup, self._environ))

    def _answers(self, until: float, timeout: float) -> list[Answer]:
        """Return each rank's answer; where one ends or hangs, all are ended: the others would wait for it."""
        answers: dict[int, Answer] = {}
        while len(answers) < self._ranks:
            waiting = {p.answers.fileno(): rank for rank, p in enumerate(self._processes) if rank not in answers}
            ready, _, _ = select.select(list(waiting), [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.close()
                late = Answer(problems=[f"no end within {timeout:.0f} s: the process was killed"])
                return [answers.get(rank, late) for rank in range(self._ranks)]
            for descriptor in ready:
                rank = waiting[descriptor]
                line = self._processes[rank].answers.readline()
                if not line:
                    why = self._processes[rank].ending()
                    self.close()
                    return [Answer(problems=[why])]
                answers[rank] = msgspec.json.decode(line, type=Answer)
        return [answers[rank] for rank in range(self._ranks)]


class _Process:
    def __init__(self, setup: Setup, environ: dict[str, str]) -> None:
        read, write = os.pipe()
        self.answers: IO[bytes] = os.fdopen(read, "rb")
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        place = {"RANK": setup.rank, "LOCAL_RANK": setup.rank, "WORLD_SIZE": setup.ranks}
        place |= {"LOCAL_WORLD_SIZE": setup.ranks, "FLAGPERF_PARENT": os.getpid()}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flagperf.conformance.bench", str(write), msgspec.json.encode(setup).decode()],
                stdin=subprocess.PIPE,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
                env={**environ, **{key: str(value) for key, value in place.items()}},
            )
        finally:
            os.close(write)

    def send(self, request: Request) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended: reading its answer tells
            pass

    def ending(self) -> str:
        """Say how the process ended, and the last that it printed."""
        status = self._process.wait()
        self._printed.seek(0)
        lines = [line for line in self._printed.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"its process {how}" + (f": {lines[-1][:500]}" if lines else "")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        for stream in (self._process.stdin, self.answers, self._printed):
            stream.close()


def main(arguments: list[str]) -> int:
    """Answer requests until there are no more."""
    die_with_parent()
    answers, setup = int(arguments[0]), msgspec.json.decode(arguments[1], type=Setup)
    audit = None
    if setup.where == "fresh":
        audit = watch(setup.vendor, [Path(folder) for folder in setup.folders])
    opened: Bench | None = None
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        try:
            opened = opened or Bench(setup, audit)
            answer = _answer(opened, request)
        except Absent as what:
            answer = Answer(absent=str(what))
        os.write(answers, msgspec.json.encode(answer) + b"\n")
    return 0


def _answer(bench: Bench, request: Request) -> Answer:
    declared: Declared = getattr(importlib.import_module(request.module), request.name).declared
    function: Callable[..., Any] = declared.function
    return Answer(problems=told(function, bench, request.parameters))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
