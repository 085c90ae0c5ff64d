"""BMTrain 1.0.1, unmodified, over any device of torch's and any backend of torch.distributed.

The package from PyPI is bound to CUDA: its compiled extension needs libnccl to be imported, and its Python code names
`torch.cuda` throughout. The layer here takes both away while the package is imported: its syntax tree is rewritten in
memory (`rewrite`), `torch.cuda` becomes the device's own module or a host's stand-in (`accelerator`), and the extension
is replaced by functions over torch.distributed (`collectives`) and torch (`kernels`). No file is changed, torch isn't
patched, and no other package is touched.

What it guarantees:

- Everything that `import bmtrain` loads is BMTrain's own code, with `PLACES` places rewritten by the rules of `rewrite`
  and nothing else; another version or another number of places is refused.
- The 31 functions of the extension have their compiled meaning, with the exceptions that `kernels` names.
- What is on a side stream is done when it's waited for; on a host, communication on one runs in the background.

What it doesn't: that compute overlaps compute, that `memory_allocated` on a host is more than the resident set, or that
two ranks in one process work. On a host BMTrain's gathers in the forward pass wait at once, since it relies on a device
that runs behind the host; only the backward pass's reduce-scatters overlap. Devices other than the CPU use their own
streams and have been tried by nobody yet.

Where CUDA, the compiled extension and NCCL are there and asked for, the layer stays off: `enable` returns None.

Only the package's Python files matter, and wheels are for CPython 3.10 and 3.11 on x86_64 alone; elsewhere:

    pip install --no-deps --only-binary=:all: --python-version 311 --platform manylinux2014_x86_64 --target DIR \
bmtrain==1.0.1

with DIR a folder on `sys.path`. `--no-deps` since nvidia-nccl-cu11 (148 MB) isn't needed.

`python -m flagperf.engines.bmtrain SCRIPT` runs any script that was written for BMTrain on CUDA.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import sys
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch

from flagperf.errors import FlagPerfError, Unavailable

from . import kernels
from .accelerator import Accelerator
from .collectives import Address, Collectives
from .rewrite import PACKAGE, PLACES, VERSION, Finder

INSTALL = f"pip install --no-deps bmtrain=={VERSION}"


class Layer:
    """What rewritten code calls in place of CUDA's names; one a process."""

    def __init__(self, device: torch.device, backend: str) -> None:
        self.device, self.backend = device, backend
        self.device_type = device.type
        self.accelerator = Accelerator(device)
        self.pins = device.type != "cpu"
        """Whether host memory is worth pinning."""
        self.finder = Finder(self, {**Collectives(device, backend).functions(), **kernels.functions()})

    @property
    def places(self) -> int:
        """How many places of BMTrain's source were rewritten."""
        return sum(count for name, count in self.finder.places.items() if name.split(".")[0] == PACKAGE)

    def on_device(self, x: Any) -> bool:
        """Return whether a tensor or storage is on the device."""
        return bool(x.device.type == self.device.type)

    def to_device(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a tensor or module on the device."""
        return x.to(self.device, **kwargs)

    def to_host(self, x: Any) -> Any:
        """Return a module on the host, or a compact copy of a tensor, so that what is saved isn't a whole buffer."""
        return x.to("cpu", copy=True) if isinstance(x, torch.Tensor) else x.cpu()

    def address(self, x: torch.Tensor | torch.TypedStorage) -> Address:
        """Return where a tensor or storage is, with what is there."""
        if isinstance(x, torch.Tensor):
            return Address(x.data_ptr(), x.detach().view(-1))
        whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x)
        return Address(whole.data_ptr(), whole)

    def storage_type(self, x: torch.Tensor) -> Any:
        """Return the class of a tensor's storage."""
        if self.on_device(x):
            return self.accelerator.storage_types[x.dtype]
        return x.storage_type()  # type: ignore[no-untyped-call]

    def record_stream(self, x: torch.Tensor, stream: Any) -> None:
        """Keep a tensor's memory while a stream uses it; on a host, what is pending holds it anyway."""
        if not self.accelerator.hosted:
            x.record_stream(stream)

    def stream_handle(self, stream: Any) -> Any:
        """Return what the replaced functions take for a stream: itself."""
        return stream

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor in pinned memory where that serves the device."""
        return x.pin_memory() if self.pins else x

    def fork_rng(self, devices: Any = None, enabled: bool = True) -> AbstractContextManager[None]:
        """Return a context after which the generators are as they were."""
        if self.accelerator.hosted:
            return torch.random.fork_rng(devices=[], enabled=enabled)
        return torch.random.fork_rng(devices=devices, enabled=enabled, device_type=self.device.type)


_layer: Layer | None = None


def enable(device: torch.device, backend: str) -> Layer | None:
    """Import BMTrain for a device and a backend; return the layer it runs through, or None where it runs natively.

    Asked again it returns the same layer. Raises Unavailable if the package isn't there in the version it must be, and
    FlagPerfError if it's been imported by someone else or has other code than that release.
    """
    global _layer
    if _layer is not None:
        if (_layer.device.type, _layer.backend) != (device.type, backend):
            raise FlagPerfError(f"BMTrain already runs on {_layer.device_type} with {_layer.backend} in this process.")
        return _layer
    check_version()
    if _native(device, backend):
        return None
    if PACKAGE in sys.modules:
        raise FlagPerfError("bmtrain was imported before the layer.", "Call flagperf.engines.bmtrain.enable first.")
    layer = Layer(device, backend)
    sys.meta_path.insert(0, layer.finder)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)  # BMTrain's API is made of them
    importlib.import_module(PACKAGE)
    if layer.places != PLACES:
        raise FlagPerfError(
            f"{layer.places} places of bmtrain were rewritten; in {VERSION} there are {PLACES}. Its files are others.",
            f"Install the release afresh: {INSTALL} --force-reinstall",
        )
    _layer = layer
    return layer


def check_version() -> None:
    """Raise Unavailable unless the version that the layer was written for is installed."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable("BMTrain isn't installed.", INSTALL) from None
    if version != VERSION:
        raise Unavailable(f"BMTrain {version} is installed; {VERSION} is the one that works here.", INSTALL)


def shut_down() -> None:
    """Let go of all communicators, in BMTrain and in its layer, and leave torch.distributed.

    In this order, or a process that has groups left aborts now and then at its end.
    """
    if PACKAGE in sys.modules:
        config = importlib.import_module(f"{PACKAGE}.global_var").config
        for name in [name for name in config if name.endswith("comm")]:
            del config[name]
        config["initialized"] = False
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _native(device: torch.device, backend: str) -> bool:
    """Return whether the package imports as it is and has what it needs: CUDA, its extension and NCCL."""
    if device.type != "cuda" or backend != "nccl" or not torch.cuda.is_available():
        return False
    try:
        importlib.import_module(f"{PACKAGE}.C")
    except ImportError as error:
        # No extension for this Python or this CUDA: what was imported so far goes, and the layer takes over.
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        warnings.warn(f"BMTrain doesn't run natively here, so it goes through the layer: {error}", stacklevel=3)
        return False
    return True
