"""Rewrites BMTrain's syntax tree as it's imported, in memory: each name of CUDA becomes one of the layer's."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

LAYER = "__layer__"
"""The name under which rewritten modules see the layer; no module has it of its own."""

PACKAGE = "bmtrain"
VERSION = "1.0.1"
"""The release that the rules were written for and tested with."""
PLACES = 287
"""Places rewritten by `import bmtrain` in that release: any other number means that it isn't that release."""

_CALLS = {
    "cuda": "to_device",
    "cpu": "to_host",
    "data_ptr": "address",
    "storage_type": "storage_type",
    "record_stream": "record_stream",
    "pin_memory": "pin",
}
_ATTRIBUTES = {"is_cuda": "on_device", "cuda_stream": "stream_handle"}


class Rewriter(ast.NodeTransformer):
    """Applies the rules to one module and counts the places.

    | in the source | becomes |
    | --- | --- |
    | `torch.cuda` | `__layer__.accelerator` |
    | `"cuda"` | `__layer__.device_type` |
    | `x.is_cuda`, `s.cuda_stream` | `__layer__.on_device(x)`, `__layer__.stream_handle(s)` |
    | `x.cuda()`, `x.cpu()`, `x.data_ptr()`, `x.storage_type()`, `x.record_stream(s)`, `x.pin_memory()` | \
`__layer__.to_device(x)` and so on |
    | `pin_memory=True` | `pin_memory=__layer__.pins` |
    | `torch.random.fork_rng(…)` | `__layer__.fork_rng(…)` |
    """

    def __init__(self) -> None:
        self.places = 0

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """Replace `torch.cuda` and the attributes that only CUDA's tensors and streams have."""
        self.generic_visit(node)
        if ast.unparse(node) == "torch.cuda":
            return self._of_layer(node, "accelerator")
        if node.attr in _ATTRIBUTES and isinstance(node.ctx, ast.Load):
            return self._call(node, _ATTRIBUTES[node.attr], [node.value], [])
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """Replace the device's name."""
        return self._of_layer(node, "device_type") if node.value == "cuda" else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Replace the methods that mean CUDA, or an address that compiled code would use."""
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute):
            if function.attr in _CALLS:
                return self._call(node, _CALLS[function.attr], [function.value, *node.args], node.keywords)
            if ast.unparse(function) == "torch.random.fork_rng":
                return self._call(node, "fork_rng", node.args, node.keywords)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        """Pin host memory only where the device gains by it."""
        self.generic_visit(node)
        if node.arg == "pin_memory" and isinstance(node.value, ast.Constant):
            node.value = self._of_layer(node.value, "pins")
        return node

    def _of_layer(self, place: ast.expr, name: str) -> ast.expr:
        self.places += 1
        whole = ast.Attribute(ast.Name(LAYER, ast.Load()), name, ast.Load())
        return ast.fix_missing_locations(ast.copy_location(whole, place))

    def _call(self, place: ast.expr, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> ast.expr:
        call = ast.Call(self._of_layer(place, name), args, keywords)
        return ast.fix_missing_locations(ast.copy_location(call, place))


def rewrite(source: bytes | str, path: str) -> tuple[CodeType, int]:
    """Return a module's rewritten code and how many places of it were rewritten."""
    rewriter = Rewriter()
    tree = rewriter.visit(ast.parse(source, path))
    return compile(tree, path, "exec", dont_inherit=True), rewriter.places


class RewritingLoader(importlib.machinery.SourceFileLoader):
    """Loads a source file rewritten; nothing is cached on disk, so no other process can meet it."""

    def __init__(self, name: str, path: str, finder: Finder) -> None:
        super().__init__(name, path)
        self.finder = finder

    def get_code(self, fullname: str) -> CodeType:
        """Return the rewritten code."""
        code, places = rewrite(self.get_data(self.path), self.path)
        self.finder.places[fullname] = places
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with the layer in its namespace."""
        module.__dict__[LAYER] = self.finder.layer
        super().exec_module(module)


class _Functions(importlib.abc.Loader):
    """Stands for the compiled extension: a module of the layer's own functions."""

    def __init__(self, functions: dict[str, Any]) -> None:
        self.functions = functions

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Take the default."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        module.__dict__.update(self.functions)


class Finder(importlib.abc.MetaPathFinder):
    """Finds BMTrain where it's installed, and the modules beside a script that was written for it."""

    def __init__(self, layer: object, functions: dict[str, Any]) -> None:
        self.layer, self.functions = layer, functions
        self.folders: list[Path] = []
        """Folders whose modules are rewritten as well."""
        self.places: dict[str, int] = {}
        """How many places were rewritten, by module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how a module is to be loaded, or None if it's none of ours."""
        if fullname == f"{PACKAGE}.C":
            return importlib.machinery.ModuleSpec(fullname, _Functions(self.functions))
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        own = fullname.split(".")[0] == PACKAGE
        if own or any(folder in Path(spec.origin).resolve().parents for folder in self.folders):
            spec.loader = RewritingLoader(fullname, spec.origin, self)
            return spec
        return None
