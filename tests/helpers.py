"""The command line as a user runs it, the smallest real trial, and what a test can't do without."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from flagperf.cli.app import run_app
from flagperf.context import RankContext
from flagperf.journal import Journal
from flagperf.registry import Registries
from flagperf.schema.trial import Trial

ROOT = Path(__file__).parent.parent

TINY = [
    *("--preset", "tiny", "--set", "data.source=synthetic", "--set", "model.dim=64", "--set", "model.layers=2"),
    *("--set", "model.vocab_size=512", "--set", "data.vocab_size=512", "--set", "data.tokens=65536"),
    *("--set", "model.seq_len=64", "--set", "protocol.validation=4", "--warmup", "2", "--steps", "4"),
    *("--set", "protocol.profile=0"),
]
"""Options that make a training trial as short as it can be while being real."""

LEARNING = [*TINY, "--set", "optimizer.clip=0.2", "--set", "optimizer.learning_rate=5e-3", "--steps", "28"]
"""Thirty steps in which it learns, and in which gradients are clipped."""


def rank_alone(trial: Trial, journal: Journal, registries: Registries) -> RankContext:
    """Return what the only rank of a trial knows of itself, as one that is started does; in this process."""
    runtime = registries.vendors.adapter(trial.vendor).runtime(0, 1, 1)
    return RankContext.alone(trial, runtime, journal, registries)


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Call the command line in this process, which is quicker for what needs none of its own."""
    out, err, words = io.StringIO(), io.StringIO(), [str(argument) for argument in arguments]
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flagperf", *words])
        status = run_app()
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def flagperf(*arguments: str, timeout: float = 600, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "flagperf", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **kwargs,
    )


def started(*arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Start the command line in a session of its own and go on."""
    return subprocess.Popen(
        [sys.executable, "-m", "flagperf", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **kwargs,
    )


def needs(*distributions: str) -> None:
    """Skip the calling test, or module, where a distribution isn't installed and tell the command; on CI, fail."""
    __tracebackhide__ = True
    commands = {need.distribution: need.install for engine in Registries().engines.all() for need in engine.requires}
    for distribution in distributions:
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            told = f"{distribution} isn't installed: {commands.get(distribution, f'pip install {distribution}')}"
            if os.environ.get("CI"):
                pytest.fail(f"{told} (on CI nothing may be left out)")
            pytest.skip(told, allow_module_level=True)


def leftovers(run: Path) -> list[str]:
    """Return the processes of this run's trials that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(run) in line and process.status() != psutil.STATUS_ZOMBIE:
            found.append(f"{process.pid} {line}")
    return found
