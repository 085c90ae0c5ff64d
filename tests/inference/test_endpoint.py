"""The engine `endpoint` against a real server on loopback that answers well, badly, or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from collect import served
from helpers import needs
from hypothesis import given, settings
from hypothesis import strategies as st

needs("aiohttp")

from serving import CONTEXT, Server, tokens_of  # noqa: E402

from flagperf.collect.inference import Served, inference_notes, inference_reasons  # noqa: E402
from flagperf.collect.journals import read_rank  # noqa: E402
from flagperf.collect.queries import QueryColumns  # noqa: E402
from flagperf.engines.endpoint import Endpoint  # noqa: E402
from flagperf.errors import FlagPerfError, Unavailable, UsageError  # noqa: E402
from flagperf.inference.answers import Answer, collected  # noqa: E402
from flagperf.inference.client import Client, Form  # noqa: E402
from flagperf.inference.completions import Broken, Stream  # noqa: E402
from flagperf.inference.engine import Request  # noqa: E402
from flagperf.journal import Journal  # noqa: E402
from flagperf.schema.event import Key  # noqa: E402
from flagperf.schema.inference import Load  # noqa: E402

REQUESTS = [Request([5, place], 8, f"prompt {place}") for place in range(6)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for all tests of the module."""
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One client, which is pointed at the ways to answer in turn."""
    made = Client("", "", 5.0, None)
    made.model = "tiny"
    yield made
    made.close()


@pytest.fixture
def asked(server: Server, client: Client) -> Callable[..., list[Answer]]:
    """Ask the server for answers of some kind, all at once."""

    def ask(kind: str, requests: Sequence[Request] = REQUESTS, patience: float = 10.0, **form: bool) -> list[Answer]:
        client.url, client.form = server.url(kind), Form(**{"ids": True, "extended": True, **form})
        return collected(client.submit, requests, patience)

    return ask


def engine(url: str, **settings: Any) -> Endpoint:
    """Return an engine that has been told these settings; it isn't started."""
    trial: Any = SimpleNamespace(engine="endpoint", settings={"url": url, "model": {}, **settings})
    Endpoint.check(trial)
    return Endpoint(SimpleNamespace(trial=trial))  # type: ignore[arg-type]


def task(patience: float = 5.0) -> Any:
    """Return what the engine needs of a task."""
    return SimpleNamespace(load=SimpleNamespace(patience=patience), encode=None)


@pytest.fixture
def started(server: Server) -> Iterator[Callable[..., Endpoint]]:
    """Start engines, and close them when the test is over."""
    begun: list[Endpoint] = []

    def start(kind: str, **settings: Any) -> Endpoint:
        made = engine(server.url(kind), **settings)
        begun.append(made)
        made.start(task())
        return made

    yield start
    for each in begun:
        each.close()


def bursty(answers: Sequence[Answer]) -> bool:
    """Whether answers all came in a burst; fails where some did."""
    columns = QueryColumns()
    for answer in answers:
        columns.add(answer.query())
    seen = set(columns.queries().bursty.tolist())
    assert len(seen) == 1
    return bool(seen.pop())


@pytest.mark.parametrize("kind", ["good", "merged", "burst", "planted"])
def test_tokens_are_counted_by_id(asked: Callable[..., list[Answer]], kind: str) -> None:
    """However they are put into events, and whatever their text: each answer has its own prompt's ids."""
    for answer in asked(kind):
        assert answer.fault is None
        assert answer.ids == tokens_of(answer.request.prompt, 8)


def test_times_are_those_of_the_tokens(asked: Callable[..., list[Answer]]) -> None:
    """No token is seen before it was sent; those that were sent at once are seen to be a burst."""
    for answer in asked("planted"):
        query = answer.query()
        assert query.tokens == [1] * 8
        assert query.times[0] >= 50_000
        assert query.times[-1] >= 120_000
    assert [answer.query().tokens for answer in asked("merged", REQUESTS[:1])] == [[3, 3, 2]]
    assert bursty(asked("burst"))
    assert bursty(asked("crowded"))


