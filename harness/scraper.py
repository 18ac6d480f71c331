"""Servers' /metrics, asked once a second over one connection each, with limits on time and size.

A whole page costs vLLM's front end 5 ms of the interpreter that answers our queries, and has 50 kB. Prometheus' own
server for Python, which vLLM mounts under /metrics/, makes only the metrics that a query names (`?name[]=…`): 0.1 ms
and 1 kB. So that is asked first, and the whole page where a server does not know it.

TLS, the API key and how a server's words are quoted are those of the queries (sut/backends/http.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from math import ceil
from ssl import SSLContext
from time import perf_counter

from harness.exposition import FAMILIES, read_gauges
from sut.backends.http import Origin, Pool, fetch, request_bytes, tls_context
from sut.backends.probe import headers
from sut.errors import QueryFailed

INTERVAL = 1.0
"""Seconds between two looks at a server; one that takes longer to answer is asked again when it has."""

SCRAPE_LIMIT = 5.0
FIRST_LIMIT = 1.5
LAST_LIMIT = 1.0
"""Seconds that a server has for its metrics; before the test and after it, when somebody waits, less."""

MAX_PAGE = 8 << 20
"""Bytes of a /metrics page; vLLM's has some 40 kB."""

NAMES = sorted(name.decode() for family in FAMILIES.values() for names in family.values() for name in names)
NARROW = "/?" + "&".join(f"name%5B%5D={name}" for name in NAMES)
WHOLE = ""
"""What follows /metrics in a request for the metrics that matter, and for all."""

Write = Callable[[str, "Mapping[str, float] | str"], None]


async def scrape_all(
    servers: Mapping[str, str],
    ca_file: str | None,
    insecure: bool,
    write: Write,
    first: threading.Event,
    stop: threading.Event,
) -> None:
    """Read the pages of all servers (URLs by source) until `stop`, and then once more; `first` is set after the first
    round. The servers are asked in turn over the second: neither they nor we have all to do at once."""
    secure = any(url.startswith("https:") for url in servers.values())
    context = tls_context(ca_file, insecure) if secure else None
    pages = [Page(source, url, context, write) for source, url in servers.items()]
    await asyncio.gather(*(page.read(FIRST_LIMIT) for page in pages))
    first.set()
    began = perf_counter()
    tasks = [asyncio.create_task(page.read_on(began + INTERVAL * n / len(pages))) for n, page in enumerate(pages)]
    await asyncio.to_thread(stop.wait)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(page.read(LAST_LIMIT) for page in pages))
    for page in pages:
        page.close()


class Page:
    """One server's /metrics."""

    def __init__(self, source: str, url: str, context: SSLContext | None, write: Write) -> None:
        origin = Origin.parse(url)
        self._pool = Pool(origin, context if origin.scheme == "https" else None)
        self._requests = {way: request_bytes(origin.head("GET", way, headers()), b"") for way in (NARROW, WHOLE)}
        self._ways: tuple[str, ...] = (NARROW, WHOLE)
        self._resolved = False
        self._source = source
        self._write = write

    def close(self) -> None:
        self._pool.close()

    async def read_on(self, begin: float) -> None:
        """Each second from that moment on."""
        while True:
            turn = ceil((perf_counter() - begin) / INTERVAL + 0.01)  # a timer may ring a little early
            await asyncio.sleep(max(0.0, begin + max(0, turn) * INTERVAL - perf_counter()))
            await self.read(SCRAPE_LIMIT)

    async def read(self, limit: float) -> None:
        """Ask once, and write what was found, or in words why nothing was."""
        try:
            async with asyncio.timeout(limit):
                found = await self._ask(limit)
        except TimeoutError:
            found = f"/metrics did not answer within {limit:g} s"
        except OSError as error:
            found = f"the server's host is not known ({error.strerror or error})"
        except QueryFailed as error:
            found = f"/metrics could not be read: {error}"
        if isinstance(found, str):
            self._resolved = False  # it may come back with another address, or as another server
            self._ways = (NARROW, WHOLE)
        self._write(self._source, found)

    async def _ask(self, limit: float) -> Mapping[str, float] | str:
        if not self._resolved:
            await self._pool.resolve()
            self._resolved = True
        why = ""
        for way in self._ways:
            status, page = await fetch(self._pool, self._requests[way], limit, MAX_PAGE)
            gauges = read_gauges(page) if status == 200 else None
            if gauges is not None:
                self._ways = (way,)
                return {name: value for name, value in gauges._asdict().items() if value == value}
            why = f"/metrics names nothing that vLLM, SGLang or TGI would ({len(page):,} bytes)"
            if status != 200:
                why = f"/metrics answered HTTP {status}"
        return why
