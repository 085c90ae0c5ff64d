"""The rules: each is broken once, and the verdict says where, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from submit import made
from submit.conftest import Check

from flagperf.errors import UsageError
from flagperf.registry import Registries
from flagperf.schema.event import Key
from flagperf.schema.submission import Bound
from flagperf.submit.conformance import outside
from flagperf.submit.rules import read_rules, versions

RUN = made.place("run.json")
HARNESS = made.place("harness.journal")
Change = Callable[[made.Contents], object]


def planned(path: str, value: object) -> Change:
    """All trials planned so."""
    return lambda files: made.set_plan(files, path, value)


def saw(path: str, value: object, nth: int = 1) -> Change:
    """A snapshot of the machine that tells otherwise."""
    return lambda files: made.set_line(files, HARNESS, Key.ENVIRONMENT, f"value.{path}", value, nth)


def told(path: str, value: object) -> Change:
    """A form that says otherwise."""
    return lambda files: files.update({"system.yaml": made.form(**{path: value})})


def only(*numbers: int) -> Change:
    """A plan with these trials only."""

    def change(files: made.Contents) -> None:
        trials = msgspec.json.decode(files[RUN])["trials"]
        made.set_json(files, RUN, "trials", [trials[number] for number in numbers])

    return change


def moved(files: made.Contents) -> None:
    """Trials in an order that lets one arm always go first."""
    trials = msgspec.json.decode(files[RUN])["trials"]
    trials[2], trials[3] = trials[3], trials[2]
    made.set_json(files, RUN, "trials", trials)


def twice(files: made.Contents) -> None:
    """A trial that was begun twice, of which the first attempt isn't there."""
    lines = files[HARNESS].splitlines(keepends=True)
    (first,) = [number for number, line in enumerate(lines) if b'"trial_start","value":{"id":"000' in line]
    files[HARNESS] = b"".join([*lines[: first + 1], *lines[first:]])


def unplanned(files: made.Contents) -> None:
    """A trial that was run and then left out of the plan, with its files."""
    only(0, 1, 2, 3, 4)(files)
    for name in [name for name in files if "/005-" in name]:
        del files[name]


def ended_twice(files: made.Contents) -> None:
    """A trial that ended without having begun."""
    lines = files[HARNESS].splitlines(keepends=True)
    (first,) = [number for number, line in enumerate(lines) if b'"trial_stop","value":{"id":"000' in line]
    files[HARNESS] = b"".join([*lines[: first + 1], *lines[first:]])


