"""The rules a group was measured by, in words, and how to repeat it."""

from __future__ import annotations

import shlex
from pathlib import PurePath

import msgspec

from flagperf.metrics import catalogue

from .data import Group, RunView
from .numbers import exact, scale
from .texts import Both, same, text

Rule = tuple[Both, Both]


def rules(group: Group) -> list[Rule]:
    """Return name and wording of every rule."""
    trial, protocol = group.first, group.first.protocol
    seeds = ", ".join(str(seed) for seed in sorted({view.trial.seed for view in group.trials}))
    fields: list[tuple[str, Both]] = [
        ("region", Both(protocol.region or "–", protocol.region_zh or protocol.region or "–")),
        ("steps", text("rules.steps_value", warmup=protocol.warmup, steps=protocol.steps)),
        ("trials", text("rules.trials_value", trials=len({view.trial.trial for view in group.trials}))),
        ("seeds", text("rules.seeds_value", seeds=seeds)),
        (
            "batch",
            text("rules.batch_value", batch=protocol.global_batch, ranks=trial.ranks, threads=trial.threads),
        ),
        ("dtype", same(trial.dtype)),
        ("validation", text("rules.validation_value", count=protocol.validation)),
        ("effect", text("rules.effect_value", effect=exact(protocol.minimum_effect))),
        ("band", text("rules.band_value", band=exact(protocol.loss_band))),
        ("order", text("rules.order_value")),
    ]
    mfu = catalogue().get("mfu")
    if mfu is not None and any("mfu" in view.result.metrics for view in group.trials):
        fields.append(("mfu", Both(mfu.meaning, mfu.meaning_zh)))
    peaks = [float(p) for v in group.trials if (p := v.result.facts.get("peak_flops_per_rank"))]
    if peaks:
        shown = scale("FLOP/s", peaks).full(max(peaks))
        fields.append(("peak", text("rules.peak_value", peak=shown, dtype=trial.dtype)))
    if trial.rated_flops:
        fields.append(("rated", same(scale("FLOP/s", [trial.rated_flops]).full(trial.rated_flops))))
    sources = {str(v.result.facts.get("allocated_source") or "") for v in group.trials} - {""}
    if sources:
        fields.append(("allocated", same("; ".join(sorted(sources)))))
    return [(text(f"rules.{key}"), value) for key, value in fields]


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to do a run again."""

    command: str
    facts: list[tuple[Both, str | Both]]
    fingerprints: list[tuple[str, int, str]]
    """Arm, seed and fingerprint of the tokens."""
    settings: list[tuple[str, str]]
    """Case and its settings as JSON."""


def repeat(run: RunView) -> Repeat:
    """Return how to do a run again."""
    plan = run.run
    words = [PurePath(plan.command[0]).name, *plan.command[1:]] if plan.command else []
    unknown = text("repeat.unknown")
    facts: list[tuple[Both, str | Both]] = [
        (text("provenance.run"), plan.id),
        (text("repeat.version"), plan.flagperf or unknown),
        (text("repeat.commit"), plan.commit or unknown),
        (text("repeat.created"), plan.created or unknown),
        (text("repeat.launcher"), plan.launcher),
    ]
    views = [view for group in run.groups for view in group.trials]
    fingerprints = [
        (view.arm, view.trial.seed, str(found))
        for view in views
        if (found := view.result.facts.get("tokens_fingerprint"))
    ]
    settings = {
        f"{group.first.case} · {group.first.preset}": msgspec.json.format(
            msgspec.json.encode(group.first.settings), indent=2
        ).decode()
        for group in run.groups
    }
    return Repeat(
        command=shlex.join(words),
        facts=facts,
        fingerprints=list(dict.fromkeys(fingerprints)),
        settings=list(settings.items()),
    )
