"""The runs that are to be packed: read from directories, and told apart by what their result.json says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec

from harness import benchmarks
from harness.benchmarks import Benchmark
from harness.results import SUBMISSION, is_local, load
from sut.errors import ConfigError, SetupError

Number = int | float


class _Bounds(TypedDict, total=False):
    low: Number | None
    high: Number | None


class _Accuracy(TypedDict):
    passed: bool | None
    targets: NotRequired[dict[str, _Bounds] | None]


class _Compliance(TypedDict):
    passed: bool | None
    why: list[str]


class _Metrics(TypedDict):
    samples_per_second: Number
    tokens_per_second: Number


class _Failures(TypedDict):
    count: int


class _LoadGen(TypedDict):
    version: str | None
    verdict: str | None


class _Config(TypedDict):
    model: str
    dataset: str
    backend: str
    replicas: int
    endpoint: list[str]
    dispatch: str
    dtype: str
    generation: dict[str, Any]
    engine_arg: dict[str, Any]
    engine_env: NotRequired[dict[str, Any] | None]
    settings: dict[str, Number]
    chosen: list[str]


class _Machine(TypedDict):
    hostname: str
    cpu: str | None
    memory_bytes: int
    system: str
    python: str


class _Device(TypedDict):
    name: str
    memory_bytes: int


class _Environment(TypedDict):
    machine: _Machine
    devices: list[_Device]
    drivers: NotRequired[dict[str, Any] | None]
    packages: dict[str, Any]
    commit: str | None
    variables: dict[str, str]
    engines: NotRequired[dict[str, dict[str, Any]] | None]


class _Result(TypedDict):
    """What packing reads of a result.json."""

    status: str
    valid: bool
    invalid_reasons: list[Any]
    not_ready_reasons: list[Any]
    scenario: str
    mode: str
    benchmark: str
    audit: NotRequired[str | None]
    accuracy: _Accuracy
    compliance: NotRequired[_Compliance | None]
    replicas: list[Any]
    retries: int
    resumed: NotRequired[int | None]
    client_limited: bool
    metrics: _Metrics
    failures: _Failures
    loadgen: _LoadGen
    files: NotRequired[dict[str, str] | None]
    config: _Config
    environment: _Environment


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be packed, as one sentence that names the directory and the remedy; `code` is the exit code
    that it asks for."""

    code: int
    text: str


@dataclass(frozen=True)
class Run:
    """One run directory and its result. `together` is the directory of the `--mode submission` that it is a part of."""

    folder: Path
    content: Mapping[str, Any]
    system: str | None = None
    together: Path | None = None

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def config(self) -> Mapping[str, Any]:
        """Every option of the run, resolved."""
        found: Mapping[str, Any] = self.content["config"]
        return found

    @property
    def environment(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.content["environment"]
        return found

    @property
    def files(self) -> Mapping[str, str]:
        """SHA-256 of what the run left in its folder, by name; empty in results that have none."""
        return self.content.get("files") or {}

    @property
    def role(self) -> str:
        """What it is in a package: performance, accuracy, or the compliance test whose settings it ran with."""
        return str(self.content.get("audit") or self.content["mode"])

    @property
    def slot(self) -> tuple[str | None, str, str]:
        """The system, benchmark and scenario that it is a part of."""
        return self.system, str(self.content["benchmark"]), str(self.content["scenario"])

    @property
    def row(self) -> Benchmark:
        return benchmarks.find(str(self.content["benchmark"]))

    @property
    def is_echo(self) -> bool:
        return bool(self.config["backend"] == "echo")

    @property
    def engines(self) -> list[Mapping[str, Any]]:
        """What each replica said of itself."""
        return list(self.environment.get("engines", {}).values())

    @property
    def elsewhere(self) -> bool:
        """Whether a replica ran on another host, so that the machine described is the client's alone."""
        return not all(is_local(url) for url in self.config["endpoint"])


def gather(words: Sequence[str], system: str | None) -> tuple[list[Run], list[Refusal]]:
    """The runs in directories, each named as DIR or SYSTEM=DIR; `system` names those that have no name of their own."""
    runs: list[Run] = []
    refusals: list[Refusal] = []
    for word in words:
        name, folder = named(word)
        try:
            runs += _runs_in(folder, name or system)
        except (ConfigError, SetupError) as error:
            refusals.append(Refusal(3, str(error)))
    return runs, refusals


def named(word: str) -> tuple[str | None, Path]:
    """NAME=PATH as both; a path that is there as it stands has no name."""
    name, equals, path = word.partition("=")
    if not equals or not name or Path(word).exists():
        return None, Path(word)
    return name, Path(path)


def _runs_in(folder: Path, system: str | None) -> list[Run]:
    """The run that a directory is, or the parts of a `--mode submission`. Raises SetupError, ConfigError."""
    if not folder.is_dir():
        raise SetupError(f"{folder} is no directory: name the --output-dir of a run.")
    path = folder / SUBMISSION
    if path.exists():
        return [_run(folder / part, system, folder) for part in _parts(path)]
    if not (folder / "result.json").exists():
        raise SetupError(
            f"{folder} holds neither submission.json nor result.json: name the --output-dir of a run that came to its "
            "end."
        )
    return [_run(folder, system, None)]


def _parts(path: Path) -> list[str]:
    try:
        parts = json.loads(path.read_text())["runs"].values()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{path} names no runs: run `--mode submission` again.") from error
    return [str(part) for part in parts]


def _run(folder: Path, system: str | None, together: Path | None) -> Run:
    content = load(folder).content
    try:
        msgspec.convert(content, _Result)
    except msgspec.ValidationError as error:
        raise SetupError(f"{folder}/result.json is no result of this harness: {error}; run it again.") from error
    scores = ((name, content["accuracy"].get(name)) for name in benchmarks.find(content["benchmark"]).targets)
    if odd := [name for name, score in scores if not isinstance(score, int | float | None)]:
        raise SetupError(f"{folder}/result.json is no result of this harness: accuracy.{odd[0]} is no number.")
    return Run(folder, content, system, together)
