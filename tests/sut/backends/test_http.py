"""HTTP: what a connection makes of any bytes, and how a pool keeps its connections.

One half feeds bytes to a Connection by hand, the other talks to a small server that says what a script tells it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from sut.backends import Generation, Plan, http
from sut.backends.http import Connection, Origin, Pool, Receiver, fetch, request_bytes, tls_context
from sut.errors import ConfigError, QueryFailed, Unreachable

ROOT = Path(__file__).parents[3]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n"


def run(doing: Coroutine[Any, Any, Any]) -> Any:
    """On the kind of loop that the SUT has."""

    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await doing

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(limited())


# -- where a server is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "origin", "host_header"),
    [
        ("http://host:8000", Origin("http", "host", 8000), "host:8000"),
        ("host:8000", Origin("http", "host", 8000), "host:8000"),  # http unless said otherwise
        ("host", Origin("http", "host", 80), "host"),
        ("https://host", Origin("https", "host", 443), "host"),
        ("https://host:80", Origin("https", "host", 80), "host:80"),
        ("http://host:443", Origin("http", "host", 443), "host:443"),
        ("http://host:80", Origin("http", "host", 80), "host"),
        ("HTTP://Host.Example", Origin("http", "host.example", 80), "host.example"),
        ("http://[::1]:8000", Origin("http", "::1", 8000), "[::1]:8000"),
        ("https://[2001:db8::7]/v1", Origin("https", "2001:db8::7", 443), "[2001:db8::7]"),
        # the path before the routes
        ("http://host/", Origin("http", "host", 80), "host"),
        ("http://host/v1", Origin("http", "host", 80), "host"),
        ("http://host/v1/", Origin("http", "host", 80), "host"),
        ("http://host/a/b/v1", Origin("http", "host", 80, "/a/b"), "host"),
        ("http://host/a/v1beta", Origin("http", "host", 80, "/a/v1beta"), "host"),
    ],
)
def test_an_endpoint(url, origin, host_header):
    assert Origin.parse(url) == origin
    assert origin.netloc == host_header
    assert Origin.parse(str(origin)) == origin
    head = origin.head("POST", "/v1/completions", {"A": "b"})
    assert (
        head
        == f"POST {origin.prefix}/v1/completions HTTP/1.1\r\nHost: {host_header}\r\nA: b\r\nContent-Length: ".encode()
    )


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://host", "is no URL of the form"),
        ("", "is no URL of the form"),
        ("http://", "is no URL of the form"),
        ("http://:8000", "is no URL of the form"),
        ("//host", "is no URL of the form"),
        ("http://host:99999", "is no URL"),
        ("http://host:x", "is no URL"),
        ("http://host:-1", "is no URL"),
        ("http://host:0", "is no URL"),
        ("http://[::1", "is no URL"),
        # credentials live in the environment
        ("http://user:word@host", "neither credentials nor a query"),
        ("http://user@host", "neither credentials nor a query"),
        ("http://:word@host", "neither credentials nor a query"),
        ("http://host?key=word", "neither credentials nor a query"),
        ("http://host#there", "neither credentials nor a query"),
        # what would break out of the request's first lines
        ("http://host/a\r\nX: y", "characters that no URL has"),
        ("http://host/a b", "characters that no URL has"),
        ("http://ho\tst", "characters that no URL has"),
        ("http://host/\x00", "characters that no URL has"),
        ("http://höst", "characters that no URL has"),
        (" http://host", "characters that no URL has"),
    ],
)
def test_an_endpoint_that_is_refused(url, sentence):
    with pytest.raises(ConfigError) as refusal:
        Origin.parse(url)
    assert sentence in str(refusal.value)
    assert "word" not in str(refusal.value)


def test_a_request():
    head = Origin("http", "h", 80).head("GET", "/x", {})
    assert request_bytes(head, b"{}") == b"GET /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"


# -- a connection, fed by hand ----------------------------------------------------------------------------------------


class Wire:
    """A transport that notes how it is closed."""

    def __init__(self) -> None:
        self.closed = ""

    def write(self, data: bytes) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = self.closed or "close"

    def abort(self) -> None:
        self.closed = "abort"

    def is_closing(self) -> bool:
        return bool(self.closed)


class Keeper:
    """A pool that notes what becomes of the one connection."""

    def __init__(self) -> None:
        self.freed = 0
        self.lost_ones = 0

    def made(self, connection: Connection) -> None:
        pass

    def free(self, connection: Connection) -> None:
        assert not self.lost_ones, "a connection that is gone is offered for the next request"
        self.freed += 1

    def lost(self, connection: Connection) -> None:
        self.lost_ones += 1


class Heard(Receiver):
    """Notes what it is told; takes the body as it comes, patiently if asked."""

    def __init__(self, patient: bool = False) -> None:
        super().__init__()
        self.patient = patient
        self.data = b""
        self.ends: list[str] = []
        self.over = asyncio.Event()

    def body(self, connection: Connection) -> None:
        assert not self.ends
        self.data += b"".join(connection.take())
        if self.data:
            connection.patient = self.patient

    def end(self, connection: Connection) -> None:
        self.data += b"".join(connection.take())
        self.note(f"{connection.status} {self.data.decode()}")

    def failed(self, failure: QueryFailed) -> None:
        self.note(f"{failure.kind}: {failure}")

    def note(self, end: str) -> None:
        self.ends.append(end)
        self.over.set()


def fed(*packets: bytes, close: str = "", patient: bool = False) -> tuple[list[str], bool]:
    """How the request ended, and whether its connection may be used again."""
    keeper, wire, heard = Keeper(), Wire(), Heard(patient)
    connection = Connection(keeper)
    connection.connection_made(wire)
    connection.send(b"", heard)
    for packet in packets:
        if not wire.closed:
            connection.data_received(packet)
    if close:
        wire.closed = wire.closed or "close"
        connection.connection_lost(ConnectionResetError() if close == "RST" else None)
    assert keeper.freed <= 1
    return heard.ends, bool(keeper.freed) and not wire.closed


SOUND = {
    "content-length": (OK, "200 ab"),
    "header names of any case": (b"HTTP/1.1 200 OK\r\ncOnTeNt-lEnGtH: 2\r\n\r\nab", "200 ab"),
    "no reason phrase": (b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nab", "200 ab"),
    "no body": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 "),
    "a status that has no body": (b"HTTP/1.1 204 No Content\r\n\r\n", "204 "),
    "an error": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "404 no"),
    "chunks": (CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "200 abc"),
    "chunk sizes in hex": (
        CHUNKED + b"0A\r\n0123456789\r\nb\r\nabcdefghijk\r\n000\r\n\r\n",
        "200 0123456789abcdefghijk",
    ),
    "chunk extensions": (CHUNKED + b'2;a=b\r\nab\r\n1;c;d="e"\r\nc\r\n0;f\r\n\r\n', "200 abc"),
    "trailers": (CHUNKED + b"2\r\nab\r\n0\r\nX-Sum: 7\r\nX-More: 8\r\n\r\n", "200 ab"),
    "an empty body in chunks": (CHUNKED + b"0\r\n\r\n", "200 "),
    "line ends in the body": (CHUNKED + b"8\r\n\r\n0\r\n\r\n\n\r\n0\r\n\r\n", "200 \r\n0\r\n\r\n\n"),
    "100 before": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "200 ab"),
    "103 before": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 7\r\n\r\n" + OK, "200 ab"),
    "several before": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + CHUNKED + b"2\r\nab\r\n0\r\n\r\n",
        "200 ab",
    ),
}


CASES = [(name, False) for name in SOUND] + [(name, True) for name in SOUND if b"chunked" in SOUND[name][0]]


@pytest.mark.parametrize(("name", "patient"), CASES)
def test_a_response_ends_wherever_its_packets_are_cut(name, patient):
    """The end itself too: an answer must never wait for more than its last byte."""
    data, right = SOUND[name]
    ends = ([right], True)
    assert fed(data, patient=patient) == ends
    for first in range(1, len(data)):
        assert fed(data[:first], data[first:], patient=patient) == ends, f"cut at {first}"
        for second in range(max(first + 1, len(data) - 9), len(data)):
            cut = data[:first], data[first:second], data[second:]
            assert fed(*cut, patient=patient) == ends, f"cut at {first} and {second}"
    assert fed(*(data[i : i + 1] for i in range(len(data))), patient=patient) == ends


@pytest.mark.parametrize(
    "end", [b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"000;a=b\r\n\r\n"], ids=["plain", "trailer", "extension"]
)
def test_every_split_of_a_streams_end_ends_it(end):
    """In each way into packets, alone or behind the last frame, read patiently."""
    head, frame = CHUNKED + b"1\r\na\r\n", b"9\r\ndata: b\n\n\r\n"
    places = range(1, len(end)) if len(end) < 9 else range(len(end) - 7, len(end))
    for mask in range(1 << len(places)):
        cuts = [0, *(place for number, place in enumerate(places) if mask >> number & 1), len(end)]
        parts = [end[a:b] for a, b in pairwise(cuts)]
        for packets in (
            [head, frame, *parts],
            [head, frame + parts[0], *parts[1:]],
            [head, frame, frame + parts[0], *parts[1:]],
        ):
            body = "a" + "data: b\n\n" * sum(packet.count(b"data") for packet in packets)
            assert fed(*packets, patient=True) == ([f"200 {body}"], True), packets


def test_a_patient_connection_says_that_something_moves():
    heard, connection = Heard(patient=True), Connection(Keeper())
    connection.connection_made(Wire())
    connection.send(b"", heard)
    connection.data_received(CHUNKED + b"1\r\na\r\n")
    assert not connection.stirred
    for _ in range(3):
        connection.data_received(b"9\r\ndata: b\n\n\r\n")
    assert (connection.stirred, heard.data) == (True, b"a")
    connection.data_received(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")  # as much as it lets gather
    assert heard.data == b"a" + b"data: b\n\n" * 3 + b"x" * 0x1000


def test_what_was_held_back_is_read_when_the_connection_ends():
    head, frame = CHUNKED + b"1\r\na\r\n", b"9\r\ndata: b\n\n\r\n"
    heard, connection = Heard(patient=True), Connection(Keeper())
    connection.connection_made(Wire())
    connection.send(b"", heard)
    for packet in (head, frame, frame):
        connection.data_received(packet)
    connection.connection_lost(None)
    assert heard.data == b"adata: b\n\ndata: b\n\n"
    assert heard.ends == ["disconnected: the connection was closed by the replica before the answer's end"]


@pytest.mark.parametrize(
    "more",
    [
        b"x",
        b"garbage, and more of it\r\n",
        OK,
        b"HTTP/1.1 40",
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 3\r\n\r\nxyz",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
@pytest.mark.parametrize(
    ("response", "right"),
    [(OK, "200 ab"), (CHUNKED + b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n", "200 abcd")],
    ids=["length", "chunks"],
)
def test_bytes_after_the_end_are_no_part_of_the_answer(response, right, more):
    """Nobody has asked for them: the answer is right, and the connection is not used again."""
    assert fed(response + more) == ([right], False)
    assert fed(response + more, close="FIN") == ([right], False)
    assert fed(response[:-11], response[-11:] + more) == ([right], False)
    assert fed(response, more) == ([right], False)  # in a packet of its own


@pytest.mark.parametrize(
    "more",
    [
        b"x",
        b"garbage, and more of it",
        OK,
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 3\r\n\r\nxyz",
    ],
)
@pytest.mark.parametrize("close", ["", "FIN"])
def test_bytes_after_the_end_of_a_patient_stream(more, close):
    frame = b"9\r\ndata: b\n\n\r\n"
    packets = CHUNKED + b"1\r\na\r\n", frame, frame + b"0\r\n\r\n" + more
    assert fed(*packets, close=close, patient=True) == (["200 adata: b\n\ndata: b\n\n"], False)


@pytest.mark.parametrize("patient", [False, True], ids=["at once", "patient"])
def test_empty_lines_after_the_end_are_let_pass(patient):
    """RFC 9112, 2.2, of requests; llhttp does it for both sides. They are no part of anything."""
    ends, _ = fed(CHUNKED + b"1\r\na\r\n", b"9\r\ndata: b\n\n\r\n0\r\n\r\n\r\n\r\n", patient=patient)
    assert ends == ["200 adata: b\n\n"]


RESET = "disconnected: the connection was reset before "
CLOSED = "disconnected: the connection was closed by the replica before "


@pytest.mark.parametrize(
    ("data", "close", "end"),
    [
        # ends with its connection, which is therefore not used again
        (UNTIL_CLOSE + b"ab", "FIN", "200 ab"),
        (UNTIL_CLOSE, "FIN", "200 "),
        (b"HTTP/1.0 200 OK\r\n\r\nab", "FIN", "200 ab"),
        (UNTIL_CLOSE + b"ab", "RST", RESET + "the answer's end"),
        # the server says that it will close
        (OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), "", "200 ab"),
        (OK.replace(b"\r\n", b"\r\nconnection: Close\r\n", 1), "", "200 ab"),
        (OK.replace(b"\r\n", b"\r\nConnection: x, close\r\n", 1), "", "200 ab"),
        (OK.replace(b"1.1", b"1.0"), "", "200 ab"),
        # broken off
        (b"", "FIN", CLOSED + "its first byte"),
        (b"", "RST", RESET + "its first byte"),
        (OK[:9], "FIN", CLOSED + "the answer's end"),
        (OK[:30], "RST", RESET + "the answer's end"),
        (OK[:-1], "FIN", CLOSED + "the answer's end"),
        (OK[:-2], "RST", RESET + "the answer's end"),
        (CHUNKED + b"2\r\na", "FIN", CLOSED + "the answer's end"),
        (CHUNKED + b"2\r\nab\r\n", "FIN", CLOSED + "the answer's end"),
        (CHUNKED + b"2\r\nab\r\n", "RST", RESET + "the answer's end"),
        (CHUNKED + b"2\r\nab\r\n0\r\n", "FIN", CLOSED + "the answer's end"),
        (CHUNKED + b"2\r\nab\r\n0\r\nX: y\r\n", "FIN", CLOSED + "the answer's end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab", "FIN", CLOSED + "the answer's end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "FIN", CLOSED + "the answer's end"),
    ],
)
def test_a_connection_that_ends(data, close, end):
    ends, again = fed(data, close=close)
    if data.startswith(b"HTTP/1.1 100"):  # that was a first byte, of nothing
        end = ends[0] if ends[0].startswith(CLOSED) else end
    assert (ends, again) == ([end], False)
    if data:
        assert fed(*(data[i : i + 1] for i in range(len(data))), close=close) == ([end], False)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 2x0 OK\r\n",
        b"HTTP/1.1 20000 OK\r\n\r\n",
        b"HTTP/one 200 OK\r\n\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",  # HTTP/2
        b"\x15\x03\x01\x00\x02\x02\x46",  # TLS
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-2\r\n",
        CHUNKED + b"0x2\r\nab\r\n",
        CHUNKED + b"2\r\nabc\r\n",
        CHUNKED + b"2\r\nab\n0\r\n\r\n",
        CHUNKED + b"2\nab\r\n0\r\n\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
    ],
)
def test_bytes_that_are_no_http(data):
    for packets in ([data], [data[i : i + 1] for i in range(len(data))]):
        ends, again = fed(*packets, close="RST")
        assert (len(ends), again) == (1, False)
        assert ends[0].startswith("malformed: the replica sent no HTTP response ("), ends


@pytest.mark.parametrize(
    "more", [b"X-Pad: " + b"x" * 1000 + b"\r\n", b"HTTP/1.1 103 x\r\n\r\n"], ids=["one", "interim"]
)
def test_a_head_without_an_end(more):
    packets = [b"" if more.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n", *[more] * (100_000 // len(more))]
    assert fed(*packets[packets[0] == b"" :]) == (
        ["malformed: the replica sent a response head of more than 64 kB"],
        False,
    )


@pytest.mark.parametrize(
    "head", [UNTIL_CLOSE, b"HTTP/1.1 500 x\r\nContent-Length: 9000000\r\n\r\n"], ids=["until close", "length"]
)
def test_a_body_beyond_all_limits(monkeypatch, head):
    monkeypatch.setattr(http, "MAX_BODY", 3 << 20)
    connection, wire = Connection(Keeper()), Wire()
    told: list[str] = []
    heard = SimpleNamespace(body=lambda _: None, failed=lambda failure: told.append(str(failure)), connection=None)
    connection.connection_made(wire)
    connection.send(b"", heard)
    connection.data_received(head)
    for _ in range(3):
        assert told == []
        connection.data_received(b"x" * (1 << 20))
    assert told == ["the replica sent a response body of more than 3 MB"]
    assert wire.closed == "abort"


def test_a_stream_of_any_length_is_taken_piece_by_piece(monkeypatch):
    """The limit is on what is held, not on what has passed."""
    monkeypatch.setattr(http, "MAX_BODY", 3000)
    ends, again = fed(CHUNKED, *[b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 9, b"0\r\n\r\n")
    assert (ends, again) == (["200 " + "x" * 9000], True)


def test_a_receiver_that_gives_up_hears_nothing_more():
    class GivesUp(Heard):
        def body(self, connection: Connection) -> None:
            connection.drop()

    keeper, wire, heard = Keeper(), Wire(), GivesUp()
    connection = Connection(keeper)
    connection.connection_made(wire)
    connection.send(b"", heard)
    connection.data_received(CHUNKED + b"2\r\nab\r\n")
    connection.data_received(b"0\r\n\r\n")
    connection.connection_lost(None)
    assert (heard.ends, wire.closed, keeper.freed) == ([], "abort", 0)


def test_headers_are_found_in_any_case_and_gone_with_their_response():
    seen: list[Any] = []

    class Looks(Heard):
        def end(self, connection: Connection) -> None:
            seen.append(connection.header(b"retry-after"))

    keeper = Keeper()
    connection = Connection(keeper)
    connection.connection_made(Wire())
    for response in (OK.replace(b"\r\n", b"\r\nRETRY-after: 7\r\n", 1), OK):
        connection.send(b"", Looks())
        connection.data_received(response)
    assert seen == [b"7", None]


# -- a pool and a server ----------------------------------------------------------------------------------------------

Step = bytes | float | str


class Server:
    """Answers each request with the next script: bytes are written, seconds waited; FIN and RST end the connection."""

    def __init__(self, scripts: Sequence[Sequence[Step]]) -> None:
        self.scripts = deque(scripts)
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""

    @property
    def asked_on(self) -> list[int]:
        """The number of the connection that each request came on."""
        return [number for number, _ in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append((number, await reader.readexactly(length)))
                for step in self.scripts.popleft() if self.scripts else [OK]:
                    await self.take(step, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def take(self, step: Step, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        elif isinstance(step, float):
            await asyncio.sleep(step)
        else:
            if step == "RST":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            raise ConnectionError(step)


@asynccontextmanager
async def serving(*scripts: Sequence[Step], tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(scripts)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls, backlog=256)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)


def asking(pool: Pool, body: bytes = b"") -> bytes:
    return request_bytes(pool.origin.head("POST", "/", {}), body)


async def ask(pool: Pool, body: bytes = b"", patient: bool = False) -> str:
    """Send a request; how it ends, and that it ends once."""
    heard = Heard(patient)
    pool.send(asking(pool, body), heard)
    await heard.over.wait()
    await asyncio.sleep(0)
    assert len(heard.ends) == 1
    return heard.ends[0]


def session(*scripts: Sequence[Step], tls: ssl.SSLContext | None = None) -> Callable[[Any], Any]:
    """Runs a test's body with a server and a pool for it, and sees that no connection stays open."""

    def decorate(body: Callable[[Server, Pool], Coroutine[Any, Any, Any]]) -> Any:
        async def whole() -> Any:
            async with serving(*scripts, tls=tls) as server:
                pool = Pool(Origin.parse(server.url))
                result = await body(server, pool)
                pool.close()
                await asyncio.sleep(0.02)
                assert not pool._open
                return result

        return run(whole())

    return decorate


