"""Journals survive what happens to files: kills, flipped bits, strangers' output; and any MLLOG reader reads them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flagperf.journal import Journal, Reader
from flagperf.schema.event import PREFIX, Key, Step

VALUES = ["plain", {"text": 'a ":::MLLOG {" inside'}, [1, 2.5, None], "一二三\n", {"key": "step"}, float("nan")]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a journal of 13 events, the header included; each event's key names its line."""
    path = tmp_path_factory.mktemp("journal") / "rank0.journal"
    with Journal(path, {"rank": 0}) as journal:
        for number in range(12):
            journal.write(f"event{number}", VALUES[number % len(VALUES)])
    return path.read_bytes().splitlines(keepends=True)


def keys(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Reader]:
    path = tmp_path_factory.getbasetemp() / "damaged.journal"
    path.write_bytes(data)
    reader = Reader(path)
    return {event.key for event in reader}, reader


def expected(lines: list[bytes], touched: set[int]) -> set[str]:
    return {"journal" if n == 0 else f"event{n - 1}" for n in range(len(lines)) if n not in touched}


def test_events_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rank0.journal"
    with Journal(path, {"rank": 3}) as journal:
        journal.write(Key.STEP, Step(step=0, measured=True, seconds=0.5, data_seconds=0.1, tokens=7, loss=float("nan")))
        journal.write("numbers", {"numpy": np.float32(1.5), "path": tmp_path, "whole": np.int64(4)})
    header, step, numbers = list(Reader(path))
    assert header.key == Key.HEADER
    assert header.value["rank"] == 3
    assert header.value["pid"] == os.getpid()
    assert step.value["loss"] is None  # JSON has no NaN
    assert numbers.value == {"numpy": 1.5, "path": str(tmp_path), "whole": 4}
    assert numbers.metadata["file"] == "test_journal.py"
    assert step.metadata["ns"] <= numbers.metadata["ns"]


def test_what_a_journal_cannot_hold_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "x.journal", {}) as journal, pytest.raises(TypeError, match="object"):
        journal.write("x", object())


@given(st.data())
@settings(deadline=None)
def test_a_cut_loses_only_the_last_line(
    lines: list[bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    complete = [n for n in range(len(lines)) if sum(map(len, lines[: n + 1])) <= cut]
    found, reader = keys(whole[:cut], tmp_path_factory)
    assert found >= expected(lines, set(range(len(lines))) - set(complete))
    assert len(found) - len(complete) in (0, 1)  # only the line end may be missing
    assert all(flaw.kind == "torn" and flaw.line == len(complete) + 1 for flaw in reader.flaws)


@given(st.data())
@settings(deadline=None)
def test_flipped_bits_lose_only_their_lines(
    lines: list[bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(b"".join(lines))
    ends = np.cumsum([len(line) for line in lines])
    touched = set()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        touched.add(int(np.searchsorted(ends, at, side="right")))
    found, _ = keys(bytes(whole), tmp_path_factory)
    assert found >= expected(lines, touched)


@given(at=st.integers(0, 13), garbage=st.binary(max_size=60), ended=st.booleans())
@example(at=3, garbage=b"W0101 a library prints: ", ended=False)
@example(at=3, garbage=PREFIX + b'{"time_ms":1,"key":"half', ended=False)
@example(at=13, garbage=PREFIX[:4], ended=False)
@example(at=1, garbage=b"\0" * 50, ended=False)
@example(at=1, garbage=PREFIX * 3, ended=True)
@example(at=5, garbage=PREFIX + b'{"a":' + b"[" * 100_000, ended=True)
@settings(deadline=None)
def test_strange_output_loses_nothing(
    lines: list[bytes], tmp_path_factory: pytest.TempPathFactory, at: int, garbage: bytes, ended: bool
) -> None:
    strange = garbage + (b"\n" if ended else b"")
    found, reader = keys(b"".join([*lines[:at], strange, *lines[at:]]), tmp_path_factory)
    assert found >= expected(lines, set())
    assert bool(reader.flaws) == bool(garbage.strip())


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_anything_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    keys(data, tmp_path_factory)


def test_flaws_say_what_and_where(lines: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    damaged = [lines[0], b"a warning\n", lines[1].replace(b'"key"', b'"kez"'), lines[2], lines[3][:-20]]
    found, reader = keys(b"".join(damaged), tmp_path_factory)
    assert found == {"journal", "event1"}
    assert [(flaw.line, flaw.kind) for flaw in reader.flaws] == [(2, "foreign"), (3, "corrupt"), (5, "torn")]
    assert reader.flaws[0].text == "a warning"


def test_what_was_written_before_a_kill_is_there(tmp_path: Path) -> None:
    path = tmp_path / "killed.journal"
    code = (
        "import os, signal, sys; from pathlib import Path; from flagperf.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), {})\n"
        "for number in range(1000): journal.write('event', number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event.value for event in Reader(path)][1:] == list(range(1000))


def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(OSError, match="No space"):
        Journal(Path("/dev/full"), {})


def test_mllog_readers_read_every_line(tmp_path: Path) -> None:
    parser: Any = pytest.importorskip("mlperf_logging.compliance_checker.mlp_parser")
    from collect import runs

    plan = runs.run([runs.trial()])
    folder = runs.write_run(tmp_path / "run", plan)
    journals = sorted(folder.rglob("*.journal"))
    assert len(journals) == 4
    for path in journals:
        read, failed = parser.parse_file(str(path), ruleset="5.0.0")
        assert not failed
        assert [line.key for line in read] == [event.key for event in Reader(path)]
