"""What stands for `torch.cuda` in rewritten code: streams and events of the host, or the device's own module."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from flagperf.measure.memory import process_memory

_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
}


class StorageType:
    """A typed storage's class on the device, as `torch.cuda.FloatStorage` is one: called with a size, it makes one."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device

    def __call__(self, size: int) -> torch.TypedStorage:
        storage: torch.TypedStorage = torch.empty(size, dtype=self.dtype, device=self.device)._typed_storage()  # type: ignore[no-untyped-call]
        return storage


class Pending:
    """An operation under way: the handles to wait for, what is to be done then, and what must live until then."""

    def __init__(self, handles: list[Any], finish: Callable[[], object] | None, *buffers: torch.Tensor) -> None:
        self._handles, self._finish, self._buffers = handles, finish, buffers

    def wait(self) -> None:
        """Wait until it's done; once is enough, more does nothing."""
        for handle in self._handles:
            handle.wait()
        if self._finish is not None:
            self._finish()
        self._handles, self._finish, self._buffers = [], None, ()


class Event:
    """What was pending on a stream when it was recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._pending: list[Pending] = []
        self._seconds = 0.0

    def record(self, stream: Stream) -> None:
        """Remember what is pending on the stream now."""
        self._pending, self._seconds = list(stream.pending), time.perf_counter()

    def synchronize(self) -> None:
        """Wait for what was remembered."""
        for operation in self._pending:
            operation.wait()
        self._pending = []

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds between two recordings."""
        return (end._seconds - self._seconds) * 1e3


class Stream:
    """An order of operations on the host. Only communication is ever pending: a host computes as it's told to."""

    def __init__(self, device: object = None, priority: int = 0, *, main: bool = False) -> None:
        self.main = main
        """Whether it's the stream that computation is on: nothing is left pending there."""
        self.pending: list[Pending] = []

    def synchronize(self) -> None:
        """Wait for everything pending on this stream."""
        for operation in self.pending:
            operation.wait()
        self.pending.clear()

    def wait_stream(self, other: Stream) -> None:
        """Let what follows on this stream see what is on the other."""
        other.synchronize()

    def wait_event(self, event: Event) -> None:
        """Let what follows on this stream see what the event stands for."""
        event.synchronize()

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, a new one unless given."""
        event = event or Event()
        event.record(self)
        return event


class HostAccelerator:
    """`torch.cuda` on a host: one device without an index. Memory is the process's resident set."""

    def __init__(self) -> None:
        self.Stream, self.Event = Stream, Event
        self._current = Stream(main=True)

    def current_stream(self, device: object = None) -> Stream:
        """Return the stream that operations go to."""
        return self._current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Send operations to another stream."""
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def synchronize(self, device: object = None) -> None:
        """Wait for what is pending on the current stream."""
        self._current.synchronize()

    def set_device(self, device: object) -> None:
        """Do nothing: there is one."""

    def current_device(self) -> int:
        """Return the only index there is."""
        return 0

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def is_available(self) -> bool:
        """Return True, since the host is."""
        return True

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generator."""
        torch.manual_seed(seed)

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        """Return the state of the host's generator."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        """Set the state of the host's generator."""
        torch.set_rng_state(state)

    def memory_allocated(self, device: object = None) -> int:
        """Return the resident set, bytes."""
        return int(psutil.Process().memory_info().rss)

    def max_memory_allocated(self, device: object = None) -> int:
        """Return the resident set's peak, bytes."""
        return process_memory()[0] or self.memory_allocated()

    def memory_summary(self) -> str:
        """Say both in words."""
        return f"resident set {self.memory_allocated()} bytes, peak {self.max_memory_allocated()} bytes"

    def reset_peak_memory_stats(self, device: object = None) -> None:
        """Do nothing: the harness resets the peak when it measures."""


class Accelerator:
    """`torch.cuda` for rewritten code: the device's own module, or the host's stand-in, with typed storages added."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.hosted = device, device.type == "cpu"
        self.module: Any = HostAccelerator() if self.hosted else torch.get_device_module(device.type)
        self.storage_types = {dtype: StorageType(dtype, device) for dtype in _STORAGES.values()}

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Storage") and name.removesuffix("Storage") in _STORAGES:
            return self.storage_types[_STORAGES[name.removesuffix("Storage")]]
        if name.endswith("Tensor") and name.removesuffix("Tensor") in _STORAGES:
            dtype = _STORAGES[name.removesuffix("Tensor")]
            return lambda values: torch.tensor(values, dtype=dtype, device=self.device)
        return getattr(self.module, name)