def test_a_connection_is_kept_and_used_again():
    @session()
    async def _(server, pool):
        assert [await ask(pool, str(n).encode()) for n in range(3)] == ["200 ab"] * 3
        assert server.requests == [(0, b"0"), (0, b"1"), (0, b"2")]


def test_the_connection_used_last_is_used_next():
    @session([OK], [0.08, OK], [0.04, OK])
    async def _(server, pool):
        asks = []
        for _ in range(3):
            asks.append(asyncio.create_task(ask(pool)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*asks)
        last = server.asked_on[1]
        assert await ask(pool) == "200 ab"
        assert server.asked_on[3] == last
        await asyncio.gather(ask(pool), ask(pool))
        assert sorted(server.asked_on[4:]) == sorted([last, server.asked_on[2]])  # the coldest stays alone


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch):
    monkeypatch.setattr(http, "IDLE_LIMIT", 0.05)

    @session()
    async def _(server, pool):
        await pool.warm(3)
        await asyncio.sleep(0.1)
        assert [await ask(pool), await ask(pool)] == ["200 ab"] * 2
        assert server.connections == 4
        assert server.asked_on == [3, 3]
        await asyncio.sleep(0.02)
        assert len(pool._open) == 1


def test_a_connection_that_the_server_has_closed_is_not_used():
    @session([OK, "FIN"], [OK, "RST"])
    async def _(server, pool):
        for number in range(3):
            assert await ask(pool) == "200 ab"
            await asyncio.sleep(0.02)
            assert server.asked_on[-1] == number


