"""Headless Chromium for the tests that look at a page as a reader does; skipped, and said so, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@dataclass
class Looked:
    """A page that is open, and whatever it did that it must not: console errors, requests, dialogs."""

    page: Any
    path: Path
    faults: list[str] = field(default_factory=list)

    def browser(self) -> Any:
        """The sample table, once it is there."""
        self.page.wait_for_selector(".browser tr.row")
        return self.page.locator(".browser")


@pytest.fixture(scope="module")  # while it is there, playwright's own event loop runs: no other can
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium here to look at pages with (on Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page from a file, as a reader does; at the end of the test nothing must have gone wrong in any."""
    opened: list[Looked] = []

    def open_page(html: str, **settings: Any) -> Looked:
        path = tmp_path / f"page-{len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        page = chromium.new_context(viewport={"width": 1280, "height": 900}, **settings).new_page()
        page.set_default_timeout(30_000)
        looked = Looked(page, path)
        faults = looked.faults
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url == path.as_uri() or faults.append(f"request: {request.url[:99]}")
        )
        page.goto(path.as_uri())
        opened.append(looked)
        return looked

    yield open_page
    for looked in opened:
        looked.page.context.close()
        assert looked.faults == []
