"""What a page says of a contest: an answer a question, losses, memory, communication, claims and what was tried."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flagperf.schema.contest import Arm, Claim, Question
from flagperf.schema.result import ClaimShown, Comparison

from .data import ContestView, Group, LossDifference, loss_differences
from .numbers import THIN, change, exact, median, number, percent, scale
from .texts import Both, listed, same, sentences, text, title
from .words import (
    Verdict,
    invalid,
    left_out,
    loss_sentence,
    memory_sentences,
    note_sentences,
    pair_count,
    speed_sentence,
)

_LEADING = "tokens_per_second"
_TWICE = 2.0
"""From here on a speed is told as a multiple, not in per cent."""
_PARTS = ("memory_weights", "memory_gradients", "memory_optimizer", "memory_activations")
_APART = {"losses_differ", "tokens_differ"}
"""Notes on comparisons whose speeds mean nothing."""
_MIB = 2**20


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of a bar."""

    title: Both
    value: str
    width: float
    """Per cent of the longest bar."""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """An arm's bar with its numbers."""

    arm: str
    total: str
    parts: list[Part]
    beside: list[Both]
    """What belongs to it and isn't in the bar."""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind an arm's short name."""

    arm: str
    roles: Both
    layout: str


class ClaimRow(msgspec.Struct, frozen=True, kw_only=True):
    """A published claim beside what was measured."""

    title: Both
    published: str
    measured: str
    interval: str
    question: Both
    kind: str
    """`above`, `within`, `below`, `unmeasured` or `cannot_tell`: its colour and sign."""
    badge: Both
    reading: Both
    source: str
    note: Both


class TriedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A layout that was tried."""

    trial: str
    arm: Arm
    speed: str
    memory: str
    kind: str
    """`fits`, `too_big` or `failed`."""
    why: str
    hint: str
    chosen: bool


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """All that a contest's group shows beyond what any group does."""

    title: Both
    losses: Verdict | None
    arms: list[Named]
    memory: list[Bar]
    budget: str
    communication: list[Bar]
    overlap: Both
    claims: list[ClaimRow]
    where: Both
    tried: list[TriedRow]
    search: Both
    """How it was searched, or why not."""
    speed_unit: str
    memory_unit: str
    unfinished: bool
    """Whether the search hasn't led to any measured trial."""


def shown(group: Group) -> Shown | None:
    """Return what a group's contest shows; None if it is no contest."""
    view = group.contest
    if view is None:
        return None
    contest = view.contest
    rows, speed_unit, memory_unit = tried(view)
    return Shown(
        title=contest_title(view),
        losses=losses(group, view),
        arms=arms(group, view),
        memory=memory(group),
        budget="" if contest.memory_budget is None else _mebibytes(contest.memory_budget),
        communication=communication(group),
        overlap=overlap(group, view),
        claims=[claim_row(view, each) for each in view.output.claims],
        where=_where(group, view),
        tried=rows,
        search=_search(view),
        speed_unit=speed_unit,
        memory_unit=memory_unit,
        unfinished=not group.trials,
    )


def contest_title(view: ContestView) -> Both:
    """Return what the contest is called; of one without a name, who is in it."""
    contest = view.contest
    if contest.title:
        return Both(contest.title, contest.title_zh or contest.title)
    candidate, baseline = (view.names.get(arm, str(arm)) for arm in (contest.candidate, contest.baseline))
    return text("contest.title", candidate=candidate, baseline=baseline)


def cards(group: Group, view: ContestView) -> list[Verdict]:
    """Return the answer to each question that was asked."""
    return [
        msgspec.structs.replace(_card(group, view, question), question=text(f"contest.question_{question}"))
        for question in view.sides
    ]


