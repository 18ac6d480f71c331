"""What lies in the folders that a report is asked for: runs, the parts of a submission, studies with their points.

A result itself must be sound; what lies beside it may be missing or damaged, and is then a note, not an error: a run
that was interrupted or aborted is the one that people most want to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness import accuracy, parts, results
from harness.results import DETAIL, RESULT, SUBMISSION, RunResult
from harness.studies import findings
from harness.studies import study as studies
from harness.studies.study import FINDINGS, POINTS, STUDY, read_object
from harness.tables import parquet_columns
from sut.errors import ConfigError, SetupError

Numbers = npt.NDArray[np.float64]

SAMPLES, TELEMETRY = "samples.parquet", "timeline.parquet"

COLUMNS = ("sample_index", "input_tokens", "output_tokens", "issued_s", "ttft_s", "latency_s", "attempts")
WORDS = ("replica", "error")
"""Of samples.parquet: columns of numbers and of words."""

NEEDED = (
    *("status", "valid", "scenario", "mode", "benchmark", "queries", "duration_s", "metrics", "accuracy", "replicas"),
    *("failures", "retries", "invalid_reasons", "not_ready_reasons", "submission_ready", "client_limited"),
)
"""What every result.json has, and a report tells."""

_LIMITS = {"ttft_s": "requested_server_ttft_latency", "tpot_s": "requested_server_tpot_latency"}
"""LoadGen's detail log has the limits that it judged by, in nanoseconds."""


class Table(NamedTuple):
    """Columns of one length; a gap is nan among numbers and None among words."""

    numbers: dict[str, Numbers]
    words: dict[str, list[str | None]]

    def __len__(self) -> int:
        return max([*map(len, self.numbers.values()), *map(len, self.words.values())], default=0)


@dataclass(frozen=True)
class Run:
    """A run's result and what lies beside it; `limits` in seconds."""

    name: str
    result: RunResult
    samples: Table | None = None
    scores: Table | None = None
    telemetry: Table | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Submission:
    """What `run --mode submission` came to."""

    name: str
    content: Mapping[str, Any]
    runs: Sequence[Run]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """A study, finished or not: `found` is findings.json, `asked` study.json, `points` the runs that have a result."""

    name: str
    asked: Mapping[str, Any]
    found: Mapping[str, Any] | None
    figure: Mapping[str, Any] | None
    points: Sequence[tuple[str, RunResult]]
    notes: Sequence[str] = ()


Source = Run | Submission | Study


def read(folder: Path) -> Source:
    """What lies in a folder. Raises ConfigError for one that holds no result, SetupError for one that is damaged or of
    another format."""
    if (folder / STUDY).is_file():
        return read_study(folder)
    if (folder / SUBMISSION).is_file():
        return read_submission(folder)
    if (folder / RESULT).is_file():
        return read_run(folder)
    began = next((name for name in results.LOGS if (folder / name).exists()), None)
    if began is not None:
        raise ConfigError(f"{folder} holds no {RESULT}: its run never came to an end, so there is nothing to report.")
    raise ConfigError(
        f"{folder} holds no result: name folders with a {RESULT}, a {SUBMISSION} (--mode submission) or a {STUDY}."
    )


def title_of(folder: Path) -> str:
    return folder.resolve().name or str(folder)


# -- runs -------------------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    result = load(folder)
    notes: list[str] = []
    samples = beside(folder / SAMPLES, COLUMNS, WORDS, notes)
    if samples is None and not notes:
        notes.append(f"{SAMPLES} is not there: no charts and no sample table")
    if samples is not None and len(samples) == 0:
        samples = None
        notes.append(f"{SAMPLES} has no rows: no query came to an end")
    scores = beside(folder / accuracy.ROWS, ("sample_index",), ("id",), notes, extra="rouge")
    telemetry = beside(folder / TELEMETRY, ("time_s", "value"), ("source", "metric"), notes)
    return Run(title_of(folder), result, samples, scores, telemetry, limits(folder), tuple(notes))


