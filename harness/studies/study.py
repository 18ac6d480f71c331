"""A study's folder: what was asked, its points, and what was found.

    DIR/study.json               what was asked: a folder belongs to one study with one set of options
    DIR/points/NAME/             a run each, complete with its result.json
    DIR/findings.json            what was found, written last, beside table.csv, figure.svg and its Vega-Lite spec

A study that was killed goes on with the same command and the same --output-dir: a point that came to its end is done
and never touched again, what one that was interrupted or aborted has left is moved aside, and the rest is run.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from harness import figures, results
from harness.config import RunConfig
from harness.config import as_json as config_as_json
from harness.results import RunResult, finite, write_whole
from harness.studies import findings
from harness.studies.findings import Findings
from sut.errors import ConfigError, SetupError

STUDY, POINTS, FINDINGS, POINT, LOCK = "study.json", "points", "findings.json", "point.json", "study.lock"

# Format of study.json.
#   1   the first
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Study:
    """A study's folder, open."""

    name: str
    folder: Path

    def path(self, point: str) -> Path:
        return self.folder / POINTS / point

    def result(self, point: str) -> RunResult | None:
        """A point's result, if it came to its end; one that was interrupted did not, nor one that was aborted: the
        replicas may be better now. Raises SetupError for one that is damaged."""
        if not (self.path(point) / results.RESULT).exists():
            return None
        result = results.load(self.path(point))
        return None if result["status"] in ("interrupted", "aborted") else result

    def saved(self, point: str) -> dict[str, Any] | None:
        """What `keep` has kept of a point that is no run. Raises SetupError for what is damaged."""
        path = self.path(point) / POINT
        if not path.exists():
            return None
        return read_object(path)

    def keep(self, point: str, content: Mapping[str, Any]) -> None:
        """Save a point that is no run: it is done by that."""
        self.path(point).mkdir(parents=True, exist_ok=True)
        write_whole(self.path(point) / POINT, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")

    def fresh(self, point: str) -> Path:
        """The folder for a point that is to be run; what one that did not come to its end has left is moved aside."""
        path = self.path(point)
        if path.exists():
            names = (path.with_name(f"{point}.interrupted-{number}") for number in count(1))
            path.rename(next(name for name in names if not name.exists()))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def conclude(self, found: Findings) -> None:
        """Write what was found; findings.json last."""
        (self.folder / "table.csv").write_text(findings.as_csv(found))
        if found.figure is not None:
            (self.folder / "figure.json").write_text(json.dumps(finite(found.figure)) + "\n")
            figures.save(finite(found.figure), self.folder / "figure.svg")
        text = json.dumps(finite(findings.as_json(found)), indent=1, allow_nan=False) + "\n"
        write_whole(self.folder / FINDINGS, text)


@contextmanager
def open_study(name: str, config: RunConfig, question: Mapping[str, Any]) -> Iterator[Study]:
    """Make a study's folder, or take up one that was interrupted, and keep other processes out of it while it is open;
    `question` are the study's own options.

    Raises ConfigError for a folder of another study, of other options, or that another process works in; SetupError for
    one that cannot be written.
    """
    folder, asked = config.output_dir, what_is_asked(name, config, question)
    refuse_another(folder, asked)
    try:
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")  # NFS locks for writing only what is open for it
    except OSError as error:
        raise SetupError(f"cannot write to the output directory {folder}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is at work on the {name} in {folder}.") from None
        except OSError as error:
            raise SetupError(
                f"{lock.name} cannot be locked ({error.strerror}): choose another --output-dir."
            ) from error
        refuse_another(folder, asked)  # somebody else may have been first
        if not (folder / STUDY).exists():
            write_whole(folder / STUDY, json.dumps(asked, indent=1) + "\n")
        yield Study(name, folder)


def what_is_asked(name: str, config: RunConfig, question: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a study's points are, as study.json holds it."""
    options = {key: value for key, value in config_as_json(config).items() if key != "output_dir"}
    asked = {"format_version": FORMAT_VERSION, "study": name, "question": dict(question), "options": options}
    plain: dict[str, Any] = json.loads(json.dumps(finite(asked), default=str))
    return plain


def refuse_another(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raises ConfigError for a folder that is not this study's."""
    path = folder / STUDY
    if not path.exists():
        foreign = (folder / POINTS).exists() and not (folder / LOCK).exists()
        if foreign or any((folder / name).exists() for name in (results.RESULT, results.SUBMISSION, FINDINGS)):
            raise ConfigError(f"{folder} holds other results: choose another --output-dir, nothing is overwritten.")
        return
    known = read_object(path)
    if known.get("format_version") != FORMAT_VERSION:
        raise ConfigError(f"{path} has format {known.get('format_version')}, and this harness writes {FORMAT_VERSION}.")
    if known.get("study") != asked["study"]:
        raise ConfigError(
            f"{folder} holds a {known.get('study')} and not a {asked['study']}: choose another --output-dir."
        )
    changed = [
        key
        for part in ("question", "options")
        for key in sorted({*known.get(part, {}), *asked[part]})
        if known.get(part, {}).get(key) != asked[part].get(key)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a {asked['study']} with another {', '.join(changed)}: give the same options to go on with "
            "it, or choose another --output-dir."
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises SetupError for a file that holds none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} is damaged: it does not hold a JSON object.")
    return content
