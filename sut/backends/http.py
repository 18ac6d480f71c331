"""HTTP/1.1 over asyncio transports: connections, requests, response bytes. Knows no LLM.

The whole budget on the loop is 50 µs a request and 1 µs an event. So a request is bytes that were ready before, a
connection is one Protocol that carries one request at a time, and llhttp (httptools) calls straight into lists and
dicts: no Python function runs per header or per chunk (scripts/bench_parse.py).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from sut.errors import (
    Busy,
    ConfigError,
    Disconnected,
    Malformed,
    QueryFailed,
    Rejected,
    ServerError,
    SetupError,
    Unreachable,
)

KEY = "LOADGEN_HARNESS_API_KEY"
"""The environment variable of the API key, the only place where it is."""

MAX_HEAD = 64 * 1024
MAX_BODY = 512 * 1024 * 1024
"""Bytes of a head, and of a body that is read as a whole: an Offline batch of thousands of long answers fits."""

IDLE_LIMIT = 4.0
"""Seconds after which an idle connection is not used again. uvicorn, and so vLLM, closes after 5: a request that meets
the closing would be lost."""

CONNECT_LIMIT = 10.0
"""Seconds until a connection that is not made has failed."""

CONNECTING_AT_ONCE = 64

PATIENCE = 4096
"""Bytes of a stream that may gather before they are looked at, once its first token has been reported."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is: scheme, host and port, and the path before its routes."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Origin:
        """From a URL such as http://host:8000/prefix; a final /v1 is left out. Raises ConfigError."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port if parts.port is not None else 443 if parts.scheme == "https" else 80
        except ValueError as error:
            raise ConfigError(f"the endpoint {url!r} is no URL: {error}.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not port:
            raise ConfigError(f"the endpoint {url!r} is no URL of the form http://host:port.")
        try:
            parts.hostname.encode("idna")
        except UnicodeError as error:
            raise ConfigError(f"the endpoint {url!r} has a host name that cannot be one.") from error
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "an endpoint's URL holds neither credentials nor a query: the API key comes from the environment "
                f"variable {KEY}."
            )
        if any(ord(letter) <= 32 or ord(letter) > 126 for letter in url):
            raise ConfigError(f"the endpoint {url!r} has characters that no URL has.")
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"))

    @property
    def netloc(self) -> str:
        """As the Host header has it: brackets around IPv6, no port that the scheme implies."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        implied = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == implied else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"

    def head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        """A request's head up to the value of Content-Length."""
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: {self.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


def request_bytes(head: bytes, body: bytes) -> bytes:
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)


class Receiver:
    """Whom a response is for. Of a request that is sent, exactly one of `end` and `failed` is called, once, unless it
    is dropped before."""

    __slots__ = ("connection", "dropped")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.dropped = False

    def body(self, connection: Connection) -> None:
        """Head and some of the body are there; what is taken out of `connection.pieces` does not come again."""

    def end(self, connection: Connection) -> None:
        """The response is complete, as HTTP understands it."""

    def failed(self, failure: QueryFailed) -> None:
        """There will be no complete response."""


class Events:
    """What llhttp calls: the C methods of plain containers, and `complete` once per response. `marks` are B(egin),
    H(ead) and E(nd) in order."""

    __slots__ = ("on_body", "on_header", "on_headers_complete", "on_message_begin", "on_message_complete")

    def __init__(
        self, pieces: list[bytes], headers: dict[bytes, bytes], marks: list[str], complete: Callable[[], None]
    ) -> None:
        self.on_body = pieces.append
        self.on_header = headers.__setitem__
        self.on_message_begin = partial(marks.append, "B")
        self.on_headers_complete = partial(marks.append, "H")
        self.on_message_complete = complete


