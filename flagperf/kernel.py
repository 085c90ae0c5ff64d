"""The contract of kernel cases: one computation, many providers of it, judged by a float64 reference.

A kernel case is a manifest, whose `providers` name functions, and a class derived from `KernelCase` that says what goes
in, what must come out, and how much work that is. Its module must import without torch, as any case's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from flagperf.schema.sweep import At
from flagperf.sweep import SweepCase

if TYPE_CHECKING:
    import torch

    from flagperf.context import RankContext
    from flagperf.measure.inputs import Inputs


class Work(NamedTuple):
    """What one call must at least do, by formula."""

    flops: float
    bytes: float
    """Read once and written once, however often a provider does."""


class Unsupported(Exception):
    """Raised by a provider for inputs that it can't take, with the reason."""


class Kernel:
    """One computation: what goes in, what must come out, and how much work that is."""

    backward: ClassVar[bool] = False
    """Whether the gradients of the inputs are what is timed and judged; the forward pass is off the clock then."""
    tolerances: Mapping[str, tuple[float, float]] = {
        "fp64": (1e-12, 1e-10),
        "fp32": (1e-5, 1e-4),
        "fp16": (2e-3, 1e-2),
        "bf16": (1e-2, 5e-2),
    }
    """By dtype: an element is right within absolute + relative × |reference|."""

    def inputs(self, dims: dict[str, Any], make: Inputs) -> tuple[torch.Tensor, ...]:
        """Return the tensors a call is given, at a point's dimensions."""
        raise NotImplementedError

    def arguments(self, dims: dict[str, Any]) -> dict[str, Any]:
        """Return what a call is given by name, beside the inputs."""
        return {}

    def reference(self, *inputs: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Return the right result: the inputs come as float64 on the host. Gradients are taken of it if `backward`."""
        raise NotImplementedError

    def work(self, dims: dict[str, Any]) -> Work:
        """Return what one call must do: of the gradients alone if `backward`."""
        raise NotImplementedError

    def memory(self, dims: dict[str, Any], provider: str) -> float:
        """Predict the bytes that a provider needs beyond the inputs: what can't fit isn't tried."""
        return 0.0

    def bind(
        self, function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]
    ) -> Callable[..., Any]:
        """Return what is called at a point, given a provider's function: that itself, unless it's made to order.

        Called off the clock: `first_call` is what the first call of the result takes. Raises Unsupported.
        A result with an attribute `around` is called in the contexts that this returns, a new one each round.
        """
        return function

    def comparable(self, result: Any, inputs: Sequence[torch.Tensor], arguments: dict[str, Any]) -> Any:
        """Return what is held against the reference: the result, unless the inputs alone don't settle it."""
        return result


class KernelCase(Kernel, SweepCase):
    """One computation at many sizes, or several: then `kernel` returns the one of a point."""

    def kernel(self, dims: dict[str, Any]) -> Kernel:
        """Return what is computed at a point."""
        return self

    def amounts(self, at: At) -> dict[str, float]:
        """Return FLOPs and bytes."""
        dims = self.dims(at)
        return self.kernel(dims).work(dims)._asdict()

    def tolerance(self, at: At) -> tuple[float, float] | None:
        """Return the tolerance of the point's data type."""
        dims = self.dims(at)
        return self.kernel(dims).tolerances[str(dims.get("dtype", "fp32"))]

    def measure(self, context: RankContext) -> None:
        """Measure every provider at every point."""
        from flagperf.kernels import measure_kernels

        measure_kernels(context, self)
