"""Submissions of sweeps: made ones are accepted, and each fault is refused with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from submit import made
from submit.conftest import Check

from flagperf.registry import Registries
from flagperf.schema.event import PREFIX, Key
from flagperf.schema.submission import SubmitCheckOutput
from flagperf.submit.pack import pack

TRIAL = made.place("trials/000-operators-softmax")
RANK = f"{TRIAL}/rank0.journal"
RUN = made.place("run.json")
Change = Callable[[made.Contents], object]


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, registries: Registries) -> Callable[..., made.Contents]:
    """Make a sweep's run and pack it: its files."""

    def contents(case: str, providers: str, ranks: int = 1) -> made.Contents:
        folder = tmp_path_factory.mktemp("sweep")
        made.write(folder / "run", registries, made.sweep(case, providers, ranks, registries))
        (folder / "system.yaml").write_bytes(made.form())
        pack([folder / "run"], "cpu", folder / "system.yaml", folder / "bundle.tar", registries)
        return made.contents((folder / "bundle.tar").read_bytes())

    return contents


@pytest.fixture(scope="module")
def softmax(bundle_of: Callable[..., made.Contents]) -> made.Contents:
    """Four points of two providers on one rank; not to be changed."""
    return bundle_of("operators/softmax", "eager+inductor")


@pytest.fixture
def swept(softmax: made.Contents) -> made.Contents:
    """The same, to be changed."""
    return dict(softmax)


def codes(verdict: SubmitCheckOutput) -> set[str]:
    """What a bundle is refused for."""
    return {reason.code for reason in verdict.reasons}


@pytest.mark.parametrize("division", ["closed", "open"])
def test_a_sweep_as_its_case_says_is_accepted(division: str, swept: made.Contents, checked: Check) -> None:
    verdict = checked(made.assemble(swept, division=division))
    assert verdict.verdict == "accepted", verdict.reasons
    assert [result.engine for result in verdict.results] == ["eager+inductor"]


def test_collectives_of_two_ranks_are_accepted_and_held_against_their_formulas(
    bundle_of: Callable[..., made.Contents], checked: Check
) -> None:
    files = bundle_of("parallel/collectives", "torch", 2)
    verdict = checked(made.assemble(files))
    assert verdict.verdict == "accepted", verdict.reasons
    name = made.place("trials/000-parallel-collectives/rank1.journal")
    line = made.set_line(files, name, Key.SAMPLES, "value.bus_bytes", 1e9, 7)
    (reason,) = [each for each in checked(made.assemble(files)).reasons if each.code == "work"]
    assert (reason.file, reason.line) == (name, line)


def told(path: str, value: object, nth: int = 0) -> Change:
    """A provider's samples at a point that tell otherwise."""
    return lambda files: made.set_line(files, RANK, Key.SAMPLES, f"value.{path}", value, nth)


def planned(path: str, value: object) -> Change:
    """A plan that says otherwise."""
    return lambda files: made.set_plan(files, path, value, range(1))


def lines(change: Callable[[list[bytes], list[int]], list[bytes]]) -> Change:
    """A journal whose lines are others; told are those of samples by their number, from 0."""

    def changed(files: made.Contents) -> None:
        there = files[RANK].splitlines(keepends=True)
        ours = [number for number, line in enumerate(there) if b'"key":"samples"' in line]
        files[RANK] = b"".join(change(there, ours))

    return changed


def without(*gone: int) -> Change:
    """A journal without these samples."""
    return lines(lambda there, ours: [x for n, x in enumerate(there) if n not in {ours[each] for each in gone}])


def written(text: bytes, by: bytes) -> Change:
    """The first samples with other text in them, as no library would write it."""

    def changed(there: list[bytes], ours: list[int]) -> list[bytes]:
        assert text in there[ours[0]]
        there[ours[0]] = there[ours[0]].replace(text, by, 1)
        return there

    return lines(changed)


def samples(files: made.Contents, nth: int = 0) -> dict[str, Any]:
    """One provider's samples."""
    ours = [line for line in files[RANK].splitlines() if b'"key":"samples"' in line]
    value: dict[str, Any] = msgspec.json.decode(ours[nth][len(PREFIX) :])["value"]
    return value


def scaled(factor: float) -> Change:
    """All of a point's rounds as if they had taken so much of their time."""

    def changed(files: made.Contents) -> None:
        for nth in range(2):
            told("seconds", [each * factor for each in samples(files, nth)["seconds"]], nth)(files)

    return changed


def replanned(*names: str) -> Change:
    """Other providers in the plan and in the journal; of one alone, every second line of samples is left."""

    def changed(files: made.Contents) -> None:
        planned("engine", "+".join(names))(files)
        made.set_line(files, RANK, Key.SWEEP, "value.providers", names)
        for nth in range(8):
            told("provider", names[nth % len(names)], nth)(files)
        if len(names) == 1:
            without(0, 2, 4, 6)(files)

    return changed


