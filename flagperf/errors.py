"""What can go wrong, said so that a person can act on it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlagPerfError(Exception):
    """An error a person can understand: what went wrong, and in `hint` what to do about it."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(FlagPerfError):
    """The command was given something it can't use; nothing was started."""

    exit_status = 2


class UnknownName(UsageError):
    """A name that nothing goes by; the message offers the nearest and lists the good ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        good = sorted(known)
        near = difflib.get_close_matches(name, good, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"No {kind} is called {name!r}.{guess}", f"Known: {', '.join(good) or '(none)'}")
        self.name = name


class PluginError(FlagPerfError):
    """A case, engine, vendor or launcher was found but can't be loaded."""


class Unavailable(FlagPerfError):
    """Something asked for isn't on this machine; the hint is the command that gets it."""
