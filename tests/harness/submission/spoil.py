"""Ways to spoil a made-up package, each one thing. Paths are from the results of its one benchmark on, unless said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.submission.check import Report
from tests.harness.submission.made_package import SUBMITTER, SYSTEM

Spoil = Callable[[Path], object]

RUN, TEST06 = "Server/performance/run_1", "Server/TEST06/performance/run_1"
DETAIL, SUMMARY, ANSWERS = "mlperf_log_detail.txt", "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
SCORES, MEASUREMENTS = "Server/accuracy/accuracy.txt", "Server/measurements.json"
HOME = f"closed/{SUBMITTER}"
SYSTEM_FILE = f"{HOME}/systems/{SYSTEM}.json"


def results(root: Path) -> Path:
    """The directory of the one benchmark of a package."""
    return next(root.glob(f"*/{SUBMITTER}/results/{SYSTEM}/*"))


def at(root: Path, base: str | None) -> Path:
    return results(root) if base is None else root / base


def said(report: Report, level: str = "error") -> list[str]:
    return [problem.what for problem in report.problems if problem.level == level]


def logged(key: str, value: Any, folder: str = RUN) -> Spoil:
    """LoadGen's detail log says something else for a key."""

    def spoil(root: Path) -> None:
        path = results(root) / folder / DETAIL
        rows = [json.loads(row.removeprefix(":::MLLOG ")) for row in path.read_text().splitlines()]
        assert key in {row["key"] for row in rows}
        rows = [{**row, "value": value} if row["key"] == key else row for row in rows]
        path.write_text("".join(f":::MLLOG {json.dumps(row)}\n" for row in rows))

    return spoil


def added(text: str, folder: str = RUN, name: str = DETAIL) -> Spoil:
    """A line more, at the end."""

    def spoil(root: Path) -> None:
        with (results(root) / folder / name).open("a") as file:
            file.write(text + "\n")

    return spoil


def replaced(name: str, old: str, new: str, base: str | None = None) -> Spoil:
    def spoil(root: Path) -> None:
        text = (at(root, base) / name).read_text()
        assert old in text
        (at(root, base) / name).write_text(text.replace(old, new))

    return spoil


def written(name: str, text: str, base: str | None = None) -> Spoil:
    def spoil(root: Path) -> None:
        (at(root, base) / name).parent.mkdir(parents=True, exist_ok=True)
        (at(root, base) / name).write_text(text)

    return spoil


def gone(name: str, base: str | None = None) -> Spoil:
    def spoil(root: Path) -> None:
        path = at(root, base) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def moved(name: str, to: str, base: str | None = None) -> Spoil:
    return lambda root: (at(root, base) / name).rename(at(root, base) / to)


def copied(name: str, to: str) -> Spoil:
    return lambda root: shutil.copy(results(root) / name, results(root) / to)


def field(key: str, value: Any, name: str = SYSTEM_FILE, base: str | None = "") -> Spoil:
    """A JSON file, by default the system's description, has another value for a key; ... for none at all."""

    def spoil(root: Path) -> None:
        path = at(root, base) / name
        content = {**json.loads(path.read_text()), key: value}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return spoil


def answered(change: Callable[[list[dict[str, Any]]], object], scenario: str = "Server") -> Spoil:
    """The answers that TEST06 logged are others."""

    def spoil(root: Path) -> None:
        path = results(root) / scenario / "TEST06" / "accuracy" / ANSWERS
        answers = json.loads(path.read_text())
        change(answers)
        path.write_text(json.dumps(answers))

    return spoil


def cut(name: str, share: float) -> Spoil:
    def spoil(root: Path) -> None:
        content = (results(root) / name).read_bytes()
        (results(root) / name).write_bytes(content[: int(len(content) * share)])

    return spoil


def hashed(digest: str) -> Spoil:
    """accuracy.txt gives another hash."""

    def spoil(root: Path) -> None:
        path = results(root) / SCORES
        path.write_text(path.read_text().partition("hash=")[0] + f"hash={digest}\n")

    return spoil


def spoiled_all(*spoils: Spoil) -> Spoil:
    return lambda root: [spoil(root) for spoil in spoils]


def longer(answer: dict[str, Any], ids: str) -> None:
    answer["data"] += ids
    answer["token_count"] += len(ids) // 8
