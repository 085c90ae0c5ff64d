"""Verdicts as sentences, by rules from comparisons and results. Each figure is a stored one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from flagperf.schema.result import Comparison

from .data import Group, LossDifference, leading_metric, loss_differences
from .numbers import change, exact, median, percent, percent_above, scale
from .serving import details
from .texts import Both, same, sentences, text, title

_SAID = {"invalid_left_out", "losses_differ", "losses_unchecked"}
"""Notes that the sentences here say already, in both languages."""
_REASONS, _NAMED = 2, 5
"""Reasons a trial, and trials or reasons a verdict, that are named up there; the numbers' section has them all."""
_IDENTICAL = 1e-9
"""Relative differences below this are rounding."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the page says first of one candidate, or of an engine that stands alone."""

    kind: str
    """`better`, `worse`, `equivalent`, `cannot_tell`, `invalid` or `measured`: its colour and sign."""
    badge: Both
    headline: Both
    details: list[Both]
    candidate: str = ""
    baseline: str = ""
    arm: str = ""
    """The engine, where there is nothing to compare it with."""
    plotted: list[Comparison] = []
    question: Both = same("")
    """Of a contest, that it answers."""


def verdicts(group: Group) -> list[Verdict]:
    """Return the verdicts of a group: one a candidate, else one an engine; invalid arms are named, never ranked."""
    valid = [arm for arm in group.arms if group.of(arm)]
    if not valid:
        return [invalid(text("verdict.no_valid"), group, group.arms)]
    differences = loss_differences(group)
    found: list[Verdict] = []
    if group.baseline in valid:
        found = [_candidate(group, arm, differences) for arm in valid if arm != group.baseline]
    if not found:
        found = [_alone(group, arm) for arm in valid]
    if group.first.scenario:
        found = [_with_waits(group, verdict, valid) for verdict in found]
    return found + [
        invalid(text("verdict.arm_invalid", arm=arm), group, [arm]) for arm in group.arms if arm not in valid
    ]


def _with_waits(group: Group, verdict: Verdict, valid: Sequence[str]) -> Verdict:
    """Return a verdict on inference with how long users wait: of the engine it is about, or of both."""
    about = [verdict.candidate, verdict.baseline] if verdict.candidate else [verdict.arm]
    more = [said for arm in about if arm in valid for said in details(group, arm)]
    return msgspec.structs.replace(verdict, details=[*verdict.details, *dict.fromkeys(more)])


def invalid(headline: Both, group: Group, arms: Sequence[str] | None = None) -> Verdict:
    """Name what is invalid of these arms, or of all trials; reasons that several trials share are said once."""
    shared: dict[tuple[str, str], list[str]] = {}
    views = group.trials if arms is None else [view for arm in arms for view in group.of(arm, valid=False)]
    for view in views:
        for reason in view.result.reasons[:_REASONS]:
            shared.setdefault((reason.message, reason.hint), []).append(view.result.id)
    details = [
        same(f"{', '.join(trials[:_NAMED])}{' …' if len(trials) > _NAMED else ''}: {' '.join(filter(None, said))}")
        for said, trials in list(shared.items())[:_NAMED]
    ]
    return Verdict(kind="invalid", badge=text("badge.invalid"), headline=headline, details=details)


def _alone(group: Group, arm: str) -> Verdict:
    views, name = group.of(arm), leading_metric(group)
    values = [view.result.metrics[name].value for view in views if name in view.result.metrics] if name else []
    if not values or name is None:
        headline = same(arm)
    else:
        unit = scale(next(v.result.metrics[name].unit for v in views if name in v.result.metrics), values)
        shown = unit.full(median(values), 3)
        if name == "tokens_per_second":
            headline = text("verdict.alone", arm=arm, value=shown)
        else:
            headline = text("verdict.alone_metric", arm=arm, metric=title(name), value=shown)
    details: list[Both] = []
    if len(values) > 1:
        low, high = unit.show(min(values), 3), unit.full(max(values), 3)
        details.append(text("verdict.alone_more", trials=_trials(len(values)), low=low, high=high))
    elif values:
        details.append(text("verdict.alone_one"))
    shares = [view.result.metrics["mfu"].value for view in views if "mfu" in view.result.metrics]
    if shares:
        details.append(text("verdict.alone_mfu", value=percent(median(shares), 3)))
    details += left_out(group, [arm])
    if len(group.arms) == 1:
        details.append(text("verdict.alone_hint", arm=arm))
    return Verdict(kind="measured", badge=text("badge.measured"), headline=headline, details=details, arm=arm)


def _candidate(group: Group, arm: str, differences: list[LossDifference]) -> Verdict:
    compared = group.compared(arm)
    name = leading_metric(group)
    lead = compared.get(name or "") or next(iter(compared.values()), None)
    losses, agree = loss_sentence(group, compared.values(), [d for d in differences if d.arm == arm])
    plotted = [c for c in compared.values() if c.ratio is not None]
    if lead is None:
        return Verdict(
            kind="cannot_tell",
            badge=text("badge.cannot_tell"),
            headline=text("verdict.unclear", candidate=arm, baseline=group.baseline),
            details=[text("verdict.nothing"), *left_out(group, [arm, group.baseline or ""])],
            candidate=arm,
        )
    headline, badge, detail = speed_sentence(lead)
    memory = memory_sentences({key: c for key, c in compared.items() if c is not lead})
    details = [detail, losses, *memory] if agree else [losses, detail, *memory]
    details += note_sentences(compared.values())
    details += left_out(group, [arm, group.baseline or ""])
    return Verdict(
        kind=lead.verdict.replace(" ", "_"),
        badge=badge,
        headline=headline,
        details=[part for part in details if part],
        candidate=arm,
        baseline=group.baseline or "",
        plotted=plotted,
    )