FAULTS: dict[str, tuple[Change, str, str]] = {
    # what is done: code and file
    "a point left out": (without(6, 7), "point_missing", RANK),
    "a slow provider left out": (without(7), "point_missing", RANK),
    "a point twice": (lines(lambda there, ours: [*there[: ours[7]], *there[ours[6] :]]), "point_unplanned", RANK),
    "a point that wasn't planned": (told("at.shape", "small"), "point_unplanned", RANK),
    "a point with an axis more": (told("at.size", 8), "point_unplanned", RANK),
    "a provider that wasn't planned": (told("provider", "fast"), "point_unplanned", RANK),
    "no samples": (without(*range(8)), "point_missing", RANK),
    "fewer rounds": (lambda files: told("seconds", samples(files)["seconds"][:5])(files), "rounds_missing", RANK),
    "no rounds": (told("seconds", []), "rounds_missing", RANK),
    "a time of nothing": (told("seconds.3", 0.0), "impossible_samples", RANK),
    "a negative time": (told("seconds.3", -1e-4), "impossible_samples", RANK),
    "a round of no calls": (told("calls", 0), "impossible_samples", RANK),
    "more calls than can be counted": (told("calls", 2**60), "impossible_samples", RANK),
    "a negative amount": (told("bytes", -1.0), "impossible_samples", RANK),
    "a device's clock that the host's doesn't go with": (told("clock", "device"), "impossible_samples", RANK),
    "a time that isn't a number": (told("seconds.3", None), "journal_line", RANK),
    "NaN": (written(b'"seconds":[', b'"seconds":[NaN,'), "journal_line", RANK),
    "infinity": (written(b'"seconds":[', b'"seconds":[1e999,'), "journal_line", RANK),
    "a time in words": (told("seconds.3", "0.001"), "journal_line", RANK),
    "a list for a time": (told("seconds.3", [0.001]), "journal_line", RANK),
    "a verdict that isn't": (told("verdict", "best"), "journal_line", RANK),
    "rounds longer than there was time": (scaled(50), "round_times", RANK),
    "times that no clock holds": (told("seconds.3", 1e308), "round_times", RANK),
    "rounds of less than the protocol's time": (scaled(0.5), "round_times", RANK),
    "FLOPs that aren't the formula's": (told("flops", 1e9), "work", RANK),
    "a tolerance that was widened": (told("accuracy.absolute", 1.0), "accuracy", RANK),
    "wrong elements": (told("accuracy.wrong", 1), "accuracy", RANK),
    "nothing judged": (told("accuracy.elements", 0), "accuracy", RANK),
    "no accuracy": (told("accuracy", None), "accuracy", RANK),
    "a result that is wrong": (told("verdict", "wrong"), "invalid: wrong_result", TRIAL),
    "a point that failed": (told("verdict", "failed"), "invalid: point_failed", TRIAL),
    "faster than the roof": (
        lambda files: made.set_line(files, RANK, Key.ROOFS, "value.flops.fp32", 1e8), "above_roof", TRIAL
    ),
    "no roofs": (lambda files: made.drop_lines(files, RANK, Key.ROOFS, slice(None)), "no_roof", TRIAL),
    "no roof of a type": (
        lambda files: made.set_line(files, RANK, Key.ROOFS, "value.flops", {"fp32": 1e11}), "no_roof", TRIAL
    ),
    "a roof of nothing": (
        lambda files: made.set_line(files, RANK, Key.ROOFS, "value.bandwidth", 0.0), "no_roof", TRIAL
    ),
    "a figure in place of rounds": (
        lambda files: (told("seconds", [])(files), told("values", {"capacity": 1.0})(files)),
        "rounds_missing", RANK,
    ),
    "a figure of one's own": (told("values", {"roofline_share": 0.99}), "impossible_samples", RANK),
    "too big, but measured": (told("verdict", "too big"), "impossible_samples", RANK),
    "memory below nothing": (told("memory", -5), "impossible_samples", RANK),
    "an error below nothing": (told("accuracy.max_absolute", -1.0), "accuracy", RANK),
    "an error untold": (told("accuracy.max_relative", None), "accuracy", RANK),
    "many more samples": (
        lines(lambda there, ours: [*there[: ours[0]], *there[ours[0] : ours[0] + 1] * 2000, *there[ours[0] :]]),
        "point_unplanned", RANK,
    ),
    "another tool's": (told("facts", {"imported": "pytest-benchmark"}), "imported", RANK),
    "a provider that nobody has": (replanned("eager", "magic"), "unknown_provider", TRIAL),
    "a provider twice": (planned("engine", "eager+eager"), "unknown_provider", TRIAL),
    "without the baseline": (replanned("inductor"), "no_baseline", TRIAL),
    "fewer rounds planned": (planned("protocol.steps", 5), "rule", RUN),
    "less time planned": (planned("protocol.seconds", 0.01), "rule", RUN),
    "a smaller shape": (planned("settings.shapes.tiny.columns", 8), "rule", RUN),
    "a type left out": (planned("settings.sweep.dtype", ["bf16"]), "rule", RUN),
    "a pass left out": (planned("settings.sweep.pass", ["forward"]), "rule", RUN),
    "another point's time claimed": (
        lambda files: made.set_json(files, "results.json", "results.0.points.2.metrics.kernel_time.value", 1e-9),
        "claim", "results.json",
    ),
    "another verdict of a point claimed": (
        lambda files: made.set_json(files, "results.json", "results.0.points.2.verdict", "too big"),
        "claim", "results.json",
    ),
    "another speed-up claimed": (
        lambda files: made.set_json(files, "results.json", "results.0.points.1.speedup.ratio", 9.0),
        "claim", "results.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_refused_where_it_is(kind: str, swept: made.Contents, checked: Check) -> None:
    change, code, file = FAULTS[kind]
    change(swept)
    verdict = checked(made.assemble(swept))
    assert verdict.verdict == "rejected"
    assert (code, file) in {(reason.code, reason.file) for reason in verdict.reasons}, verdict.reasons
