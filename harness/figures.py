"""Charts as Vega-Lite specifications: plain data, made by pure functions, drawn by vl_convert without a browser or a
network, and by the same library's JavaScript in a report.

    spec = figure(rows, [line(x("rate", "rate, queries/s"), y("ttft_p99_s", "TTFT p99, s"))], "Latency by load")
    save(spec, folder / "figure.svg")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

Spec = dict[str, Any]
T = TypeVar("T")

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"

# Okabe and Ito's palette, which the colour-blind can tell apart (Wong, Nature Methods 8:441, 2011); yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666")
GOOD, BAD, LIMIT = COLOURS[0], COLOURS[1], "#666666"

WIDTH, HEIGHT = 560, 300

_THEME = {
    "font": "Helvetica, Arial, sans-serif",
    "background": "white",
    "view": {"stroke": None},
    "range": {"category": list(COLOURS)},
    "axis": {"grid": True, "gridColor": "#e6e6e6", "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500},
    "legend": {"labelFontSize": 11, "titleFontSize": 11},
    "title": {"anchor": "start", "fontSize": 15, "subtitleFontSize": 12, "subtitleColor": "#555555", "offset": 12},
    "line": {"strokeWidth": 2},
    "point": {"filled": True, "size": 50},
}


def figure(
    rows: Sequence[Mapping[str, Any]], layers: Sequence[Spec], title: str, subtitle: str = "", **more: Any
) -> Spec:
    """Layers over the same rows, as one chart of its own."""
    return finish(panel(rows, layers, **more), title, subtitle)


def panel(rows: Sequence[Mapping[str, Any]], layers: Sequence[Spec], title: str = "", **more: Any) -> Spec:
    """One part of a chart of several panels; a layer with `data` of its own does not see `rows`."""
    spec: Spec = {"data": {"values": [dict(row) for row in rows]}, "width": WIDTH, "height": HEIGHT}
    if title:
        spec["title"] = {"text": title, "fontSize": 13}
    return spec | {"layer": list(layers)} | more


def stack(panels: Sequence[Spec], title: str, subtitle: str = "", columns: int = 1) -> Spec:
    """Several panels as one chart, in rows of `columns`."""
    return finish({"concat": list(panels), "columns": columns}, title, subtitle)


def finish(spec: Spec, title: str, subtitle: str = "") -> Spec:
    heading: dict[str, Any] = {"text": title} | ({"subtitle": subtitle} if subtitle else {})
    return {"$schema": SCHEMA, "title": heading, "config": _THEME, **spec}


def x(field: str, title: str, kind: str = "quantitative", **more: Any) -> Spec:
    """The horizontal channel; `more` goes to Vega-Lite as it is."""
    return {"x": _channel(field, title, kind, more)}


def y(field: str, title: str, kind: str = "quantitative", **more: Any) -> Spec:
    """The vertical channel."""
    return {"y": _channel(field, title, kind, more)}


def colour(field: str, title: str = "", kind: str = "nominal", **more: Any) -> Spec:
    return {"color": _channel(field, title, kind, more)}


def _channel(field: str, title: str, kind: str, more: Mapping[str, Any]) -> Spec:
    return {"field": field, "title": title, "type": kind, **more}


def line(*channels: Spec, points: bool = True, **mark: Any) -> Spec:
    return {"mark": {"type": "line", "point": points, "tooltip": True, **mark}, "encoding": _merge(channels)}


def dots(*channels: Spec, **mark: Any) -> Spec:
    return {"mark": {"type": "point", "filled": True, "tooltip": True, **mark}, "encoding": _merge(channels)}


def bars(*channels: Spec, **mark: Any) -> Spec:
    return {"mark": {"type": "bar", "tooltip": True, **mark}, "encoding": _merge(channels)}


def limit(value: float, text: str, axis: str = "y") -> list[Spec]:
    """A dashed line across the chart at a value of one axis, with its name."""
    data = {"values": [{"limit": value, "text": text}]}
    channel = {axis: {"field": "limit", "type": "quantitative"}}
    place = {"x": {"value": 4}} if axis == "y" else {"y": {"value": 8}}
    offset = {"align": "left", "dy": -6} if axis == "y" else {"align": "left", "dx": 4}
    return [
        {"data": data, "mark": {"type": "rule", "color": LIMIT, "strokeDash": [6, 4]}, "encoding": channel},
        {
            "data": data,
            "mark": {"type": "text", "color": LIMIT, "fontSize": 11, **offset},
            "encoding": channel | place | {"text": {"field": "text"}},
        },
    ]


def _merge(channels: Sequence[Spec]) -> Spec:
    merged: Spec = {}
    for channel in channels:
        merged |= channel
    return merged


LEFT_OVER = 5
"""Errors of a chart that the library may still hold."""

BLANK: Spec = {"data": {"values": []}, "mark": "point"}


def as_svg(spec: Spec) -> str:
    """Raises ValueError for a specification that cannot be drawn with the data that it holds: nothing is fetched."""
    import vl_convert

    return str(_by_its_own_faults(lambda: vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])))


def save(spec: Spec, path: Path) -> None:
    """Draw a chart as SVG, or as PNG at twice the screen's resolution where the name ends in .png. Raises ValueError
    as `as_svg` does."""
    import vl_convert

    if path.suffix == ".png":
        path.write_bytes(_by_its_own_faults(lambda: vl_convert.vegalite_to_png(spec, scale=2, allowed_base_urls=[])))
    else:
        path.write_text(as_svg(spec))


def _by_its_own_faults(draw: Callable[[], T]) -> T:
    """Draw a chart that fails for no other one's sake: the library holds what went wrong with one, and throws it at
    whoever comes next, now once, now twice."""
    try:
        return draw()
    except ValueError:  # maybe another chart's
        _clear_errors()
    try:
        return draw()
    except ValueError:
        _clear_errors()
        raise


def _clear_errors() -> None:
    """Have what the library still holds thrown at a chart that nobody wants."""
    import vl_convert

    for _ in range(LEFT_OVER):
        with suppress(ValueError):
            vl_convert.vegalite_to_svg(BLANK)
            return
