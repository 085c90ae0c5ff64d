"""Makes torch know the device `simchip` and the backend `simccl` when it's imported; it is `torch.simchip` itself.

The functions are those that torch looks for in a device's module; all that `torch.accelerator` has is taken from there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend

from .build import load
from .settings import Settings, read_settings

_NAME = "simchip"
Stream = torch.Stream
Event = torch.Event

_settings = read_settings()


def configure(**changes: Any) -> Settings:
    """Change settings (fields of `Settings`) for this process from now on; return all of them."""
    global _settings
    _settings = msgspec.structs.replace(_settings, **changes)
    _settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    faults = [_library.Fault(*msgspec.structs.astuple(fault)) for fault in _settings.faults]
    _library.configure(
        _settings.devices,
        _settings.memory_mib * 2**20,
        _settings.delay,
        _settings.flops,
        _settings.bytes,
        _settings.link,
        faults,
        str(_settings.folder),
    )
    return _settings


def occupy(seconds: float) -> None:
    """Give the current stream work that takes this long, and return at once."""
    _library.occupy(seconds)


def operators(device: Any = None) -> int:
    """Return how many operators a device has run for this process."""
    return int(_library.operators(_index(device)))


def is_available() -> bool:
    """Return whether there is a device."""
    return device_count() > 0


def is_initialized() -> bool:
    """Return True: there is nothing to initialise."""
    return True


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    """Return how many devices there are."""
    return int(_library.device_count())


def current_device() -> int:
    """Return the current device's index."""
    return int(_library.current_device())


def set_device(device: Any) -> None:
    """Make a device the current one."""
    _library.set_device(_index(device))


def device(device: Any) -> AbstractContextManager[Any]:
    """Return a context in which a device is the current one."""
    return torch.accelerator.device_index(_index(device))


def stream(stream: torch.Stream | None) -> AbstractContextManager[Any]:
    """Return a context in which a stream is the current one."""
    return nullcontext() if stream is None else stream


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the data types that autocast can use."""
    return [torch.float16, torch.bfloat16]


def is_bf16_supported() -> bool:
    """Return True."""
    return True


def default_generator(device: Any = None) -> torch.Generator:
    """Return a device's random number generator."""
    generator: torch.Generator = _library.default_generator(_index(device))
    return generator


def manual_seed(seed: int) -> None:
    """Seed the current device's generator."""
    default_generator().manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every device's generator."""
    for index in range(device_count()):
        default_generator(index).manual_seed(seed)


def initial_seed() -> int:
    """Return the seed of the current device's generator."""
    return default_generator().initial_seed()


def get_rng_state(device: Any = None) -> torch.Tensor:
    """Return the state of a device's generator."""
    return default_generator(device).get_state()


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    """Set the state of a device's generator."""
    default_generator(device).set_state(state)


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the states of all devices' generators."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(states: Iterable[torch.Tensor]) -> None:
    """Set the states of all devices' generators."""
    for index, state in enumerate(states):
        set_rng_state(state, index)


def __getattr__(name: str) -> Any:
    """Return what `torch.accelerator` calls so: streams, synchronisation, memory."""
    return getattr(torch.accelerator, name)


def _index(device: Any) -> int:
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    named = torch.device(device)
    return current_device() if named.index is None else named.index


def _backend(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    return _library.simccl(dist.ProcessGroupGloo(store, rank, size, timeout=timeout), rank, size)


rename_privateuse1_backend(_NAME)
_library: Any = load()
configure()
_library.register_hooks()
torch._register_device_module(_NAME, sys.modules[__name__])  # type: ignore[no-untyped-call]
generate_methods_for_privateuse1_backend(for_storage=True)
dist.Backend.register_backend("simccl", _backend, devices=[_NAME])
