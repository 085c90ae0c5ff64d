"""What became of the queries of an inference trial, in columns: a hundred thousand answers take seconds, not minutes.

Times are in seconds since the query's issue. What a query doesn't have is NaN: one of a single token has no time a
token, and of one that came in a burst nothing is known of when each token was made.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagperf.schema.inference import Query

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

TOGETHER_US = 100
"""Tokens that came within so many µs of each other came together: no engine makes them one by one that fast."""
BURST_TOKENS = 4
"""An answer of fewer tokens can't show whether it came in a burst."""
_LARGEST = 2**53
_CHUNK = 8192
"""Queries held as objects before they are turned into arrays."""
_WHOLE = ("number", "prompt", "input", "asked", "issued", "clients")


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Queries in the order of their numbers. `counts` and `times` are of all pieces of all answers, one after another.

    Those of query i are at `begin[i]` to `begin[i + 1]`; `times` and `done` are µs after `issued`, which is in ns.
    """

    number: Integers
    prompt: Integers
    input: Integers
    asked: Integers
    issued: Integers
    clients: Integers
    done: Floats
    """NaN where the answer was never complete."""
    fault: list[str]
    why: list[str]
    begin: Integers
    counts: Integers
    times: Integers

    def __len__(self) -> int:
        return len(self.number)

    def take(self, chosen: Booleans | Integers) -> Queries:
        """Return some queries, by mask or by place."""
        rows = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        sizes = self._sizes[rows]
        begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        pieces = np.repeat(self.begin[:-1][rows] - begin[:-1], sizes) + np.arange(begin[-1])
        return Queries(
            **{name: getattr(self, name)[rows] for name in (*_WHOLE, "done")},
            fault=[self.fault[row] for row in rows],
            why=[self.why[row] for row in rows],
            begin=begin,
            counts=self.counts[pieces],
            times=self.times[pieces],
        )

    @functools.cached_property
    def complete(self) -> Queries:
        """Those with a whole answer."""
        return self.take(np.isfinite(self.done) & np.array([not fault for fault in self.fault], np.bool_))

    @functools.cached_property
    def failed(self) -> Queries:
        """All others."""
        return self.take(~np.isfinite(self.done) | np.array([bool(fault) for fault in self.fault], np.bool_))

    @property
    def _sizes(self) -> Integers:
        sizes: Integers = np.diff(self.begin)
        return sizes

    @functools.cached_property
    def tokens(self) -> Integers:
        """Tokens of each answer."""
        total = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        return np.asarray(total[self.begin[1:]] - total[self.begin[:-1]], np.int64)

    @functools.cached_property
    def bursty(self) -> Booleans:
        """Whether most tokens of an answer came at once: then nothing is known of when each of them was made."""
        most = np.zeros(len(self), np.int64)
        if len(self.times):
            opens = np.concatenate([[True], np.diff(self.times) >= TOGETHER_US])
            some = self._sizes > 0
            opens[self.begin[:-1][some]] = True
            starts = np.flatnonzero(opens)
            together = np.add.reduceat(self.counts, starts)
            most[some] = np.maximum.reduceat(together, np.searchsorted(starts, self.begin[:-1][some]))
        return np.asarray((self.tokens >= BURST_TOKENS) & (2 * most > self.tokens), np.bool_)

    @functools.cached_property
    def ttft(self) -> Floats:
        """To the first token."""
        found = np.full(len(self), np.nan)
        some = (self._sizes > 0) & ~self.bursty
        found[some] = self.times[self.begin[:-1][some]] / 1e6
        return found

    @functools.cached_property
    def tpot(self) -> Floats:
        """A token after the first piece, the mean of an answer."""
        found = np.full(len(self), np.nan)
        some = np.flatnonzero((self._sizes > 1) & ~self.bursty)
        first, last = self.begin[:-1][some], self.begin[1:][some] - 1
        found[some] = (self.times[last] - self.times[first]) / (self.tokens[some] - self.counts[first]) / 1e6
        return found

    @functools.cached_property
    def gaps(self) -> Floats:
        """Between the pieces of an answer, of all answers."""
        apart = np.repeat(~self.bursty, self._sizes)
        apart[self.begin[:-1][self._sizes > 0]] = False  # the first piece of each
        before = np.concatenate([[0], self.times[:-1]]) if len(self.times) else self.times
        return np.asarray((self.times - before)[apart] / 1e6, np.float64)

    @property
    def latency(self) -> Floats:
        """To the end of the answer."""
        return self.done / 1e6

    @property
    def ends(self) -> Floats:
        """When each was complete, on the host's monotonic clock, ns."""
        return self.issued + self.done * 1000

    @functools.cached_property
    def came(self) -> Floats:
        """When each piece came, on the host's monotonic clock, ns."""
        return np.asarray(np.repeat(self.issued, self._sizes) + self.times * 1000.0, np.float64)

    def within(self, ttft: float, tpot: float) -> Booleans:
        """Whether each kept both bounds, in seconds."""
        return np.asarray((self.ttft <= ttft) & ~(self.tpot > tpot), np.bool_)


