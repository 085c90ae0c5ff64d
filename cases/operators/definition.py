"""What an operator is, as data: which function of torch it calls, with what, and how much work that is.

Shapes and counts are made of the names of dimensions and of numbers: `["tokens", "dim"]`. Nothing is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from flagperf.errors import UnknownName, UsageError

Factor = str | float
"""The name of a dimension, or a number."""
Sum = list[list[Factor]]
"""Products that are added: `[[2, "m", "n", "k"], ["m", "n"]]` is 2·m·n·k + m·n."""
Dims = Mapping[str, Any]
Tolerance = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]
"""Absolute and relative."""

ROOMS = ("torch", "torch.nn.functional", "torch.Tensor", "")
"""Where a called function may be; the last is `functions.py` beside this file, as in `.rotary`."""


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor that a call is given."""

    shape: list[Factor | list[Factor]] = msgspec.field(default_factory=lambda: ["blocks", "rows", "columns"])
    """Each of its sizes, or the factors of one."""
    kind: Literal["normal", "uniform", "integers", "signs", "special", "holes"] = "normal"
    """`signs`: 1 or -1. `special`: normal, with NaN and both infinities strewn in. `holes`: 1, with a 0 here and there.
    """
    low: Factor = 0
    high: Factor = 1
    """Of `uniform` and `integers`, which stay below it."""
    over: str = ""
    """A dimension by whose square root the values are divided: of a sum over it, so that the sum keeps its size."""
    dtype: str = ""
    """Its data type where it isn't the point's: of indices."""
    read: Sum | None = None
    """How many elements a call must read, where it isn't all."""


class Operator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operator."""

    call: str
    """A name in torch, torch.nn.functional or torch.Tensor with that before it; `.name` in `functions.py`."""
    inputs: list[Input] = msgspec.field(default_factory=lambda: [Input()])
    arguments: dict[str, Any] = {}
    """By name; the name of a dimension stands for its size."""
    flops: float | Sum = 1.0
    """A number is that many for each element of the first input."""
    backward: bool = False
    """Whether its gradients are measured, too: twice the FLOPs."""
    keeps: list[int] | None = None
    """Which inputs the gradients are computed from, by their places; all unless it's said."""
    dtypes: list[str] = msgspec.field(default_factory=lambda: ["fp32", "fp16", "bf16"])
    judge: Literal["equal", "index", "random"] = "equal"
    """How a result is held against the reference. `index`: by what lies where it points. `random`: what isn't zero must
    be right, and as many zeros be there as its argument `p` says."""
    tolerances: dict[str, Tolerance] = {}
    """By dtype, over those of every kernel."""
    gradient_tolerances: dict[str, Tolerance] = {}
    """The same for gradients."""
    shapes: dict[str, dict[str, int]] = {}
    """Dimensions of its own, by the name of the shape."""

    def size(self, place: int, dims: Dims) -> tuple[int, ...]:
        """Return the shape of an input."""
        sizes = [size if isinstance(size, list) else [size] for size in self.inputs[place].shape]
        return tuple(int(product(size, dims)) for size in sizes)

    def elements(self, place: int, dims: Dims) -> float:
        """Return how many elements of an input a call must read."""
        read = self.inputs[place].read
        return math.prod(self.size(place, dims)) if read is None else total(read, dims)

    def work(self, dims: Dims) -> float:
        """Return the FLOPs of a call."""
        if isinstance(self.flops, list):
            return total(self.flops, dims)
        return self.flops * math.prod(self.size(0, dims))

    def given(self, dims: Dims) -> dict[str, Any]:
        """Return the arguments, with sizes for the names of dimensions."""
        return {
            name: dims[value] if isinstance(value, str) and value in dims else value
            for name, value in self.arguments.items()
        }

    def names(self) -> Iterator[str]:
        """Return every dimension that its shapes and counts name."""
        for each in self.inputs:
            yield from _names([each.shape, each.low, each.high, each.over or [], each.read or []])
        yield from _names(self.flops)

    def used(self, dims: Dims) -> dict[str, Any]:
        """Return the dimensions among these that it has anything to do with."""
        named = {*self.names(), *(each for each in self.arguments.values() if isinstance(each, str))}
        return {name: size for name, size in dims.items() if name in named}

    def check(self, name: str, dims: Dims) -> None:
        """Raise UsageError for a function that can't be called, and for a dimension that `dims` doesn't have."""
        room, _, function = self.call.rpartition(".")
        if room not in ROOMS or not function.isidentifier() or function.startswith("__"):
            rooms = ", ".join(f"{room}.…" for room in ROOMS)
            raise UsageError(f"The operator {name!r} can't call {self.call!r}.", f"It may call {rooms}")
        for dimension in self.names():
            if dimension not in dims:
                raise UnknownName(f"dimension of {name} in this shape", dimension, dims)


def _names(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for each in tree:
            yield from _names(each)


def value(factor: Factor, dims: Dims) -> float:
    """Return a number, or the size of a dimension."""
    return float(dims[factor]) if isinstance(factor, str) else float(factor)


def product(factors: Sequence[Factor], dims: Dims) -> float:
    """Return the product of numbers and dimensions."""
    return math.prod(value(factor, dims) for factor in factors)


def total(terms: Sum, dims: Dims) -> float:
    """Return the sum of products."""
    return sum(product(factors, dims) for factors in terms)
