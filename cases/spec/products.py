"""Products of matrices in every data type that torch multiplies, and whether they are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from flagperf.kernel import Unsupported
from flagperf.kernels import compare
from flagperf.measure.inputs import DTYPES
from flagperf.specification import Load

if TYPE_CHECKING:
    from flagperf.schema.sweep import Samples
    from flagperf.specifications import Bench, Size

_RESULTS = {"fp8": torch.bfloat16, "int8": torch.int32}
"""What products are returned in where it isn't their own type."""
_TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 3e-2, "fp8": 3e-2, "int8": 0.0}
"""Largest error ÷ √k: entries are normal, so that results are as large as that. Of tf32 ten bits count."""
_EMULATED = 1.0
"""Seconds that a product of 512, reckoned from one of 64, doesn't take where there are units for the type."""
_ROWS, _COLUMNS = 16, 64


class Products:
    """Products in one data type on one device; raises Unsupported where it has none."""

    def __init__(self, bench: Bench, dtype: str) -> None:
        self.bench, self.dtype, self.kind = bench, dtype, DTYPES[dtype]
        self.result = str(_RESULTS.get(dtype, self.kind)).removeprefix("torch.")
        self.layouts = ("kn", "nk") if dtype not in _RESULTS else ("nk",)
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        small = (64, 64, 64)
        try:
            took = bench.quick(self.load(small).call)
        except (NotImplementedError, RuntimeError) as error:
            raise Unsupported(f"torch multiplies no {dtype} on {bench.device.type}: {error}") from error
        if dtype in _RESULTS and (long := took * (512 / 64) ** 3) > _EMULATED:
            raise Unsupported(f"{dtype} is emulated on {bench.device.type}: a product of 512 would take {long:,.0f} s")
        if dtype == "tf32" and self._error() < 1e-5:
            raise Unsupported(f"{bench.device.type} multiplies fp32 exactly when tf32 is asked for: it has none")

    def load(self, size: Size, layout: str = "nk") -> Load:
        """Return the product of a size (m, n, k); the right matrix lies as [k, n], or transposed as [n, k]."""
        m, n, k = size
        moved = (m * k + n * k) * self.kind.itemsize + m * n * _RESULTS.get(self.dtype, self.kind).itemsize
        if moved > 0.5 * self.bench.free():
            raise MemoryError(f"{moved / 2**30:.1f} GiB of matrices don't fit")
        left = self.bench.filled(self.dtype, m * k).view(m, k)
        right = self.bench.filled(self.dtype, n * k, 1)
        right = right.view(n, k).T if layout == "nk" else right.view(k, n)
        self.left, self.right = left, right
        self.out = out = torch.empty(m, n, dtype=_RESULTS.get(self.dtype, self.kind), device=self.bench.device)
        facts = {"size": {"m": m, "n": n, "k": k}, "right": layout}
        if self.dtype == "int8":
            return Load(lambda number: torch._int_mm(left, right, out=out), 2.0 * m * n * k, moved, facts)
        if self.dtype == "fp8":
            one = torch.ones((), device=self.bench.device)

            def scaled(number: int) -> None:
                torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, out=out)

            return Load(scaled, 2.0 * m * n * k, moved, facts)
        return Load(lambda number: torch.mm(left, right, out=out), 2.0 * m * n * k, moved, facts)

    def judged(self, samples: Samples) -> Samples:
        """Return the samples with how right some rows and columns of the last result are."""
        size = samples.facts["size"]
        self.load((size["m"], size["n"], size["k"]), samples.facts["right"]).call(0)
        accuracy = compare(*self._sides(), (_TOLERANCE[self.dtype] * size["k"] ** 0.5, 0.0))
        if not accuracy.wrong:
            return msgspec.structs.replace(samples, accuracy=accuracy)
        why = f"{accuracy.wrong} of {accuracy.elements} elements looked at are outside the tolerance"
        return msgspec.structs.replace(samples, accuracy=accuracy, verdict="wrong", why=why)

    def _sides(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return a part of the result, and the same in float64."""
        left, right = self.left[-_ROWS:].cpu().double(), self.right[:, -_COLUMNS:].cpu().double()
        return [self.out[-_ROWS:, -_COLUMNS:].cpu().double()], [left @ right]

    def _error(self) -> float:
        got, wanted = self._sides()
        return float((got[0] - wanted[0]).abs().max())
