"""The page itself: one HTML file that loads nothing and lets no string of a result act.

Three fences, each of which would do alone: the template escapes every value; what the page's script reads is
compressed and in base64, and put into the page as text; and a Content-Security-Policy allows the page's own script by
its hash and no connection at all. Charts are drawn here, as SVG: they are there at once, print sharply, and need no
script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.figures import Spec, as_svg
from harness.page import view
from harness.page.charts import Chart
from harness.page.gauges import pictures
from harness.page.listing import listing
from harness.page.source import Run, Source, Submission
from harness.page.texts import ROWS, find_texts, packed
from harness.results import finite
from sut.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from markupsafe import Markup

MARK = "<!doctype html>\n<!-- a report of loadgen-harness -->\n"
"""What a report begins with: such a file may be written over, and no other."""

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: "␡"}
_DIRECTIONS = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_VISIBLE = _CONTROLS | _DIRECTIONS

_DRAWN = {"svg", "g", "path", "rect", "line", "circle", "text", "tspan", "title", "defs", "clipPath", "stop"}
_DRAWN |= {"linearGradient", "radialGradient"}


@dataclass(frozen=True)
class Options:
    """Whether texts are taken in, and where the model and the dataset lie if not where they lay at the run."""

    texts: bool = True
    model: str | None = None
    dataset: str | None = None


def build(sources: Sequence[Source], options: Options = Options()) -> str:
    """The report of what was read, as HTML."""
    with ThreadPoolExecutor(1) as pool:  # drawing lets go of the interpreter, so texts are read beside it
        sections = [section for source in sources for section in sections_of(source, options, pool)]
        for place, section in enumerate(sections):
            section["id"] = f"result-{place + 1}"
            section["charts"] = [drawn.result() for drawn in section.get("charts", ())]
    return render(sections)


def sections_of(source: Source, options: Options, pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
    if isinstance(source, Run):
        yield section_of_run(source, options, pool)
    elif isinstance(source, Submission):
        yield view.of_submission(source)
        for run in source.runs:
            yield section_of_run(run, options, pool)
    else:
        figure = [Chart("figure", dict(source.figure))] if source.figure else []
        yield view.of_study(source) | {"charts": drawn(figure, pool)}


def section_of_run(run: Run, options: Options, pool: ThreadPoolExecutor) -> dict[str, Any]:
    section = view.of_run(run) | {"overview": view.overview(run.result), "charts": drawn(pictures(run), pool)}
    if (table := listing(run)) is None:
        return section
    texts, why = None, None
    if options.texts and run.result["mode"] == "accuracy":
        try:
            texts = find_texts(run.result, options.model, options.dataset)
        except SetupError as error:
            why = f"no texts: {error}"
    about = {**table, "chunk": ROWS, "indices": texts.indices if texts else None}
    return section | {
        "samples": {
            "shown": table["rows"],
            "of": table["of"],
            "why": why,
            "table": markup(packed(about)),
            "chunks": [markup(chunk) for chunk in texts.chunks] if texts else [],
        }
    }


# -- charts -----------------------------------------------------------------------------------------------------------


def drawn(found: Sequence[Chart], pool: ThreadPoolExecutor) -> list[Future[dict[str, Any]]]:
    return [pool.submit(draw, chart) for chart in found]


def draw(chart: Chart) -> dict[str, Any]:
    """A chart as markup, or `trouble`: why it cannot be drawn."""
    try:
        return {
            "name": chart.name,
            "wide": markup(inline(svg_of(chart.spec))),
            "narrow": None if chart.narrow is None else markup(inline(svg_of(chart.narrow))),
        }
    except (ValueError, RecursionError) as error:
        return {"name": chart.name, "trouble": " ".join(str(error).split())[:300]}


def svg_of(spec: Spec) -> str:
    """Raises ValueError for a specification that cannot be drawn, or only with what it would have to fetch."""
    return as_svg(visible(finite(spec)))


def visible(value: Any) -> Any:
    """The same content with characters that XML cannot hold made visible."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {visible(key): visible(inner) for key, inner in value.items()}
    return [visible(inner) for inner in value] if isinstance(value, list) else value


def inline(svg: str) -> str:
    """An SVG to stand within a page beside others, its ids its own. Raises ValueError for more than a drawing."""
    if strange := set(re.findall(r"<([a-zA-Z][\w:.-]*)", svg)) - _DRAWN:
        raise ValueError(f"it would bring a <{min(strange)}> into the page")
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|url\(#)', rf"\g<1>d{own}-", svg)


# -- the page ---------------------------------------------------------------------------------------------------------


def render(sections: Sequence[Mapping[str, Any]]) -> str:
    from jinja2 import Environment, StrictUndefined

    here = files("harness.page")
    script, style = (here.joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    world = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True
    )
    template = world.from_string(here.joinpath("page.html").read_text("utf-8"))
    return MARK + template.render(
        sections=sections,
        policy=policy(script, style),
        script=markup(script),
        style=markup(style),
        version=__version__,
    )


def policy(script: str, style: str) -> str:
    """Nothing from anywhere, and of scripts and styles the page's own."""
    return (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def shown(value: Any) -> Any:
    """Every value on its way into the page that is not markup of ours."""
    return clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def clean(text: str) -> str:
    """Text whose control characters, changes of direction and half surrogate pairs are seen and do nothing."""
    return text.translate(_VISIBLE).encode("utf-8", "replace").decode("utf-8")


def markup(text: str) -> Markup:
    """What goes into the page as it is: our own script and style, drawings, base64."""
    from markupsafe import Markup

    return Markup(text)


def refuse_foreign(path: Path) -> None:
    """Raises ConfigError for a file that is there and is no report, or where none can be."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file with --output.")
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(MARK)) != MARK.encode():
                raise ConfigError(f"{path} is there and no report of ours: choose another --output, nothing is lost.")