def test_unsolicited_bytes_end_an_idle_connection():
    @session([OK, 0.03, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
    async def _(server, pool):
        assert await ask(pool) == "200 ab"
        await asyncio.sleep(0.08)
        assert not pool._open
        assert (await ask(pool), server.asked_on) == ("200 ab", [0, 1])


@pytest.mark.parametrize(
    ("script", "end", "kept"),
    [
        ([OK], "200 ab", True),
        ([OK[:9], 0.01, OK[9:40], 0.01, OK[40:]], "200 ab", True),
        ([CHUNKED, 0.01, b"2\r\nab\r\n", 0.01, b"0\r\n\r\n"], "200 ab", True),
        ([b"HTTP/1.1 103 x\r\n\r\n", 0.01, OK], "200 ab", True),
        ([b"HTTP/1.1 103 x\r\n\r\n" + OK[:-1], 0.01, OK[-1:]], "200 ab", True),
        ([OK.replace(b"1.1", b"1.0")], "200 ab", False),
        ([OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)], "200 ab", False),
        ([OK + b"more"], "200 ab", False),
        ([UNTIL_CLOSE + b"a", 0.01, b"b", 0.01, "FIN"], "200 ab", False),
        ([UNTIL_CLOSE + b"a", 0.01, b"b", 0.03, "RST"], RESET + "the answer's end", False),
        (["FIN"], CLOSED + "its first byte", False),
        (["RST"], RESET + "its first byte", False),
        ([OK[:20], 0.01, "FIN"], CLOSED + "the answer's end", False),
        ([CHUNKED + b"2\r\nab\r\n", 0.03, "RST"], RESET + "the answer's end", False),
        ([CHUNKED + b"2\r\nab\r\n", 0.01, "FIN"], CLOSED + "the answer's end", False),
        ([b"nonsense\r\n"], "malformed: the replica sent no HTTP response (", False),
        ([CHUNKED + b"2\r\nab\r\n", 0.01, b"zz\r\n"], "malformed: the replica sent no HTTP response (", False),
        (
            [b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000, 0.01],
            "malformed: the replica sent a response head",
            False,
        ),
    ],
)
@pytest.mark.parametrize("patient", [False, True], ids=["at once", "patient"])
def test_a_response_over_a_real_connection(script, end, kept, patient):
    """Ends once, and the next request is answered on the same connection or on a new one."""

    @session(script)
    async def _(server, pool):
        assert (await ask(pool, patient=patient)).startswith(end)
        await asyncio.sleep(0.02)
        assert await ask(pool) == "200 ab"
        assert server.asked_on == ([0, 0] if kept else [0, 1])


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("trailer", [b"", b"X: y\r\n"], ids=["plain", "trailer"])
def test_a_streams_end_in_two_packets_over_a_real_connection(cut, trailer):
    end = b"0\r\n" + trailer + b"\r\n"
    frame = b"9\r\ndata: b\n\n\r\n"
    at = len(end) - cut

    @session([CHUNKED + b"1\r\na\r\n", 0.01, frame, 0.01, frame + end[:at], 0.02, end[at:]])
    async def _(server, pool):
        assert await ask(pool, patient=True) == "200 adata: b\n\ndata: b\n\n"
        assert await ask(pool) == "200 ab"
        assert server.connections == 1


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_refused_connection_fails_all_that_wait():
    async def talk() -> tuple[list[str], int]:
        pool = Pool(Origin("http", "127.0.0.1", closed_port()))
        ends = await asyncio.gather(*(ask(pool) for _ in range(100)))
        return ends, len(pool._wanted)

    ends, left = run(talk())
    assert left == 0
    assert len(set(ends)) == 1
    assert ends[0].startswith("unreachable: cannot connect to http://127.0.0.1:")
    assert "refused" in ends[0]


def test_a_connection_that_is_not_made_in_time(monkeypatch):
    monkeypatch.setattr(http, "CONNECT_LIMIT", 0.05)

    async def talk() -> str:
        with socket.socket() as full:  # accepts nothing: its queue of connections is full
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            others = [socket.socket() for _ in range(4)]
            for other in others:
                other.setblocking(False)
                other.connect_ex(address)
            try:
                return await ask(Pool(Origin("http", *address)))
            finally:
                for other in others:
                    other.close()

    assert run(talk()).endswith(": no connection within 0.05 s")


def test_a_host_that_is_not_known():
    async def talk() -> None:
        await Pool(Origin("http", "host.invalid", 80)).resolve()

    with pytest.raises(socket.gaierror):
        run(talk())


def test_a_name_with_an_address_that_nobody_listens_on():
    """localhost is ::1 and 127.0.0.1, and many a server listens on the latter only."""

    @session()
    async def _(server, pool):
        port = pool.origin.port
        loop = asyncio.get_running_loop()

        class Names:
            """The loop, with a name service of its own."""

            def __getattr__(self, name: str) -> Any:
                return getattr(loop, name)

            async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
                one = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*one, ("127.0.0.2", port)), (*one, ("127.0.0.1", port))]

        named = Pool(Origin("http", "localhost", port))
        named._loop = Names()
        await named.resolve()
        assert await ask(named) == "200 ab"
        named.close()


