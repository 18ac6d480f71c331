"""Real processes for the tests of the harness: LoadGen reads its settings once per process, so each run has one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.signals import current_handlers, restore_signals

ROOT = Path(__file__).parent.parent.parent

# Short tests of the echo simulator; Server needs a rate, or LoadGen paces it.
SHORT = {
    "Offline": ["--samples", "64"],
    "Server": ["--samples", "64", "--target-qps", "2000", "--min-duration", "0", "--min-queries", "500"],
    "Interactive": ["--samples", "64", "--target-qps", "2000", "--min-duration", "0", "--min-queries", "500"],
    "SingleStream": ["--samples", "64", "--min-duration", "0"],
    "MultiStream": ["--samples", "64", "--min-duration", "0", "--min-queries", "662"],
}


@dataclass(frozen=True)
class Done:
    """A process that has ended, and what it left in its output directory."""

    code: int
    out: str
    err: str
    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The entries of LoadGen's detail log."""
        lines = (self.folder / "mlperf_log_detail.txt").read_text().splitlines()
        return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line]

    @property
    def logged(self) -> dict[str, Any]:
        return {entry["key"]: entry["value"] for entry in self.log}

    @property
    def error_lines(self) -> list[Any]:
        return [entry["value"] for entry in self.log if entry["metadata"]["is_error"]]


def call(words: Sequence[str], folder: Path, cwd: Path) -> Done:
    """`python …` to its end; a hang is a failure of the test, not of the suite."""
    process = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=50)
    return Done(process.returncode, process.stdout, process.stderr, folder)


Harness = Callable[..., Done]


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """`python -m harness …` in an empty working directory."""

    def run(*options: str) -> Done:
        folder = tmp_path / "out"
        where = [] if "--output-dir" in options else ["--output-dir", str(folder)]
        return call(["-m", "harness", *options, *where], folder, tmp_path)

    return run


Here = Callable[..., tuple[int, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """A command in this very process, as far as it comes without LoadGen: its exit code and what it said on stderr."""
    monkeypatch.chdir(tmp_path)
    handlers = current_handlers()

    def run(*words: str) -> tuple[int, str]:
        return cli.call(words), capsys.readouterr().err

    yield run
    restore_signals(handlers)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[Any, Sequence[str]]], dict[Any, Done]]:
    """Several echo runs side by side, by name."""

    def run_all(table: Mapping[Any, Sequence[str]]) -> dict[Any, Done]:
        def one(options: Sequence[str]) -> Done:
            cwd = tmp_path_factory.mktemp("run")
            words = ["-m", "harness", *options, "--backend", "echo", "--output-dir", str(cwd / "out")]
            return call(words, cwd / "out", cwd)

        with ThreadPoolExecutor(3) as pool:
            return dict(zip(table, pool.map(one, table.values()), strict=True))

    return run_all


@pytest.fixture(scope="session")
def runs(many: Callable[[Mapping[Any, Sequence[str]]], dict[Any, Done]]) -> dict[Any, Done]:
    """One good run of each kind, shared by the tests that only read what it left."""
    table: dict[Any, Sequence[str]] = {(s, "performance"): ["--scenario", s, *SHORT[s]] for s in SHORT}
    for scenario in ("Offline", "Server"):
        table[scenario, "accuracy"] = ["--scenario", scenario, "--mode", "accuracy", *SHORT[scenario]]
    return many(table)
