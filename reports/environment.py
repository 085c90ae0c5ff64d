"""The machine before and after, and what measuring cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from flagperf.collect.journals import number

from .data import RunView
from .numbers import number as shown
from .numbers import seconds
from .texts import Both, same, text, texts

_ALWAYS_CHANGES = {"time", "window"}
_BYTES = {"memory_total", "memory_available", "swap_used", "disk_free"}
_LONGEST = 300


class Fact(msgspec.Struct, frozen=True):
    """One thing that was recorded of the machine."""

    name: Both
    before: str
    after: str
    changed: bool


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded of the machine over a run."""

    main: list[Fact]
    others: list[Fact]
    packages: list[Fact]


def machine(run: RunView) -> Machine:
    """Return the first look at the machine beside the last one."""
    moments = [run.harness.environments.get(trial.id, {}) for trial in run.run.trials]
    firsts = [moment["before"] for moment in moments if "before" in moment]
    lasts = [moment["after"] for moment in moments if "after" in moment]
    before = dict(_flat(firsts[0])) if firsts else {}
    after = dict(_flat(lasts[-1])) if lasts else {}
    titles = {key.removeprefix("fact."): words for key, words in texts().items() if key.startswith("fact.")}

    def facts(names: Iterable[str], prefix: str = "") -> list[Fact]:
        return [
            Fact(
                titles.get(name) or same(name.removeprefix(prefix)),
                before.get(name, "–"),
                after.get(name, "–"),
                bool(before and after) and name not in _ALWAYS_CHANGES and before.get(name) != after.get(name),
            )
            for name in names
        ]

    known = sorted((before.keys() | after.keys()) - {"trial", "when"})
    packages = [name for name in known if name.startswith("packages.")]
    return Machine(
        main=facts(name for name in titles if name in known),
        others=facts(name for name in known if name not in titles and name not in packages),
        packages=facts(packages, "packages."),
    )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield what a snapshot says, a line a fact."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if path == "foreign":
            words = [
                f"{item.get('name')} ({item.get('pid')}): {shown(share, 3)} %"
                for item in value
                if isinstance(item, dict) and (share := number(item.get("percent"))) is not None
            ]
            yield path, "; ".join(words)[:_LONGEST] or "–"
        else:
            yield path, ", ".join(str(item) for item in value)[:_LONGEST] or "–"
    elif path in _BYTES and (size := number(value)) is not None:
        yield path, f"{shown(size / 2**30, 4)} GiB"
    else:
        yield path, "–" if value is None else str(value)[:_LONGEST]


def costs(run: RunView) -> list[Both]:
    """Return what telemetry cost, a sentence a trial."""
    found = []
    for group in run.groups:
        for view in group.trials:
            cost = view.telemetry.cost
            cpu, wall = number(cost.get("cpu_seconds")), number(cost.get("wall_seconds"))
            if cpu is None or not wall:
                if view.steps is not None:
                    found.append(text("environment.cost_none", trial=view.result.id))
                continue
            found.append(
                text(
                    "environment.cost_telemetry",
                    trial=view.result.id,
                    cpu=seconds(cpu),
                    wall=seconds(wall),
                    share=f"{shown(100 * cpu / wall, 2)} %",
                    samples=int(number(cost.get("samples")) or 0),
                    missed=int(number(cost.get("missed")) or 0),
                )
            )
    return found
