"""Does time grow in proportion to events? Writes, reads, stores and reports journals of growing length.

Example: python benchmarks/journal_scale.py --events 50000 500000 5000000 --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from flagperf.collect.journals import read_rank
from flagperf.collect.store import Store
from flagperf.journal import Journal
from flagperf.reports.page import write as write_page
from flagperf.schema.event import Key, Step
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.trial import Outcome, Run, Trial

STAGES = ("write", "read", "store", "report")


def main() -> None:
    """Measure each length in one process; print times, times an event, and the growth from one length to the next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", type=int, nargs="+", default=[50_000, 500_000, 5_000_000], help="steps of a journal"
    )
    parser.add_argument("--folder", type=Path, help="where the journals are written; a temporary one by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    measured, growth = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder) / "warm-up", 2000)  # imports, page cache, allocator
        for shorter, longer in itertools.pairwise(options.events):
            # The shorter one before and after the longer one, so that a machine that gets slower wrongs neither.
            lengths = enumerate((shorter, longer, shorter))
            rounds = [measure(Path(folder) / f"{number}-{events}", events) for number, events in lengths]
            times = {stage: rounds[1][stage] / ((rounds[0][stage] + rounds[2][stage]) / 2) for stage in STAGES}
            growth.append({"from": shorter, "to": longer, "events": longer / shorter, **times})
            measured += rounds
    if options.json:
        print(json.dumps({"unit": "s", "measured": measured, "growth": growth}, indent=2))
        return
    table = Table(title="CPU seconds (µs an event)", title_justify="left")
    for column in ("events", *STAGES, "peak memory MiB"):
        table.add_column(column, justify="right")
    for row in measured:
        cells = [f"{row[stage]:.3f} ({row[stage] / row['events'] * 1e6:.2f})" for stage in STAGES]
        table.add_row(f"{row['events']:,.0f}", *cells, f"{row['peak_rss_mib']:,.0f}")
    for row in growth:
        table.add_row(f"× {row['events']:.0f}", *(f"× {row[stage]:.2f}" for stage in STAGES), "")
    Console().print(table)
    walls = ", ".join(
        f"{row['events']:,.0f}: " + " / ".join(f"{row[stage + '_wall']:.1f}" for stage in STAGES) for row in measured
    )
    print(f"Wall-clock seconds, {' / '.join(STAGES)}: {walls}")


class Clock:
    """CPU and wall-clock seconds since it was made: on a shared machine only the first says what the work costs."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self, stage: str) -> dict[str, float]:
        """Return both, named after a stage."""
        return {stage: time.process_time() - self._cpu, f"{stage}_wall": time.perf_counter() - self._wall}


def measure(folder: Path, events: int) -> dict[str, float]:
    """Return the seconds it takes to write, read, store and report a run of one rank with so many steps."""
    trial = Trial(
        id="000-single",
        case="scale",
        preset="none",
        vendor="cpu",
        engine="single",
        ranks=1,
        layout=Layout(),
        dtype="fp32",
        seed=1,
        trial=0,
        protocol=Protocol(warmup=0, steps=events, trials=1, seed=1, validation=1, global_batch=1),
        settings={},
        metrics=[],
        threads=1,
    )
    run = Run(
        id=f"scale-{events}",
        created="2026-01-01T00:00:00+00:00",
        command=[],
        flagperf="",
        commit=None,
        launcher="local",
        trials=[trial],
        baseline="single",
    )
    path = folder / "trials" / trial.id / "rank0.journal"
    clock = Clock()
    with Journal(path, {"trial": trial.id, "rank": 0, "world_size": 1}) as journal:
        for number in range(events):
            journal.write(
                Key.STEP,
                Step(
                    step=number,
                    measured=True,
                    seconds=0.1 + (number % 7) * 1e-3,
                    data_seconds=1e-4,
                    tokens=4096,
                    loss=9.0 / (1 + number),
                    gradient_norm=1.25,
                    learning_rate=3e-4,
                ),
            )
        journal.write(Key.RUN_STOP, {"status": "success"})
    taken = clock.seconds("write")

    (folder / "run.json").write_bytes(msgspec.json.encode(run))
    with Journal(folder / "harness.journal", {}) as harness:
        harness.write(Key.TRIAL_START, {"id": trial.id})
        outcome = Outcome(status="finished", seconds=1.0)
        harness.write(Key.TRIAL_STOP, {"id": trial.id, "outcome": msgspec.to_builtins(outcome)})

    clock = Clock()
    rank = read_rank(path, 0)
    taken |= clock.seconds("read")
    if len(rank.steps) != events or rank.flaws:
        raise SystemExit(f"{len(rank.steps)} of {events} events came back, flaws {dict(rank.flaws)}")
    del rank

    clock = Clock()
    result = Store([folder]).results()[0]
    taken |= clock.seconds("store")
    if result.verdict != "valid":
        raise SystemExit(f"the result is invalid: {result.reasons}")
    clock = Clock()
    write_page([folder], folder / "report.html")
    taken |= clock.seconds("report")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"events": events, **taken, "peak_rss_mib": peak}


if __name__ == "__main__":
    main()