FAULTS = {
    "error500": ("status", "500: "),
    "long_prompt": ("too_long", "maximum context length is 16"),
    "more": ("too_many", "more than the 8"),
    "endless": ("too_many", "more than the 8"),
    "fewer": ("closed", '"length" after 7 of 8'),
    "lies": ("rubbish", "made 2 tokens; 8 came"),
    "nothing": ("closed", "after 0 of 8"),
    "quiet": ("closed", "after 0 of 8"),
    "close": ("closed", ""),
    "ends": ("closed", "after 2 of 8"),
    "error": ("status", "the engine"),
    "json": ("rubbish", ""),
    "types": ("rubbish", ""),
    "binary": ("rubbish", ""),
    "long": ("rubbish", ""),
    "null": ("rubbish", ""),
    "nested": ("rubbish", ""),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_counted(asked: Callable[..., list[Answer]], kind: str) -> None:
    """Whatever a server does wrong, each query ends, with what it was; and what it says can be printed."""
    fault, why = FAULTS[kind]
    for answer in asked(kind):
        query = answer.query()
        assert (query.fault, query.done) == (fault, None), query.why
        assert why in query.why
        assert query.why.isprintable()
        assert len(query.why) < 700


@pytest.mark.parametrize("kind", ["stall", "comments"])
def test_a_stalled_stream_is_given_up(client: Client, server: Server, kind: str) -> None:
    """Also one that sends signs of life, but no token."""
    client.url, client.form = server.url(kind), Form(ids=True, extended=True)
    answers: list[Any] = []

    def submit(request: Request, reply: Any) -> None:
        answers.append(reply)
        client.submit(request, reply)

    with pytest.raises(FlagPerfError, match="stalled"):
        collected(submit, REQUESTS[:2], 0.4)
    for answer in answers:
        assert answer.fault == "stalled"
        assert answer.ids == tokens_of(answer.request.prompt, 2)


def test_one_failure_is_one_querys(asked: Callable[..., list[Answer]]) -> None:
    """Others are answered as ever, over the same connections."""
    faults = [answer.fault for answer in asked("moody", REQUESTS * 3)]
    assert sorted(map(str, faults)) == ["None"] * 12 + ["status"] * 6


def test_an_answer_may_be_shorter_if_the_model_ended_it(asked: Callable[..., list[Answer]]) -> None:
    """That is what `stop` says."""
    assert {(answer.fault, len(answer.ids)) for answer in asked("stopped")} == {(None, 2)}


@pytest.mark.parametrize(
    ("kind", "counting", "counts"),
    [("every", "usage", [2, 1, 2, 1, 2]), ("last", "text", [3, 1, 3, 1]), ("never", "text", [1] * 8)],
)
def test_tokens_without_ids(
    asked: Callable[..., list[Answer]], client: Client, kind: str, counting: str, counts: list[int]
) -> None:
    """They are counted by usage, by text in proportion, or by events."""
    client.counted.clear()
    assert {tuple(answer.query().tokens) for answer in asked(kind)} == {tuple(counts)}
    assert client.counted == {counting: 6}


def test_a_server_that_dies_meanwhile(client: Client) -> None:
    """Queries that were being answered end as closed; later ones find no connection."""
    with Server() as mortal:
        client.url, client.form = mortal.url("stall"), Form(ids=True, extended=True)
        seen: list[Answer] = []

        def submit(request: Request, reply: Any) -> None:
            seen.append(reply)
            client.submit(request, dataclasses.replace(_Killing(reply, mortal)))

        during = collected(submit, REQUESTS[:1], 5.0)
        client.url = mortal.url("good")
        after = collected(client.submit, REQUESTS[:2], 5.0)
    assert [answer.fault for answer in during] == ["closed"]
    assert [answer.fault for answer in after] == ["connection"] * 2
    assert str(mortal.port) in after[0].query().why


@dataclasses.dataclass
class _Killing:
    """A reply that has the server die at its first token."""

    reply: Any
    server: Server

    def tokens(self, ids: Sequence[int]) -> None:
        self.reply.tokens(ids)
        self.server.die()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reply, name)


def test_what_a_server_takes_is_found_out(started: Callable[..., Endpoint], server: Server) -> None:
    """The first way to ask that it answers is taken, and told."""
    good = started("good").facts()
    assert (good["model"], good["context"], good["prompts"], good["ends_ignored"]) == (
        "tiny",
        CONTEXT,
        "token ids",
        True,
    )
    asked = server.bodies[-1]
    assert (asked["prompt"], asked["temperature"], asked["stream"]) == ([1, 2, 3, 4], 0, True)
    assert (asked["ignore_eos"], asked["return_token_ids"]) == (True, True)
    strict = started("strict").facts()
    assert (strict["prompts"], strict["ends_ignored"]) == ("token ids", False)
    assert started("noids").facts()["prompts"] == "text"
    assert server.bodies[-1]["prompt"] == "1 2 3 4"
    chat = started("chat", chat=True)
    assert chat.facts()["prompts"] == "a chat's message"
    answers = collected(chat.submit, REQUESTS[:2], 5.0)
    assert [answer.ids for answer in answers] == [[0] * 8] * 2
    assert server.bodies[-1]["messages"][0]["content"].startswith("prompt")
    assert chat.facts()["tokens_counted"] == {"by the usage in the last event, or by the text": 3}


def test_what_cannot_fit_is_not_asked(started: Callable[..., Endpoint], server: Server) -> None:
    """The server has said how long a context it takes."""
    made, before = started("good"), len(server.bodies)
    answers = collected(made.submit, [Request([1] * 250, 7), Request([1] * 250, 6)], 5.0)
    assert [answer.fault for answer in answers] == ["too_long", None]
    assert len(server.bodies) == before + 1


