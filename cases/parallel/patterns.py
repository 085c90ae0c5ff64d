"""Values whose sums are exact in every data type, and the comparison with them.

Each rank has a sequence of its own: small whole numbers, drawn by chance from the seed, that repeat after a prime
number of elements and begin elsewhere with every call. A sum that leaves out or repeats a rank, parts in another order
and what an earlier call left behind all show in it. Nothing is rounded in whatever order ranks are added up: sums of
magnitudes stay below what the type counts exactly, for which with very many ranks only some have values above zero at
an element.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flagperf.schema.sweep import Accuracy

from .operations import Segment

_PERIOD = 4093
_STRIDE = 1009
"""By how many elements the sequence begins later with every call: prime to the period."""
_CHUNK = 1 << 22
"""Elements that are compared at once."""
_LARGEST = 1000


class Pattern:
    """The values of so many ranks in one data type."""

    def __init__(self, ranks: int, dtype: torch.dtype, seed: int) -> None:
        exact = _exact(dtype)
        height = max(1, min(exact // ranks, _LARGEST))
        generator = torch.Generator().manual_seed(seed)
        lowest = -height if dtype.is_signed else 0
        values = torch.randint(lowest, height + 1, (ranks, _PERIOD), generator=generator)
        if ranks > exact:
            share = -(-ranks // exact)
            turns = torch.arange(_PERIOD)[None, :] + torch.arange(ranks)[:, None]
            values[turns % share != 0] = 0
        self.rows = torch.cat([values, values.sum(0, keepdim=True)]).to(dtype)
        """[ranks + 1, period], the last row, `SUM`, being the sum."""
        self.poison = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
        """What no result has in it."""

    def values(self, segment: Segment, call: int) -> torch.Tensor:
        """Return a segment's values in a call, on the host."""
        first = (segment.start + call * _STRIDE) % _PERIOD
        whole = self.rows[segment.source].repeat(-(-(first + segment.length) // _PERIOD))
        return whole[first : first + segment.length]

    def fill(self, target: torch.Tensor, rank: int, call: int) -> None:
        """Put a rank's values into a flat tensor."""
        for place, part in _chunks(Segment(rank, 0, len(target))):
            target[place : place + part.length].copy_(self.values(part, call))

    def differences(self, got: torch.Tensor, expected: list[Segment], call: int) -> Accuracy:
        """Count the elements of a flat tensor that aren't exactly what they must be."""
        wrong = elements = 0
        largest = 0.0
        known = True
        for part in (part for segment in expected for _, part in _chunks(segment)):
            have = got[elements : elements + part.length].cpu()
            right = self.values(part, call)
            elements += part.length
            if bad := int((have != right).sum()):
                away = float((have.double() - right.double()).abs().max())
                wrong, largest, known = wrong + bad, max(largest, away), known and away < float("inf")
        return Accuracy(
            max_absolute=largest if known else None,
            max_relative=None if not known else largest / float(self.rows.abs().max()),
            absolute=0.0,
            relative=0.0,
            wrong=wrong,
            elements=elements,
        )


def _chunks(segment: Segment) -> Iterator[tuple[int, Segment]]:
    """Yield a segment's parts, each with its distance from the segment's beginning."""
    for place in range(0, segment.length, _CHUNK):
        yield place, Segment(segment.source, segment.start + place, min(_CHUNK, segment.length - place))


def _exact(dtype: torch.dtype) -> int:
    """Return up to which magnitude a type has every whole number; of integers, without the largest, the poison."""
    return round(2 / torch.finfo(dtype).eps) if dtype.is_floating_point else torch.iinfo(dtype).max - 1
