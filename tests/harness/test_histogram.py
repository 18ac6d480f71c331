"""Lengths as figures, bars and a picture."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from harness.histogram import Panel, as_bars, as_svg, bar, figures_text, histogram, nice_step, statistics


def test_percentiles_are_lengths_that_occur() -> None:
    figures = statistics(np.arange(1, 101))
    assert figures == (1, 50.5, 50, 90, 99, 100)
    assert statistics(np.array([7])) == (7, 7.0, 7, 7, 7, 7)
    assert (
        figures_text(statistics(np.array([1, 2000])))
        == "min 1 · mean 1,000.5 · p50 1 · p90 2,000 · p99 2,000 · max 2,000"
    )


@pytest.mark.parametrize(
    ("span", "step"), [(0.1, 1), (1, 1), (1.1, 2), (2.5, 5), (5.1, 10), (11, 20), (99, 100), (1001, 2000)]
)
def test_steps_are_round(span: float, step: int) -> None:
    assert nice_step(span) == step


@pytest.mark.parametrize(
    ("lengths", "edges", "counts"),
    [
        ([5], [5, 6], [1]),
        ([0, 0, 0], [0, 1], [3]),
        ([3, 3, 4, 6], [3, 4, 5, 6, 7], [2, 1, 0, 1]),
        ([199, 200, 399], [190, 200, 300, 400], None),  # round edges around what there is
    ],
)
def test_every_length_is_in_one_bar(lengths: list[int], edges: list[int], counts: list[int] | None) -> None:
    found = histogram(np.array(lengths))
    assert sum(found.counts) == len(lengths) and not found.open
    assert found.edges[0] <= min(lengths) and found.edges[-1] > max(lengths)
    if counts is not None:
        assert (found.edges, found.counts) == (edges, counts)


def test_few_lengths_far_above_share_the_last_bar() -> None:
    found = histogram(np.array([*range(100)] * 10 + [100_000]))
    assert found.open and found.edges[-1] == 100 and found.counts[-1] == 51
    assert found.ranges[0] == "0–4" and found.ranges[-1] == "95 and more"


def test_bars_are_in_eighths_and_what_is_there_shows() -> None:
    assert [bar(share, 4) for share in (0, 0.001, 0.25, 0.3, 1)] == ["    ", "▏   ", "█   ", "█▎  ", "████"]


def test_a_histogram_in_text() -> None:
    lengths = np.array([1] * 8 + [2] * 4 + [3] * 1000)
    assert as_bars(histogram(lengths), 25) == [
        "  1 ▏                 8",
        "  2 ▏                 4",
        "  3 █████████████ 1,000",
    ]


def test_a_picture_is_svg_with_a_bar_for_each_count() -> None:
    lengths = np.array([10, 20, 20, 30, 1000])
    picture = as_svg("a <b> & c", "facts", [Panel("Prompts", "tokens", lengths), Panel("Answers", "tokens", lengths)])
    root = ElementTree.fromstring(picture)
    spaced = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{spaced}text")]
    assert words[:2] == ["a <b> & c", "facts"] and {"Prompts", "Answers", "p50 20", "p99 1,000"} <= set(words)
    bars = [element for element in root.iter(f"{spaced}rect") if element.find(f"{spaced}title") is not None]
    told = [int((bar.findtext(f"{spaced}title") or "").split(": ")[1]) for bar in bars]
    assert sum(told) == 2 * len(lengths)
    tallest = max(bars, key=lambda bar: float(bar.get("height", 0)))
    assert told[bars.index(tallest)] == max(told)
    width = float(root.get("width", 0))
    assert all(float(bar.get("x", -1)) >= 0 and float(bar.get("x", 0)) <= width for bar in bars)
