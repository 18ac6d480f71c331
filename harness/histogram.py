"""Lengths as figures and bars: the usual percentiles, a histogram in text, and one as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

EIGHTHS = " ▏▎▍▌▋▊▉█"

INK, SOFT, LINE, BAR, MARK = "#1f2933", "#667784", "#e3e8ec", "#4c78a8", "#c4511d"
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\""
WIDTH, LEFT, RIGHT, HEAD, PANEL, PLOT = 880, 76, 28, 84, 324, 170
"""Of the picture in pixels: its width and margins, the height of its head, of a panel, and of the bars in one."""


class Statistics(NamedTuple):
    """Each percentile is a length that occurs: the smallest that so many are not above."""

    min: int
    mean: float
    p50: int
    p90: int
    p99: int
    max: int


class Histogram(NamedTuple):
    """`counts[i]` lengths are from edges[i] to below edges[i + 1]; the last also has all above, if it is `open`."""

    edges: list[int]
    counts: list[int]
    open: bool

    @property
    def ranges(self) -> list[str]:
        """What to call each bar: `0–49`, or `950 and more`."""
        names = [f"{low:,}–{high - 1:,}" if high - low > 1 else f"{low:,}" for low, high in pairwise(self.edges)]
        return [*names[:-1], f"{self.edges[-2]:,} and more"] if self.open else names


class Panel(NamedTuple):
    """One histogram of a picture: what is measured, in what unit."""

    title: str
    unit: str
    lengths: Lengths


def statistics(lengths: Lengths) -> Statistics:
    """Of at least one length."""
    p50, p90, p99 = np.percentile(lengths, (50, 90, 99), method="inverted_cdf").astype(int).tolist()
    return Statistics(int(lengths.min()), float(lengths.mean()), p50, p90, p99, int(lengths.max()))


def nice_step(span: float) -> int:
    """The least of 1, 2, 5, 10, 20, 50 … that is not below `span`."""
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if factor * scale >= span:
                return factor * scale
        scale *= 10


def histogram(lengths: Lengths, bars: int = 20) -> Histogram:
    """About `bars` bars of one width; where few lengths are far above the rest, those share the last."""
    low, high = int(lengths.min()), int(lengths.max())
    p99 = statistics(lengths).p99
    top = high if high <= 2 * p99 else p99
    step = nice_step((top - low + 1) / bars)
    edges = list(range(low // step * step, top + step + 1, step))
    edges = edges[: next(place for place, edge in enumerate(edges) if edge > top) + 1]
    counts = np.histogram(np.minimum(lengths, edges[-1] - 1), edges)[0].tolist()
    return Histogram(edges, counts, open=high >= edges[-1])


def as_bars(found: Histogram, width: int) -> list[str]:
    """A line per bar, each at most `width` characters."""
    names, counts = found.ranges, [f"{count:,}" for count in found.counts]
    label, figure = max(map(len, names)), max(map(len, counts))
    room = max(10, width - label - figure - 6)
    most = max(found.counts)
    return [
        f"  {name:>{label}} {bar(count / most, room)} {figures:>{figure}}"
        for name, count, figures in zip(names, found.counts, counts, strict=True)
    ]


def bar(share: float, room: int) -> str:
    """`share` of `room` characters in blocks of an eighth; what is there at all shows."""
    eighths = round(share * room * 8)
    full, rest = divmod(max(eighths, 1) if share > 0 else 0, 8)
    return ("█" * full + EIGHTHS[rest] * (rest > 0)).ljust(room)


# -- the picture -------------------------------------------------------------------------------------------------------


def as_svg(title: str, facts: str, panels: Sequence[Panel]) -> str:
    """A picture of the panels one below the other, under a title and a line of facts."""
    height = HEAD + PANEL * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f"{FONT}>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 38, title, 20, INK, weight=600),
        text(LEFT, 61, facts, 12.5, SOFT),
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate(0 {HEAD + place * PANEL})">')
        parts += panel_parts(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, words: str, size: float, fill: str, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def panel_parts(panel: Panel) -> list[str]:
    """Its heading at 20, its bars from `top` to `floor`, the lengths below them."""
    figures, found = statistics(panel.lengths), histogram(panel.lengths, 40)
    top, floor = 95, 95 + PLOT
    low, high = found.edges[0], found.edges[-1]
    tick = nice_step(max(found.counts) / 4)
    most = -(-max(found.counts) // tick) * tick

    def across(length: float) -> float:
        return LEFT + (length - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(count: float) -> float:
        return floor - count / most * PLOT

    parts = [text(LEFT, 20, panel.title, 14.5, INK, weight=600), text(LEFT, 39, figures_text(figures), 12, SOFT)]
    for count in range(0, most + 1, tick):
        y = up(count)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LINE}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{count:,}", 11, SOFT, "end"))
    for edges, count, name in zip(pairwise(found.edges), found.counts, found.ranges, strict=True):
        x, y = across(edges[0]), up(count)
        parts.append(
            f'<rect x="{x + 0.5:.1f}" y="{y:.1f}" width="{across(edges[1]) - x - 1:.1f}" height="{floor - y:.1f}" '
            f'fill="{BAR}"><title>{name}: {count:,}</title></rect>'
        )
    step = nice_step((high - low) / 10)
    for length in range(-(-low // step) * step, high + 1, step):
        parts.append(text(across(length), floor + 18, f"{length:,}", 11, SOFT, "middle"))
    unit = f"{panel.unit} (the last bar: {found.ranges[-1]})" if found.open else panel.unit
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, floor + 37, unit, 11.5, SOFT, "middle"))
    marks = {"p50": figures.p50, "p90": figures.p90, "p99": figures.p99}
    return parts + [part for name, at in marks.items() for part in mark(name, at, across(min(at, high)), top, floor)]


def mark(name: str, length: int, x: float, top: float, floor: float) -> list[str]:
    """A dashed line at a percentile; each has a height of its own, so that names of near ones do not overlap."""
    y = top - {"p50": 4, "p90": 17, "p99": 30}[name]
    label = (x - 4, "end") if x > WIDTH / 2 else (x + 4, "start")
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8:.1f}" y2="{floor}" stroke="{MARK}" stroke-dasharray="3 3"/>',
        text(label[0], y, f"{name} {length:,}", 11, MARK, label[1]),
    ]


def figures_text(figures: Statistics) -> str:
    """`min 3 · mean 301.2 · …`"""
    return " · ".join(
        f"{name} {value:,.1f}" if name == "mean" else f"{name} {value:,}" for name, value in figures._asdict().items()
    )
