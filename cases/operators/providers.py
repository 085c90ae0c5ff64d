"""Ways to run an operator: each takes torch's function and returns what is called in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flagperf.kernel import Unsupported

Function = Callable[..., Any]


def eager(operator: Function, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Function:
    """torch's own kernel, as it comes."""
    return operator


def inductor(operator: Function, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Function:
    """torch.compile for exactly these shapes, from nothing: its first call compiles."""
    device = inputs[0].device.type
    _check_inductor(device)
    torch.compiler.reset()
    torch.compiler.config.force_disable_caches = True
    # Gradients are taken of one graph many times.
    torch._functorch.config.donated_buffer = False

    def named(*tensors: torch.Tensor, **more: Any) -> Any:
        return operator(*tensors, **more)

    compiled: Function = torch.compile(named, dynamic=False, fullgraph=True)
    return compiled


def _check_inductor(device: str) -> None:
    compiler = os.environ.get("CXX") or "g++"
    if device == "cpu" and shutil.which(compiler) is None:
        raise Unsupported(f"torch.compile needs a C++ compiler on a CPU, and there is no {compiler}")
    from torch._inductor.codegen import common

    common.init_backend_registration()
    if common.get_scheduling_for_device(device) is None:
        raise Unsupported(f"torch.compile has no code generator for {device} devices")


def flaggems(operator: Function, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Function:
    """FlagGems' kernels in the place of torch's, as long as `around` is entered."""
    import flag_gems

    with flag_gems.use_gems():
        theirs = set(flag_gems.all_registered_keys())
    with _Seen() as seen:
        operator(*(tensor.detach().to("meta") for tensor in inputs), **arguments)
    if not theirs & seen.names:
        raise Unsupported(f"FlagGems has none of {', '.join(sorted(seen.names))}, which this operator is made of")

    def gems(*tensors: torch.Tensor, **more: Any) -> Any:
        return operator(*tensors, **more)

    gems.around = flag_gems.use_gems  # type: ignore[attr-defined]
    return gems


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the names of the ATen operators that are called while it's entered: `add.Tensor`, `_softmax`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        self.names.add(name.removesuffix(".default"))
        return func(*args, **(kwargs or {}))
