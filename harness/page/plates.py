"""The charts of a report as files for a paper, each beside its Vega-Lite specification."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import figures
from harness.figures import Spec
from harness.page.document import visible
from harness.page.gauges import pictures
from harness.page.source import Run, Source, Submission
from harness.results import finite
from sut.errors import ConfigError, SetupError


def save(sources: Sequence[Source], folder: Path, form: str) -> list[Path]:
    """Draw every chart into a folder, as `form` (svg or png). Raises ConfigError rather than write over a file,
    SetupError for a study's figure that cannot be drawn."""
    named = dict(plates(sources))
    paths = {folder / f"{name}.{form}": spec for name, spec in named.items()}
    specs = {folder / f"{name}.vl.json": spec for name, spec in named.items()}
    if there := next((path for path in (*paths, *specs) if path.exists()), None):
        raise ConfigError(f"{there} is there already: choose another folder for --figures, nothing is overwritten.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, spec in paths.items():
        try:
            figures.save(spec, path)
        except ValueError as error:
            raise SetupError(f"{path.stem} cannot be drawn: {' '.join(str(error).split())[:300]}.") from error
    for path, spec in specs.items():
        path.write_text(json.dumps(spec, indent=1) + "\n")
    return list(paths)


def plates(sources: Sequence[Source]) -> Iterator[tuple[str, Spec]]:
    """(name, specification) of every chart; of several results, names begin with theirs."""
    found: list[tuple[str, str, Spec]] = []
    for source in sources:
        if isinstance(source, Run | Submission):
            for run in [source] if isinstance(source, Run) else source.runs:
                found += [(run.name, chart.name, chart.spec) for chart in pictures(run)]
        elif source.figure:
            found.append((source.name, "figure", dict(source.figure)))
    alone = len({name for name, _, _ in found}) == 1 and len({chart for _, chart, _ in found}) == len(found)
    taken: set[str] = set()
    for name, chart, spec in found:
        plain = re.sub(r"[^\w.-]+", "-", chart if alone else f"{name}-{chart}")
        while plain in taken:
            plain += "-b"
        taken.add(plain)
        yield plain, visible(finite(spec))
