"""What reading responses costs, and what the other ways to do it would: no sockets, one core, best of five.

python scripts/bench_parse.py            ns per chunk and per event of a stream of 300, µs per whole response
python scripts/bench_parse.py --floor    CPU of a bare client that only reads bytes, Poisson arrivals at 1,000/s,
                                         against the stub of bench_client.py: what no client on asyncio goes below
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
from time import perf_counter, process_time
from typing import Any

import httptools
import msgspec
import uvloop
from bench_client import MEASUREMENTS, Stub

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
    """Reads bytes until a chunked end."""

    def __init__(self, idle: list[Bare], answered: list[int]) -> None:
        self._idle, self._answered = idle, answered

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._idle.append(self)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"0\r\n\r\n"):
            self._answered.append(1)
            self._idle.append(self)


async def bare(url: str, queries: int, rate: float) -> float:
    """Seconds of CPU per 1,000 requests."""
    idle: list[Bare] = []
    answered: list[int] = []
    how = {"max_tokens": 101, "stream_interval": 1000}
    body = json.dumps({"model": "stub", "token_ids": [123] * 128, "sampling_params": how}).encode()
    body = body[:-1] + b',"stream":true}'
    head = b"POST /inference/v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    loop, port = asyncio.get_running_loop(), int(url.rpartition(":")[2])
    for _ in range(600):
        await loop.create_connection(lambda: Bare(idle, answered), "127.0.0.1", port)
    began, due = process_time(), perf_counter()
    for _ in range(queries):
        due += random.expovariate(rate)
        if (pause := due - perf_counter()) > 0:
            await asyncio.sleep(pause)
        idle.pop().transport.write(head + body)
    while len(answered) < queries:
        await asyncio.sleep(0.01)
    return 1000 * (process_time() - began) / queries


def floor() -> None:
    cores = sorted(os.sched_getaffinity(0))
    paced = next(what for what in MEASUREMENTS if what.figure == "cpu")
    stub = Stub(paced, cores[1])
    os.sched_setaffinity(0, cores[:1])
    print(f"bare client: {uvloop.run(bare(stub.url, 6000, paced.rate)):.3f} s of CPU per 1,000 requests")
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
