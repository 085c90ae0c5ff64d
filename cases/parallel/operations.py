"""What each collective operation moves: its message, its factor, what goes in and what must come out.

The meaning of "size" and the factors are those of nccl-tests (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md):
algbw = size ÷ time, busbw = algbw × factor, where the factor is the share of the message that every rank's link must at
least carry each way, so that busbw compares with the speed of a link whatever the number of ranks. Of the two
operations that nccl-tests don't have, `send_recv` and `bidirectional`, the factor is 1: what goes one way is counted,
never both ways added up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Place = Literal["out", "in"]
"""Whether the result has memory of its own or takes the place of what was sent."""

SUM = -1
"""As the source of a segment: the sum over all ranks."""


class Segment(NamedTuple):
    """A stretch of a rank's values, or of the sum of all ranks' values."""

    source: int
    """A rank, or `SUM`."""
    start: int
    """Elements from the beginning of the source's message."""
    length: int


class Operation(NamedTuple):
    """One operation."""

    size: str
    """What its size is the size of."""
    factor: Callable[[int], float]
    """busbw ÷ algbw with so many ranks."""
    functions: tuple[str, ...]
    """Of torch.distributed: the names by which a vendor says that its backend lacks them."""
    places: tuple[Place, ...] = ("out",)
    """The usual one first."""
    divided: bool = False
    """Whether ranks share the message, so that it has a multiple of their number of elements."""


def _all(n: int) -> float:
    return 1.0


def _others(n: int) -> float:
    return (n - 1) / n


OPERATIONS = {
    "all_reduce": Operation(
        "the buffer that every rank has", lambda n: 2 * _others(n), ("all_reduce",), places=("in",)
    ),
    "all_gather": Operation(
        "what every rank has in the end: the parts of all ranks",
        _others,
        ("all_gather", "all_gather_into_tensor"),
        places=("out", "in"),
        divided=True,
    ),
    "reduce_scatter": Operation(
        "what every rank has in the beginning: the parts for all ranks",
        _others,
        ("reduce_scatter", "reduce_scatter_tensor"),
        places=("out", "in"),
        divided=True,
    ),
    "all_to_all": Operation(
        "what every rank has in the beginning: a part for each rank", _others, ("all_to_all",), divided=True
    ),
    "broadcast": Operation("the buffer of the first rank", _all, ("broadcast",), places=("in",)),
    "send_recv": Operation("the message: rank i of the first half sends to rank i + n/2", _all, ("send", "recv")),
    "bidirectional": Operation("each of the two messages that such a pair exchanges at once", _all, ("send", "recv")),
    "ring": Operation(
        "each message: every rank sends to the next and receives from the one before; `sendrecv` of nccl-tests",
        _all,
        ("send", "recv"),
    ),
}


class Message(NamedTuple):
    """One operation among some ranks, at a size."""

    operation: str
    place: Place
    ranks: int
    length: int
    """Elements of the message that its size is about."""
    itemsize: int

    @property
    def bytes(self) -> int:
        """Return the size: that asked for, or the nearest that ranks can share."""
        return self.length * self.itemsize

    @property
    def bus_bytes(self) -> float:
        """Return what a rank's link must at least carry each way."""
        return self.bytes * OPERATIONS[self.operation].factor(self.ranks)

    @property
    def part(self) -> int:
        """Return the elements of a rank's part of a message that is shared, or those of a whole one."""
        return self.length // self.ranks if OPERATIONS[self.operation].divided else self.length

    def sent(self) -> int:
        """Return the elements that a rank's input has."""
        return self.part if self.operation == "all_gather" else self.length

    def received(self) -> int:
        """Return the elements that a rank's result has."""
        return self.part if self.operation == "reduce_scatter" else self.length

    def sends(self, rank: int) -> bool:
        """Return whether anything of a rank's own takes part."""
        if self.operation == "broadcast":
            return rank == 0
        return self.peers(rank)[0] is not None if "send" in OPERATIONS[self.operation].functions else True

    def peers(self, rank: int) -> tuple[int | None, int | None]:
        """Return to whom a rank sends and from whom it receives, where an operation has pairs."""
        half = self.ranks // 2
        if self.operation == "ring":
            return (rank + 1) % self.ranks, (rank - 1) % self.ranks
        if self.operation not in ("send_recv", "bidirectional") or rank >= 2 * half:
            return None, None
        other = rank + half if rank < half else rank - half
        if self.operation == "bidirectional":
            return other, other
        return (other, None) if rank < half else (None, other)

    def expected(self, rank: int) -> list[Segment]:
        """Return what a rank's result must be, one stretch after the other; nothing where it receives nothing."""
        match self.operation:
            case "all_reduce":
                return [Segment(SUM, 0, self.length)]
            case "reduce_scatter":
                return [Segment(SUM, rank * self.part, self.part)]
            case "all_gather":
                return [Segment(source, 0, self.part) for source in range(self.ranks)]
            case "all_to_all":
                return [Segment(source, rank * self.part, self.part) for source in range(self.ranks)]
            case "broadcast":
                return [Segment(0, 0, self.length)]
        _, source = self.peers(rank)
        return [] if source is None else [Segment(source, 0, self.length)]


def message(operation: str, place: Place, ranks: int, size: int, itemsize: int) -> Message:
    """Return the message of this size in bytes: whole elements, and where ranks share it as many for each.

    One element, or one for each rank, is the least; the size is rounded down otherwise.
    """
    step = ranks if OPERATIONS[operation].divided else 1
    return Message(operation, place, ranks, max(1, size // (itemsize * step)) * step, itemsize)
