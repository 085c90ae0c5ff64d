"""What the links between ranks are made to be: bandwidth and delay."""

from __future__ import annotations

import re

import msgspec

from flagperf.errors import UsageError

_RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_DELAYS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit|us|ms|s)")
_UNSHAPED = "full"
_SLOWEST, _FASTEST, _LONGEST = 1e5, 1e12, 10.0


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How each rank's own link to all others is shaped, each way alike."""

    rate: float | None = None
    """Bits/s; None for as fast as the machine copies."""
    delay: float = 0.0
    """Seconds from one rank to another."""

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read `500mbit,1ms`, either alone, or `full` for links that aren't shaped; raise UsageError for others."""
        found: dict[str, float] = {}
        for part in [] if text.strip() == _UNSHAPED else text.split(","):
            amount = _AMOUNT.fullmatch(part.strip())
            if amount is None:
                raise _unreadable(text, f"{part.strip()!r} is neither a bandwidth nor a delay")
            kind, unit = ("rate", _RATES) if amount[2] in _RATES else ("delay", _DELAYS)
            if kind in found:
                raise _unreadable(text, f"it says the {'bandwidth' if kind == 'rate' else 'delay'} twice")
            found[kind] = float(amount[1]) * unit[amount[2]]
        if not _SLOWEST <= found.get("rate", _SLOWEST) <= _FASTEST:
            raise _unreadable(text, "a bandwidth is 100kbit to 1000gbit")
        if found.get("delay", 0.0) > _LONGEST:
            raise _unreadable(text, "a delay is at most 10s")
        return cls(**found)

    def __str__(self) -> str:
        rate = "" if self.rate is None else _shown(self.rate, _RATES)
        delay = _shown(self.delay, _DELAYS) if self.delay else ""
        return ",".join(filter(None, (rate, delay))) or _UNSHAPED


def _shown(amount: float, units: dict[str, float]) -> str:
    """Return an amount in the largest unit in which it is 1 or more."""
    name = next((name for name in reversed(units) if amount >= units[name]), next(iter(units)))
    return f"{round(amount / units[name], 9):.12g}{name}"


def _unreadable(text: str, why: str) -> UsageError:
    return UsageError(
        f"--link can't be {text!r}: {why}.", "For example --link 500mbit,1ms, --link 1gbit or --link full"
    )
