"""Engine `endpoint`: an OpenAI-compatible server, wherever it runs and whatever it is, asked by URL."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import aiohttp
import msgspec
from yarl import URL

from flagperf.context import RankContext
from flagperf.errors import FlagPerfError, Unavailable, UsageError
from flagperf.inference.client import CONNECTIONS, Client, Form
from flagperf.inference.completions import shown
from flagperf.inference.engine import GenerationTask, InferenceEngine, Reply, Request
from flagperf.schema.event import Memory
from flagperf.schema.inference import HeldByInference, ServerSettings
from flagperf.schema.trial import Trial

_PROBE = Request([1, 2, 3, 4], 4, "1 2 3 4")
_COUNTED = {
    "ids": "by their ids",
    "usage": "by the usage in every event",
    "text": "by the usage in the last event, or by the text",
    "": "none came",
}
_METRIC = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class _Model(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None
    """Of vLLM and sglang: the longest context."""


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model] = []


class _Version(msgspec.Struct, frozen=True):
    version: str


class Endpoint(InferenceEngine):
    """A server that somebody else has started; see `ServerSettings`."""

    def __init__(self, context: RankContext) -> None:
        super().__init__(context)
        self.server = _server(context.trial)
        self.checked = self.server.same_weights
        self.task: GenerationTask
        self._client: Client
        self._told: dict[str, object] = {}
        self._context: int | None = None

    @classmethod
    def check(cls, trial: Trial) -> None:
        """Refuse settings with which no server can be asked."""
        server = _server(trial)
        hint = "For example --set url=http://127.0.0.1:8000/v1"
        if not server.url:
            raise UsageError(f"The engine {trial.engine!r} asks a server; there is no url of one.", hint)
        try:
            url = URL(server.url)
        except ValueError as error:
            raise UsageError(f"The url {server.url!r} can't be read: {error}.", hint) from None
        if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
            raise UsageError(f"The url {server.url!r} isn't one of a server's API.", hint)
        if url.user or url.password:
            raise UsageError("The url has a user in it, who would be in every result.", "Use --set key=VARIABLE.")
        if server.key and not _key(server).isprintable():
            raise UsageError(f"What the environment variable {server.key} holds can't be a key.")
        if server.key and not _key(server):
            raise UsageError(f"The environment variable {server.key}, which is to hold the key, isn't set.")
        if server.chat and server.same_weights:
            raise UsageError(
                "A server puts words of its own around a chat's prompt: its answers can't be checked.",
                "Leave out chat, or same_weights.",
            )

    def start(self, task: GenerationTask) -> None:
        """Find out what the server is and which way it can be asked; raise FlagPerfError where it can't."""
        self.connect(self.server.url, task)

    def connect(self, url: str, task: GenerationTask) -> None:
        """Be a client of the server at `url`."""
        self.task = task
        self._client = Client(url, _key(self.server), task.load.patience, task.encode)
        self._client.model = self._model()
        self._told = {
            "url": self._client.url,
            "model": self._client.model,
            "context": self._context,
            "client": f"aiohttp {aiohttp.__version__}",
            "connections": CONNECTIONS,
            "prompts": self._form(),
            "ends_ignored": self._client.form.extended,
        }
        try:
            version = msgspec.json.decode(self._client.get(self.root("version")).body, type=_Version).version
            self._told["version"] = shown(version.encode())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # it has none, or tells it elsewhere

    def root(self, path: str) -> str:
        """Return the address of something that the server has beside its API."""
        return str(URL(self._client.url).parent / path)

    def submit(self, request: Request, reply: Reply) -> None:
        """Ask; what can't fit is refused at once, if the server has said how much does."""
        wanted = len(request.prompt) + request.limit
        if self._context is not None and self._client.form.ids and wanted > self._context:
            why = (
                f"{len(request.prompt)} tokens of prompt and {request.limit} to make; the server takes {self._context}"
            )
            reply.failed("too_long", why)
        elif not self._client.form.ids and not request.text:
            reply.failed("engine", "the server takes no token ids, and this prompt has no text")
        else:
            self._client.submit(request, reply)

    def held(self) -> HeldByInference:
        """Return the bytes of the cache where vLLM's counters tell it, of a model whose shape is known."""
        if not self.checked:
            return HeldByInference()
        for name, labels, _ in self.counters():
            blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
            if name == "vllm:cache_config_info" and blocks.isdecimal() and size.isdecimal():
                return HeldByInference(cache=int(blocks) * int(size) * position_bytes(self.task))
        return HeldByInference()

    def facts(self) -> dict[str, object]:
        """Return what the server says of itself, and how it was asked."""
        counted = {_COUNTED[how]: count for how, count in self._client.counted.items()}
        sums: dict[str, float] = {}
        for name, _, value in self.counters():
            sums[name] = sums.get(name, 0.0) + value
        asked, known = sums.get("vllm:prefix_cache_queries_total"), sums.get("vllm:prefix_cache_hits_total")
        told = {"prefix_known": known / asked} if asked and known is not None else {}
        return {**self._told, "tokens_counted": counted, **told}

    def counters(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Yield the server's Prometheus counters, if it has any: names, labels and values."""
        got = self._client.get(self.root("metrics"))
        for name, labels, value in _METRIC.findall(got.body.decode("utf-8", "replace") if got.status == 200 else ""):
            try:
                yield name, dict(_LABEL.findall(labels)), float(value)
            except ValueError:
                continue

    def memory(self, rank: Memory) -> Memory:
        """Return nothing: what the client takes says nothing of the server."""
        return Memory(peak_allocated=None, peak_rss=None)

    def close(self) -> None:
        """Drop the connections."""
        if hasattr(self, "_client"):
            self._client.close()

    def _model(self) -> str:
        """Return the model's name; raise FlagPerfError where there is no server, or no such model."""
        url = self._client.url
        got = self._client.get(f"{url}/models")
        said = shown(got.body)
        if not got.status:
            raise Unavailable(f"No server answers at {url}: {said}.", "Start it, or say where it is: --set url=…")
        if got.status in (401, 403):
            raise Unavailable(
                f"The server at {url} wants a key ({got.status}): {said}",
                "Put it into an environment variable and name that: --set key=VARIABLE",
            )
        try:
            models = msgspec.json.decode(got.body, type=_Models).data if got.status == 200 else []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            models = []
        known = {model.id: model.max_model_len for model in models}
        name = self.server.served or (next(iter(known)) if len(known) == 1 else "")
        if known and name not in known:
            good = ", ".join(shown(each.encode()) for each in known)
            raise UsageError(f"The server at {url} has these models: {good}.", "Choose one: --set served=NAME")
        if not name:
            raise Unavailable(
                f"The server at {url} doesn't say which models it has ({got.status}): {said}",
                "Name one: --set served=NAME; or give the address of its API, which mostly ends in /v1.",
            )
        self._context = known.get(name)
        return name

    def _form(self) -> str:
        """Ask a few tokens in one way after the other, the most telling first, until the server takes one."""
        kinds = (True,) if self.checked else (False,) if self.server.chat else (True, False)
        said = ""
        for ids in kinds:
            for extended in (True, False):
                broken = self._client.try_out(_PROBE, Form(ids, extended, self.server.chat))
                if broken is None and self.checked and not self._client.counted["ids"]:
                    raise FlagPerfError(
                        f"The server at {self._client.url} doesn't tell its tokens' ids: its answers can't be checked.",
                        "vLLM and SGLang tell them in streams of completions. Or leave out same_weights.",
                    )
                if broken is None:
                    return "token ids" if ids else "a chat's message" if self.server.chat else "text"
                said = f"{broken.fault}: {broken.why}"
                if broken.fault != "status":
                    break
        raise FlagPerfError(
            f"The server at {self._client.url} doesn't answer as OpenAI's API does: {said}",
            "It must stream completions, of token ids if its answers are to be checked; or chats: --set chat=true",
        )


def position_bytes(task: GenerationTask) -> int:
    """Return the bytes that a token takes in a cache of keys and values."""
    decoder = task.decoder
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * task.dtype.itemsize


def _server(trial: Trial) -> ServerSettings:
    return msgspec.convert(trial.settings, ServerSettings)


def _key(server: ServerSettings) -> str:
    return os.environ.get(server.key, "") if server.key else ""
