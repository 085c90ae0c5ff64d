"""What engines share that are given a module as a graph: its export, by torch.export and, where wanted, to ONNX."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flagperf import paths
from flagperf.data import cache
from flagperf.inference.worker import tensor_bytes

KEPT_BYTES = 2**30
"""Of weights at most, of a graph that is kept."""
_NAME = "module.onnx"


def exported(
    module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
) -> torch.export.ExportedProgram:
    """Return a module as a graph for arguments like the examples, of any size in the `dynamic` dimensions."""
    arguments = tuple(each.clone(memory_format=torch.contiguous_format) for each in examples)
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for place, dimensions in dynamic.items():
        shapes[arguments[place]] = dict.fromkeys(dimensions, torch.export.Dim.AUTO)
    with torch.no_grad(), quiet():
        return torch.export.export(module, arguments, dynamic_shapes=shapes.dynamic_shapes(module, arguments))


def leave_cores() -> None:
    """Leave the cores to the threads of whatever runs the graph: those of torch would spin beside them, waiting."""
    torch.set_num_threads(1)


@contextmanager
def onnx_of(program: torch.export.ExportedProgram) -> Iterator[Path]:
    """Give a graph as a file of ONNX's, its weights in one beside it.

    It takes longer to make than many a measurement, so it's kept in the cache, by the graph and by what is in its
    weights, unless these are larger than `KEPT_BYTES`.
    """
    tensors = {**program.state_dict, **program.constants}

    def write(folder: Path) -> None:
        with torch.no_grad(), quiet():
            made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None  # as it is with `dynamo`
        made.save(folder / _NAME, external_data=True)

    if tensor_bytes(tensors.values()) > KEPT_BYTES:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            yield Path(folder) / _NAME
        return
    with cache.storage_errors():
        entry = cache.made(paths.cache() / "onnx" / _digest(program, tensors), write, lambda stage, done: None)
    yield entry / _NAME


def _digest(program: torch.export.ExportedProgram, tensors: Mapping[str, Any]) -> str:
    """Return what a graph, its weights and what turns it into ONNX are known by."""
    digest = hashlib.sha256(str(program).encode())
    for package in ("torch", "onnx", "onnxscript"):
        digest.update(f"{package} {version(package)}\n".encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters say of their own workings to themselves; errors are raised all the same."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
