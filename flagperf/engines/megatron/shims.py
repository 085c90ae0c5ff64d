"""What Megatron-Core is given so that it runs where there is no CUDA, each with the reason. Off on CUDA.

Nothing is changed on disk, and nothing in torch: only names in Megatron's own modules are bound to something else.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Megatron asks for a parameter's type by this name, in place of its dtype, to tell weights of 16 bits.
_TYPES = {torch.float32: "FloatTensor", torch.float16: "HalfTensor", torch.bfloat16: "BFloat16Tensor"}


@contextmanager
def uncompiled() -> Iterator[None]:
    """Where there is no CUDA, have `torch.compile` give functions back as they are while Megatron is imported.

    Its modules hand their fused functions to the compiler as they are imported. `model.transformer_config` turns all
    of these fusions off, but asking for the compiler imports it: four seconds of a core in every rank.
    """
    compile_, cuda = torch.compile, torch.cuda.is_available()
    if not cuda:
        torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_


def install(device: torch.device) -> list[str]:
    """Make the modules of Megatron that are loaded mean `device` where they say CUDA; return what was done, in words.

    May be called again, for modules that have been loaded since.
    """
    if device.type == "cuda":
        return []
    standin = Torch(device)
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith("megatron.core")]
    for module in loaded:
        if getattr(module, "torch", None) is torch:
            # They write torch.cuda.current_device() and device="cuda" wherever they make a tensor.
            module.__dict__["torch"] = standin
    random = sys.modules["megatron.core.tensor_parallel.random"]
    # These two reach into torch's CUDA generators by names of their own, past `torch.cuda`.
    random.__dict__["_get_cuda_rng_state"] = functools.partial(_get_rng_state, standin.cuda)
    random.__dict__["_set_cuda_rng_state"] = functools.partial(_set_rng_state, standin.cuda)
    return [
        f"in Megatron's modules torch.cuda and the device 'cuda' mean {device.type}",
        f"random states are those of {device.type}",
        "fused functions, none of which is used, aren't compiled",
    ]


def name_types(model: torch.nn.Module, device: torch.device) -> list[str]:
    """Let parameters tell the type that Megatron's optimizers look for, 'torch.cuda.FloatTensor' and so on."""
    if device.type == "cuda":
        return []
    for parameter in model.parameters():
        name = f"torch.cuda.{_TYPES[parameter.dtype]}"
        parameter.type = functools.partial(str, name)  # type: ignore[method-assign, assignment]
    return ["parameters name their type as CUDA tensors would"]


class Torch:
    """torch with another meaning of CUDA: what Megatron's modules see under the name `torch`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = Cuda(device)
        for name in ("empty", "ones", "tensor", "zeros"):
            setattr(self, name, _made_on(device, getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Cuda:
    """The device's own module (`torch.cpu`, `torch.npu` …) in the place of `torch.cuda`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        # torch.cpu has no generator of its own: it is torch's.
        generator = torch if device.type == "cpu" else self._module
        self.get_rng_state: Callable[[], torch.Tensor] = generator.get_rng_state
        self.set_rng_state: Callable[[torch.Tensor], None] = generator.set_rng_state
        self.manual_seed: Callable[[int], object] = generator.manual_seed

    def current_device(self) -> torch.device:
        """Return the rank's device; Megatron makes tensors on it."""
        return self._device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _made_on(device: torch.device, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = device
        return make(*args, **kwargs)

    return made


def _get_rng_state(module: Cuda, device: object = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return module.get_rng_state()


def _set_rng_state(module: Cuda, state: torch.Tensor, device: object = None, graph_safe: bool = False) -> None:
    module.set_rng_state(state)
