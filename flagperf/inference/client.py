"""A client of an OpenAI-compatible server: one thread with one event loop asks everything.

What becomes of a query is told to its reply; whatever a server does wrong ends that query alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from flagperf.inference.completions import Broken, Stream, refused, shown
from flagperf.inference.engine import Reply, Request
from flagperf.schema.inference import Fault

T = TypeVar("T")

CONNECTIONS = 512
"""At once, at most; requests beyond that wait here."""
IDLE = 3.0
"""Seconds after which an unused connection is given up: before servers do, so that none is met half closed."""
ANSWERED = 10.0
"""Seconds that a server has for what isn't an answer of its model: its name, its version, its counters."""
_MOST = 2**22
"""Bytes of an answer that are read, where it's no stream."""
_DATA, _END = b"data:", b"[DONE]"
_UNREACHABLE = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


class Form(NamedTuple):
    """One way to ask."""

    ids: bool
    """Whether prompts are token ids."""
    extended: bool
    """Whether fields are sent that OpenAI's own API doesn't have."""
    chat: bool = False


class Got(NamedTuple):
    """What an address answered; status 0 where nothing did, and why not in the body."""

    status: int
    body: bytes


class Client:
    """Asks the server at `url` for completions of the model `model`, in the way `form` says.

    `patience`: the seconds that a connection may take, or an answer that is only tried out; queries that stall are
    ended by whoever asks them. `encode`: the tokenizer by which text is counted where the server doesn't say.
    """

    def __init__(self, url: str, key: str, patience: float, encode: Callable[[str], Sequence[int]] | None) -> None:
        self.url, self.model = url.rstrip("/"), ""
        self.form = Form(ids=True, extended=True)
        self.counted: Counter[str] = Counter()
        """Answers, by how their tokens were counted."""
        self._patience, self._encode = patience, encode
        self._going: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="client", daemon=True)
        self._thread.start()
        self._await(self._open(key))

    def submit(self, request: Request, reply: Reply) -> None:
        """Ask, and return at once."""
        self._loop.call_soon_threadsafe(self._begin, request, reply)

    def get(self, url: str) -> Got:
        """Return what is at an address."""
        return self._await(self._get(url))

    def try_out(self, request: Request, form: Form) -> Broken | None:
        """Ask in a form; return what went wrong."""
        self.form = form
        return self._await(self._tried(request))

    def close(self) -> None:
        """Drop every connection; queries that are still being answered fail."""
        if self._thread.is_alive():
            self._await(self._shut())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the client's thread do something, and wait."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self, key: str) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=IDLE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._patience),
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
        )

    async def _shut(self) -> None:
        tasks = list(self._going)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def _get(self, url: str) -> Got:
        limit = aiohttp.ClientTimeout(ANSWERED)
        try:
            async with self._session.get(url, timeout=limit, allow_redirects=False) as answer:
                return Got(answer.status, await _body(answer))
        except _UNREACHABLE as error:
            return Got(0, str(error or type(error).__name__).encode())

    async def _tried(self, request: Request) -> Broken | None:
        nobody = _Nobody()
        try:
            async with asyncio.timeout(self._patience):
                await self._ask(request, nobody, Stream(nobody, request.limit, self._encode))
        except Broken as broken:
            return broken
        except TimeoutError:
            return Broken("stalled", f"no answer within {self._patience:g} s")
        return None

    def _begin(self, request: Request, reply: Reply) -> None:
        task = self._loop.create_task(self._answer(request, reply))
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def _answer(self, request: Request, reply: Reply) -> None:
        """Ask a query and tell its reply what became of it, whatever that is."""
        stream = Stream(reply, request.limit, self._encode)
        fault: Fault = "engine"
        try:
            await self._ask(request, reply, stream)
            return
        except Broken as broken:
            fault, why = broken.fault, broken.why
        except asyncio.CancelledError:
            why = "the engine was closed before the answer was complete"
        except Exception as error:  # of this client: the query is lost all the same
            why = f"{type(error).__name__}: {error}"
        stream.broken()
        reply.failed(fault, why)

    async def _ask(self, request: Request, reply: Reply, stream: Stream) -> None:
        """Ask a query; raise Broken where there is no whole answer."""
        path = "chat/completions" if self.form.chat else "completions"
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                f"{self.url}/{path}", data=self._body(request), headers=headers, allow_redirects=False
            ) as answer:
                await self._read(answer, stream)
                self.counted[stream.counting or ""] += 1
                reply.done()
                await answer.content.read(1)  # to its end: then the connection can be used again
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Broken("connection", _why(error)) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, OSError) as error:
            raise Broken("closed", _why(error)) from None
        except (aiohttp.ClientError, HttpProcessingError, ValueError) as error:  # no HTTP, or a line that doesn't end
            raise Broken("rubbish", _why(error)) from None

    async def _read(self, answer: aiohttp.ClientResponse, stream: Stream) -> None:
        if answer.status != 200:
            raise refused(answer.status, await _body(answer))
        if answer.content_type != "text/event-stream":
            said = shown(await _body(answer))
            raise Broken("rubbish", f"{answer.content_type} instead of a stream of events: {said}")
        async for line in answer.content:
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == _END:
                break
            stream.take(data)
        stream.end()

    def _body(self, request: Request) -> bytes:
        prompt: Any = list(request.prompt) if self.form.ids else request.text
        body: dict[str, Any] = {
            "model": self.model,
            **({"messages": [{"role": "user", "content": prompt}]} if self.form.chat else {"prompt": prompt}),
            "max_tokens": request.limit,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.form.extended:
            body["stream_options"]["continuous_usage_stats"] = True
            body |= {"return_token_ids": True, "ignore_eos": True, "add_special_tokens": False}
        return msgspec.json.encode(body)


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """Return what is in an answer, up to where no more of it is read."""
    body = bytearray()
    async for some in answer.content.iter_any():
        body += some
        if len(body) > _MOST:
            break
    return bytes(body)


class _Nobody:
    """A reply that nobody waits for."""

    def tokens(self, ids: Sequence[int]) -> None:
        """Ignore tokens."""

    def recounted(self, total: int) -> None:
        """Ignore how many they were."""

    def done(self) -> None:
        """Ignore the end."""

    def failed(self, fault: Fault, why: str) -> None:
        """Ignore a failure: whoever tries something out is told otherwise."""


def _why(error: Exception) -> str:
    return shown(str(error or type(error).__name__).encode())