def test_dropped_requests_reach_no_receiver_and_no_server(monkeypatch):
    monkeypatch.setattr(http, "CONNECTING_AT_ONCE", 1)

    @session([0.05, OK], [OK])
    async def _(server, pool):
        flying, waiting, last = Heard(), Heard(), Heard()
        pool.send(asking(pool, b"flying"), flying)
        await asyncio.sleep(0.02)
        pool.send(asking(pool, b"waiting"), waiting)
        pool.drop(waiting)  # before a connection is there
        pool.drop(flying)  # its answer is on its way
        pool.send(asking(pool, b"last"), last)
        await last.over.wait()
        await asyncio.sleep(0.08)
        assert (flying.ends, waiting.ends, last.ends) == ([], [], ["200 ab"])
        assert [body for _, body in server.requests] == [b"flying", b"last"]
        pool.drop(last)  # after its end: nothing happens
        assert await ask(pool) == "200 ab"


def test_dropped_requests_are_not_told_that_nobody_listens():
    async def talk() -> tuple[list[str], list[str]]:
        pool = Pool(Origin("http", "127.0.0.1", closed_port()))
        dropped, kept = Heard(), Heard()
        for receiver in (dropped, kept):
            pool.send(b"", receiver)
        pool.drop(dropped)
        await kept.over.wait()
        await asyncio.sleep(0.02)
        return dropped.ends, [end.partition(":")[0] for end in kept.ends]

    assert run(talk()) == ([], ["unreachable"])