def _card(group: Group, view: ContestView, question: Question) -> Verdict:
    if lacking := _lacking(view, question):
        return _unclear(text("contest.nothing_fits", engine=listed(lacking)), text("contest.nothing_fits_do"))
    pair = view.pair(question)
    if pair is None:
        return _unclear(text("contest.not_yet"))
    if question == "best" and pair == view.pair("equal"):
        twin = _card(group, view, "equal")
        headline, details = text("contest.same_best"), [text("contest.same_best_why")]
        return Verdict(kind=twin.kind, badge=twin.badge, headline=headline, details=details)
    candidate, baseline = pair
    missing = [arm for arm in pair if not group.of(arm)]
    compared = view.answer(question, group.comparisons)
    if missing:
        return invalid(text("contest.invalid", arm=listed(missing)), group, missing)
    if _LEADING not in compared:
        return _unclear(text("verdict.unclear", candidate=candidate, baseline=baseline), text("verdict.nothing"))
    lead = compared[_LEADING]
    headline, badge, detail = speed_sentence(lead)
    if lead.verdict == "better" and lead.ratio is not None and lead.ratio >= _TWICE:
        headline = text("contest.times", candidate=candidate, baseline=baseline, times=number(lead.ratio, 3))
    if lead.verdict in ("better", "worse") and lead.low is not None and lead.high is not None:
        ends = {"ratio": times(lead.ratio), "low": times(lead.low), "high": times(lead.high)}
        detail = text("contest.ratio", pairs=pair_count(lead), **ends)
    said, agree = loss_sentence(group, compared.values(), _differences(group, [pair]))
    details = [detail, _speeds(lead), *memory_sentences({k: c for k, c in compared.items() if k != _LEADING})]
    details = [*([] if agree else [said]), *details, *note_sentences(compared.values()), *left_out(group, pair)]
    return Verdict(
        kind=lead.verdict.replace(" ", "_"),
        badge=badge,
        headline=headline,
        details=[part for part in details if part],
        candidate=candidate,
        baseline=baseline,
        # What is exposed has bars of its own; a multiple of it would make all else here too small to see.
        plotted=[c for c in compared.values() if c.ratio is not None and not c.metric.startswith("communication")],
    )


def _unclear(headline: Both, *details: Both) -> Verdict:
    return Verdict(kind="cannot_tell", badge=text("badge.cannot_tell"), headline=headline, details=list(details))


def _lacking(view: ContestView, question: Question) -> list[str]:
    named = (view.contest.candidate, view.contest.baseline)
    found = view.sides.get(question, named)
    return [arm.engine for arm, side in zip(named, found, strict=True) if side is None]


def _speeds(c: Comparison) -> Both:
    if c.candidate_value is None or c.baseline_value is None:
        return same("")
    unit = scale(c.unit, [c.candidate_value, c.baseline_value])
    return text("contest.speeds", candidate=unit.show(c.candidate_value), baseline=unit.full(c.baseline_value))


def _differences(group: Group, pairs: Sequence[tuple[str, str]]) -> list[LossDifference]:
    return [d for candidate, baseline in pairs for d in loss_differences(group, baseline) if d.arm == candidate]


def losses(group: Group, view: ContestView) -> Verdict | None:
    """Return whether all that is compared learns the same; None if nothing was compared."""
    asked = dict.fromkeys(pair for question in view.sides if (pair := view.pair(question)) is not None)
    pairs = [pair for pair in asked if all(group.of(arm) for arm in pair)]
    if not pairs:
        return None
    differences = _differences(group, pairs)
    measured = [c for c in group.comparisons if c.ratio is not None and c.metric.startswith("loss")]
    said, agree = loss_sentence(group, measured, differences)
    if not said:
        return None
    band = text("contest.losses_band", band=exact(view.contest.protocol.loss_band))
    if not differences and not measured:
        kind, badge, details = "cannot_tell", text("badge.cannot_tell"), []
    elif agree:
        kind, badge, details = "equivalent", text("contest.losses_same"), [band]
    else:
        kind, badge, details = "worse", text("contest.losses_apart"), []
    return Verdict(kind=kind, badge=badge, headline=said, details=details)


def arms(group: Group, view: ContestView) -> list[Named]:
    """Return what stands behind each name, in the order of colours."""
    found = []
    for name in group.arms:
        arm = next(arm for arm, called in view.names.items() if called == name)
        roles = [
            text(f"contest.role_{question}") for question, pair in view.sides.items() if _plays(question, arm, pair)
        ]
        found.append(Named(arm=name, roles=listed(roles), layout=str(arm.layout)))
    return found


def _plays(question: Question, arm: Arm, pair: tuple[Arm | None, Arm | None]) -> bool:
    return arm == pair[1] if question == "overlap" else arm in pair


