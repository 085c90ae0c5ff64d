"""Prints, as Markdown, the tables of README.md from `measured.json`: `python tables.py [measured.json]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

Rows = list[dict[str, Any]]


def main() -> None:
    """Print them."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("measured.json")
    measured = json.loads(path.read_text("utf-8"))
    print(overlap(measured["overlap"]), layouts(measured["layouts"]), best(measured["layouts"]), sep="\n\n")


def overlap(rows: Rows) -> str:
    """Return throughput with overlap over that without, the median over pairs and their range, by bandwidth."""
    stages = {2: "zero=2", 3: "zero=3"}
    lines = [
        "| Mbit/s | ZeRO 2: with ÷ without overlap | exposed s, with / without "
        "| ZeRO 3: with ÷ without overlap | exposed s, with / without |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mbit in dict.fromkeys(row["mbit"] for row in rows):
        cells = [_rate(mbit)]
        for stage in stages.values():
            of = [row for row in rows if row["mbit"] == mbit and stage in row["arm"] and row["verdict"] == "valid"]
            on, off = ({r["trial"]: r for r in of if ("overlap=0" in r["arm"]) == without} for without in (False, True))
            ratios = [on[t]["tokens_per_second"] / off[t]["tokens_per_second"] for t in on.keys() & off.keys()]
            exposed = [
                f"{median(r['communication_exposed'] for r in side.values()):.2f}" if side else "–"
                for side in (on, off)
            ]
            cells += [_spread(ratios), " / ".join(exposed)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def layouts(rows: Rows) -> str:
    """Return tokens a second of each layout by bandwidth, with the peak of its memory."""
    rates = list(dict.fromkeys(row["mbit"] for row in rows))
    lines = [
        f"| layout | MiB a rank | {' | '.join(f'tokens/s at {_rate(mbit)}' for mbit in rates)} |",
        "| --- | --- |" + " --- |" * len(rates),
    ]
    for arm, of in sorted(_by(rows, lambda row: str(row["arm"])).items()):
        cells = [_speed([row for row in of if row["mbit"] == mbit]) for mbit in rates]
        lines.append(f"| `{arm}` | {_memory(of):,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best(rows: Rows) -> str:
    """Return, for each memory limit at which something changes, the ratio of the best that fit, by bandwidth."""
    valid = [row for row in rows if row["verdict"] == "valid"]
    sizes = {arm: _memory(of) for arm, of in _by(valid, lambda row: str(row["arm"])).items()}
    least = max(
        min(size for arm, size in sizes.items() if arm.startswith(engine)) for engine in ("bmtrain", "megatron")
    )
    limits = sorted({size for size in sizes.values() if size >= least})
    rates = list(dict.fromkeys(row["mbit"] for row in valid))
    lines = [
        f"| limit, MiB a rank | {' | '.join(f'best ÷ best at {_rate(mbit)}' for mbit in rates)} |",
        "| --- |" + " --- |" * len(rates),
    ]
    for limit in limits:
        cells = []
        for mbit in rates:
            fitting = [row for row in valid if row["mbit"] == mbit and sizes[row["arm"]] <= limit]
            sides = [
                max((r for r in fitting if r["arm"].startswith(engine)), key=lambda r: r["tokens_per_second"])
                for engine in ("bmtrain", "megatron")
            ]
            names = " ÷ ".join(side["arm"].partition(":")[2] for side in sides)
            cells.append(f"{sides[0]['tokens_per_second'] / sides[1]['tokens_per_second']:.2f} ({names})")
        lines.append(f"| {limit:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by(rows: Rows, key: Callable[[dict[str, Any]], str]) -> dict[str, Rows]:
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _rate(mbit: int | None) -> str:
    return "no limit" if mbit is None else f"{mbit:,}"


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})" if ratios else "–"


def _speed(rows: Rows) -> str:
    speeds = [row["tokens_per_second"] for row in rows if row["verdict"] == "valid"]
    return f"{median(speeds):,.0f}" if speeds else "–"


def _memory(rows: Rows) -> float:
    return max((row["memory_peak_allocated"] for row in rows if "memory_peak_allocated" in row), default=float("nan"))


if __name__ == "__main__":
    main()
