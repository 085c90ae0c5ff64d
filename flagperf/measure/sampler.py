"""Asks a vendor's adapter for readings in a thread of its own, so that a tool that hangs holds up nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

DEVICE_TIMEOUT = 30.0
"""Seconds after which an adapter that hasn't answered is called hung; it may try two tools of ten seconds each."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts, at most, at what keeps failing."""
LAST_READING = 2.0
"""Seconds that the end waits for one more reading: what is measured up to its end lies between two."""


class Counts(msgspec.Struct):
    """How often a source was asked, or should have been."""

    read: int = 0
    failed: int = 0
    """Asked, and there was an error or no answer in time."""
    missed: int = 0
    """Ticks at which it couldn't be asked: it was answering still, or was left alone after failures."""


class DeviceSampler:
    """One vendor's devices as a source of samples: time-out, back-off, counters.

    After the n-th failure in a row it's left alone for 2^n intervals, `LONGEST_PAUSE` at most; an answer ends that.
    """

    def __init__(
        self, sample: Callable[[], list[dict[str, Any]]], *, interval: float = 1.0, timeout: float = DEVICE_TIMEOUT
    ) -> None:
        self._sample, self._interval, self._timeout = sample, interval, timeout
        self._changed = threading.Condition()
        self._ready: list[dict[str, Any]] = []
        self._error = ""
        self._asked: float | None = None
        self._late = False
        """Whether the call that is going on has been counted as failed already."""
        self._failures = 0
        self._not_before = 0.0
        self.counts = {"devices": Counts()}
        """Of the vendor as a whole, and as `devices.INDEX` of each device that told of a fault."""
        threading.Thread(target=self._work, name="device-sampler", daemon=True).start()

    def take(self) -> tuple[list[dict[str, Any]], str]:
        """Return what has come in since the last call and what went wrong, and ask for more. Never waits."""
        with self._changed:
            now = time.monotonic()
            if self._asked is not None:
                self.counts["devices"].missed += 1
                if now - self._asked > self._timeout and not self._late:
                    self._late = True
                    self._fail(f"no answer within {self._timeout:g} s")
            elif now < self._not_before:
                self.counts["devices"].missed += 1
            else:
                self._ask()
            return self._taken()

    def finish(self, seconds: float = LAST_READING) -> tuple[list[dict[str, Any]], str]:
        """Return what has come in, waiting up to `seconds` for a last reading unless the vendor is failing."""
        with self._changed:
            if self._asked is None and not self._failures:
                self._ask()
            if not self._late:
                self._changed.wait_for(lambda: self._asked is None, seconds)
            return self._taken()

    def _ask(self) -> None:
        self._asked, self._late = time.monotonic(), False
        self._changed.notify_all()

    def _taken(self) -> tuple[list[dict[str, Any]], str]:
        taken = (self._ready, self._error)
        self._ready, self._error = [], ""
        return taken

    def _fail(self, why: str) -> None:
        self.counts["devices"].failed += 1
        self._error = why

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked is not None)
            devices: list[dict[str, Any]] = []
            error = ""
            began = time.monotonic_ns()
            try:
                read = self._sample()
                stamp = (began + time.monotonic_ns()) // 2
                devices = [{**device, "ns": stamp} for device in read]
                msgspec.json.encode(devices)  # what a journal can't hold is this adapter's failure, not telemetry's
            except Exception as problem:  # an adapter may raise anything; the host's sensors go on
                devices, error = [], f"{type(problem).__name__}: {problem}"
            with self._changed:
                self._answered(devices, error)
                self._changed.notify_all()

    def _answered(self, devices: list[dict[str, Any]], error: str) -> None:
        if self._late:  # too late to say which moment it is of
            error = error or f"an answer after more than {self._timeout:g} s"
        elif error:
            self._fail(error)
        else:
            self.counts["devices"].read += 1
            self._ready += devices
            for device in devices:
                if device.get("faulty"):
                    self.counts.setdefault(f"devices.{device.get('index')}", Counts()).failed += 1
        self._failures = self._failures + 1 if error else 0
        pause = min(LONGEST_PAUSE, self._interval * 2.0 ** min(self._failures, 20)) if error else 0.0
        self._not_before = time.monotonic() + pause
        self._asked = None
