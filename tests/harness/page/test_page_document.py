"""The page: what it lets through, what it holds, and what it may be written over."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.page.charts import Chart
from harness.page.document import MARK, build, clean, draw, inline, refuse_foreign
from harness.page.plates import plates, save
from harness.page.source import read
from sut.errors import ConfigError, SetupError
from tests.harness.page.made_results import FIGURE, HOSTILE, make_run, make_study, make_submission, write_samples


class Elements(HTMLParser):
    """The elements of a page with their attributes, as a parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build([read(make_run(tmp_path_factory.mktemp("page") / "one"))])


def test_nothing_in_a_page_names_another_place(page: str) -> None:
    for tag, attributes in Elements(page).found:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "srcset", "data", "poster", "background"):
                assert value is not None
                assert value.startswith(("#", "data:,")), f"<{tag} {name}={value}>"
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_policy_allows_the_pages_own_script_and_style_by_their_hash(page: str) -> None:
    policy = next(meta["content"] for meta in Elements(page).named("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_charts_are_drawn_into_the_page(page: str) -> None:
    elements = Elements(page)
    assert len(elements.named("figure")) == 8
    assert len(elements.named("svg")) == 10  # two of them for a phone too


def test_ids_within_drawings_are_unique(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert len(ids) == len(set(ids))


def hostile(value: Any) -> Any:
    """The same content with every string followed by one that would act, but for those that decide what is shown."""
    if isinstance(value, dict):
        return {key: item if key in ("status", "mode") else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_no_string_of_a_result_makes_an_element(tmp_path: Path) -> None:
    from tests.harness.page.made_results import CONTENT

    good = Elements(build([read(make_run(tmp_path / "good"))]))
    folder = make_run(tmp_path / f"bad {HOSTILE[:20].replace('/', '')}", **hostile(CONTENT))
    written = HOSTILE.replace("\ud800", "")
    write_samples(folder, replica=[f"echo-{n % 2}{written}" for n in range(60)], error=[written] + [None] * 59)
    bad = Elements(build([read(folder)]))
    for tag in ("script", "img", "style", "a"):
        assert len(bad.named(tag)) == len(good.named(tag)), tag
    assert {tag for tag, _ in bad.found} <= {tag for tag, _ in good.found} | {"br"}
    assert not [name for _, attributes in bad.found for name in attributes if name.startswith("on")]


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert clean("a\x00b\u202ec\ud800\td\n") == "a␀b⟨U+202E⟩c?\td\n"


def test_drawings_stand_beside_each_other_without_sharing_ids() -> None:
    svg = '<svg><defs><clipPath id="clip0"/></defs><g clip-path="url(#clip0)"/></svg>'
    one, other = inline(svg), inline(svg.replace("<g ", "<g class='other' "))
    (name,) = re.findall(r'id="(\S+)"', one)
    assert f"url(#{name})" in one
    assert name not in other


@pytest.mark.parametrize("tag", ["script", "image", "a", "foreignObject", "style", "animate", "use"])
def test_a_drawing_that_is_more_than_a_drawing_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=f"<{tag}>"):
        inline(f"<svg><{tag} href='x'/></svg>")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (FIGURE | {"data": {"url": "file:///etc/passwd", "format": {"type": "csv"}}}, ""),
        (FIGURE | {"data": {"url": "https://example.org/x.csv"}}, ""),
        ({"mark": {"type": "image", "url": "x.png", "width": 9}, "data": {"values": [{}]}}, "<image>"),
        ({"mark": "bar", "data": {"values": [{}]}, "encoding": {"href": {"value": "https://example.org"}}}, "<a>"),
        ({"mark": "bar", "data": {"values": [{}]}, "encoding": {"href": {"value": "javascript:alert(1)"}}}, ""),
        ({"made": "up"}, ""),
    ],
    ids=["a file of this machine", "a network", "a picture", "a link", "a script", "no chart"],
)
def test_a_study_whose_figure_would_reach_out_is_told_without_it(spec: dict[str, Any], said: str) -> None:
    drawn = draw(Chart("figure", spec))
    assert said in drawn.get("trouble", drawn.get("wide"))
    assert "root:" not in str(drawn)
    assert "trouble" in drawn or "<image" not in drawn["wide"]


def test_a_chart_that_cannot_be_drawn_takes_no_other_with_it() -> None:
    mark = {"type": "point", "href": "javascript:alert(1)"}
    bad = {**FIGURE, "mark": mark}
    for _ in range(20):  # the library throws what it still holds of one at the next, now once, now twice
        assert "trouble" in draw(Chart("bad", bad))
        assert "<svg" in draw(Chart("good", FIGURE))["wide"]


def test_several_results_are_listed_first(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "one"), make_study(tmp_path / "sweep"), make_submission(tmp_path / "sub")]
    page = build([read(folder) for folder in folders])
    elements = Elements(page)
    targets = [link["href"] for link in elements.named("a")]
    assert targets == [f"#result-{number}" for number in (1, 2, 3, 4)]
    assert {section["id"] for section in elements.named("section")} == {str(target)[1:] for target in targets}
    assert "The knee is at 10 queries/s." in page


def test_a_report_is_written_over_and_nothing_else(tmp_path: Path, page: str) -> None:
    path = tmp_path / "report.html"
    refuse_foreign(path)
    path.write_text(page)
    assert page.startswith(MARK)
    refuse_foreign(path)
    path.write_text("<!doctype html><p>notes of a person")
    with pytest.raises(ConfigError, match="is there and no report of ours"):
        refuse_foreign(path)
    with pytest.raises(ConfigError, match="is a folder"):
        refuse_foreign(tmp_path)


# -- plates -----------------------------------------------------------------------------------------------------------


def test_charts_are_written_for_a_paper_with_their_specifications(tmp_path: Path) -> None:
    sources = [read(make_study(tmp_path / "sweep"))]
    (path,) = save(sources, tmp_path / "figures", "png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.with_name("figure.vl.json").exists()
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        save(sources, tmp_path / "figures", "png")


def test_a_figure_that_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep")
    (folder / "figure.json").write_text('{"made": "up"}')
    with pytest.raises(SetupError, match="figure cannot be drawn"):
        save([read(folder)], tmp_path / "figures", "svg")


def test_charts_of_several_results_are_told_apart_by_name(tmp_path: Path) -> None:
    sources = [read(make_run(tmp_path / place / "same name")) for place in ("a", "b")]
    names = [name for name, _ in plates(sources)]
    assert len(names) == len(set(names)) == 16
    assert names[0] == "same-name-timeline"
