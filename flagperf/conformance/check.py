"""What a check is: a function that yields what is wrong, with the reason why it matters and the way to mend it.

pytest collects it as a test. Where it says `where="device"`, it runs in a process of its own that has opened a device
(`bench.py`), so that a driver that crashes or hangs costs one check.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

Where = Literal["here", "fresh", "device", "group"]
"""here: in pytest's process, with a `Kit`. The others get a `Bench`: fresh is a new interpreter, watched while it looks
for devices; device has opened one; group is two ranks."""

Problems = Iterator[str]


class Absent(Exception):
    """A check can't be made here; the message says what it needs."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a check says of itself."""

    why: str
    fix: str
    part: str
    """The part of the template it's about, or `all`: while that is still to be filled in, a failure is no surprise."""
    where: Where
    function: Callable[..., Problems]


def check(
    why: str, fix: str, *, part: str = "", where: Where = "here"
) -> Callable[[Callable[..., Problems]], Callable[..., None]]:
    """Make a test of a function whose first argument is a `Kit`, or a `Bench`, and that yields what is wrong."""

    def declare(function: Callable[..., Problems]) -> Callable[..., None]:
        declared = Declared(why=why, fix=fix, part=part, where=where, function=function)

        @functools.wraps(function)
        def test(kit: Any, **parameters: str) -> None:
            if where == "here":
                problems = told(function, kit, parameters)
            else:
                problems = kit.ask(where, function.__module__, function.__name__, parameters)
            if problems:
                pytest.fail("\n".join(problems), pytrace=False)

        first, *others = inspect.signature(function).parameters.values()
        test.__signature__ = inspect.Signature([first.replace(name="kit"), *others])  # type: ignore[attr-defined]
        test.declared = declared  # type: ignore[attr-defined]
        return test

    return declare


def told(function: Callable[..., Problems], subject: Any, parameters: dict[str, str]) -> list[str]:
    """Return what a check finds wrong; an exception is one of those things."""
    problems: list[str] = []
    try:
        problems.extend(function(subject, **parameters))
    except Absent:
        raise
    except Exception as error:  # an adapter may raise anything
        problems.append(described(error))
    return problems


def described(error: BaseException) -> str:
    """Return an exception in a line, with the place it's from."""
    said = str(error).strip().partition("\n")[0][:500]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{place}"
