"""What became of layouts in the short trials of a search, and which of them is the fastest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from flagperf.schema.contest import Arm
from flagperf.schema.result import Result, Tried

_LEADING = "tokens_per_second"
_MIB = 2**20


def outcome(arm: Arm, result: Result, memory_budget: int | None) -> Tried:
    """Return what became of a layout by its short trial; `memory_budget` is in bytes of the allocator."""
    leading, allocated = (result.metrics.get(name) for name in (_LEADING, "memory_peak_allocated"))
    speed = leading.value if leading else None
    memory = allocated.value if allocated else None
    verdict: Literal["fits", "too big", "failed"] = "fits"
    why = ""
    if any(reason.code == "out_of_memory" for reason in result.reasons):
        verdict = "too big"
    elif result.verdict == "invalid" or speed is None:
        verdict, why = "failed", result.reasons[0].message if result.reasons else "no speed was measured"
    elif memory_budget is not None:
        if memory is None:
            verdict, why = "failed", "its memory couldn't be measured, so it isn't known whether it fits"
        elif memory * _MIB > memory_budget:
            verdict = "too big"
    return Tried(
        arm=arm,
        trial=result.id,
        verdict=verdict,
        tokens_per_second=speed,
        low=leading.low if leading else None,
        high=leading.high if leading else None,
        memory_mib=memory,
        why=why,
    )


def fastest(done: Sequence[Tried], named: Collection[Arm]) -> Arm | None:
    """Return the fastest layout among those that were tried and fit; None if none does.

    A layout that was named gives way only to one that is surely faster, by the intervals over their steps: else noise
    would choose, and what it chose would cost another arm of trials to measure.
    """
    fitting = [each for each in done if each.verdict == "fits"]
    if not fitting:
        return None
    first = max(fitting, key=lambda each: each.tokens_per_second or 0.0)
    for each in fitting:
        if each.arm in named and not surely_faster(first, each):
            return each.arm
    return first.arm


def surely_faster(one: Tried, other: Tried) -> bool:
    """Whether the intervals over the two trials' steps lie apart, the first one's above."""
    return one.low is not None and other.high is not None and one.low > other.high
