"""`flagperf run --dry-run`: what would be done, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from flagperf.case import Case
from flagperf.cli import common
from flagperf.registry import Registries
from flagperf.schema.inference import LoadSettings
from flagperf.schema.trial import Nodes, Run, Trial

_STARTUP = 8.0
"""Seconds a trial takes beside its steps, roughly: processes, imports, building the model."""
_MFU = 0.5
"""Share of the peak that a trial is taken to reach when its time is estimated."""


def show(run: Run, registries: Registries, nodes: Nodes, *, json: bool) -> None:
    """Print the trials in their order, processes, environment, and estimated memory and time."""
    rows = [_row(trial, run, registries, nodes) for trial in run.trials]
    if json:
        common.print_json({"plan": run, "trials": rows})
        return
    table = Table(title=f"Plan: {len(rows)} trials, nothing started", title_justify="left", box=None, pad_edge=False)
    for column in ("trial", "layout"):
        table.add_column(column, overflow="fold")
    for column in ("ranks", "threads", "dtype", "seed", "steps", "MiB a rank", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        seconds = row["estimated_seconds"]
        table.add_row(
            *(row["id"], row["layout"], str(row["ranks"]), str(row["threads"]), row["dtype"], str(row["seed"])),
            row["scenario"] or (f"{row['points']} points" if row["points"] else str(row["steps"])),
            "?" if row["estimated_flops"] is None else f"{row['estimated_bytes_per_rank'] / 2**20:,.0f}",
            "?" if seconds is None else f"{seconds:,.0f}",
        )
    out = common.out()
    out.print(table)
    out.print(f"Each trial: {' '.join(rows[0]['command'])}", soft_wrap=True)
    environment = " ".join(f"{key}={value}" for key, value in rows[0]["environment"].items())
    out.print(f"Environment: {environment}", soft_wrap=True)
    if run.contest is not None and run.contest.ladders:
        more = run.contest.protocol.trials * len(run.contest.arms)
        out.print(
            f"These are short and show which layouts fit. Then come leaner ones where one doesn't, and {more} measured "
            f"trials or more: {', '.join(map(str, run.contest.arms))}, and the best layouts where they are others.",
            soft_wrap=True,
        )
    if run.survey is not None:
        from flagperf.cli.survey import print_plan

        print_plan(run.survey)
    if any(row["scenario"] for row in rows):
        out.print(
            "A scenario lasts at least that long, beside loading and checking the model; what is under way at its end "
            "is waited for. Server takes about twice as long where its rate is to be found.",
            soft_wrap=True,
        )
        return
    out.print(
        "Memory is by formula, without what the framework itself takes. Time assumes half of the GEMM peak, which a "
        "first run measures.",
        soft_wrap=True,
    )


def _row(trial: Trial, run: Run, registries: Registries, nodes: Nodes) -> dict[str, Any]:
    from flagperf.measure.peak import known_peak

    case: Case = registries.cases.load(trial.case)(trial)
    estimate = None if trial.swept else case.estimate(registries.ledger(trial.engine))
    steps = trial.protocol.warmup + trial.protocol.steps
    flops = seconds = None
    if estimate is not None:
        folders = [Path(folder) for folder in trial.plugins]
        peak = known_peak(trial.vendor, trial.dtype, trial.threads, trial.ranks // nodes.count, folders)
        flops = estimate.flops_per_token * estimate.tokens_per_step * steps
        seconds = None if peak is None else _STARTUP + flops / (peak * trial.ranks * _MFU)
    if trial.scenario:
        load = msgspec.convert(trial.settings["load"], LoadSettings)
        searched = trial.scenario == "server" and not load.rate
        seconds = _STARTUP + load.duration * trial.scale * (2 if searched else 1)
    named = (
        "id",
        "case",
        "preset",
        "vendor",
        "engine",
        "ranks",
        "threads",
        "dtype",
        "seed",
        "trial",
        "scenario",
        "scale",
    )
    return {
        **{key: getattr(trial, key) for key in named},
        "layout": str(trial.layout),
        "steps": steps,
        "points": case.size(),
        "parameters": estimate.parameters if estimate else None,
        "estimated_bytes_per_rank": estimate.total if estimate else None,
        "estimated_host_bytes_per_rank": estimate.offloaded if estimate else None,
        "estimated_flops": flops,
        "estimated_seconds": seconds,
        "command": registries.launchers.load(run.launcher)(nodes).command(trial, Path("RUN") / "trials" / trial.id),
        "environment": registries.vendors.get(trial.vendor).variables(trial.case)
        | {"OMP_NUM_THREADS": str(trial.threads)},
    }
