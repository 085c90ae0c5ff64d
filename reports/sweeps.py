"""What a page says of a sweep: which provider is fastest where, how surely, what is wrong, and by which rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flagperf.collect.points import Cell, by_reason
from flagperf.metrics import catalogue, metric
from flagperf.schema.result import Comparison
from flagperf.schema.sweep import Accuracy

from .data import Group
from .numbers import exact, percent, scale
from .points import SweepView, times, times_interval
from .rules import Rule
from .texts import Both, listed, same, sentences, text, title
from .words import Verdict, invalid

_REASONS = 3
"""Reasons of a provider, and points of a reason, that are named."""
_SAID = {"wrong_result", "point_failed", "points_missing", "nothing_measured"}
"""Reasons that the cards of providers say point by point."""


def cards(group: Group, view: SweepView) -> list[Verdict]:
    """Return the verdicts of a sweep: who leads where, each provider against the baseline, and what is wrong."""
    sweep = view.sweep
    measured = [name for name in sweep.providers if any(cell.valid for cell in view.of(name))]
    found: list[Verdict] = []
    if not measured:
        found.append(invalid(text("sweep.no_valid"), group))
    elif len(measured) == 1:
        found.append(_alone(view, measured[0]))
    else:
        found.append(_leader(view))
        found += [_against(view, name) for name in measured if any(cell.speedup for cell in view.of(name))]
    for name in sweep.providers:
        found += [card for verdict in ("wrong", "failed") if (card := _bad(view, name, verdict)) is not None]
    others = [v for v in group.trials if not v.valid and not {r.code for r in v.result.reasons} <= _SAID]
    if measured and others:
        found.append(invalid(text("sweep.invalid"), group))
    return found


def _leader(view: SweepView) -> Verdict:
    """Say who has the best of the leading metric at how many points, and how often surely."""
    sweep, name = view.sweep, view.sweep.leading
    lower = catalogue()[name].direction == "lower" if name in catalogue() else False
    wins: Counter[str] = Counter()
    sure = contested = 0
    for point in sweep.points:
        cells = [cell for cell in sweep.row(point) if cell.value(name) is not None]
        if len(cells) < 2:
            continue
        contested += 1
        ordered = sorted(cells, key=lambda cell: cell.value(name) or 0.0, reverse=not lower)
        wins[ordered[0].provider] += 1
        sure += all(_apart(ordered[0], other, name) for other in ordered[1:])
    if not wins:
        return Verdict(
            kind="measured", badge=text("badge.measured"), headline=text("sweep.nothing_shared"), details=_fits(view)
        )
    ranked = wins.most_common()
    best, count = ranked[0]
    if len(ranked) == 1:
        headline = text("sweep.leads_all", arm=best, points=_all_points(contested))
    else:
        others = [text("sweep.at", arm=arm, count=n) for arm, n in ranked[1:]]
        headline = text("sweep.leads", arm=best, count=count, all=contested, others=listed(others))
    details = [
        text("sweep.sure", count=sure, all=contested, metric_low=_within(title(name))),
        *_fits(view),
        *_roofline(view),
    ]
    return Verdict(kind="measured", badge=text("sweep.badge_leads"), headline=headline, details=details)


def _apart(one: Cell, other: Cell, name: str) -> bool:
    """Whether two intervals have nothing in common."""
    a, b = one.metrics[name], other.metrics[name]
    if None in (a.low, a.high, b.low, b.high):
        return False
    return (a.low or 0.0) > (b.high or 0.0) or (a.high or 0.0) < (b.low or 0.0)


def _against(view: SweepView, name: str) -> Verdict:
    """Say how a provider stands against the baseline, over all points that both have."""
    baseline = view.sweep.baseline
    compared = [(cell, cell.speedup) for cell in view.of(name) if cell.speedup is not None]
    counts = Counter(c.verdict for _, c in compared)
    fields = {"candidate": name, "baseline": baseline, "all": len(compared), "points": _all_points(len(compared))}
    better, worse = counts["better"], counts["worse"]
    if better and worse:
        kind, headline = "measured", text("sweep.mixed", better=better, worse=worse, **fields)
    elif better or worse:
        kind, key = ("better", "faster") if better else ("worse", "slower")
        whole = "_all" if max(better, worse) == len(compared) else ""
        headline = text(f"sweep.{key}{whole}", count=max(better, worse), **fields)
    elif counts["equivalent"] == len(compared):
        kind, headline = "equivalent", text("sweep.same", **fields)
    else:
        kind, headline = "cannot_tell", text("sweep.unclear", **fields)
    badge = {"better": "badge.faster", "worse": "badge.slower", "measured": "sweep.badge_depends"}
    undecided = [
        text(f"sweep.{verdict.replace(' ', '_')}_at", count=counts[verdict])
        for verdict in ("equivalent", "cannot tell")
        if counts[verdict] and kind not in ("equivalent",) and counts[verdict] < len(compared)
    ]
    details = [*_extremes(view, compared), sentences(undecided), _memory(view, name), *_not_measured(view, name)]
    return Verdict(
        kind=kind,
        badge=text(badge.get(kind, f"badge.{kind}")),
        headline=headline,
        details=[part for part in details if part],
        candidate=name,
        baseline=baseline,
    )


def _extremes(view: SweepView, compared: Sequence[tuple[Cell, Comparison]]) -> list[Both]:
    """Name the most and the least of a provider's speed, with their intervals."""
    told = sorted(((c.ratio, cell, c) for cell, c in compared if c.ratio), key=lambda each: -each[0])
    if not told:
        return []
    ends = [told[0], told[-1]] if len(told) > 1 else told
    return [
        text(
            f"sweep.{key}",
            ratio=times(ratio),
            where=view.label(cell.at),
            interval=text("sweep.interval", interval=span) if (span := times_interval(c)) else same(""),
        )
        for key, (ratio, cell, c) in zip(("most", "least") if len(ends) > 1 else ("only",), ends, strict=True)
    ]


