"""The saved runs of releases: found, read, and refused where they are no repeats of one another.

A release is a run's folder, or any folder with the folders of its repeats in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from harness import results
from harness.results import RunResult
from harness.studies.blocks import Drawn, Samples, replicates
from harness.studies.change import Scale
from harness.studies.unlike import Difference, Kind, differences, flatten, pairs
from harness.tables import parquet_columns
from sut.errors import ConfigError, SetupError

SAMPLES = "samples.parquet"
DEEP = 4
"""Folders below the one named in which a run is still looked for."""

TIMES = ("ttft_s", "tpot_s", "latency_s")
STATISTICS = ("mean", "p50", "p90", "p99", "p99_9")
TIME, RATE, ENERGY = Scale(better=-1), Scale(better=+1), Scale(better=-1)
SCORE = Scale(better=+1, ratio=False, repeats=False)
"""A score's noise is which answers change: the samples show it, each run anew."""

SCALES: Mapping[str, Scale] = {
    "tokens_per_second": RATE,
    "samples_per_second": RATE,
    **{f"{name}.{statistic}": TIME for name in TIMES for statistic in STATISTICS},
    "energy_j_per_token": ENERGY,
}
"""The figures of a performance run; those of an accuracy run are the scores that it has."""


@dataclass(frozen=True)
class Run:
    """One run. `columns`: those of its samples.parquet, where they are in memory already."""

    result: RunResult
    columns: Mapping[str, Any] | None = None

    @cached_property
    def flat(self) -> dict[str, Any]:
        return flatten(self.result.content)

    @property
    def offline(self) -> bool:
        """Whether all queries were there at once; a closed loop is Offline too, with latencies of its own."""
        return bool(self.result["scenario"] == "Offline" and self.result["config"].get("concurrency") is None)

    @cached_property
    def figures(self) -> dict[str, float]:
        """Every figure that this run has; a time or a rate that is not positive is none."""
        if self.result["mode"] == "accuracy":
            scores = {name: value for name, value in self.result["accuracy"].items() if name.startswith("rouge")}
            return {name: float(value) for name, value in scores.items() if _is_number(value)}
        metrics = self.result["metrics"]
        found = {name: metrics.get(name) for name in ("tokens_per_second", "samples_per_second")}
        found["energy_j_per_token"] = (self.result.content.get("telemetry") or {}).get("energy_j_per_token")
        for name in TIMES:
            inner = metrics.get(name)
            if isinstance(inner, Mapping):
                found |= {f"{name}.{statistic}": inner.get(statistic) for statistic in STATISTICS}
        return {name: float(value) for name, value in found.items() if _is_number(value) and value > 0}

    @cached_property
    def samples(self) -> Samples:
        """Raises SetupError."""
        columns = read_samples(self.result.folder / SAMPLES) if self.columns is None else self.columns
        return Samples.of(columns, self.offline)

    @cached_property
    def drawn(self) -> Drawn:
        return replicates(self.samples)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@dataclass(frozen=True)
class Release:
    """The runs of one release or configuration, by a name."""

    name: str
    runs: Sequence[Run]
    notes: Sequence[str] = ()

    @property
    def flat(self) -> Mapping[str, Any]:
        return self.runs[0].flat

    def values(self, figure: str) -> list[float] | None:
        """A figure of each run; None if a run does not have it."""
        found = [run.figures[figure] for run in self.runs if figure in run.figures]
        return found if len(found) == len(self.runs) else None


def read_releases(places: Sequence[str]) -> list[Release]:
    """Read what was named, `NAME=DIR` or `DIR`. Raises ConfigError for what is no run or no set of repeats, SetupError
    for a damaged file."""
    named = [_named(place) for place in places]
    names = _distinct([name for name, _ in named], [path for _, path in named])
    return [read_release(name, path) for name, (_, path) in zip(names, named, strict=True)]


def _named(place: str) -> tuple[str | None, Path]:
    name, equals, rest = place.partition("=")
    if equals and name and not Path(place).exists():
        return name, Path(rest)
    return None, Path(place)