RULES: dict[str, tuple[Change, str, str, str, str]] = {
    # what is done: code, file, and words of what was expected and found
    "another model": (planned("settings.model.dim", 64), "rule", RUN, "256", "64"),
    "another vocabulary": (planned("settings.model.vocab_size", 512), "rule", RUN, "8192", "512"),
    "a setting more": (planned("settings.model.flash", True), "rule", RUN, "not there", "true"),
    "other data": (planned("settings.data.source", "synthetic"), "rule", RUN, "bilingual", "synthetic"),
    "another optimizer": (planned("settings.optimizer.clip", 5.0), "rule", RUN, "1", "5"),
    "no warm-up of the learning rate": (planned("settings.optimizer.warmup_steps", 0), "rule", RUN, "20", "0"),
    "another precision": (planned("dtype", "bf16"), "precision", RUN, "fp32", "bf16"),
    "fewer steps": (planned("protocol.steps", 10), "rule", RUN, "20", "10"),
    "fewer warm-up steps": (planned("protocol.warmup", 2), "rule", RUN, "4", "2"),
    "fewer trials": (planned("protocol.trials", 2), "rule", RUN, "3", "2"),
    "more trials": (planned("protocol.trials", 9), "trials_missing", RUN, "9 trials", "[0,1,2]"),
    "another seed": (planned("protocol.seed", 42), "rule", RUN, "1234", "42"),
    "a wider band for losses": (planned("protocol.loss_band", 0.5), "rule", RUN, "0.01", "0.5"),
    "less validation": (planned("protocol.validation", 1), "rule", RUN, "32", "1"),
    "another region": (planned("protocol.region", "whatever"), "rule", RUN, "From the end", "whatever"),
    "a batch too large": (planned("protocol.global_batch", 64), "rule", RUN, "8 to 32", "64"),
    "a batch too small": (planned("protocol.global_batch", 4), "rule", RUN, "8 to 32", "4"),
    "a micro-batch of none": (planned("layout.micro", 0), "rule", RUN, "1 to 1024", "0"),
    "a stage that isn't": (planned("layout.zero", 7), "rule", RUN, "0 or 1 or 2 or 3", "7"),
    "seldom telemetry": (planned("protocol.telemetry", 60.0), "rule", RUN, "0.01 to 1", "60"),
    "other metrics": (planned("metrics", ["mfu"]), "rule", RUN, "tokens_per_second", "mfu"),
    "a limit on memory": (planned("memory_limit", 10**9), "rule", RUN, "null", "1000000000"),
    "links made slower": (planned("link", {"rate": 1e8}), "rule", RUN, "not there", "100000000"),
    "no such preset": (planned("preset", "huge"), "unknown_preset", RUN, "tiny", "huge"),
    "no such case": (planned("case", "a/b"), "unknown_case", RUN, "", ""),
    "one seed for all": (planned("seed", 1234), "seed", RUN, "1235", "1234"),
    "an unfavourable trial left out": (only(0, 1, 2, 3, 5), "trial_gap", RUN, "004-fsdp", "005-fsdp"),
    "an order that favours one": (moved, "trial_order", RUN, "fsdp", "ddp"),
    "a trial hidden": (unplanned, "trial_left_out", HARNESS, "", "005-fsdp"),
    "an attempt hidden": (twice, "attempt_left_out", HARNESS, "1 start", "2 starts"),
    "two trials an arm": (
        lambda files: (only(0, 1, 2, 3)(files), made.set_plan(files, "protocol.trials", 2, range(4))),
        *("too_few_trials", RUN, "at least 3", "2"),
    ),
    "a trial that ended twice": (ended_twice, "trial_order", HARNESS, "", "000-ddp"),
    "nothing but searches": (planned("purpose", "search"), "no_trials", RUN, "", ""),
    "a baseline that isn't there": (
        lambda files: made.set_json(files, RUN, "baseline", "other"), *("uncomparable", RUN, "", "")
    ),
    "a variable that changes numbers": (
        saw("variables.TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1"),
        *("variable", HARNESS, "OMP_*", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1"),
    ),
    "a busy machine": (saw("foreign_percent", 150.0), "machine", HARNESS, "at most 20", "150"),
    "a shared machine": (saw("steal_percent", 9.0), "machine", HARNESS, "at most 2", "9"),
    "code that was changed": (saw("commit", "abc+dirty"), "code_changed", HARNESS, "a commit", "abc+dirty"),
    "another governor meanwhile": (saw("governor", "turbo"), "machine_changed", HARNESS, "null", "turbo"),
    "other packages meanwhile": (saw("packages", {"torch": "1"}, 5), "machine_changed", HARNESS, "2.9.0", '"1"'),
    "another processor meanwhile": (saw("cpu", "Fast", 11), "machine_changed", HARNESS, "A CPU", "Fast"),
    "more memory free than there is": (saw("memory_available", 2**40), "environment", HARNESS, "at most", "1099511"),
    "another time": (saw("time", "2020-01-01T00:00:00+00:00"), "environment", HARNESS, "the time", "2020"),
    "no time": (saw("time", "yesterday"), "environment", HARNESS, "the time", "yesterday"),
    "no cores": (saw("cores", 0), "environment", HARNESS, "one core", "0"),
    "a snapshot that is none": (saw("load", "low"), "environment", HARNESS, "", ""),
    "another FlagPerf": (saw("flagperf", "9.9"), "environment", HARNESS, "FlagPerf 1.0", "9.9"),
    "no second look": (saw("when", "before"), "no_environment", HARNESS, "after", "before"),
    "another case's code": (
        lambda files: made.set_line(files, HARNESS, Key.TRIAL_START, "value.code.case", "0" * 64),
        *("unknown_code", HARNESS, "", "0000"),
    ),
    "code untold": (
        lambda files: made.set_line(files, HARNESS, Key.TRIAL_START, "value.code", {}),
        *("unknown_code", HARNESS, "", "not told"),
    ),
    "another adapter": (
        lambda files: files.update({"adapter/adapter.py": b"# faster\n"}), *("other_adapter", HARNESS, "", "")
    ),
    "another run's journal": (
        lambda files: made.set_line(files, HARNESS, Key.HEADER, "value.run", "other"),
        *("wrong_journal", HARNESS, made.NAME, "other"),
    ),
    "a form with another processor": (told("host__cpu", "B"), "form_differs", "system.yaml", "A CPU", "B"),
    "a form with more cores": (told("host__cores", 64), "form_differs", "system.yaml", "2", "64"),
    "a form with more memory": (told("host__memory_gib", 64.0), "form_differs", "system.yaml", "16", "64"),
    "a form with another torch": (
        told("software__packages", {"torch": "3"}), *("form_differs", "system.yaml", "2.9.0", "3")
    ),
    "a form of nothing": (told("host__count", 0), "form_differs", "system.yaml", "above 0", "0"),
    "overclocked": (told("accelerator__clocks", "fast"), "malformed", "system.yaml", "", ""),
    "a status that isn't": (told("status", "soon"), "malformed", "system.yaml", "", ""),
    "a licence that isn't on the list": (told("licence", "WTFPL"), "licence", "system.yaml", "Apache-2.0", "WTFPL"),
    "two licences": (told("licence", "MIT"), "licence", "LICENSE", "MIT", "Apache-2.0"),
    "a trial launched otherwise": (
        lambda files: made.set_json(files, made.place("trials/000-ddp/trial.json"), "threads", 64),
        *("other_trial", made.place("trials/000-ddp/trial.json"), "", ""),
    ),
    "a peak of one's own": (planned("rated_flops", 1e15), "peak", RUN, "none", "1000000000000000"),
    "a file of no trial": (
        lambda files: files.update({made.place("trials/009-x/rank0.journal"): b""}),
        *("extra_file", made.place("trials/009-x"), "", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RULES)
def test_breaking_a_rule_is_told_with_its_place(kind: str, files: made.Contents, checked: Check) -> None:
    change, code, file, expected, found = RULES[kind]
    change(files)
    verdict = checked(made.assemble(files))
    assert verdict.verdict == "rejected"
    fitting = [
        reason
        for reason in verdict.reasons
        if (reason.code, reason.file) == (code, file) and expected in reason.expected and found in reason.found
    ]
    assert fitting, verdict.reasons
    if file.endswith((".json", ".yaml")) and code in ("rule", "seed", "precision", "form_differs", "trial_gap"):
        text = files[file].decode().split("\n")
        line = fitting[0].line
        assert line is not None and (found in text[line - 1] or found in text[line] or found == "true")


def test_all_reasons_are_told_at_once(files: made.Contents, checked: Check) -> None:
    for kind in ("another model", "fewer steps", "a busy machine", "a form with more cores", "another adapter"):
        RULES[kind][0](files)
    codes = {reason.code for reason in checked(made.assemble(files)).reasons}
    assert {"rule", "machine", "form_differs", "other_adapter"} <= codes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("threads", 7),
        ("layout.overlap", False),
        ("layout.recompute", True),
        ("protocol.timeout", 60.0),
        ("protocol.profile", 0),
    ],
)
def test_what_the_rules_leave_free_breaks_none(path: str, value: object, files: made.Contents, checked: Check) -> None:
    made.set_plan(files, path, value)
    assert "rule" not in {reason.code for reason in checked(made.assemble(files)).reasons}


def test_the_open_division_takes_other_sizes_but_not_other_seeds(files: made.Contents, checked: Check) -> None:
    made.set_plan(files, "settings.model.dim", 64)
    made.set_plan(files, "dtype", "bf16")
    assert not {"rule", "precision"} & {
        reason.code for reason in checked(made.assemble(files, division="open")).reasons
    }
    made.set_plan(files, "protocol.seed", 42)
    assert "rule" in {reason.code for reason in checked(made.assemble(files, division="open")).reasons}


def test_every_version_of_the_rules_can_be_read_and_fits_the_cases(registries: Registries) -> None:
    kinds = {case.kind for case in registries.cases.all()}
    for version in versions():
        rules = read_rules(version)
        assert rules.version == version
        assert {
            kind for names in rules.kinds for kind in names.split(", ")
        } <= kinds  # a case of another kind is refused as one without rules
        for kind in rules.kinds.values():
            assert set(kind.divisions) == {"closed", "open"}
            assert set(kind.cases) <= set(registries.cases.names())


@pytest.mark.parametrize(
    ("bound", "value", "base", "good"),
    [
        (Bound(), "anything", None, True),
        (Bound(least=1), 1, None, True),
        (Bound(least=1), 0.9, None, False),
        (Bound(most=2), 2, None, True),
        (Bound(most=2), float("nan"), None, False),
        (Bound(least=1, most=4, times=True), 32, 8, True),
        (Bound(least=1, most=4, times=True), 33, 8, False),
        (Bound(least=0), "1", None, False),
        (Bound(least=0), True, None, False),
        (Bound(least=0), None, None, False),
        (Bound(values=[0, 1]), 1, None, True),
        (Bound(values=[0, 1]), 2, None, False),
    ],
)
def test_a_bound(bound: Bound, value: object, base: object, good: bool) -> None:
    assert (outside(bound, value, base) == "") == good


def test_a_kind_of_case_without_rules_is_told(
    packed: bytes, checked: Check, registries: Registries, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = msgspec.structs.replace(read_rules("1"), kinds={})
    monkeypatch.setattr("flagperf.submit.check.read_rules", lambda version: rules)
    assert "no_rules" in {reason.code for reason in checked(packed).reasons}


def test_a_case_that_cant_be_loaded_here_is_told(
    files: made.Contents, checked: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: object) -> None:
        raise UsageError("It is broken.")

    monkeypatch.setattr("flagperf.cases.aquila.pretrain.AquilaPretrain.check", broken)
    found = [reason for reason in checked(made.assemble(files)).reasons if reason.code == "unknown_case"]
    assert found and "It is broken" in found[0].message