def test_answers_are_checked_where_the_weights_are_the_cases(started: Callable[..., Endpoint]) -> None:
    """Of another model's nothing can be checked; and a server that takes no ids can't be checked at all."""
    assert not started("good").checked
    assert started("good", same_weights=True).checked
    with pytest.raises(FlagPerfError, match="input should be a valid string"):
        started("noids", same_weights=True)
    with pytest.raises(FlagPerfError, match="doesn't tell its tokens' ids"):
        started("last", same_weights=True)


def test_a_key_comes_from_the_environment(
    started: Callable[..., Endpoint], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent, and it's in no fact."""
    monkeypatch.setenv("A_SERVERS_KEY", "sesame")
    made = started("good", key="A_SERVERS_KEY")
    assert "Authorization: Bearer sesame" in server.headers[-1]
    assert "sesame" not in str(made.facts())
    monkeypatch.setenv("A_SERVERS_KEY", "")
    with pytest.raises(UsageError, match="A_SERVERS_KEY"):
        started("good", key="A_SERVERS_KEY")


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://[::1/v1", "http://me:word@host/v1", "http://h/v1?a=b"],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """Before anything starts, with an example; what it holds of a password isn't repeated."""
    with pytest.raises(UsageError) as refused:
        engine(url)
    assert refused.value.hint
    assert "word" not in str(refused.value)


def test_no_server_no_start(server: Server, started: Callable[..., Endpoint]) -> None:
    """A server that isn't there, that has no such model, or that is none, is told at once."""
    with Server() as gone:
        url = gone.url("good")
    made = engine(url)
    with pytest.raises(Unavailable, match=r"No server answers at http://127\.0\.0\.1:\d+/good/v1"):
        made.start(task())
    made.close()
    with pytest.raises(UsageError, match="has these models: tiny"):
        started("good", served="huge")
    with pytest.raises(FlagPerfError, match="doesn't answer as OpenAI's API does: status: 500"):
        started("error500")
    with pytest.raises(FlagPerfError, match="doesn't say which models"):
        started("good/v2")


def test_closing_ends_what_is_going_on(started: Callable[..., Endpoint]) -> None:
    """A query that is being answered fails, and is told so."""
    made = started("good")
    made._client.url = made._client.url.replace("good", "stall")
    answers: list[Answer] = []
    for number, request in enumerate(REQUESTS):
        answers.append(Answer(number, number, request, first=lambda _: None))
        made.submit(request, answers[-1])
    made.close()
    assert {answer.fault for answer in answers} == {"engine"}


class _Told:
    """A reply that keeps what it's told."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.total: int | None = None

    def tokens(self, ids: Sequence[int]) -> None:
        self.counts.append(len(ids))

    def recounted(self, total: int) -> None:
        self.total = total

    def done(self) -> None: ...

    def failed(self, fault: Any, why: str) -> None: ...


VALUES = [None, 3, -1, 2**70, 0.5, "a\x1b", [], [[1]], {}, {"content": 1}, {"completion_tokens": -5}, [{"text": "a"}]]


@settings(max_examples=60)
@given(
    st.binary(max_size=50)
    | st.dictionaries(st.sampled_from(["choices", "usage", "error"]), st.sampled_from(VALUES))
    .map(json.dumps)
    .map(str.encode)
)
def test_no_event_breaks_the_reader(data: bytes) -> None:
    """It is read, or it's said that it can't be."""
    stream = Stream(_Told(), 4)
    try:
        stream.take(data)
        stream.end()
    except Broken as broken:
        assert broken.fault in ("rubbish", "closed", "status", "too_long", "too_many")
        assert broken.why.isprintable()


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 4000))
def test_recounting_keeps_the_total(counts: list[int], total: int) -> None:
    """The pieces' shares sum to it, and each is within one of its proportion."""
    answer = Answer(0, 0, Request([1], 10_000))
    for count in counts:
        answer.tokens([0] * count)
    answer.recounted(total)
    query = answer.query()
    assert sum(query.tokens) == total == len(answer.ids)
    assert all(query.tokens)
    assert len(query.tokens) == len(query.times)
    if total >= 2 * sum(counts):  # then none has become empty
        shares = [count * total / sum(counts) for count in counts]
        assert all(abs(got - share) <= 1 for got, share in zip(query.tokens, shares, strict=True))


def test_a_burst_is_no_measurement(asked: Callable[..., list[Answer]], tmp_path: Path) -> None:
    """The result is invalid and says so; and it's noted that answers weren't checked."""
    with Journal(tmp_path / "rank0.journal", {"role": "rank", "trial": "000", "rank": 0, "world_size": 1}) as journal:
        for answer in asked("burst"):
            journal.write(Key.QUERY, answer.query())
        journal.write(Key.LOAD, Load(scenario="singlestream", seconds=1.0))
    (trial,) = served.trials(scenarios=["singlestream"])
    found = Served(read_rank(tmp_path / "rank0.journal", 0))
    assert [reason.code for reason in inference_reasons(trial, found)] == ["bursts"]
    assert "unchecked" in {note.code for note in inference_notes(trial, found)}
