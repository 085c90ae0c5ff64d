"""Gathers what is found, so that a verdict has all of its reasons at once."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from flagperf.schema.submission import Finding
from flagperf.submit.archive import Refused
from flagperf.submit.strict import Malformed

_MOST = 200
"""Findings that are kept: a hostile bundle could give rise to any number."""
_MOST_TEXT = 400


class Findings:
    """Reasons to refuse a bundle, and notes on it."""

    def __init__(self) -> None:
        self._reasons: list[Finding] = []
        self._notes: list[Finding] = []
        self._more = 0

    @property
    def reasons(self) -> list[Finding]:
        """Every reason, each once."""
        more = Finding(code="and_more", message=f"{self._more} more reasons were found.")
        return [*self._reasons, more] if self._more else self._reasons

    @property
    def notes(self) -> list[Finding]:
        """What a reader must know though it's no reason."""
        return self._notes

    def refuse(
        self,
        code: str,
        message: str,
        *,
        file: str = "",
        line: int | None = None,
        expected: Any = "",
        found: Any = "",
        hint: str = "",
    ) -> None:
        """Add a reason."""
        reason = _finding(code, message, file, line, expected, found, hint)
        if reason in self._reasons:
            return
        if len(self._reasons) < _MOST:
            self._reasons.append(reason)
        else:
            self._more += 1

    def note(
        self,
        code: str,
        message: str,
        *,
        file: str = "",
        line: int | None = None,
        expected: Any = "",
        found: Any = "",
        hint: str = "",
    ) -> None:
        """Add a note; what has been said already, of another line, and what is too much is left out."""
        said = any((note.code, note.message) == (code, message) for note in self._notes)
        if not said and len(self._notes) < _MOST:
            self._notes.append(_finding(code, message, file, line, expected, found, hint))

    def at(self, file: str) -> _At:
        """Return a context that turns what can't be read in its body into reasons; the body ends there."""
        return _At(self, file)


class _At:
    """Turns Malformed and Refused into reasons; what follows goes on."""

    def __init__(self, findings: Findings, file: str) -> None:
        self._findings, self._file = findings, file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Malformed):
            self._findings.refuse("malformed", f"It can't be read: {error}.", file=self._file, line=error.line)
        elif isinstance(error, Refused):
            self._findings.refuse(error.code, str(error), file=error.file or self._file)
        else:
            return False
        return True


def _finding(code: str, message: str, file: str, line: int | None, expected: Any, found: Any, hint: str) -> Finding:
    return Finding(
        code=code, message=_plain(message), file=_plain(file), line=line,
        expected=shown(expected), found=shown(found), hint=_plain(hint),
    )  # fmt: skip


def shown(value: Any) -> str:
    """Return a value in one short line that a terminal can show."""
    return _plain(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _plain(text: str) -> str:
    """Return text without what could command a terminal or turn its direction."""
    short = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
    unfit = r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
    return re.sub(unfit, lambda odd: f"\\u{ord(odd[0]):04x}", short)