def _memory(view: SweepView, name: str) -> Both:
    """Say how much memory a provider needs of what the baseline does, where both were measured."""
    ratios = []
    for point in view.sweep.points:
        pair = [view.sweep.cells.get((arm, point)) for arm in (name, view.sweep.baseline)]
        mine, its = (cell.value("kernel_memory") if cell is not None else None for cell in pair)
        if mine is not None and its:
            ratios.append(mine / its)
    if not ratios:
        return same("")
    low, high = times(min(ratios)), times(max(ratios))
    return text("sweep.memory_one", ratio=low) if low == high else text("sweep.memory", low=low, high=high)


def _not_measured(view: SweepView, name: str) -> list[Both]:
    """Say where a provider has no numbers though nothing is wrong with it."""
    said = []
    for verdict in ("too big", "unsupported"):
        key = f"sweep.{verdict.replace(' ', '_')}_at"
        for cells in by_reason(cell for cell in view.of(name) if cell.verdict == verdict)[:_REASONS]:
            said.append(text(key, points=_points(len(cells)), why=cells[0].why))
    return said


def _fits(view: SweepView) -> list[Both]:
    """Say where the baseline itself has no numbers."""
    return [same(f"{view.sweep.baseline}: ") + said for said in _not_measured(view, view.sweep.baseline)]


def _roofline(view: SweepView) -> list[Both]:
    """Say which roof holds the work back, and how near to it the best comes."""
    told = [(cell.value("roofline_share") or 0.0, cell) for cell in view.cells if cell.valid and cell.bound]
    if not told:
        return []
    bounds = Counter(cell.bound for _, cell in told)
    share, best = max(told, key=lambda pair: pair[0])
    counted = [text(f"sweep.bound_{bound}", count=count) for bound, count in bounds.most_common()]
    return [
        text(
            "sweep.roofline",
            bounds=listed(counted),
            share=percent(share, 3),
            arm=best.provider,
            where=view.label(best.at),
        )
    ]


def _alone(view: SweepView, arm: str) -> Verdict:
    """Say the best that the only provider reaches, and where."""
    sweep, name = view.sweep, view.sweep.leading
    cells = [cell for cell in view.of(arm) if cell.value(name) is not None]
    if not cells:
        return Verdict(
            kind="measured", badge=text("badge.measured"), headline=same(arm), details=_not_measured(view, arm)
        )
    lower = name in catalogue() and catalogue()[name].direction == "lower"
    ordered = sorted(cells, key=lambda cell: cell.value(name) or 0.0, reverse=not lower)
    best = ordered[0]
    unit = scale(best.metrics[name].unit, [best.value(name)])
    shown = unit.full(best.value(name), 4)
    several, key = len(sweep.points) > 1, "sweep.alone_low" if lower else "sweep.alone"
    headline = text(key if several else "verdict.alone_metric", arm=arm, metric=title(name), value=shown)
    details = []
    if several:
        details.append(text("sweep.alone_where", where=view.label(best.at), points=_points(len(cells))))
    details += [*_rated(best), *_smallest(view, cells), *_roofline(view), *_not_measured(view, arm)]
    return Verdict(kind="measured", badge=text("badge.measured"), headline=headline, details=details)


