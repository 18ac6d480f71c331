"""A server's /metrics over a real socket: read once a second, whatever it sends, and never for longer than allowed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from harness import scraper
from harness.scraper import Page, scrape_all
from sut.backends.http import KEY
from tests.stub_replica import METRICS, Script, Stub

Lines = list[tuple[str, "Mapping[str, float] | str"]]

IDLE = {
    "running": 0.0,
    "waiting": 0.0,
    "kv_cache_usage": 0.0,
    "preemptions": 0.0,
    "prompt_tokens": 0.0,
    "generation_tokens": 0.0,
}


def read(url: str, limit: float = 20.0, times: int = 1) -> Mapping[str, float] | str:
    """What the last of so many readings finds."""
    lines: Lines = []

    async def ask() -> None:
        page = Page("remote-0", url, None, lambda *line: lines.append(line))
        for _ in range(times):
            await page.read(limit)
        page.close()
        await asyncio.sleep(0)  # closed transports leave in the next tick

    asyncio.run(ask())
    assert [source for source, _ in lines] == ["remote-0"] * times
    return lines[-1][1]


@pytest.mark.parametrize("script", [Script(), Script(narrow=False, metrics_bytes=100_000)])
def test_a_sound_page_is_read(script: Script) -> None:
    with Stub(script) as stub:
        assert read(f"{stub.url}/metrics") == IDLE


@pytest.mark.parametrize(("narrow", "requests"), [(True, 3), (False, 4)])
def test_what_a_server_knows_is_found_out_once(narrow: bool, requests: int) -> None:
    with Stub(Script(narrow=narrow)) as stub:
        read(f"{stub.url}/metrics", times=3)
        assert stub.truth()["other_requests"] + stub.truth()["refused"] - (0 if narrow else 1) == requests


WHY = {
    "hang": "/metrics did not answer within 0.3 s",
    "drip": "/metrics did not answer within 0.3 s",
    "huge": "/metrics could not be read: the replica sent a response of more than 8 MB",
    "garbage": "/metrics names nothing that vLLM, SGLang or TGI would (285 bytes)",
    "html": "/metrics names nothing that vLLM, SGLang or TGI would (68 bytes)",
    "lies": "/metrics names nothing that vLLM, SGLang or TGI would (199 bytes)",
    "404": "/metrics answered HTTP 404",
    "500": "/metrics answered HTTP 500",
}


@pytest.mark.parametrize("kind", [kind for kind in METRICS if kind])
def test_a_bad_page_is_a_reason(kind: str) -> None:
    with Stub(Script(metrics=kind)) as stub:
        assert read(f"{stub.url}/metrics", limit=0.3 if "0.3 s" in WHY[kind] else 20.0) == WHY[kind]


def test_the_api_key_goes_along_and_comes_back_in_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub(Script(api_key="s3cret")) as stub:
        assert read(f"{stub.url}/metrics") == "/metrics answered HTTP 401"
        monkeypatch.setenv(KEY, "s3cret")
        assert read(f"{stub.url}/metrics") == IDLE
    with Stub(Script(api_key="s3cret", metrics="500")) as stub:
        assert "s3cret" not in str(read(f"{stub.url}/metrics"))


def test_a_server_that_is_gone_is_a_reason() -> None:
    with Stub() as stub:
        stub.kill()
        found = read(f"{stub.url}/metrics")
    assert isinstance(found, str) and found.startswith(f"/metrics could not be read: cannot connect to {stub.url}")


def test_a_host_that_nobody_knows_is_a_reason() -> None:
    found = read("http://no-such-host.invalid:8000/metrics")
    assert isinstance(found, str) and found.startswith("the server's host is not known")


def test_all_are_read_at_first_each_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs holds up neither the others nor the end."""
    monkeypatch.setattr(scraper, "INTERVAL", 0.1)
    lines: Lines = []
    first, stop = threading.Event(), threading.Event()
    with Stub() as good, Stub(Script(metrics="hang")) as bad, Stub() as dies:
        servers = {"good": f"{good.url}/metrics", "bad": f"{bad.url}/metrics", "dies": f"{dies.url}/metrics"}

        async def story() -> None:
            scraping = asyncio.create_task(
                scrape_all(servers, None, False, lambda *line: lines.append(line), first, stop)
            )
            while not first.is_set():
                await asyncio.sleep(0.01)
            assert {source for source, _ in lines} == set(servers)
            while sum(source == "good" for source, _ in lines) < 4:
                await asyncio.sleep(0.01)
            dies.kill()
            while not isinstance(lines[-1][1], str):
                await asyncio.sleep(0.01)
            stop.set()
            await scraping

        asyncio.run(asyncio.wait_for(story(), 30))
    last = dict(lines[-3:])
    assert (last["good"], last["bad"]) == (IDLE, "/metrics did not answer within 1 s")
    assert isinstance(last["dies"], str) and "cannot connect" in last["dies"]