def test_only_so_many_connections_are_made_at_once(monkeypatch):
    monkeypatch.setattr(http, "CONNECTING_AT_ONCE", 3)
    most = 0

    class Counting(Pool):
        async def _connect(self) -> None:
            nonlocal most
            most = max(most, self._connecting)
            await super()._connect()

    @session(*[[0.02, OK]] * 40)
    async def _(server, pool):
        counting = Counting(pool.origin)
        assert await asyncio.gather(*(ask(counting) for _ in range(40))) == ["200 ab"] * 40
        assert most == 3
        counting.close()
        again = Counting(pool.origin)
        await again.warm(10)
        assert (most, len(again._open), len(again._idle)) == (3, 10, 10)
        await again.warm(10)
        assert len(again._open) == 10
        again.close()


def test_what_waits_goes_out_in_order(monkeypatch):
    monkeypatch.setattr(http, "CONNECTING_AT_ONCE", 1)

    @session(*[[0.01, OK]] * 9)
    async def _(server, pool):
        await asyncio.gather(*(ask(pool, str(n).encode()) for n in range(9)))
        assert [body for _, body in server.requests] == [str(n).encode() for n in range(9)]


FEW_FILES = """
import asyncio, json, os, resource, sys, uvloop
from sut.backends.http import Origin, Pool, fetch, request_bytes

async def talk(url, warm):
    pool = Pool(Origin.parse(url))
    request = request_bytes(pool.origin.head("POST", "/", {}), b"")
    await pool.warm(warm)
    spare = os.dup(0)  # the next number that a file gets
    os.close(spare)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare if warm else spare + 2, most))
    answers = await asyncio.gather(*(fetch(pool, request, 10) for _ in range(20)), return_exceptions=True)
    pool.close()
    return sorted({str(answer) for answer in answers})

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    print(json.dumps(runner.run(talk(sys.argv[1], int(sys.argv[2])))))
"""