def _distinct(names: Sequence[str | None], paths: Sequence[Path]) -> list[str]:
    """A name for each: the given one, else as much of the end of its path as tells it from the others."""
    parts = [path.resolve().parts[1:] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        found = [name or "/".join(part[-length:]) for name, part in zip(names, parts, strict=True)]
        if len(set(found)) == len(found):
            return found
    if len({name for name in names if name}) < len([name for name in names if name]):
        raise ConfigError("two releases have one name: give each its own with NAME=DIR.")
    return [f"{name or path.name} ({place})" for place, (name, path) in enumerate(zip(names, paths, strict=True), 1)]


def read_release(name: str, place: Path) -> Release:
    if not place.is_dir():
        raise ConfigError(f"{place} is no folder: name a run's folder, or one that holds the runs of a release.")
    folders = sorted(run_folders(place))
    runs = [Run(_load(folder)) for folder in folders if (folder / results.RESULT).exists()]
    unfinished = [folder for folder in folders if not (folder / results.RESULT).exists()]
    if not runs:
        what = (
            f"{unfinished[0]} never came to its end" if unfinished else f"there is no {results.RESULT} in or below it"
        )
        raise ConfigError(f"{place} holds no finished run: {what}.")
    refuse_stopped(runs)
    refuse_strangers(name, runs)
    notes = [f"{folder} never came to its end and is left out" for folder in unfinished]
    return Release(name, runs, notes)


def run_folders(place: Path, depth: int = DEEP) -> Iterator[Path]:
    """The folders of runs in and below a place; what an interrupted run has left in a folder aside is none."""
    if any((place / name).exists() for name in (results.RESULT, results.DETAIL)):
        yield place
    elif depth:
        for child in sorted(path for path in place.iterdir() if path.is_dir()):
            if not child.name.startswith(".") and "interrupted-" not in child.name:
                yield from run_folders(child, depth - 1)


def _load(folder: Path) -> RunResult:
    """Raises SetupError for a result that is damaged or of another format, ConfigError for one that is no run's."""
    result = results.load(folder)
    if lacking := [
        key for key in ("status", "valid", "scenario", "mode", "config", "metrics") if key not in result.content
    ]:
        raise ConfigError(f"{folder / results.RESULT} is no run's result: it has no {lacking[0]!r}.")
    return result


def refuse_stopped(runs: Sequence[Run]) -> None:
    """Raises ConfigError for a run that did not come to its end by itself."""
    for run in runs:
        if run.result["status"] != "complete":
            raise ConfigError(f"{run.result.folder} was {run.result['status']}: it has no figures to compare.")


def refuse_strangers(name: str, runs: Sequence[Run]) -> None:
    """Raises ConfigError unless all runs of a release are repeats of one test, each its own."""
    flats = {run.result.folder.name: run.flat for run in runs}
    if len(flats) < len(runs):
        flats = {str(run.result.folder): run.flat for run in runs}
    found = [difference for difference in differences(flats) if difference.kind is not Kind.CHOICE]
    if found:
        values = found[0].values
        first = next(iter(values))
        other = next(key for key, value in values.items() if value != values[first])
        pair = Difference(found[0].key, Kind.IDENTITY, {first: values[first], other: values[other]})
        raise ConfigError(
            f"the runs of {name} are no repeats of one another: {pair.key} is {pairs(pair)}; name the folders of one "
            "configuration at a time."
        )
    seen: dict[str, Path] = {}
    for run in runs:
        digest = run.result.content.get("files", {}).get(results.DETAIL, str(run.result.folder))
        if digest in seen:
            raise ConfigError(f"{seen[digest]} and {run.result.folder} are the same run: a copy is no repeat.")
        seen[digest] = run.result.folder


def invalid_runs(releases: Sequence[Release]) -> list[Run]:
    """The runs that are not valid: they have no performance figures, and no scores either."""
    return [run for release in releases for run in release.runs if not run.result["valid"]]


NUMBERS = ("sample_index", "output_tokens", "issued_s", "ttft_s", "latency_s")


def read_samples(path: Path) -> dict[str, Any]:
    """The columns of samples.parquet, rows that ended in an error left out. Raises SetupError."""
    if not path.is_file():
        raise SetupError(f"{path.parent} has no {path.name}, which says how sure figures are: copy it from the run.")
    table = parquet_columns(path, NUMBERS, ["error"])
    good = table["error"].is_null().to_numpy().astype(bool)
    columns = {name: table[name].to_numpy(zero_copy_only=False).astype(np.float64)[good] for name in NUMBERS}
    known = np.isfinite(columns["issued_s"] + columns["latency_s"])
    return {name: values[known] for name, values in columns.items()}
