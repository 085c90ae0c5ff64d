"""What engines share that are given a module as a graph: its export, by torch.export and, where wanted, to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


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


def write_onnx(
    module: torch.nn.Module,
    examples: tuple[torch.Tensor, ...],
    dynamic: Mapping[int, Sequence[int]],
    folder: Path,
) -> Path:
    """Write a module's graph into a folder, its weights in a file beside it; return the graph's path."""
    path = folder / "module.onnx"
    program = exported(module, examples, dynamic)
    with torch.no_grad(), quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None  # as it is with `dynamo`
    made.save(path, external_data=True)
    return path


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
