"""Results where a team keeps them: MLflow, through its own client (the extra `mlflow`).

A result becomes an MLflow run: its configuration as parameters, its figures as metrics, its verdict as tags, its files
as artefacts. Nothing is measured or decided here, so whatever happens to the store, the result on disk stands.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.config import without_userinfo
from harness.results import RESULT, RunResult, load
from sut.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "loadgen-harness"

VERDICT = ("status", "valid", "submission_ready", "client_limited", "benchmark", "scenario", "mode", "audit")
"""What of result.json says what a result is worth: tags, by which a store is searched."""

FIGURES = ("metrics", "accuracy", "overhead", "telemetry", "failures", "queries", "duration_s", "retries")
"""What of result.json holds figures."""

LONGEST = 6000
"""Characters of a parameter's or a tag's value (MLflow's MAX_PARAM_VAL_LENGTH; tags take a little more)."""

AT_ONCE = 100
"""Parameters or tags in one request (MLflow's MAX_PARAMS_TAGS_PER_BATCH)."""

METRICS_AT_ONCE = 1000
"""Metrics in one request (MLflow's MAX_METRICS_PER_BATCH); a run on a thousand replicas has more."""

REACH_LIMIT = 5.0


def open_store(uri: str) -> tuple[MlflowClient, str]:
    """A store's client and the id of our experiment in it, which is made if it is not there.

    Raises ConfigError for what is no URI of a store, SetupError without MLflow's client or where the store is out of
    reach.
    """
    if find_spec("mlflow") is None:
        raise SetupError("MLflow's client is not installed here: pip install '.[mlflow]'.")
    refuse_unreachable(uri)
    if urlsplit(uri).scheme in ("", "file"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 still has, if it is asked for
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default tries for four minutes
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        return client, known.experiment_id if known is not None else client.create_experiment(EXPERIMENT)
    except (MlflowException, OSError) as error:
        raise SetupError(f"the MLflow store {without_userinfo(uri)} cannot be used: {first_line(error)}") from error


def refuse_unreachable(uri: str) -> None:
    """Raises SetupError for a server that nobody listens on, ConfigError for what is no URI."""
    try:
        parts = urlsplit(uri)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ConfigError(f"--mlflow-uri {without_userinfo(uri)!r} is no URI: {error}.") from error
    if parts.scheme not in ("http", "https"):
        return
    if not parts.hostname:
        raise ConfigError(f"--mlflow-uri {without_userinfo(uri)!r} names no host.")
    try:
        socket.create_connection((parts.hostname, port), REACH_LIMIT).close()
    except OSError as error:
        raise SetupError(
            f"nobody listens at --mlflow-uri {without_userinfo(uri)} ({error}): is the tracking server up?"
        ) from error


def keep(result: RunResult, store: tuple[MlflowClient, str], parent: str | None = None) -> str:
    """Save a result as an MLflow run, below another if `parent` is one's id; its id. Raises SetupError if the store
    does not take it."""
    from mlflow.exceptions import MlflowException

    client, experiment = store
    began = int(1000 * (result.content.get("started_at") or 0)) or None  # a test that never began has none
    try:
        name = str(client.create_run(experiment, began, run_name=result.folder.name).info.run_id)
        with whole(client, name):
            fill(client, name, result, began, {"mlflow.parentRunId": parent} if parent else {})
    except (MlflowException, OSError) as error:
        raise SetupError(
            f"the MLflow store has not taken the result, which stands in {result.folder}: {first_line(error)}"
        ) from error
    return name


@contextmanager
def whole(client: MlflowClient, name: str) -> Iterator[None]:
    """Filling an MLflow run: of one that fails, what the store has taken stays, and is marked as not whole."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, SetupError):
        with suppress(MlflowException, OSError):
            client.set_terminated(name, "FAILED")
        raise


def fill(client: MlflowClient, name: str, result: RunResult, began: int | None, tags: Mapping[str, str]) -> None:
    """Put all of a result into an MLflow run and end that when the test did. Raises MlflowException or OSError."""
    from mlflow.entities import Metric, Param, RunTag

    client.log_batch(
        name, tags=[RunTag(key, value) for key, value in {**dict(verdict(result.content)), **tags}.items()]
    )
    parameters = [Param(key, value) for key, value in parameters_of(result.content["config"])]
    for start in range(0, len(parameters), AT_ONCE):
        client.log_batch(name, params=parameters[start : start + AT_ONCE])
    metrics = [Metric(key, value, began or 0, 0) for key, value in figures_of(result.content)]
    for start in range(0, len(metrics), METRICS_AT_ONCE):
        client.log_batch(name, metrics=metrics[start : start + METRICS_AT_ONCE])
    put_file(client, name, result.folder)
    ended = began and began + int(1000 * result["duration_s"])
    client.set_terminated(name, "FINISHED" if result["status"] == "complete" else "KILLED", ended)


def put_file(client: MlflowClient, name: str, path: Path) -> None:
    """A file, or a folder with all in it, as artefacts. Raises MlflowException."""
    from mlflow.exceptions import MlflowException

    try:
        (client.log_artifacts if path.is_dir() else client.log_artifact)(name, str(path))
    except Exception as error:  # whoever keeps artefacts for the store has a client of its own (boto3), or none is here
        raise MlflowException(f"{path.name}: {type(error).__name__}: {error}") from error


def keep_folder(folder: Path, store: tuple[MlflowClient, str]) -> int:
    """Save all results in a folder, and say how many: a run's own, or those of a study or of `--mode submission`, below
    one MLflow run that holds the folder's other files. Raises ConfigError if there is none."""
    from mlflow.exceptions import MlflowException

    if (folder / RESULT).exists():
        keep(load(folder), store)
        return 1
    inner = sorted(path.parent for path in folder.rglob(RESULT))
    # What an interrupted test has left was moved aside, and its point was run anew.
    found = [path for path in inner if "interrupted-" not in str(path.relative_to(folder))]
    if not found:
        raise ConfigError(f"{folder} holds no result: name the folder of a run, or one with several in it.")
    results = [load(place) for place in found]
    client, experiment = store
    try:
        parent = client.create_run(experiment, run_name=folder.name).info.run_id
        with whole(client, parent):
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    put_file(client, parent, path)
            for result in results:
                keep(result, store, parent)
            client.set_terminated(parent)
    except (MlflowException, OSError) as error:
        raise SetupError(f"the MLflow store has not taken {folder}: {first_line(error)}") from error
    return len(results)


# -- what of a result goes where, as pure functions ------------------------------------------------------------------


def verdict(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The tags of a result, its reasons among them."""
    for key in VERDICT:
        if content.get(key) is not None:
            yield key, str(content[key])[:LONGEST]
    passed = content["accuracy"].get("passed")
    yield "accuracy_passed", "undecided" if passed is None else str(passed)
    for key in ("invalid_reasons", "not_ready_reasons"):
        if content[key]:
            yield key, "; ".join(content[key])[:LONGEST]


def parameters_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A configuration, flat: nested options are joined by a dot. What is not set is left out."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from parameters_of(value, f"{prefix}{key}.")
        elif value not in (None, [], ()):
            yield f"{prefix}{key}", str(value)[:LONGEST]


def figures_of(content: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """All numbers of a result, flat, such as metrics.ttft_s.p99."""
    for key in FIGURES:
        yield from _numbers(content.get(key), key)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, own in value.items():
            yield from _numbers(own, f"{name}.{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def first_line(error: BaseException) -> str:
    """What an error says first, without the password that a URI in it may hold."""
    return without_userinfo((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]