def _rated(cell: Cell) -> list[Both]:
    """Say what share that is of what the maker rates the device at, and where that figure is from."""
    told, share = cell.rated, cell.value("rated_share")
    if told is None or share is None:
        return []
    value = scale(metric(told.metric).unit, [told.value]).full(told.value)
    return [text("sweep.rated", share=percent(share, 3), value=value, chip=told.chip, source=told.source)]


def _smallest(view: SweepView, cells: Sequence[Cell]) -> list[Both]:
    """Say the latency of collective operations: the time of the smallest message, from the quickest to the slowest."""
    if view.trial.kind != "collective":
        return []
    sizes = [float(x) for cell in cells if isinstance(x := cell.at.get("size"), (int, float))]
    times = [
        cell.metrics["kernel_time"].value
        for cell in cells
        if sizes and cell.at.get("size") == min(sizes) and "kernel_time" in cell.metrics
    ]
    if not times:
        return []
    unit = scale("s", times)
    return [
        text("sweep.latency", size=f"{min(sizes):g} B", low=unit.full(min(times), 3), high=unit.full(max(times), 3))
    ]


def _bad(view: SweepView, name: str, verdict: str) -> Verdict | None:
    cells = [cell for cell in view.of(name) if cell.verdict == verdict]
    if not cells:
        return None
    every = len(cells) == len(view.of(name))
    headline = text(
        f"sweep.{verdict}_all" if every else f"sweep.{verdict}", arm=name, count=len(cells), all=len(view.sweep.points)
    )
    details = []
    for alike in by_reason(cells)[:_REASONS]:
        where = [view.label(cell.at) for cell in alike[:_REASONS]]
        details.append(same(f"{'; '.join(where)}{' …' if len(alike) > len(where) else ''}: {alike[0].why}"))
    return Verdict(kind="invalid", badge=text(f"sweep.badge_{verdict}"), headline=headline, details=details)


def _points(count: int) -> Both:
    return text("sweep.point") if count == 1 else text("sweep.points", count=count)


def _all_points(count: int) -> Both:
    return text("sweep.only_point") if count == 1 else text("sweep.all_points", count=count)


def _within(words: Both) -> Both:
    """Return a title as it stands within a sentence: its first letter small, unless it is an abbreviation."""
    small = words.en if words.en[1:2].isupper() else words.en[:1].lower() + words.en[1:]
    return Both(small, words.zh)


def _allowance(accuracy: Accuracy) -> Both:
    """Return what an element may be off by."""
    if not accuracy.relative:
        return same(f"{accuracy.absolute:.3g}") if accuracy.absolute else text("sweep.exactly")
    return same(f"{accuracy.absolute:.3g} + {accuracy.relative:.3g} × |x|")


def rules(group: Group, view: SweepView) -> list[Rule]:
    """Return name and wording of every rule of a sweep."""
    trial, protocol = view.trial, view.trial.protocol
    fields: list[tuple[str, Both]] = [
        ("rules.region", Both(protocol.region or "–", protocol.region_zh or protocol.region or "–")),
        (
            "sweep.rounds",
            text("sweep.rounds_value", warmup=protocol.warmup, steps=protocol.steps, seconds=f"{protocol.seconds:g}"),
        ),
        ("rules.trials", text("sweep.trials_value", trials=len({v.trial.trial for v in group.trials}))),
        ("sweep.ranks", text("sweep.ranks_value", ranks=trial.ranks, threads=trial.threads)),
    ]
    if len(view.sweep.providers) > 1:
        fields += [
            ("sweep.turns", text("sweep.turns_value")),
            ("rules.effect", text("rules.effect_value", effect=exact(protocol.minimum_effect))),
            ("rules.order", text("sweep.order_value")),
        ]
    allowed = {
        str(cell.at.get("dtype", "")): told.accuracy
        for cell in view.cells
        if (told := view.samples(cell)) is not None and told.accuracy is not None
    }
    if allowed:
        pairs = [same(f"{dtype} ".lstrip()) + _allowance(a) for dtype, a in allowed.items()]
        fields.append(("sweep.tolerance", text("sweep.tolerance_value", allowed=listed(pairs))))
    roofs = view.roofs
    if roofs is not None:
        flops = [f"{dtype} {scale('FLOP/s', [x]).full(x)}" for dtype, x in roofs.flops.items()]
        stream = scale("GB/s", [roofs.bandwidth / 1e9]).full(roofs.bandwidth / 1e9)
        fields.append(("sweep.roofs", text("sweep.roofs_value", flops="; ".join(flops) or "–", bandwidth=stream)))
    return [(text(key), value) for key, value in fields]
