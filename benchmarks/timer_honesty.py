"""How far the timer of sweeps can be trusted: known times, and known differences found by turns and pairs.

Times: kernels that burn or sleep as long as they are told, and count it themselves by another of the system's clocks;
the measured time of a call ÷ the counted one. A kernel of 1 µs is measured against one that burns nothing, so that what
both do beside burning cancels out, and its error stands against what the timer says it may be off by.

Differences: the same work twice as A and B, and B with 3 % more of it, each as the collector compares two providers.
Both work on the same memory: where tensors lie makes small products differ by some tenths of a percent, and that isn't
the timer's doing.
The minimum effect is half of what is planted: a comparison whose minimum effect is 3 % itself finds a difference of 3 %
every other time. Counted, too, is `equivalent` at the 3 % that cases have, and how often an interval is right.

    python benchmarks/timer_honesty.py --runs 100
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from flagperf.measure.timer import Call, Rounds, Timer, in_turn
from flagperf.statistics import compare_rounds

PLANTED = 0.03


def main() -> int:
    """Measure, print, and end with 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="of each comparison")
    parser.add_argument("--seconds", type=float, default=0.5, help="a provider in a run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timer = Timer(torch.device("cpu"), lambda: None)
    found = {"times": times(timer), **differences(timer, options.runs, options.seconds)}
    if options.json:
        print(json.dumps(found))
    else:
        show(found, options.runs)
    same, slower = found["same"], found["slower"]
    good = all(abs(each["ratio"] - 1) <= 0.01 for each in found["times"] if "ratio" in each)
    good = good and all(abs(each["error"]) <= each["uncertainty"] for each in found["times"] if "error" in each)
    enough = same["equivalent at 3 %"] >= 0.95 * options.runs and slower["worse"] >= 0.9 * options.runs
    return 0 if good and enough else 1


def burner(seconds: float, told: list[float]) -> Call:
    """Return a kernel that is busy for so long, and adds what it was to `told`."""

    def now() -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)

    def burn(number: int) -> None:
        began = at = now()
        while at - began < seconds:
            at = now()
        told.append(at - began)

    return burn


def sleeper(seconds: float, told: list[float]) -> Call:
    """Return a kernel that sleeps for so long, and adds what it did to `told`."""

    def sleep(number: int) -> None:
        began = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        time.sleep(seconds)
        told.append(time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - began)

    return sleep


def times(timer: Timer) -> list[dict[str, Any]]:
    """Return kernels of known time with what was measured of them."""
    rows: list[dict[str, Any]] = []
    kinds: list[tuple[str, Callable[[float, list[float]], Call], float]] = [
        *(("burns", burner, seconds) for seconds in (1e-4, 1e-3, 1e-2)),
        *(("sleeps", sleeper, seconds) for seconds in (1e-3, 1e-2)),
    ]
    for what, make, seconds in kinds:
        told: list[float] = []
        rounds = in_turn(timer, {"known": make(seconds, told)}, warmup=2, rounds=20, seconds=0.5)["known"]
        ratio = median(a / b for a, b in zip(rounds.seconds, counted(told, rounds), strict=True))
        rows.append({"kernel": f"{what} {seconds * 1e3:g} ms", "ratio": ratio, "rounds": len(rounds.seconds)})
    burnt: dict[str, list[float]] = {"nothing": [], "micro": []}
    calls = {"nothing": burner(0.0, burnt["nothing"]), "micro": burner(1e-6, burnt["micro"])}
    taken = in_turn(timer, calls, warmup=2, rounds=20, seconds=1.0)
    beside = {
        name: median(a - b for a, b in zip(rounds.seconds, counted(burnt[name], rounds), strict=True))
        for name, rounds in taken.items()
    }
    uncertainty = timer.uncertainty(taken["micro"].calls)
    rows.append({"kernel": "burns 1 µs", "error": beside["micro"] - beside["nothing"], "uncertainty": uncertainty})
    return rows


def counted(told: list[float], rounds: Rounds) -> list[float]:
    """Return what a kernel counted itself, the mean of a round's calls; without the calls before the first round."""
    own = told[-rounds.calls * len(rounds.seconds) :]
    return [sum(own[i : i + rounds.calls]) / rounds.calls for i in range(0, len(own), rounds.calls)]


def repeated(times: int, x: torch.Tensor, out: torch.Tensor) -> Call:
    """Return a small matrix product done so many times in a call."""

    def call(number: int) -> None:
        for _ in range(times):
            torch.mm(x, x, out=out)

    return call


def differences(timer: Timer, runs: int, seconds: float) -> dict[str, dict[str, int]]:
    """Return how often the same was told to be the same, and the slower one to be slower."""
    counts = {
        "same": {"equivalent": 0, "equivalent at 3 %": 0, "interval holds 1": 0, "better or worse": 0},
        "slower": {"worse": 0, "interval below 1": 0, "interval holds the truth": 0, "equivalent at 3 %": 0},
    }
    truth = 1 / (1 + PLANTED)
    for run in range(runs):
        for name, count in counts.items():
            memory = torch.randn(16, 16), torch.empty(16, 16)
            times = 100 if name == "same" else round(100 * (1 + PLANTED))
            calls = {"A": repeated(100, *memory), "B": repeated(times, *memory)}
            taken = in_turn(timer, calls, warmup=2, rounds=10, seconds=seconds)
            pair = taken["A"].seconds, taken["B"].seconds
            strict, usual = (compare_rounds(*pair, "higher", effect) for effect in (PLANTED / 2, PLANTED))
            low, high = usual.low or 0.0, usual.high or float("inf")
            count["equivalent at 3 %"] += usual.verdict == "equivalent"
            if name == "same":
                count["equivalent"] += strict.verdict == "equivalent"
                count["interval holds 1"] += low <= 1 <= high
                count["better or worse"] += strict.verdict in ("better", "worse")
            else:
                count["worse"] += strict.verdict == "worse"
                count["interval below 1"] += high < 1
                count["interval holds the truth"] += low <= truth <= high
        print(f"\r{run + 1} of {runs}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return counts


def show(found: dict[str, Any], runs: int) -> None:
    """Print what was found."""
    for row in found["times"]:
        if "ratio" in row:
            print(f"{row['kernel']}: measured ÷ its own count {row['ratio']:.4f}, {row['rounds']} rounds")
        else:
            error, may = row["error"] * 1e9, row["uncertainty"] * 1e9
            print(f"{row['kernel']}: off by {error:+.0f} ns; the timer says it may be off by {may:.0f} ns")
    for name, title in (("same", "the same as A and B"), ("slower", f"B {PLANTED:.0%} slower")):
        counts = ", ".join(f"{what} {count}" for what, count in found[name].items())
        print(f"{title}, {runs} runs, minimum effect {PLANTED / 2:.1%}: {counts}")


if __name__ == "__main__":
    sys.exit(main())
