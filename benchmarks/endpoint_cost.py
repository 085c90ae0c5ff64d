"""What the client of servers costs, and how well it tells a server's times, over HTTP on loopback.

The server is a process of its own. Of one that answers at once: CPU time of the client a query and a token, as a share
of a query of 10 ms and of a token of 1 ms. Of one that waits by a plan, log-normal before the first token and between
tokens: percentiles that the client has seen ÷ those planned, at eight queries at once.

    python benchmarks/endpoint_cost.py --queries 400
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np

from flagperf.inference.answers import Answer
from flagperf.inference.client import Client
from flagperf.inference.engine import Request
from flagperf.statistics import mean_interval, quantile_interval

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKENS = 16
QUERY, TOKEN = 10e-3, 1e-3
"""Seconds that costs are shares of."""
LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    client = Client(f"http://127.0.0.1:{here.recv()}/v1", "", 60.0, None)
    try:
        found = {"cost": cost(client, options.queries), "seen": seen(client, here, options.queries)}
    finally:
        client.close()
        process.terminate()
        process.join()
    if options.json:
        print(json.dumps(found))
        return
    for name, (value, low, high) in found["cost"].items():
        print(f"client's CPU time, {name}: {value:.4f} ({low:.4f} … {high:.4f})")
    for name, (value, low, high) in found["seen"].items():
        print(f"{name}, seen ÷ planned: {value:.4f} ({low:.4f} … {high:.4f})")


def cost(client: Client, queries: int) -> dict[str, tuple[float, float, float]]:
    """Return the client's CPU time a query of one token as a share of 10 ms, and a further token's as one of 1 ms.

    Each share is the mean over rounds of queries one after the other, with its interval.
    """
    shares: dict[str, list[float]] = {"a query ÷ 10 ms": [], "a token ÷ 1 ms": []}
    each = max(5, queries // 20)
    for round_ in range(22):
        one = busy(client, [Request([0, 1], 1)] * each)
        many = busy(client, [Request([0, 1], TOKENS)] * each)
        if round_ > 1:  # the first two warm up
            shares["a query ÷ 10 ms"].append(one / QUERY)
            shares["a token ÷ 1 ms"].append((many - one) / (TOKENS - 1) / TOKEN)
    told = {}
    for name, values in shares.items():
        interval = mean_interval(np.asarray(values), len(values))
        told[name] = (statistics.fmean(values), *(interval or (float("nan"),) * 2))
    return told


def busy(client: Client, requests: Sequence[Request]) -> float:
    """Return this process's CPU seconds a query; queries are asked one after the other."""
    began = time.process_time()
    for request in requests:
        asked(client, [request], 1)
    return (time.process_time() - began) / len(requests)


def seen(client: Client, pipe: Connection, queries: int) -> dict[str, tuple[float, float, float]]:
    """Return percentiles of times to the first token and between tokens, seen ÷ planned, with their intervals."""
    random = np.random.default_rng(7)
    plan = np.empty((queries, TOKENS))
    plan[:, 0] = 0.08 * np.exp(0.4 * random.standard_normal(queries))
    plan[:, 1:] = 0.02 * np.exp(0.3 * random.standard_normal((queries, TOKENS - 1)))
    pipe.send(plan.tolist())
    answers = asked(client, [Request([1, number], TOKENS) for number in range(queries)], 8)
    times = np.array([answer.query().times for answer in answers]) / 1e6
    took = np.diff(times, prepend=0.0, axis=1)
    series = {"TTFT": (took[:, 0], plan[:, 0]), "ITL": (took[:, 1:].ravel(), plan[:, 1:].ravel())}
    series["TPOT"] = (took[:, 1:].mean(1), plan[:, 1:].mean(1))
    told = {}
    for name, (got, planned) in series.items():
        for level, q in LEVELS.items():
            truth = float(np.quantile(planned, q))
            interval = quantile_interval(got, q) or (float("nan"),) * 2
            told[f"{name} {level}"] = (float(np.quantile(got, q)) / truth, interval[0] / truth, interval[1] / truth)
    return told


def asked(client: Client, requests: Sequence[Request], together: int) -> list[Answer]:
    """Ask, so many at a time; return the answers."""
    free = threading.Semaphore(together)
    answers = []
    for number, request in enumerate(requests):
        free.acquire()
        answers.append(Answer(number, number, request, ended=lambda _: free.release()))
        client.submit(request, answers[-1])
    for _ in range(together):
        free.acquire()
    assert not any(answer.fault for answer in answers), [answer.query().why for answer in answers if answer.fault]
    return answers


def serve(pipe: Connection) -> None:
    """Be the server: a prompt [0, …] is answered at once, [1, n] with the delays of the plan's line n."""
    plan: list[list[float]] = []

    def delays(prompt: list[int]) -> list[float]:
        if prompt[0] and not plan:
            plan.extend(pipe.recv())
        return plan[prompt[1]] if prompt[0] else []

    asyncio.run(listen(delays, pipe))


async def listen(delays: Callable[[list[int]], list[float]], pipe: Connection) -> None:
    """Answer on a free port, which is told through the pipe, until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
            except asyncio.IncompleteReadError:
                return writer.close()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            due = asyncio.get_running_loop().time()
            writer.write(HEAD)
            waits = delays(body["prompt"])
            for place in range(body["max_tokens"]):
                if waits:
                    due += waits[place]
                    await asyncio.sleep(due - asyncio.get_running_loop().time())
                finish = "length" if place + 1 == body["max_tokens"] else None
                event = {"choices": [{"index": 0, "text": "a", "token_ids": [place], "finish_reason": finish}]}
                writer.write(chunk(b"data: %b\n\n" % json.dumps(event).encode()))
                await writer.drain()
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def chunk(data: bytes) -> bytes:
    """Return data as a chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data)


if __name__ == "__main__":
    sys.exit(main())
