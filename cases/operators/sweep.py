"""The cases `operators/…`: one runner for all operators, which are data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from flagperf.errors import UsageError
from flagperf.kernel import Kernel, KernelCase, Work
from flagperf.schema.sweep import At, Label
from flagperf.schema.trial import Trial
from flagperf.settings import typed
from flagperf.sweep import SweepSettings

from .definition import Dims, Operator, value

if TYPE_CHECKING:
    import torch

    from flagperf.measure.inputs import Inputs


class OperatorSettings(SweepSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the cases of operators can be told."""

    operators: dict[str, Operator]


class Operators(KernelCase):
    """Operators, each at every point of the sweep that it has: its own data types, gradients where they're measured."""

    Settings = OperatorSettings

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.operators: dict[str, Operator] = self.settings.operators

    @classmethod
    def check(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings, complete, with the shapes that are swept and the data types that its operators take.

        Refuses operators that can't be called, or lack a dimension, and a sweep of no points.
        """
        checked = super().check(settings)
        sweep = checked["sweep"]
        for axis in ("shape", "pass", "dtype"):
            if axis not in sweep:
                raise UsageError(f"The sweep of operators has no axis {axis!r}.", f"Leave sweep.{axis} in.")
        operators = typed(settings, cls.Settings).operators
        for name, operator in operators.items():
            for shape in sweep["shape"]:
                operator.check(name, {**checked["shapes"][shape], **operator.shapes.get(shape, {})})
        points = [at for operator in operators.values() for at in _points(operator, sweep)]
        if not points:
            takes = "; ".join(f"{name} takes {', '.join(each.dtypes)}" for name, each in operators.items())
            raise UsageError(f"No operator has a point in this sweep: {sweep}.", f"{takes[:300]}.")
        taken = {at["dtype"] for at in points}
        shapes = {shape: checked["shapes"][shape] for shape in sweep["shape"]}
        return {
            **checked,
            "sweep": {**sweep, "dtype": [each for each in sweep["dtype"] if each in taken]},
            "shapes": {
                shape: {name: size for each in operators.values() for name, size in each.used(dims).items()}
                for shape, dims in shapes.items()
            },
        }

    def points(self) -> list[At]:
        """Return all points, operator by operator."""
        return [
            {"operator": name, **at}
            for name, operator in self.operators.items()
            for at in _points(operator, self.settings.sweep)
        ]

    def dims(self, at: At) -> dict[str, Any]:
        """Return a point's axes with the dimensions of its shape, the operator's own over all operators'."""
        own = self.operators[str(at["operator"])].shapes.get(str(at["shape"]), {})
        return {**super().dims(at), **own}

    def kernel(self, dims: dict[str, Any]) -> Kernel:
        """Return the operator of a point."""
        kind = OperatorGradients if dims["pass"] == "backward" else OperatorKernel
        return kind(self.operators[dims["operator"]])

    def amounts(self, at: At) -> dict[str, float]:
        """Return FLOPs: how large results are, and so bytes, only torch can tell."""
        dims = self.dims(at)
        return {"flops": (2 if at["pass"] == "backward" else 1) * self.operators[str(at["operator"])].work(dims)}


def _points(operator: Operator, sweep: dict[str, list[Label]]) -> list[At]:
    """Return the points of a sweep that an operator has."""
    passes = ("forward", "backward") if operator.backward else ("forward",)
    return [at for at in KernelCase.product(sweep) if at["dtype"] in operator.dtypes and at["pass"] in passes]


class OperatorKernel(Kernel):
    """One operator."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        own = operator.gradient_tolerances if self.backward else operator.tolerances
        told = {dtype: (absolute, relative) for dtype, (absolute, relative) in own.items()}
        self.tolerances = {"int32": (0.0, 0.0), "int16": (0.0, 0.0), **Kernel.tolerances, **told}

    def inputs(self, dims: dict[str, Any], make: Inputs) -> tuple[torch.Tensor, ...]:
        """Return the operator's tensors."""
        return tuple(self._input(place, dims, make) for place in range(len(self.operator.inputs)))

    def arguments(self, dims: dict[str, Any]) -> dict[str, Any]:
        """Return the operator's arguments."""
        return self.operator.given(dims)

    def bind(
        self, function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]
    ) -> Callable[..., Any]:
        """Return what the provider makes of the operator."""
        return function(self.function(), inputs, arguments)  # type: ignore[no-any-return]

    def function(self) -> Callable[..., Any]:
        """Return torch's function."""
        import torch

        from . import functions

        room, _, name = self.operator.call.rpartition(".")
        rooms = {"torch": torch, "torch.nn.functional": torch.nn.functional, "torch.Tensor": torch.Tensor}
        try:
            function: Callable[..., Any] = getattr(rooms.get(room, functions), name)
        except AttributeError:
            raise UsageError(f"This torch, {torch.__version__}, has no {self.operator.call}.") from None
        return function

    def reference(self, *inputs: torch.Tensor, **arguments: Any) -> Any:
        """Return what torch computes in float64 on the host; of random ones the result if nothing were dropped."""
        if self.operator.judge == "random":
            return inputs[0] / (1 - arguments["p"])
        return self._pointed(self.function()(*inputs, **arguments), inputs, arguments)

    def comparable(self, result: Any, inputs: Sequence[torch.Tensor], arguments: dict[str, Any]) -> Any:
        """Return what is held against the reference."""
        if self.operator.judge == "random":
            return self._filled(result, inputs[0], arguments["p"])
        return self._pointed(result, inputs, arguments)

    def work(self, dims: dict[str, Any]) -> Work:
        """Count FLOPs by the operator's formula, and bytes: what a call must read of its inputs, and its results."""
        reads, written, _ = self._traffic(dims)
        return Work(self.operator.work(dims), sum(reads) + written)

    def _traffic(self, dims: Dims) -> tuple[list[float], int, int]:
        """Return the bytes that must be read of each input, those of the results, and those of all gradients."""
        import torch

        from flagperf.kernels import tensors
        from flagperf.measure.inputs import DTYPES

        operator = self.operator
        places = range(len(operator.inputs))
        dtypes = [DTYPES[operator.inputs[place].dtype or dims["dtype"]] for place in places]
        given = [torch.empty(operator.size(place, dims), dtype=dtypes[place], device="meta") for place in places]
        with torch.no_grad():
            results = tensors(OperatorKernel.function(self)(*given, **operator.given(dims)))
        reads = [operator.elements(place, dims) * dtypes[place].itemsize for place in places]
        gradients = sum(tensor.nbytes for tensor in given if tensor.is_floating_point())
        return reads, sum(tensor.nbytes for tensor in results), gradients

    def _input(self, place: int, dims: Dims, make: Inputs) -> torch.Tensor:
        from flagperf.measure.inputs import DTYPES

        each, size = self.operator.inputs[place], self.operator.size(place, dims)
        low, high = value(each.low, dims), value(each.high, dims)
        if each.kind == "uniform":
            return make.uniform(*size, low=low, high=high)
        if each.kind == "integers":
            return make.integers(*size, low=int(low), high=int(high), dtype=DTYPES[each.dtype] if each.dtype else None)
        if each.kind == "signs":
            return make.integers(*size, low=0, high=2).mul_(2).sub_(1)
        if each.kind == "holes":  # so few that about one row in two has one
            return make.integers(*size, low=0, high=2 * size[-1]).clamp_(max=1)
        made = make.normal(*size, scale=value(each.over, dims) ** -0.5 if each.over else 1.0)
        if each.kind == "special":
            for start, what in enumerate((math.nan, math.inf, -math.inf)):
                made.view(-1)[start::17] = what
        return made

    def _pointed(self, result: Any, inputs: Sequence[torch.Tensor], arguments: dict[str, Any]) -> Any:
        if self.operator.judge != "index":
            return result
        import torch

        dim = arguments["dim"]
        return torch.take_along_dim(inputs[0].detach(), result.unsqueeze(dim), dim).squeeze(dim)

    def _filled(self, result: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        """Return a result of dropout with the right values for zeros; NaN if there aren't as many as p says.

        Their number is binomial: 6 standard deviations off happens once in 500 million.
        """
        import torch

        from flagperf.kernels import tensors, upstream

        first, *masks = tensors(result)
        dropped = first == 0
        count = dropped.numel()
        told = all(torch.equal(mask, ~dropped) for mask in masks)
        if not told or abs(float(dropped.sum()) - p * count) > 6 * math.sqrt(p * (1 - p) * count):
            return torch.full_like(first, math.nan)
        source = upstream(x) if self.backward else x.detach()
        return torch.where(dropped, source / (1 - p), first)


class OperatorGradients(OperatorKernel):
    """The gradients of one operator."""

    backward: ClassVar[bool] = True

    def function(self) -> Callable[..., Any]:
        """Return torch's function, of several results the first: that is what gradients are taken of."""
        from flagperf.kernels import tensors

        function = super().function()
        return lambda *given, **arguments: tensors(function(*given, **arguments))[0]

    def work(self, dims: dict[str, Any]) -> Work:
        """Count twice the FLOPs, and the bytes of the gradients with those of what they are computed from.

        That is inputs, what a call returns beside its first result, and a gradient as large as that result.
        """
        reads, written, gradients = self._traffic(dims)
        keeps = self.operator.keeps
        kept = sum(reads) if keeps is None else sum(reads[place] for place in keeps)
        return Work(2 * self.operator.work(dims), kept + written + gradients)