def speed_sentence(c: Comparison) -> tuple[Both, Both, Both]:
    """Return headline, badge and the sentence on how sure that is, for the leading metric."""
    speed = c.metric in ("tokens_per_second", "step_time")
    effect = exact(c.minimum_effect)
    fields = {"candidate": c.candidate, "baseline": c.baseline, "effect": effect, "metric": title(c.metric)}
    pairs = pair_count(c)
    interval = c.low is not None and c.high is not None
    if c.verdict in ("better", "worse") and c.ratio is not None and c.low is not None and c.high is not None:
        faster = c.verdict == "better"
        more = c.ratio > 1
        # Throughput 8 % lower is said as 8 % slower; a step time 8 % higher too.
        key = ("faster" if faster else "slower") if speed else ("higher_metric" if more else "lower_metric")
        ends = sorted([(c.low - 1) * (1 if more else -1), (c.high - 1) * (1 if more else -1)])
        detail = text("verdict.interval", low=_bare(ends[0]), high=percent(ends[1]), pairs=pairs)
        badge = text(f"badge.{'faster' if faster else 'slower'}" if speed else f"badge.{c.verdict}")
        return text(f"verdict.{key}", part=percent(c.ratio - 1), **fields), badge, detail
    if c.verdict == "equivalent":
        key = "same" if speed else "same_metric"
    else:
        key = "unclear" if speed else "unclear_metric"
    if interval:
        measured = text("verdict.measured", change=change(c.ratio), low=change(c.low), high=change(c.high), pairs=pairs)
    elif c.ratio is not None:
        measured = text("verdict.measured_only", change=change(c.ratio), pairs=pairs)
    else:
        measured = text("verdict.nothing")
    more_trials = _more(c) if c.verdict == "cannot tell" else same("")
    return (
        text(f"verdict.{key}", **fields),
        text(f"badge.{c.verdict.replace(' ', '_')}"),
        sentences([measured, more_trials]),
    )


def pair_count(c: Comparison) -> Both:
    """Return how many pairs of trials a comparison has."""
    return text("verdict.pair") if c.pairs == 1 else text("verdict.pairs", count=c.pairs)


def note_sentences(comparisons: Iterable[Comparison]) -> list[Both]:
    """Return what comparisons note beyond what the sentences here say by themselves."""
    told = {note.message: note for c in comparisons for note in c.notes if note.code not in _SAID}
    return [sentences([same(note.message), same(note.hint)]) for note in told.values()]


def _bare(fraction: float) -> str:
    """Return a percentage without its sign, for the first number of a range; a negative end keeps its minus."""
    shown = percent(fraction).rpartition("\u202f")[0]
    return f"\u2212{shown}" if fraction < 0 and float(shown) else shown


def _more(c: Comparison) -> Both:
    if c.more_trials is not None:
        return text("verdict.more_one") if c.more_trials == 1 else text("verdict.more", count=c.more_trials)
    if c.low is not None and not c.notes:
        return text("verdict.never", effect=exact(c.minimum_effect))
    return same("")


def loss_sentence(
    group: Group, comparisons: Iterable[Comparison], differences: Sequence[LossDifference]
) -> tuple[Both, bool]:
    """Return whether the losses agree, in words and as a truth; the largest difference of any step or in validation."""
    parts = [d.largest for d in differences]
    parts += [
        abs(c.ratio - 1) for c in comparisons if c.metric in ("loss_validation", "loss_final") and c.ratio is not None
    ]
    if not parts:
        kind = {"loss_final", "loss_validation"} & set(group.first.metrics)
        return (text("verdict.losses_unknown") if kind else same("")), True
    largest, band = max(parts), group.first.protocol.loss_band
    if largest > band:
        return text("verdict.losses_differ", part=percent(largest), band=exact(band)), False
    if largest < _IDENTICAL:
        return text("verdict.losses_identical"), True
    return text("verdict.losses_agree", part=percent_above(largest)), True


def memory_sentences(compared: dict[str, Comparison]) -> list[Both]:
    """Return what is to be said of the first memory metric that was compared."""
    for name in ("memory_peak_allocated", "memory_peak_rss"):
        c = compared.get(name)
        if c is None or c.ratio is None:
            continue
        if c.verdict in ("better", "worse"):
            key = "memory_higher" if c.ratio > 1 else "memory_lower"
            return [text(f"verdict.{key}", metric=title(name), part=percent(c.ratio - 1))]
        if c.verdict == "equivalent":
            return [text("verdict.memory_same", metric=title(name))]
    return []


def left_out(group: Group, arms: Sequence[str]) -> list[Both]:
    found = []
    for arm in dict.fromkeys(arms):
        every = group.of(arm, valid=False)
        bad = [view for view in every if not view.valid]
        if bad and len(bad) < len(every):
            found.append(text("verdict.arm_part", count=len(bad), all=len(every), arm=arm))
    return found


def _trials(count: int) -> Both:
    return text("verdict.trials_one") if count == 1 else text("verdict.trials_many", count=count)