class QueryColumns:
    """Gathers queries and turns them into arrays by and by; those that can't be are counted."""

    def __init__(self) -> None:
        self._some: list[Query] = []
        self._parts: list[Queries] = []
        self.malformed = 0

    def add(self, query: Query) -> None:
        """Take a query, in whatever order they come."""
        self._some.append(query)
        if len(self._some) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        whole = [query for query in self._some if len(query.tokens) == len(query.times)]
        try:
            part = _arrays(whole)
        except OverflowError:  # a whole number beyond 64 bits: only damage or malice writes that
            part = _arrays([query for query in whole if _representable(query)])
        part = part.take(_possible(part))
        self.malformed += len(self._some) - len(part)
        self._parts.append(part)
        self._some = []

    def queries(self) -> Queries:
        """Return all that could be, in the order of their numbers; of the same number the first."""
        self._flush()
        whole = _joined(self._parts)
        numbers, places = np.unique(whole.number, return_index=True)
        self.malformed += len(whole) - len(numbers)
        return whole.take(places)


def _representable(query: Query) -> bool:
    ends = [] if query.done is None else [query.done]
    own = (getattr(query, name) for name in _WHOLE)
    return all(abs(x) < _LARGEST for x in itertools.chain(own, ends, query.tokens, query.times))


def _possible(some: Queries) -> Booleans:
    """Return which queries have numbers such as a measurement can give."""
    rows = np.repeat(np.arange(len(some)), some._sizes)
    since = np.diff(some.times, prepend=0)
    firsts = some.begin[:-1][some._sizes > 0]
    since[firsts] = some.times[firsts]
    after = ~(some.done[rows] < some.times)  # of one that has no end too
    good = (some.counts > 0) & (some.counts < _LARGEST) & (since >= 0) & (some.times < _LARGEST) & after
    fine = ~((some.done < 0) | (some.done >= _LARGEST))
    fine[rows[~good]] = False
    for name in _WHOLE:
        column = getattr(some, name)
        fine &= (column >= 0) & (column < _LARGEST)
    return fine


def _arrays(queries: Sequence[Query]) -> Queries:
    sizes = [len(query.times) for query in queries]
    return Queries(
        **{name: np.array([getattr(query, name) for query in queries], np.int64) for name in _WHOLE},
        done=np.array([query.done for query in queries], np.float64),  # None becomes NaN
        fault=[query.fault for query in queries],
        why=[query.why for query in queries],
        begin=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        counts=np.fromiter(itertools.chain.from_iterable(query.tokens for query in queries), np.int64, sum(sizes)),
        times=np.fromiter(itertools.chain.from_iterable(query.times for query in queries), np.int64, sum(sizes)),
    )


def _joined(parts: Sequence[Queries]) -> Queries:
    def every(name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    sizes = np.concatenate([np.diff(part.begin) for part in parts])
    return Queries(
        **{name: every(name) for name in (*_WHOLE, "done", "counts", "times")},  # type: ignore[arg-type]
        fault=[fault for part in parts for fault in part.fault],
        why=[why for part in parts for why in part.why],
        begin=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


NONE = _arrays([])
"""No queries at all."""