def load(folder: Path) -> RunResult:
    """A result that has all that a report tells. Raises SetupError."""
    result = results.load(folder)
    if lacking := [name for name in NEEDED if name not in result.content]:
        raise SetupError(f"{folder / RESULT} is damaged: it has no {lacking[0]}.")
    if "passed" not in result["accuracy"]:
        raise SetupError(f"{folder / RESULT} is damaged: its accuracy has no passed.")
    if lacking := [name for name in ("test", "passed") if name not in (result.content.get("compliance") or {name: 0})]:
        raise SetupError(f"{folder / RESULT} is damaged: its compliance has no {lacking[0]}.")
    return result


def limits(folder: Path) -> dict[str, float]:
    """The limits that LoadGen held a Server test to, in seconds."""
    logged = results.read_detail(folder / DETAIL).values if (folder / DETAIL).is_file() else {}
    found = {name: logged.get(key) for name, key in _LIMITS.items()}
    return {name: value / 1e9 for name, value in found.items() if isinstance(value, int | float) and value > 0}


def beside(
    path: Path, numbers: Sequence[str], words: Sequence[str], notes: list[str], extra: str | None = None
) -> Table | None:
    """The columns of a parquet file and those that begin with `extra`; None where it is not there or, with a note,
    cannot be used."""
    if not path.is_file():
        return None
    try:
        return read_table(path, numbers, words, extra)
    except SetupError as error:
        notes.append(str(error).removesuffix("."))
        return None


def read_table(path: Path, numbers: Sequence[str], words: Sequence[str], extra: str | None = None) -> Table:
    """Raises SetupError for what is no parquet, or lacks a column of the right kind."""
    table = parquet_columns(path, numbers, words, extra)
    return Table(
        {name: np.asarray(table[name].to_numpy(), np.float64) for name in table.column_names if name not in words},
        {name: table[name].to_pylist() for name in words},
    )


# -- submissions and studies ------------------------------------------------------------------------------------------


def read_submission(folder: Path) -> Submission:
    content = of_format(folder / SUBMISSION, parts.FORMAT_VERSION)
    named = content.get("runs")
    runs, notes = [], []
    for name in named if isinstance(named, dict) else {}:
        path = folder / Path(name).name
        try:
            runs.append(read_run(path))
        except SetupError as error:
            notes.append(f"the part {name} cannot be shown: {error}")
    if not runs:
        notes.append(f"{SUBMISSION} names no run that can be shown")
    return Submission(title_of(folder), content, runs, tuple(notes))


def read_study(folder: Path) -> Study:
    asked = of_format(folder / STUDY, studies.FORMAT_VERSION)
    notes: list[str] = []
    found = figure = None
    if (folder / FINDINGS).is_file():
        found = of_format(folder / FINDINGS, findings.FORMAT_VERSION)
        figure = read_figure(folder / "figure.json", notes)
    else:
        notes.append("the study has not come to its end: the same command with the same --output-dir goes on")
    points = read_points(folder / POINTS, notes)
    return Study(title_of(folder), asked, found, figure, points, tuple(notes))


def read_figure(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return read_object(path)
    except SetupError as error:
        notes.append(str(error).removesuffix("."))
        return None


def read_points(folder: Path, notes: list[str]) -> list[tuple[str, RunResult]]:
    """The results of the points that are runs, in the order in which they ended."""
    points = []
    for path in sorted(folder.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime):
        if ".interrupted-" in path.parent.name:
            continue
        try:
            points.append((path.parent.name, load(path.parent)))
        except SetupError as error:
            notes.append(f"the point {path.parent.name} cannot be shown: {error}".removesuffix("."))
    return points


def of_format(path: Path, version: int) -> dict[str, Any]:
    """A JSON object of the format that this harness writes. Raises SetupError."""
    content = read_object(path)
    if content.get("format_version") != version:
        raise SetupError(f"{path} has format {content.get('format_version')}, and this harness reads {version}.")
    return content