class Connection(asyncio.Protocol):
    """A keep-alive connection that carries one request at a time."""

    __slots__ = ("_held", "_held_size", "_last", "_marks", "_parser", "_pool", "_size", "headers", "idle_since",
                 "patient", "pieces", "receiver", "stirred", "transport")  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.transport: Any = None
        self.receiver: Receiver | None = None
        self.idle_since = 0.0
        self.pieces: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}
        self._marks: list[str] = []
        self._last: tuple[int, str, int, dict[bytes, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(Events(self.pieces, self.headers, self._marks, self._message_read))
        self._held: list[bytes] = []
        self._held_size = 0
        self._size = 0
        self.patient = False  # after this is set, bytes may gather that nobody has looked at
        self.stirred = False  # and this says that some have come

    # -- what a receiver asks ----------------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return self._last[0] if self._last is not None else int(self._parser.get_status_code())

    def header(self, name: bytes) -> bytes | None:
        """A header's value, whatever the case of its name."""
        for key in self.headers:
            if key.lower() == name:
                return self.headers[key]
        return None

    def take(self) -> list[bytes]:
        """The pieces of the body that have come since the last call: of a chunked body, its chunks."""
        pieces = self.pieces[:]
        self.pieces.clear()
        self._size = 0
        return pieces

    @property
    def size(self) -> int:
        """Bytes that have come since `take` was called last; for the first time, the head's too."""
        return self._size

    # -- what the pool asks ------------------------------------------------------------------------------------------

    def send(self, request: bytes, receiver: Receiver) -> None:
        self.receiver = receiver
        receiver.connection = self
        self.patient = self.stirred = False
        self._size = 0
        self.pieces.clear()
        self.headers.clear()
        self._marks.clear()
        self._last = None
        self.transport.write(request)

    def drop(self) -> None:
        """Forget the request in flight, and the connection with it."""
        if self.receiver is not None:
            self.receiver.connection = None
            self.receiver = None
        self.transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:  # nobody has asked for anything
            self.transport.abort()
            return
        if self.patient:
            self._held.append(data)
            self._held_size += len(data)
            self.stirred = True
            # Only whole events in whole chunks wait: never the end, nor what follows it, nor what is no HTTP.
            if self._held_size < PATIENCE and data.endswith(b"\n\n\r\n"):
                return
            data = self._unheld()
        self._feed(receiver, data)

    def eof_received(self) -> None:
        """Returning nothing closes the transport: whatever was to come has come."""

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self)
        receiver = self.receiver
        if receiver is not None and self._held:
            self._feed(receiver, self._unheld())
            receiver = self.receiver
        if receiver is None:
            return
        self.receiver = receiver.connection = None
        if error is None and self._ends_with_connection():
            receiver.end(self)
        else:
            what = "was reset" if error else "was closed by the replica"
            when = "before its first byte" if not self._marks else "before the answer's end"
            receiver.failed(Disconnected(f"the connection {what} {when}"))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _unheld(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        return data

    def _feed(self, receiver: Receiver, data: bytes) -> None:
        marks = self._marks
        fault = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:  # nobody has asked for an upgrade
            fault = f"{type(error).__name__}: {error}"
        if "E" in marks:
            self._complete(receiver, tainted=fault is not None or marks[-1] != "E")
            return
        self._size += len(data)
        if fault is not None:
            self._refuse(receiver, f"no HTTP response ({fault})")
        elif "H" not in marks:
            if self._size > MAX_HEAD:
                self._refuse(receiver, f"a response head of more than {MAX_HEAD // 1024} kB")
        elif self._size > MAX_BODY:
            self._refuse(receiver, f"a response body of more than {MAX_BODY >> 20} MB")
        else:
            receiver.body(self)

    def _message_read(self) -> None:
        """llhttp has come to an end, maybe in the middle of a packet: what follows is of another response."""
        if self._last is not None:  # that one, which nobody has asked for
            return
        status = int(self._parser.get_status_code())
        if status < 200:  # an interim response, such as 103: the real one follows
            self._marks.clear()
            self.headers.clear()
            return
        self._marks.append("E")
        # llhttp's own should_keep_alive() has forgotten the headers when the packet is read.
        self._last = status, self._parser.get_http_version(), len(self.pieces), self.headers.copy()

    def _complete(self, receiver: Receiver, tainted: bool) -> None:
        """The receiver reads what it wants of the response; then the connection is free for the next request."""
        self.receiver = None
        receiver.connection = None
        pieces, headers = self.pieces, self.headers
        assert self._last is not None
        _, version, length, own = self._last
        if tainted:
            del pieces[length:]
            headers.clear()
            headers.update(own)
        closing = b"close" in (self.header(b"connection") or b"").lower() or version == "1.0"
        receiver.end(self)
        pieces.clear()
        headers.clear()
        if tainted or closing or self.transport.is_closing():
            self.transport.close()
        else:
            self._pool.free(self)

    def _refuse(self, receiver: Receiver, what: str) -> None:
        self.drop()
        receiver.failed(Malformed(f"the replica sent {what}"))

    def _ends_with_connection(self) -> bool:
        """Whether the response is one whose body has no other end."""
        framed = self.header(b"content-length") or self.header(b"transfer-encoding")
        return "H" in self._marks and framed is None


def keep_alive(connection: socket.socket | None) -> None:
    """Have the kernel notice within half a minute that the host at the other end is gone: nothing else would, while we
    wait for an answer and send nothing."""
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Pool:
    """Connections to one server, made as they are needed and kept: the one used last is used next, so it is warm."""

    def __init__(self, origin: Origin, context: ssl.SSLContext | None = None) -> None:
        self.origin = origin
        self._context = context
        self._address = origin.host
        self._idle: dict[Connection, None] = {}  # the one used last at the end
        self._open: set[Connection] = set()
        self._wanted: deque[tuple[bytes, Receiver]] = deque()
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def resolve(self) -> None:
        """Look the host up once, not per connection, and keep the first address that somebody listens on; the first
        of all if nobody does. Raises OSError for a name that nobody knows."""
        found = await self._loop.getaddrinfo(self.origin.host, self.origin.port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        self._address = addresses[0]
        for address in addresses if len(addresses) > 1 else []:
            with suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(CONNECT_LIMIT):
                    transport, _ = await self._loop.create_connection(asyncio.Protocol, address, self.origin.port)
                transport.close()
                self._address = address
                return

    async def warm(self, count: int) -> None:
        """Have so many connections open before the clock starts."""
        missing = max(0, count - len(self._open) - self._connecting)
        for start in range(0, missing, CONNECTING_AT_ONCE):
            batch = min(CONNECTING_AT_ONCE, missing - start)
            self._connecting += batch
            await asyncio.gather(*(self._connect() for _ in range(batch)))

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Send a request on an idle connection, or on the first that is made or becomes free."""
        now = self._loop.time()
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.transport.is_closing():
                continue
            if now - connection.idle_since > IDLE_LIMIT:  # and those below it are older still
                connection.transport.close()
                continue
            connection.send(request, receiver)
            return
        self._wanted.append((request, receiver))
        self._connect_more()

    def drop(self, receiver: Receiver) -> None:
        """Forget a request, wherever it is; its receiver hears nothing any more."""
        receiver.dropped = True
        if receiver.connection is not None:
            connection, receiver.connection = receiver.connection, None
            connection.drop()

    def close(self) -> None:
        self._closed = True
        for connection in list(self._open):
            connection.drop()
        for task in self._tasks:
            task.cancel()

    # -- called by connections ---------------------------------------------------------------------------------------

    def made(self, connection: Connection) -> None:
        self._open.add(connection)
        self.free(connection)

    def free(self, connection: Connection) -> None:
        while self._wanted:
            request, receiver = self._wanted.popleft()
            if not receiver.dropped:
                connection.send(request, receiver)
                return
        connection.idle_since = self._loop.time()
        self._idle[connection] = None

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._connect_more()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _connect_more(self) -> None:
        while self._connecting < min(len(self._wanted), CONNECTING_AT_ONCE) and not self._closed:
            self._connecting += 1
            task = self._loop.create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make(self) -> None:
        host = self.origin.host if self._context else None
        transport, _ = await self._loop.create_connection(
            lambda: Connection(self), self._address, self.origin.port, ssl=self._context, server_hostname=host
        )
        keep_alive(transport.get_extra_info("socket"))

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                await self._make()
        except OSError as error:
            self._connecting -= 1
            self._not_made(error)
        else:
            self._connecting -= 1
            self._connect_more()

    def _not_made(self, error: OSError) -> None:
        """What waits for a connection fails with it; but for want of our own resources, it waits for a free one."""
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL) and (self._open or self._connecting):
            return
        failure = Unreachable(f"cannot connect to {self.origin}: {reason(error)}")
        wanted, self._wanted = self._wanted, deque()
        for _, receiver in wanted:
            if not receiver.dropped:
                receiver.failed(failure)


def reason(error: OSError) -> str:
    """Why a connection could not be made, in words."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no connection within {CONNECT_LIMIT:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message}); name its authority with --ca-file"
    if error.errno == errno.EMFILE:
        return "too many open files: raise the limit (ulimit -n)"
    return (error.strerror or str(error) or type(error).__name__).strip()


def tls_context(ca_file: Path | str | None, insecure: bool) -> ssl.SSLContext:
    """How certificates are judged. Raises SetupError for a file that holds none."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"cannot read the certificates in {ca_file}: {error}.") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Whole(Receiver):
    """Waits for a whole response, of not much more than `most` bytes."""

    def __init__(self, most: int = MAX_BODY) -> None:
        super().__init__()
        self._most = most
        self.response: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def body(self, connection: Connection) -> None:
        if connection.size > self._most:
            connection.drop()
            self.failed(Malformed(f"the replica sent a response of more than {self._most >> 20} MB"))

    def end(self, connection: Connection) -> None:
        if not self.response.done():
            self.response.set_result((connection.status, b"".join(connection.take())))

    def failed(self, failure: QueryFailed) -> None:
        if not self.response.done():
            self.response.set_exception(failure)


async def fetch(pool: Pool, request: bytes, limit: float, most: int = MAX_BODY) -> tuple[int, bytes]:
    """Status and body of one request, off the hot path. Raises a QueryFailed, or TimeoutError after `limit` seconds.

    Asks twice if a kept connection was just being closed: some servers do so after an error, without a word.
    """
    try:
        return await _fetch_once(pool, request, limit, most)
    except Disconnected:
        return await _fetch_once(pool, request, limit, most)


async def _fetch_once(pool: Pool, request: bytes, limit: float, most: int) -> tuple[int, bytes]:
    receiver = Whole(most)
    pool.send(request, receiver)
    try:
        async with asyncio.timeout(limit):
            return await receiver.response
    finally:
        if not receiver.response.done() or receiver.response.cancelled():
            pool.drop(receiver)


# -- what a server says when it refuses ------------------------------------------------------------------------------

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading JSON may raise."""


def failure_of(status: int, body: bytes, retry_after: bytes | None) -> QueryFailed:
    """What an HTTP status other than 200 means for the queries of the request."""
    text = f"HTTP {status}: {message_of(body)}" if body.strip() else f"HTTP {status}"
    if status in (429, 503):
        return Busy(text, pause_of(retry_after), status)
    return ServerError(text, status) if status >= 500 else Rejected(text, status)


def message_of(body: bytes) -> str:
    """The sentence in an error's body, wherever its server puts it; without the API key, which some repeat."""
    with suppress(*UNREADABLE):
        content = msgspec.json.decode(body)
        while isinstance(content, dict):
            content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), "")
        if isinstance(content, str) and content:
            return hide(content)[:200]
    return excerpt(body)


def pause_of(retry_after: bytes | None) -> float:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); 1 without one, never less than 0.1."""
    text = (retry_after or b"1").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return max(0.1, float(text[:9]))
    try:
        return max(0.1, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, OverflowError):
        return 1.0


def excerpt(data: bytes) -> str:
    """The beginning of what a server sent, for a message; the API key is hidden before anything is cut."""
    text = hide(data[:4096].decode(errors="replace"))
    return repr(text[:120] + "…" if len(text) > 120 else text)


def hide(text: str) -> str:
    """A server's words without the API key, which some repeat."""
    key = os.environ.get(KEY)
    return text.replace(key, "***") if key else text
