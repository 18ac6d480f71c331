"""A report as a reader meets it, in headless Chromium. Each test ends with: no console line, no request, no dialog."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.page.document import build
from harness.page.source import read
from tests.harness.page.made_results import HOSTILE, make_accuracy_run, make_run, make_study, write_samples

pytestmark = pytest.mark.browser

Look = Callable[..., Any]

SPOKEN = HOSTILE.replace("\ud800", "").replace("\u0000", "")
"""What a tokenizer can give back."""


@pytest.fixture(scope="module")
def performance(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_run(tmp_path_factory.mktemp("browser") / "one", valid=False, invalid_reasons=["it is made up"])
    write_samples(folder, error=["boom <b>bold</b>" if n % 10 == 0 else None for n in range(60)])
    return build([read(folder)])


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> str:
    answers = [f"answer {number}" for number in range(20)]
    answers[7] = SPOKEN
    return build([read(make_accuracy_run(tmp_path_factory.mktemp("browser") / "one", answers))])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    return build([read(make_study(folder / "sweep")), read(make_run(folder / "one"))])


def column(browser: Any, place: int) -> list[str]:
    return [row.split("\t")[place] for row in browser.locator("tr.row").all_inner_texts()]


def wait_for_rows(browser: Any, count: int) -> None:
    """The page's policy lets no other script look, so this is asked from outside."""
    from playwright.sync_api import expect

    expect(browser.locator("tr.row")).to_have_count(count, timeout=30_000)


def test_the_verdict_and_its_reasons_come_first(look: Look, performance: str) -> None:
    page = look(performance).page
    assert page.title() == "demo · Server · performance – NOT VALID"
    said = [line for line in page.locator("header").inner_text().split("\n") if line]
    assert said[:3] == ["demo · Server · performance", "NOT VALID", "it is made up"]
    assert page.locator("header").bounding_box()["y"] < page.locator(".chart").first.bounding_box()["y"]


def test_charts_are_seen_and_tell_what_they_hold(look: Look, performance: str) -> None:
    page = look(performance).page
    seen = [box for svg in page.locator(".chart svg").all() if (box := svg.bounding_box()) and box["width"] > 200]
    assert len(seen) == page.locator("figure.chart").count() == 8
    page.locator('[data-chart=latency] .mark-rect path[aria-roledescription="bar"]').first.hover()
    assert "queries" in page.locator("#tip").inner_text()


def test_the_table_is_turned_sorted_and_searched(look: Look, performance: str) -> None:
    browser = look(performance).browser()
    assert browser.locator(".count").inner_text() == "1–25 of 60"
    browser.get_by_label("Later rows").click()
    assert browser.locator(".count").inner_text() == "26–50 of 60"
    heading = browser.get_by_role("button", name="latency, ms")
    heading.click()
    rising = [float(text) for text in column(browser, 7)]
    assert rising == sorted(rising)
    heading.click()
    assert browser.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert float(column(browser, 7)[0]) == 700.0
    browser.get_by_label("Search samples").fill("echo-1 latency>=700")
    wait_for_rows(browser, 4)
    assert set(column(browser, 1)) == {"echo-1"}
    assert set(column(browser, 7)) == {"700.00"}


def test_failed_samples_are_found_and_their_errors_are_text(look: Look, performance: str) -> None:
    looked = look(performance)
    browser = looked.browser()
    browser.get_by_label("failed only").check()
    assert browser.locator(".count").inner_text() == "1–6 of 6"
    browser.locator("tr.row").first.click()
    assert browser.locator("pre").inner_text() == "boom <b>bold</b>"
    assert looked.page.locator(".browser b").count() == 0


def test_a_row_opens_into_what_was_asked_and_answered(look: Look, accuracy: str) -> None:
    browser = look(accuracy).browser()
    row = browser.locator("tr.row").nth(3)
    row.click()
    assert browser.locator("pre").all_inner_texts() == ["[INST] What is 3? [/INST]", "answer 3", "reference 3"]
    row.click()
    assert browser.locator("pre").count() == 0


def test_a_hostile_answer_stays_text(look: Look, accuracy: str) -> None:
    looked = look(accuracy)
    browser = looked.browser()
    elements = looked.page.locator("script, img, b, iframe").count()
    browser.locator("tr.row").nth(7).click()
    shown = browser.locator("pre").nth(1).inner_text()
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)>" in shown
    assert "⟨U+202E⟩" in shown
    assert looked.page.locator("script, img, b, iframe").count() == elements


def test_texts_are_searched_when_asked(look: Look, accuracy: str) -> None:
    browser = look(accuracy).browser()
    browser.get_by_label("Search samples").fill("onerror=alert")
    wait_for_rows(browser, 0)
    browser.get_by_label("search texts too").check()
    wait_for_rows(browser, 1)
    assert column(browser, 0) == ["7"]


def test_a_hostile_result_stays_text(look: Look, tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "one", benchmark=f"demo{HOSTILE}", valid=False, invalid_reasons=[HOSTILE, "x" * 50_000]
    )
    write_samples(folder, replica=[SPOKEN] * 60, error=[SPOKEN] * 60)
    looked = look(build([read(folder)]))
    looked.browser()
    assert looked.page.locator("img").count() == 0
    assert looked.page.locator("ul.reasons li").first.inner_text().startswith("</script><script>alert(1)</script><img")
    assert looked.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("name", ["performance", "accuracy", "study"])
def test_a_phone_has_nothing_to_scroll_sideways(look: Look, request: pytest.FixtureRequest, name: str) -> None:
    looked = look(request.getfixturevalue(name))
    looked.page.set_viewport_size({"width": 360, "height": 740})
    looked.page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    looked.browser()
    assert looked.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("name", ["performance", "study"])
def test_a_page_can_be_printed(look: Look, request: pytest.FixtureRequest, name: str) -> None:
    page = look(request.getfixturevalue(name)).page
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.locator(".browser").first.is_hidden()
    assert page.locator(".chart svg").first.is_visible()


def test_a_page_without_javascript_has_all_but_the_table(look: Look, performance: str) -> None:
    page = look(performance, java_script_enabled=False).page
    assert page.locator(".chart svg").first.is_visible()
    assert page.locator(".still").inner_text() == "The table of samples needs JavaScript and a screen."


def test_a_page_can_load_nothing_even_if_a_fault_let_markup_through(look: Look, performance: str) -> None:
    evil = '<img src="https://example.org/x.png"><script>document.title = "taken"</script><script src="https://example.org">'
    looked = look(performance.replace("<main>", f"<main>{evil}</script>", 1))
    assert looked.page.title() == "demo · Server · performance – NOT VALID"
    told = [fault for fault in looked.faults if "Content Security Policy" in fault]
    assert len(told) >= 3
    looked.faults.clear()
