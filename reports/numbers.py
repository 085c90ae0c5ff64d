"""Numbers as a person reads them: few significant digits, thin spaces, one scale for what stands side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

THIN = "\u202f"
MINUS = "\u2212"

_SCALES: dict[str, list[tuple[float, str]]] = {
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")],
    "MiB": [(1024.0**2, "TiB"), (1024.0, "GiB"), (1.0, "MiB"), (2.0**-10, "KiB")],
    "TFLOP/s": [(1e3, "PFLOP/s"), (1.0, "TFLOP/s"), (1e-3, "GFLOP/s"), (1e-6, "MFLOP/s")],
    "GB/s": [(1e3, "TB/s"), (1.0, "GB/s"), (1e-3, "MB/s"), (1e-6, "kB/s")],
    "GFLOP/s": [(1e6, "PFLOP/s"), (1e3, "TFLOP/s"), (1.0, "GFLOP/s")],
    "FLOP/s": [(1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1.0, "FLOP/s")],
    "J": [(1e6, "MJ"), (1e3, "kJ"), (1.0, "J")],
    "ratio": [(0.01, "%")],
}


class Scale(msgspec.Struct, frozen=True):
    """A unit to show values in: divide by `factor`."""

    factor: float
    unit: str

    def show(self, value: float | None, digits: int = 4) -> str:
        """Return the value in this unit, without it."""
        return "–" if value is None else number(value / self.factor, digits)

    def full(self, value: float | None, digits: int = 4) -> str:
        """Return the value with its unit."""
        shown = self.show(value, digits)
        return shown if value is None or not self.unit else f"{shown}{THIN}{self.unit}"


def scale(unit: str, values: Iterable[float | None]) -> Scale:
    """Return the scale in which the middle one of these values has one to four digits before the point."""
    sizes = sorted(abs(v) for v in values if v is not None and math.isfinite(v) and v)
    steps = _SCALES.get(unit, [(1.0, unit)])
    if not sizes:
        return Scale(*next((step for step in steps if step[0] == 1.0), steps[-1]))
    middle = sizes[len(sizes) // 2]
    return Scale(*next((step for step in steps if middle >= step[0]), steps[-1]))


def number(value: float, digits: int = 4) -> str:
    """Return a number with this many significant digits; digits before the point are never rounded away below 1e7."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent >= 9 or exponent < -5:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}{THIN}×{THIN}10{str(int(power)).translate(_SUPERSCRIPT)}".replace("-", MINUS)
    places = max(0, digits - 1 - exponent)
    return f"{value:,.{places}f}".replace(",", THIN).replace("-", MINUS)


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def change(ratio: float | None, digits: int = 2) -> str:
    """Return a ratio as a signed change: 0.918 is `−8.2 %`."""
    if ratio is None or not math.isfinite(ratio):
        return "–"
    part = (ratio - 1) * 100
    sign = "" if abs(part) < 0.005 else "+" if part > 0 else MINUS
    return f"{sign}{percent_digits(abs(part), digits)}{THIN}%"


def percent_digits(part: float, digits: int = 2) -> str:
    """Return a percentage's digits, without noise below a hundredth."""
    if part >= 1000:
        return number(part, 3)
    if part < 0.95:
        return f"{part:.2f}"
    rounded = float(f"{part:.{digits}g}")
    return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(rounded)))}f}"


def percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction as an unsigned percentage."""
    return f"{percent_digits(abs(fraction) * 100, digits)}{THIN}%"


def exact(fraction: float) -> str:
    """Return a fraction that someone chose as a percentage, without digits that say nothing: 0.03 is `3 %`."""
    return f"{100 * fraction:.4g}{THIN}%"


def percent_above(fraction: float) -> str:
    """Return a percentage that isn't below the fraction: what is said to lie within it does."""
    for step in (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05):
        if fraction <= step:
            return exact(step)
    digit = 10.0 ** (math.floor(math.log10(fraction)) - 1)
    return exact(math.ceil(fraction / digit) * digit)


def seconds(value: float) -> str:
    """Return a duration."""
    if value >= 3600:
        return f"{int(value // 3600)}{THIN}h {int(value % 3600 // 60)}{THIN}min"
    if value >= 120:
        return f"{int(value // 60)}{THIN}min {int(value % 60)}{THIN}s"
    return scale("s", [value]).full(value, 3)


def median(values: Sequence[float]) -> float:
    """Return the median of a few values."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