@pytest.mark.parametrize(
    "warm",
    [
        2,  # two connections are open, and no file is left
        0,  # none is open, and there are files for two
    ],
)
def test_without_free_files_requests_wait_for_a_connection(warm):
    @session(*[[0.01, OK]] * 20)
    async def told(server, pool):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FEW_FILES, server.url, str(warm)),
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        output, _ = await child.communicate()
        assert server.connections <= 2
        return json.loads(output)

    assert told == ["(200, b'ab')"]


def test_without_any_file_the_reason_is_said():
    message = http.reason(OSError(24, "Too many open files"))
    assert message == "too many open files: raise the limit (ulimit -n)"


# -- one request off the hot path -------------------------------------------------------------------------------------


def test_fetch():
    @session([b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"], ["FIN"], [OK], ["FIN"], ["FIN"], [0.2, OK])
    async def _(server, pool):
        request = asking(pool)
        assert await fetch(pool, request, 5.0) == (404, b"no")
        assert await fetch(pool, request, 5.0) == (200, b"ab")  # asks again where a kept connection has ended
        with pytest.raises(QueryFailed, match="closed by the replica"):
            await fetch(pool, request, 5.0)
        with pytest.raises(TimeoutError):
            await fetch(pool, request, 0.05)
        assert await fetch(pool, request, 5.0) == (200, b"ab")
        assert server.asked_on == [0, 0, 1, 1, 2, 3, 4]  # the late answer's connection is gone


def test_fetch_from_nobody():
    async def talk() -> None:
        await fetch(Pool(Origin("http", "127.0.0.1", closed_port())), b"", 5.0)

    with pytest.raises(Unreachable):
        run(talk())


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority's certificate (ca.pem) and those that it has signed, for 127.0.0.1 and another."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl")
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, names in (("here", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere.invalid")):
        (folder / "names").write_text(f"subjectAltName={names}\n")
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


@pytest.mark.parametrize(
    ("certificate", "ca_file", "insecure", "end"),
    [
        ("here", True, False, "200 ab"),
        ("here", False, True, "200 ab"),  # --insecure: whoever it is
        ("elsewhere", False, True, "200 ab"),
        ("here", False, False, "its certificate is not accepted (unable to get local issuer certificate)"),
        ("elsewhere", True, False, "its certificate is not accepted (IP address mismatch"),
    ],
)
def test_tls(authority, certificate, ca_file, insecure, end):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority / f"{certificate}.pem", authority / f"{certificate}.key")
    plan = Plan(
        1, "M", "auto", None, Generation(8), ca_file=authority / "ca.pem" if ca_file else None, insecure=insecure
    )

    async def talk() -> list[str]:
        async with serving(tls=tls) as server:
            pool = Pool(Origin.parse(server.url), tls_context(plan.ca_file, plan.insecure))
            await pool.resolve()
            ends = [await ask(pool), await ask(pool)]
            pool.close()
            await asyncio.sleep(0.05)
            assert not pool._open
            return ends

    ends = run(talk())
    if end.startswith("200"):
        assert ends == [end] * 2
    else:
        assert ends[0].startswith("unreachable: cannot connect to https://127.0.0.1:")
        assert end in ends[0]
        assert ends[0].endswith("; name its authority with --ca-file")


def test_http_where_tls_is_spoken(authority, monkeypatch):
    """And the other way round: each is one failure, in words."""
    monkeypatch.setattr(http, "CONNECT_LIMIT", 0.3)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority / "here.pem", authority / "here.key")

    async def talk(speaks: ssl.SSLContext | None, asks: ssl.SSLContext | None) -> str:
        async with serving(tls=speaks) as server:
            pool = Pool(Origin.parse(server.url.replace("https", "http")), asks)
            end = await ask(pool)
            pool.close()
            return end

    assert run(talk(tls, None)).startswith(("malformed: ", "disconnected: "))
    assert run(talk(None, ssl.create_default_context(cafile=authority / "ca.pem"))).startswith("unreachable: ")