def memory(group: Group) -> list[Bar]:
    """Return what each arm's allocator held at its peak, split where the engine told it; medians over valid trials."""
    every = {
        arm: {name: _median(group, arm, name) for name in (*_PARTS, "memory_peak_allocated")} for arm in group.arms
    }
    told = {arm: found for arm, found in every.items() if any(value is not None for value in found.values())}
    # Each part is that of the rank with most of it: together they can be more than the peak of any one.
    sums = {arm: sum(max(0.0, found[name] or 0.0) for name in _PARTS) for arm, found in told.items()}
    peaks = {arm: found["memory_peak_allocated"] for arm, found in told.items()}
    most = max([*sums.values(), *(peak or 0.0 for peak in peaks.values())], default=0.0) or 1.0
    unit = scale("MiB", [peaks[arm] or sums[arm] for arm in told])
    bars = []
    for arm, found in told.items():
        parts = [
            Part(title=title(name), value=unit.show(value), width=round(100 * max(0.0, value) / most, 2))
            for name in _PARTS
            if (value := found[name]) is not None
        ]
        peak = peaks[arm]
        beside = []
        if not parts and peak is not None:
            parts = [Part(title=text("contest.unsplit"), value=unit.show(peak), width=round(100 * peak / most, 2))]
        offloaded = _median(group, arm, "memory_offloaded")
        if offloaded:
            beside.append(text("contest.offloaded", amount=unit.full(offloaded)))
        bars.append(Bar(arm=arm, total=unit.full(peak), parts=parts, beside=beside))
    return bars


def communication(group: Group) -> list[Bar]:
    """Return how long each arm communicates a step, and how much of that nothing covers; medians over valid trials."""
    names = ("communication_exposed", "communication_time", "communication_exposed_share")
    told = {}
    for arm in group.arms:
        exposed, whole, share = (_median(group, arm, name) for name in names)
        if exposed is not None and whole is not None:
            told[arm] = exposed, whole, share
    most = max((whole for _, whole, _ in told.values()), default=0.0) or 1.0
    unit = scale("s", [whole for _, whole, _ in told.values()])
    bars = []
    for arm, (exposed, whole, share) in told.items():
        stretches = (("contest.exposed", exposed), ("contest.hidden", max(0.0, whole - exposed)))
        parts = [
            Part(title=text(key), value=unit.show(value), width=round(100 * value / most, 2))
            for key, value in stretches
        ]
        beside = [] if share is None else [text("contest.exposed_share", share=percent(share, 2))]
        bars.append(Bar(arm=arm, total=unit.full(whole), parts=parts, beside=beside))
    return bars


def overlap(group: Group, view: ContestView) -> Both:
    """Return what overlap does to the communication that is exposed, or why that isn't known."""
    if view.contest.without_overlap is None:
        return text("contest.no_overlap", engine=view.contest.candidate.engine)
    c = view.answer("overlap", group.comparisons).get("communication_exposed")
    if c is None or c.ratio is None:
        return text("contest.overlap_unknown")
    if c.low is None or c.high is None:
        return text("contest.overlap_one", change=change(c.ratio))
    key = f"contest.overlap_{c.verdict.replace(' ', '_')}"
    return text(key, part=percent(c.ratio - 1), low=change(c.low), high=change(c.high), pairs=pair_count(c))


def claim_row(view: ContestView, claimed: ClaimShown) -> ClaimRow:
    """Return a claim as the table shows it."""
    claim, c = claimed.claim, claimed.measured
    kind, said = reading(claim, c)
    if kind == "unmeasured":
        said = _unmeasured(view, claim)
    high = claim.low if claim.high is None else claim.high
    details = [said]
    if claim.question == "best" and kind in ("above", "within"):
        details.append(_pressure(view))
    interval = "" if c is None or c.low is None or c.high is None else f"{times(c.low)} … {times(c.high)}"
    return ClaimRow(
        title=Both(claim.title, claim.title_zh),
        published=f"{claim.low:g}×" if high == claim.low else f"{claim.low:g} … {high:g}×",
        measured="–" if c is None or c.ratio is None else times(c.ratio),
        interval=interval,
        question=text(f"contest.question_{claim.question}"),
        kind=kind,
        badge=text(f"contest.claim_{kind}"),
        reading=sentences(details),
        source=claim.source,
        note=Both(claim.note, claim.note_zh or claim.note),
    )


