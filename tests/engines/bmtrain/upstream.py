"""Run BMTrain's own tests through the layer: `python upstream.py PATH [NAME …]`, or `make test-bmtrain BMTRAIN=PATH`.

PATH is a checkout of BMTrain at its tag, or its sdist, packed or unpacked. What is expected of each test is in
upstream.toml. The exit status is 1 if one that can pass doesn't, or if one does that is listed as failing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).with_name("upstream.toml")
TIMEOUT = 900
"""Seconds a test may take."""
# An sdist leaves out the module of assertions that the tests import.
UTILITIES = """
def _hold(condition, *values):
    assert condition, values


def assert_eq(left, right):
    _hold(left == right, left, right)


def assert_neq(left, right):
    _hold(left != right, left, right)


def assert_lt(left, right):
    _hold(left < right, left, right)


def assert_gt(left, right):
    _hold(left > right, left, right)


def assert_all_eq(left, right):
    _hold(bool((left == right).all()), left, right)
"""


def main() -> int:
    """Run the tests that are asked for, all by default, and print a table."""
    parser = argparse.ArgumentParser(description="Run BMTrain's own tests through the layer.")
    parser.add_argument("path", type=Path, help="a checkout, or the sdist, of BMTrain 1.0.1")
    parser.add_argument("names", nargs="*", help="tests to run (default: all)")
    options = parser.parse_args()
    expected: dict[str, dict[str, Any]] = tomllib.loads(EXPECTED.read_text("utf-8"))
    if unknown := set(options.names) - set(expected):
        parser.error(f"no such test: {', '.join(sorted(unknown))}; known: {', '.join(expected)}")
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        tests = tests_of(options.path, Path(place))
        if tests is None:
            parser.error(f"{options.path} is neither a checkout nor an sdist of BMTrain: it has no tests/test_all.py")
        if forgotten := {path.stem[5:] for path in tests.glob("test_*.py")} - set(expected) - {"all"}:
            parser.error(f"{EXPECTED.name} says nothing of {', '.join(sorted(forgotten))}: is this another version?")
        for name in options.names or expected:
            began = time.monotonic()
            passed, told = run(tests, name, expected[name])
            cause = expected[name].get("fails", "")
            wrong += passed == bool(cause)
            note = cause or ("with smaller sizes" if "smaller" in expected[name] else "")
            said = f"{'passes' if passed else 'fails':6} {time.monotonic() - began:5.0f} s"
            print(f"{name:28} ranks: {expected[name]['ranks']}  {said}  {note}", flush=True)
            if passed == bool(cause):
                print(told[-4000:] if not passed else "  … though it is listed as failing", flush=True)
    return min(wrong, 1)


def tests_of(path: Path, place: Path) -> Path | None:
    """Return a copy of the tests in `place`, complete, or None if `path` has none."""
    if path.is_file():
        with tarfile.open(path) as packed:
            packed.extractall(place / "sdist", filter="data")
        path = next((place / "sdist").iterdir())
    if not (path / "tests" / "test_all.py").is_file():
        return None
    tests = place / "tests"
    shutil.copytree(path / "tests", tests)
    if not (tests / "utils.py").exists():
        (tests / "utils.py").write_text(UTILITIES, "utf-8")
    return tests


def run(tests: Path, name: str, expected: dict[str, Any]) -> tuple[bool, str]:
    """Run one test on as many ranks as it wants; return whether it passed, and what it printed."""
    script = tests / f"test_{name}.py"
    text = script.read_text("utf-8")
    for size, smaller in expected.get("smaller", {}).items():
        if size not in text:
            return False, f"{script.name} doesn't have the size {size!r} that is to be made smaller"
        text = text.replace(size, smaller)
    script.write_text(text, "utf-8")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={expected['ranks']}"),
        *("-m", "flagperf.engines.bmtrain", script.name),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=tests,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return False, f"{late.stdout or ''}\nnot done after {TIMEOUT} s"
    return done.returncode == 0, done.stdout


if __name__ == "__main__":
    sys.exit(main())
