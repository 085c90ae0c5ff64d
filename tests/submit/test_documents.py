"""Documents and journals in bundles: nothing that can be read in two ways, nothing that a number can't be."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submit import made
from submit.conftest import Check

from flagperf.schema.event import PREFIX
from flagperf.submit import strict

RUN = made.place("run.json")
RANK = made.place("trials/000-ddp/rank0.journal")
HARNESS = made.place("harness.journal")


def swapped(name: str, old: bytes, new: bytes) -> Callable[[made.Contents], None]:
    """Another text in place of one that is there."""

    def change(files: made.Contents) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return change


def added(name: str, front: bytes = b"", back: bytes = b"") -> Callable[[made.Contents], None]:
    """More text in a file."""

    def change(files: made.Contents) -> None:
        files[name] = front + files[name] + back

    return change


def event(value: bytes, key: bytes = b"x") -> bytes:
    """A line of a journal with this value."""
    return PREFIX + b'{"time_ms":1767225700000,"key":"%s","value":%s,"metadata":{"ns":1000000000000009}}\n' % (
        key,
        value,
    )


# What is sent, in which file it is told of, on which line (0: of none), and by which code.
KINDS: dict[str, tuple[Callable[[made.Contents], None], str, int | None, str]] = {
    "JSON with a mark": (added(RUN, b"\xef\xbb\xbf"), RUN, 1, "malformed"),
    "JSON in UTF-16": (lambda files: files.update({RUN: files[RUN].decode().encode("utf-16")}), RUN, 1, "malformed"),
    "JSON in Latin-1": (swapped(RUN, b'"local"', b'"\xe9"'), RUN, None, "malformed"),
    "NaN": (swapped(RUN, b'"clip": 1.0', b'"clip": NaN'), RUN, 0, "malformed"),
    "Infinity": (swapped(RUN, b'"clip": 1.0', b'"clip": -Infinity'), RUN, 0, "malformed"),
    "a number beyond floats": (swapped(RUN, b'"clip": 1.0', b'"clip": 1e999'), RUN, 0, "malformed"),
    "a number of 5000 digits": (swapped(RUN, b'"clip": 1.0', b'"clip": ' + b"9" * 5000), RUN, 0, "malformed"),
    "a key twice": (swapped(RUN, b'"id": "', b'"id": "x",\n  "id": "'), RUN, 0, "malformed"),
    "nested deeply": (swapped(RUN, b'"clip": 1.0', b'"clip": ' + b"[" * 90000 + b"]" * 90000), RUN, None, "malformed"),
    "a comma too many": (swapped(RUN, b'"clip": 1.0', b'"clip": 1.0,'), RUN, None, "malformed"),
    "NUL": (swapped(RUN, b'"local"', b'"lo\0cal"'), RUN, None, "malformed"),
    "text that turns its direction": (swapped(RUN, b'"local"', '"lo\u202ecal"'.encode()), RUN, None, "malformed"),
    "laid out otherwise": (swapped(RUN, b'"schema": 1', b'"schema":1'), RUN, 0, "malformed"),
    "the wrong type": (swapped(RUN, b'"schema": 1,', b'"schema": "1",'), RUN, 2, "malformed"),
    "not an object": (lambda files: files.update({RUN: b"[]\n"}), RUN, 1, "malformed"),
    "empty JSON": (lambda files: files.update({RUN: b""}), RUN, 1, "malformed"),
    "a document of 9 MiB": (added("results.json", b" " * 9 * 2**20), "results.json", 0, "too_large"),
    "results by an alias": (swapped("results.json", b'"schema": 1', b'"schema": 2'), "results.json", None, "malformed"),
    "YAML aliases": (
        lambda files: files.update({"system.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"}),
        *("system.yaml", 1, "malformed"),
    ),
    "a YAML tag": (added("system.yaml", b"x: !!python/object/apply:os.system [id]\n"), "system.yaml", 1, "malformed"),
    "a tag of its own": (added("system.yaml", b"x: !secret y\n"), "system.yaml", 1, "malformed"),
    "a YAML merge": (added("system.yaml", b"<<: {a: 1}\n"), "system.yaml", 1, "malformed"),
    "a YAML key twice": (added("system.yaml", b"name: Other\n"), "system.yaml", 3, "malformed"),
    "two YAML documents": (added("system.yaml", back=b"---\nx: 1\n"), "system.yaml", None, "malformed"),
    "YAML nested deeply": (
        added("system.yaml", b"x: " + b"[" * 200 + b"]" * 200 + b"\n"), *("system.yaml", 1, "malformed")
    ),
    "a YAML directive": (added("system.yaml", b"%TAG ! tag:x,2000:\n---\nx: !y z\n"), "system.yaml", None, "malformed"),
    "YAML with a mark": (added("system.yaml", b"\xef\xbb\xbf"), "system.yaml", 1, "malformed"),
    "a key that is a list": (added("system.yaml", b"? [a, b]\n: c\n"), "system.yaml", 1, "malformed"),
    "a field nobody knows": (added("system.yaml", b"colour: red\n"), "system.yaml", 1, "malformed"),
    "a huge YAML number": (
        swapped("system.yaml", b"count: 1", b"count: " + b"9" * 400), *("system.yaml", None, "malformed")
    ),
    "YAML's not-a-number": (swapped("system.yaml", b"count: 1", b"count: .nan"), "system.yaml", None, "malformed"),
    "a form of 300 KiB": (added("system.yaml", b"#" * 300 * 2**10 + b"\n"), "system.yaml", 0, "too_large"),
    "a form with marks": (
        swapped("system.yaml", b"name: Made 1", b"name: 'FILL IN: name'"), *("system.yaml", None, "malformed")
    ),
    "a TOML key twice": (added("adapter/cpu.toml", b'name = "x"\n'), "adapter/cpu.toml", None, "malformed"),
    "TOML nested deeply": (
        added("adapter/cpu.toml", b"x = " + b"[" * 9000 + b"]" * 9000 + b"\n"), *("adapter/cpu.toml", 0, "malformed")
    ),
    "a manifest of another kind": (added("adapter/cpu.toml", b"x = 1\n"), "adapter/cpu.toml", 0, "malformed"),
    "no manifest": (lambda files: files.pop("adapter/cpu.toml") and None, "adapter", 0, "adapter"),
    "no form": (lambda files: files.pop("system.yaml") and None, "system.yaml", 0, "missing_file"),
    "no licence": (lambda files: files.pop("LICENSE") and None, "LICENSE", 0, "missing_file"),
    "no results": (lambda files: files.pop("results.json") and None, "results.json", 0, "missing_file"),
    "no plan": (lambda files: files.pop(RUN) and None, RUN, 0, "missing_file"),
    "no journal of the harness": (lambda files: files.pop(HARNESS) and None, HARNESS, 0, "missing_file"),
    "no journal of a rank": (lambda files: files.pop(RANK) and None, RUN, 0, "no_journal"),
    "no telemetry": (
        lambda files: files.pop(made.place("trials/000-ddp/telemetry.journal")) and None,
        *(made.place("trials/000-ddp/telemetry.journal"), 0, "missing_file"),
    ),
    "a line that isn't an event": (added(RANK, back=b"hello\n"), RANK, None, "journal_line"),
    "NaN in a journal": (added(RANK, back=event(b"NaN")), RANK, None, "journal_line"),
    "a key twice in a journal": (added(RANK, back=event(b'{"a":1,"a":2}')), RANK, None, "journal_line"),
    "a number beyond floats in a journal": (added(RANK, back=event(b"1e999")), RANK, None, "journal_line"),
    "a line nested deeply": (added(RANK, back=event(b"[" * 5000 + b"]" * 5000)), RANK, None, "journal_line"),
    "a line of 2 MiB": (added(RANK, back=event(b'"' + b"x" * 2**21 + b'"')), RANK, None, "journal_line"),
    "a line cut off": (lambda files: files.update({RANK: files[RANK][:-9]}), RANK, None, "journal_line"),
    "a line in no encoding": (added(RANK, back=event(b'"\xff"')), RANK, None, "journal_line"),
    "a journal with a mark": (added(RANK, b"\xef\xbb\xbf"), RANK, 1, "journal_line"),
    "an empty journal": (lambda files: files.update({RANK: b""}), RANK, 1, "journal_line"),
    "an empty line": (added(RANK, back=b"\n"), RANK, None, "journal_line"),
    "a clock that is true": (
        added(RANK, back=event(b"1").replace(b'"ns":1000000000000009', b'"ns":true')), *(RANK, None, "journal_line")
    ),
    "a clock beyond 64 bits": (
        added(RANK, back=event(b"1").replace(b'"ns":1', b'"ns":99999999991')), *(RANK, None, "journal_line")
    ),
    "a clock below zero": (added(RANK, back=event(b"1").replace(b'"ns":', b'"ns":-')), RANK, None, "journal_line"),
    "a year nobody lives in": (added(RANK, back=event(b"1").replace(b"1767", b"9767")), RANK, None, "journal_line"),
    "a step that is none": (added(RANK, back=event(b'{"step":"x"}', b"step")), RANK, None, "journal_line"),
    "10^9 ranks": (lambda files: made.set_plan(files, "ranks", 10**9), RUN, 0, "no_journal"),
    "10^12 steps": (lambda files: made.set_plan(files, "protocol.steps", 10**12), RANK, 0, "steps_missing"),
    "10^12 trials": (lambda files: made.set_plan(files, "protocol.trials", 10**12), RUN, None, "trials_missing"),
    "a trial of number 10^12": (lambda files: made.set_plan(files, "trial", 10**12), RUN, None, "trials_missing"),
    "10^18 layers": (lambda files: made.set_plan(files, "settings.model.layers", 10**18), RUN, None, "rule"),
    "a model of no size": (lambda files: made.set_plan(files, "settings.model.heads", 0), RUN, None, "rule"),
    "a path for an engine": (lambda files: made.set_plan(files, "engine", "../../x"), RUN, None, "trial_gap"),
    "a path for a case": (lambda files: made.set_plan(files, "case", "../../x"), RUN, None, "unknown_case"),
    "a path for a trial": (lambda files: made.set_json(files, RUN, "trials.0.id", "../../.."), RUN, None, "trial_gap"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_document_is_refused_for_what_it_is(kind: str, files: made.Contents, checked: Check) -> None:
    change, file, line, code = KINDS[kind]
    change(files)
    verdict = checked(made.assemble(files))
    assert verdict.verdict == "rejected"
    found = [reason for reason in verdict.reasons if (reason.code, reason.file) == (code, file)]
    assert found, verdict.reasons
    if line is None:
        assert found[0].line, found
    else:
        assert found[0].line == (line or None), found


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(min_codepoint=97, max_codepoint=122)), inner),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_what_is_plain_is_read_as_it_was_written(value: object) -> None:
    assert strict.json_value(json.dumps(value).encode()) == value
    assert strict.json_line(json.dumps(value).encode()) == value
    if value not in ("", None):  # JSON is YAML, too
        assert strict.yaml_document(json.dumps(value).encode()).value == value


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
def test_no_text_breaks_a_reader(data: bytes) -> None:
    for read in (strict.json_value, strict.json_line, strict.yaml_document):
        try:
            read(data)
        except strict.Malformed as error:
            assert str(error)


def test_yaml_takes_words_for_words() -> None:
    document = strict.yaml_document(b"a: no\nb: 2026-01-01\nc: 1:30\nd: 0x10\ne: .inf\nf: 1_000\ng: 010\nh: 1.5e3\n")
    assert document.value == {
        "a": "no",
        "b": "2026-01-01",
        "c": "1:30",
        "d": "0x10",
        "e": ".inf",
        "f": "1_000",
        "g": "010",
        "h": 1500.0,
    }


@pytest.mark.parametrize(("path", "line"), [((), 1), (("a",), 2), (("b", 1, "c"), 8), (("d",), None)])
def test_a_part_of_a_json_document_is_found_on_its_line(path: strict.Path, line: int | None) -> None:
    text = '{\n  "a": 1,\n  "b": [\n    {\n      "c": 2\n    },\n    {\n      "c": 3\n    }\n  ]\n}\n'
    assert strict.json_line_number(text.split("\n"), path) == line
