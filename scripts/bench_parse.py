"""What reading responses costs, and what the other ways to do it would: no sockets, one core, best of five.

python scripts/bench_parse.py            ns per chunk and per event of a stream of 300, µs per whole response
python scripts/bench_parse.py --floor    a bare client that only looks for the first event in its bytes, no LoadGen,
                                         against the stub of bench_client.py and with the same arrivals: its CPU and the
                                         time to first token that it adds, below which no client on asyncio goes
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import quantiles
from time import perf_counter, process_time
from typing import Any

import httptools
import msgspec
import uvloop
from bench_client import MEASUREMENTS, Measurement, Stub, stats

from sut.backends.dialects import COMPLETIONS, Frame, Stream
from sut.backends.http import Events

EVENTS = 300


def event(token: int) -> bytes:
    """One as vLLM writes it on /v1/completions."""
    choice = {"index": 0, "text": f" tok{token}", "logprobs": None, "finish_reason": None, "token_ids": [token]}
    head = {"id": "cmpl-af78d9ce852e62b8", "object": "text_completion", "created": 1795253388, "model": "m"}
    return b"data: " + msgspec.json.encode(head | {"choices": [choice]}) + b"\n\n"


FRAMES = [event(3 + number) for number in range(EVENTS)]
CHUNKED = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in FRAMES) + b"0\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: 2000\r\n\r\n%b" % (
    b"x" * 2000
)

HEADERS = re.compile(rb"\r\n(content-length|transfer-encoding|connection)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)


def with_httptools(data: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    httptools.HttpResponseParser(Events(pieces, {}, [], lambda: None)).feed_data(data)
    return pieces


def with_split(data: bytes) -> list[bytes]:
    """Chunks by their separators, proved by their lengths."""
    parts = data.split(b"\r\n")
    sizes, pieces = parts[:-1:2], parts[1::2]
    assert [int(size, 16) for size in sizes] == [len(piece) for piece in pieces]
    return pieces


def with_expressions(data: bytes) -> bytes:
    head, _, body = data.partition(b"\r\n\r\n")
    assert int(dict(HEADERS.findall(head))[b"content-length"]) == len(body)
    return body


def as_lines() -> list[Frame]:
    return msgspec.json.Decoder(Frame).decode_lines(b"".join(FRAMES)[6:-2].replace(b"\n\ndata: ", b"\n"))


def read(stream: Stream) -> None:
    stream.feed(FRAMES)
    assert len(stream.answer.tokens) == EVENTS


def best(work: Callable[[], object], times: int = 200) -> float:
    """Seconds of one call."""
    found = []
    for _ in range(5):
        began = perf_counter()
        for _ in range(times):
            work()
        found.append((perf_counter() - began) / times)
    return min(found)


class Bare(asyncio.Protocol):
    """Notes how long the first event took, and reads bytes until a chunked end."""

    def __init__(self, idle: list[Bare], firsts: list[float], answered: list[int]) -> None:
        self._idle, self._firsts, self._answered = idle, firsts, answered
        self._sent = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._idle.append(self)

    def send(self, request: bytes) -> None:
        self._sent = perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._sent and b"data:" in data:
            self._firsts.append(perf_counter() - self._sent)
            self._sent = 0.0
        if data.endswith(b"0\r\n\r\n"):
            self._answered.append(1)
            self._idle.append(self)


async def bare(url: str, what: Measurement) -> tuple[float, list[float]]:
    """Seconds of CPU per 1,000 requests, and the times to first token in seconds."""
    idle: list[Bare] = []
    firsts: list[float] = []
    answered: list[int] = []
    how = {"max_tokens": what.tokens + 1, "stream_interval": what.interval or 1000}
    body = json.dumps({"model": "stub", "token_ids": [123] * what.prompt, "sampling_params": how}).encode()
    body = body[:-1] + b',"stream":true}'
    head = b"POST /inference/v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    loop, port = asyncio.get_running_loop(), int(url.rpartition(":")[2])
    for _ in range(600):
        await loop.create_connection(lambda: Bare(idle, firsts, answered), "127.0.0.1", port)
    began, due = process_time(), perf_counter()
    for _ in range(what.queries):
        due += random.expovariate(what.rate)
        if (pause := due - perf_counter()) > 0:
            await asyncio.sleep(pause)
        idle.pop().send(head + body)
    while len(answered) < what.queries:
        await asyncio.sleep(0.01)
    return 1000 * (process_time() - began) / what.queries, firsts


def floor() -> None:
    cores = sorted(os.sched_getaffinity(0))
    for what in MEASUREMENTS:
        if not what.name.startswith("paced"):
            continue
        os.sched_setaffinity(0, cores[:1])
        stub = Stub(what, cores[1])
        cpu, firsts = uvloop.run(bare(stub.url, what))
        late = stats(stub.url)["first_lateness_s"]
        p50, p99 = (1e3 * (quantiles(firsts, n=100)[n - 1] - what.ttft - late[f"p{n}"]) for n in (50, 99))
        print(
            f"a bare client, {what.name}: {cpu:.3f} s of CPU per 1,000 requests, added TTFT p50 {p50:.2f} ms, "
            f"p99 {p99:.2f} ms (the stub late by {1e3 * late['p50']:.2f}, {1e3 * late['p99']:.2f})",
            flush=True,
        )
        stub.stop()


def main() -> None:
    if "--floor" in sys.argv:
        return floor()
    one_by_one = replace(COMPLETIONS, lean=None)
    for name, work in (
        ("chunks, httptools into a list", lambda: with_httptools(CHUNKED + CHUNKS)),
        ("chunks, split and lengths compared", lambda: with_split(CHUNKS)),
        ("events, as they are read", lambda: read(Stream(COMPLETIONS))),
        ("events, one by one", lambda: read(Stream(one_by_one))),
        ("events, joined and only decoded as lines", as_lines),
    ):
        print(f"{name:<42}{1e9 * best(work) / EVENTS:6.0f} ns each")
    for name, whole in (("httptools", with_httptools), ("expressions on its head", with_expressions)):
        print(f"a whole response, {name:<24}{1e6 * best(lambda whole=whole: whole(WHOLE), 5000):6.1f} µs")  # type: ignore[misc]


if __name__ == "__main__":
    main()
