"""An OpenAI-compatible server on a thread of its own that answers well or badly, by how its URL begins."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

VOCABULARY = 300
CONTEXT = 256
Body = dict[str, Any]
Pieces = AsyncIterator[bytes]
HTTP_END = b"0\r\n\r\n"


def tokens_of(prompt: Any, count: int) -> list[int]:
    """Return the answer to a prompt: it says which prompt that was, and how far it has come."""
    seed = sum(prompt) if isinstance(prompt, list) else len(str(prompt))
    return [(seed + place) % VOCABULARY for place in range(count)]


class Broken(Exception):
    """The connection is to be closed as it is."""


class Refused(Exception):
    """The request is answered with an error's status and body."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": {"message": message, "code": code}}


def piece(ids: list[int] | None = None, text: str = "", finish: str | None = None, **more: Any) -> bytes:
    """Return one event of a stream."""
    choice = {"index": 0, "text": text, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    return event({"choices": [choice], **more})


def event(value: Any) -> bytes:
    """Return a value as a server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def good(body: Body, *, together: int = 1, delay: float = 0.0, first: float = 0.0, extra: int = 0) -> Pieces:
    """Stream the answer, so many tokens an event, the last with the reason of its end and with the usage."""
    asked = body["max_tokens"] + extra
    ids = tokens_of(body["prompt"], asked)
    for begin in range(0, asked, together):
        if begin or first:
            await asyncio.sleep(delay if begin else first)
        some = ids[begin : begin + together]
        yield piece(some, "ab" * len(some), "length" if begin + together >= asked else None)
    yield event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": asked}})
    yield DONE


async def bare(body: Body, *, usage: str = "none", sizes: tuple[int, ...] = (1,)) -> Pieces:
    """Stream text alone, without ids: the usage with every event, with the last one, or never."""
    asked, made, turn = body["max_tokens"], 0, 0
    while made < asked:
        count = min(sizes[turn % len(sizes)], asked - made)
        made, turn = made + count, turn + 1
        more = {"usage": {"completion_tokens": made}} if usage == "all" else {}
        yield piece(None, "ab" * count, "length" if made == asked else None, **more)
        await asyncio.sleep(0.002)
    if usage == "last":
        yield event({"choices": [], "usage": {"completion_tokens": made}})
    yield DONE


async def cut(body: Body, how: str) -> Pieces:
    """Begin an answer and leave it there."""
    yield piece(tokens_of(body["prompt"], 2), "abab")
    if how == "stall":
        await asyncio.sleep(30)
    if how == "comments":
        for _ in range(300):
            yield b": still here\n\n"
            await asyncio.sleep(0.1)
    if how == "close":
        raise Broken
    if how == "error":
        yield event({"error": {"message": "the engine \x1b[31mis dead\x07", "code": 500}})
    if how == "json":
        yield b'data: {"choices": [{"tex\n\n'
    if how == "types":
        yield event({"choices": [{"token_ids": ["a", None], "finish_reason": 3}]})
    if how == "binary":
        yield bytes(range(128, 256)) * 40 + b"\n\n"
        yield b"data: \xff\xfe{\n\n"
    if how == "long":
        yield b"data: " + b"x" * 2**20
    if how == "ends":
        yield DONE


async def _endless(body: Body) -> Pieces:
    while True:
        yield piece([7], "ab")


async def only(*events: bytes) -> Pieces:
    """Stream some events."""
    for each in events:
        yield each


def _refuse(status: int, message: str, code: str | None = None) -> Callable[[Body], Pieces]:
    def answer(body: Body) -> Pieces:
        raise Refused(status, message, code)

    return answer


def _no_ids(body: Body) -> Pieces:
    if isinstance(body["prompt"], list):
        raise Refused(400, "prompt: input should be a valid string")
    return bare(body, usage="last", sizes=(3, 1, 2))


def _strict(body: Body) -> Pieces:
    if unknown := {"return_token_ids", "ignore_eos"} & set(body):
        raise Refused(422, f"unknown fields: {', '.join(sorted(unknown))}")
    return bare(body, usage="last")


def _chat(body: Body) -> Pieces:
    return only(
        event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        *(event({"choices": [{"delta": {"content": "字"}}]}) for _ in range(body["max_tokens"])),
        event(
            {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"completion_tokens": body["max_tokens"]}}
        ),
        DONE,
    )


def _moody(body: Body, *, seen: list[int] = []) -> Pieces:  # noqa: B006
    """Answer well, but every third request with an error."""
    seen.append(1)
    if len(seen) % 3 == 0:
        raise Refused(503, "overloaded")
    return good(body)


ANSWERS: dict[str, Callable[[Body], Pieces]] = {
    "good": good,
    "merged": lambda body: good(body, together=3, delay=0.002),
    "burst": lambda body: good(body, together=10**6, first=0.01),
    "crowded": lambda body: only(b"".join(piece([i], "a", "length" if i == 7 else None) for i in range(8)) + DONE),
    "planted": lambda body: good(body, first=0.05, delay=0.01),
    "every": lambda body: bare(body, usage="all", sizes=(2, 1)),
    "last": lambda body: bare(body, usage="last", sizes=(3, 1)),
    "never": lambda body: bare(body),
    "noids": _no_ids,
    "strict": _strict,
    "chat": _chat,
    "moody": _moody,
    "error500": _refuse(500, "no\x1b[2J more \x00 memory"),
    "long_prompt": _refuse(400, "This model's maximum context length is 16 tokens", "context_length_exceeded"),
    "more": lambda body: good(body, extra=3),
    "endless": _endless,
    "fewer": lambda body: good(body, extra=-1),
    "stopped": lambda body: only(piece([1, 2], "ab", "stop"), DONE),
    "lies": lambda body: only(piece([1] * body["max_tokens"], "a", "length", usage={"completion_tokens": 2}), DONE),
    "nothing": lambda body: only(DONE),
    "quiet": lambda body: only(),
    "null": lambda body: only(event(None), event([]), event({"choices": None}), DONE),
    "nested": lambda body: only(b"data: " + b"[" * 100_000 + b"\n\n"),
    **{how: (lambda body, how=how: cut(body, how)) for how in ("stall", "comments", "close", "error", "json", "types")},
    **{how: (lambda body, how=how: cut(body, how)) for how in ("binary", "long", "ends")},
}


class Server:
    """Listens on a free port of the loopback while it's entered."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="test server", daemon=True)
        self._ready = threading.Event()
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0
        self.bodies: list[Body] = []
        self.headers: list[str] = []

    def url(self, answer: str) -> str:
        """Return the URL under which requests are answered so."""
        return f"http://127.0.0.1:{self.port}/{answer}/v1"

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Close the port and every connection."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        listening = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        listening.close()
        for task in self._open:
            task.cancel()
        self._loop.run_until_complete(_ended(list(self._open)))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, Broken):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ", 2)[1]
        _, name, _, what = path.split("/", 3) if path.count("/") > 2 else ("", "", "", path)
        length = next((line for line in head.lower().split("\r\n") if line.startswith("content-length:")), ":0")
        body = await reader.readexactly(int(length.split(":")[1]))
        if what == "models":
            _send(writer, 200, {"data": [{"id": "tiny", "max_model_len": CONTEXT, "owned_by": "tests"}]})
        elif what not in ("completions", "chat/completions"):
            _send(writer, 404, {"error": {"message": f"no {path}"}})
        else:
            self.bodies.append(json.loads(body))
            self.headers.append(head)
            try:
                pieces = ANSWERS[name](self.bodies[-1])
            except Refused as refused:
                _send(writer, refused.status, refused.body)
            else:
                await _stream(writer, pieces)
        await writer.drain()
        return True


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _send(writer: asyncio.StreamWriter, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _stream(writer: asyncio.StreamWriter, pieces: Pieces) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head)
    async for each in pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(each), each))
        await writer.drain()
    writer.write(HTTP_END)