def reading(claim: Claim, c: Comparison | None) -> tuple[str, Both]:
    """Return how a claim stands to what was measured: its kind, and a sentence."""
    if c is None or c.ratio is None:
        return "unmeasured", text("contest.reading_unmeasured")
    if any(note.code in _APART for note in c.notes):
        return "cannot_tell", text("contest.reading_apart")
    if c.low is None or c.high is None:
        return "cannot_tell", text("contest.reading_one")
    low, high = claim.low, claim.low if claim.high is None else claim.high
    ends = {"low": times(c.low), "high": times(c.high)}
    if low > c.high:
        return "above", text("contest.reading_above", factor=number(low / c.high, 3), **ends)
    if high < c.low:
        return "below", text("contest.reading_below", **ends)
    if c.low <= 1 <= c.high:
        return "cannot_tell", text("contest.reading_wide", **ends)
    if c.low <= low and high <= c.high:
        return "within", text("contest.reading_within", **ends)
    return "within", text(
        "contest.reading_inside" if low <= c.low and c.high <= high else "contest.reading_meets", **ends
    )


def _unmeasured(view: ContestView, claim: Claim) -> Both:
    if lacking := _lacking(view, claim.question):
        return text("contest.unmeasured_fits", engine=listed(lacking))
    if claim.question not in view.sides:
        return text(f"contest.unmeasured_{claim.question}")
    return text("contest.reading_unmeasured")


def _pressure(view: ContestView) -> Both:
    """Return whether memory held the baseline back, as far as the search saw."""
    engine = view.contest.baseline.engine
    own = [each for each in view.output.tried if each.arm.engine == engine]
    big = sum(each.verdict == "too big" for each in own)
    if not own:
        return same("")
    if big:
        return text("contest.pressure", engine=engine, count=big, all=len(own))
    return text("contest.no_pressure", engine=engine)


def tried(view: ContestView) -> tuple[list[TriedRow], str, str]:
    """Return the layouts that were tried, in that order, and the units of speed and memory."""
    every = view.output.tried
    speed = scale("tokens/s", [each.tokens_per_second for each in every])
    memory = scale("MiB", [each.memory_mib for each in every])
    hints = {v.result.id: v.result.reasons[0].hint for v in view.searched if v.result.reasons}
    rows = [
        TriedRow(
            trial=each.trial,
            arm=each.arm,
            speed=speed.show(each.tokens_per_second),
            memory=memory.show(each.memory_mib),
            kind=each.verdict.replace(" ", "_"),
            why=each.why,
            hint=hints.get(each.trial, "") if each.why else "",
            chosen=each.arm in view.sides.get("best", ()),
        )
        for each in every
    ]
    return rows, speed.unit, memory.unit


def _search(view: ContestView) -> Both:
    contest = view.contest
    if not contest.ladders:
        return text("contest.not_searched")
    protocol = view.searched[0].trial.protocol if view.searched else contest.protocol
    said = [text("contest.searched", warmup=protocol.warmup, steps=protocol.steps)]
    if contest.memory_budget is not None:
        said.append(text("contest.budget", budget=_mebibytes(contest.memory_budget)))
    return sentences(said)


def _where(group: Group, view: ContestView) -> Both:
    trial = group.first
    said = [text("contest.where", preset=trial.preset, ranks=trial.ranks, vendor=trial.vendor, dtype=trial.dtype)]
    if view.contest.memory_budget is not None:
        said.append(text("contest.budget", budget=_mebibytes(view.contest.memory_budget)))
    return sentences(said)


def _median(group: Group, arm: str, name: str) -> float | None:
    values = [view.result.metrics[name].value for view in group.of(arm) if name in view.result.metrics]
    return median(values) if values else None


def _mebibytes(amount: int) -> str:
    return scale("MiB", [amount / _MIB]).full(amount / _MIB)


def times(ratio: float | None) -> str:
    """Return a ratio as a multiple."""
    return "–" if ratio is None else f"{number(ratio, 3)}{THIN}×"
