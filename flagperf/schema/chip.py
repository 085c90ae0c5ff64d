"""A chip's rated figures, each row with its source."""

from __future__ import annotations

from typing import Literal

import msgspec


class Chip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the maker rates a chip at, dense. `None` is what no source says."""

    vendor: str
    chip: str
    names: list[str]
    """What the vendor's tool calls it, as shell globs of lower-case text; more than one chip may be called the same."""
    devices: int = 1
    """As how many devices torch sees what the figures are of: 2 for a card of two dies."""
    memory_gb: float | None = None
    memory_bandwidth_gbs: float | None = None
    interconnect_gbs: float | None = None
    tdp_w: float | None = None
    fp64_tflops: float | None = None
    fp32_tflops: float | None = None
    tf32_tflops: float | None = None
    fp16_tflops: float | None = None
    bf16_tflops: float | None = None
    fp8_tflops: float | None = None
    fp64_matrix_tflops: float | None = None
    """Where matrix units compute in a type faster than the rest of the chip; so for fp32."""
    fp32_matrix_tflops: float | None = None
    int8_tops: float | None = None
    source: str
    confidence: Literal["high", "medium", "low", "none"]
    """high: the maker's figure, repeated elsewhere; medium: one page or tool; low: second-hand; none: not a figure."""
    note: str = ""

    def flops(self, dtype: str) -> float | None:
        """Return the dense peak of a device in a data type, FLOP/s."""
        tera: float | None = getattr(self, f"{dtype}_tflops", None)
        return None if tera is None else tera * 1e12 / self.devices

    def rated(self, figure: str) -> float | None:
        """Return one of the figures for a device, in its unit; of products of matrices those of the matrix units."""
        matrix: float | None = getattr(self, figure.replace("_tflops", "_matrix_tflops"), None)
        value = matrix or getattr(self, figure, None)
        return float(value) / self.devices if isinstance(value, int | float) else None
