"""Results in an MLflow store: what is browsed back is what result.json says, and a store that fails costs no result."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from harness import tracking
from harness.cli import call
from harness.tracking import (
    EXPERIMENT,
    LONGEST,
    figures_of,
    first_line,
    open_store,
    parameters_of,
    refuse_unreachable,
    verdict,
)
from sut.errors import ConfigError, SetupError
from tests.harness.conftest import SHORT, Harness

RESULT: dict[str, Any] = {
    "status": "complete",
    "valid": False,
    "invalid_reasons": ["one", "two"],
    "not_ready_reasons": [],
    "accuracy": {"passed": None, "rouge1": 88.0, "why": "text"},
    "metrics": {"tokens_per_second": 5.0, "ttft_s": {"p99": 0.5}, "source": "loadgen"},
    "queries": 3,
    "started_at": 1000.5,
    "duration_s": 2.25,
}


@pytest.fixture(autouse=True)
def _file_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow 3 has them where they are asked for; the harness asks by itself."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def browse(store: Path) -> tuple[MlflowClient, list[Any]]:
    """Everything in a store, latest first."""
    client = MlflowClient(f"file:{store}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_run_is_browsed_back_with_its_verdict_figures_options_and_files(harness: Harness, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = ["--scenario", "Server", *SHORT["Server"], "--backend", "echo", "--engine-arg", "ttft=0.001"]
    done = harness(*words, "--mlflow-uri", f"file:{store}")
    assert done.code == 0, done.err
    client, (kept,) = browse(store)
    assert kept.data.tags["valid"] == "True" and kept.data.tags["submission_ready"] == "False"
    assert "echo" in kept.data.tags["not_ready_reasons"]
    assert kept.data.metrics["metrics.ttft_s.p99"] == done.result["metrics"]["ttft_s"]["p99"]
    assert kept.data.params["scenario"] == "Server" and kept.data.params["engine_arg.ttft"] == "0.001"
    names = {file.path for file in client.list_artifacts(kept.info.run_id)}
    assert {"result.json", "samples.parquet", "user.conf", "mlperf_log_detail.txt"} <= names
    result = Path(client.download_artifacts(kept.info.run_id, "result.json"))
    assert json.loads(result.read_text()) == done.result


def save(folder: Path, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"format_version": 1, "config": {"model": "m"}, **content}))


def test_the_results_of_a_study_lie_below_one_run_that_has_its_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "study" / "points" / "a", RESULT)
    save(tmp_path / "study" / "points" / "b", RESULT | {"status": "aborted", "started_at": None})
    save(tmp_path / "study" / "points" / "b.interrupted-1", RESULT | {"status": "interrupted"})
    (tmp_path / "study" / "findings.json").write_text("{}")
    store = tmp_path / "store"
    assert call(["track", str(tmp_path / "study"), "--mlflow-uri", f"file:{store}"]) == 0
    assert "2 results kept" in capsys.readouterr().out
    client, kept = browse(store)
    parents = {run.data.tags.get("mlflow.parentRunId") for run in kept} - {None}
    (parent,) = [run for run in kept if run.info.run_id in parents]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["findings.json"]
    assert sorted(run.info.status for run in kept if run is not parent) == ["FINISHED", "KILLED"]
    assert parent.info.status == "FINISHED"


def test_a_run_in_the_store_lasted_as_long_as_the_test(tmp_path: Path) -> None:
    """However long ago that was."""
    save(tmp_path / "run", RESULT)
    assert call(["track", str(tmp_path / "run"), "--mlflow-uri", f"file:{tmp_path / 'store'}"]) == 0
    _, (kept,) = browse(tmp_path / "store")
    assert (kept.info.start_time, kept.info.end_time) == (1_000_500, 1_002_750)


def test_artefacts_that_nobody_takes_are_a_sentence_and_no_run_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the store keeps them in S3, and boto3 is not installed."""

    def refuse(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    save(tmp_path / "study" / "a", RESULT)
    save(tmp_path / "study" / "b", RESULT)
    store = tmp_path / "store"
    assert call(["track", str(tmp_path / "study"), "--mlflow-uri", f"file:{store}"]) == 3
    said = capsys.readouterr().err
    assert "No module named 'boto3'" in said and "Traceback" not in said
    _, kept = browse(store)
    assert [run.info.status for run in kept] == ["FAILED", "FAILED"]


def test_a_study_with_a_damaged_result_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    save(tmp_path / "study" / "a", RESULT)
    save(tmp_path / "study" / "b", RESULT)
    (tmp_path / "study" / "b" / "result.json").write_text("{")
    assert call(["track", str(tmp_path / "study"), "--mlflow-uri", f"file:{tmp_path / 'store'}"]) == 3
    assert browse(tmp_path / "store")[1] == []


def test_no_password_is_in_what_the_store_says() -> None:
    error = OSError("API request to http://user:secret@host/api failed with exception X\nmore")
    assert first_line(error) == "API request to http://host/api failed with exception X"


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        ("http://127.0.0.1:{closed}", 3, "nobody listens"),
        ("http://user:secret@127.0.0.1:{closed}", 3, "nobody listens"),
        ("http://[", 2, "is no URI"),
        ("http://", 2, "names no host"),
        ("http://user:secret@host:port", 2, "is no URI"),
        ("http://user:secret@", 2, "names no host"),
        ("ftp://host/store", 3, "cannot be used"),
    ],
)
def test_a_store_out_of_reach_is_found_out_before_anything_runs(
    uri: str, code: int, said: str, harness: Harness, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = harness("--scenario", "Offline", "--backend", "echo", "--mlflow-uri", uri.format(closed=port))
    assert done.code == code, done.err
    assert said in done.err and "secret" not in done.err and "Traceback" not in done.err
    assert not done.folder.exists()


class FullServer(BaseHTTPRequestHandler):
    """A tracking server that is up, knows our experiment, and takes nothing."""

    def do_GET(self) -> None:
        self.answer(200, {"experiment": {"experiment_id": "1", "name": EXPERIMENT}})

    def do_POST(self) -> None:
        self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "the disk is full"})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


def test_a_store_that_fails_in_the_end_costs_no_result(harness: Harness) -> None:
    with HTTPServer(("127.0.0.1", 0), FullServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ["--scenario", "Offline", *SHORT["Offline"], "--backend", "echo"]
        done = harness(*words, "--mlflow-uri", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert done.code == 3 and "the disk is full" in done.err and str(done.folder) in done.err
    assert done.result["valid"] and "VALID" in done.out


@pytest.mark.parametrize("content", ["", "{", "[]"], ids=["empty", "cut off", "no object"])
def test_a_damaged_result_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(content)
    assert call(["track", str(tmp_path / "run"), "--mlflow-uri", f"file:{tmp_path / 'store'}"]) == 3
    assert "result.json" in capsys.readouterr().err


def test_a_folder_without_a_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["track", str(tmp_path), "--mlflow-uri", f"file:{tmp_path / 'store'}"]) == 2
    assert "holds no result" in capsys.readouterr().err


def test_without_mlflow_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="not installed"):
        open_store("file:somewhere")


def test_what_goes_where() -> None:
    assert dict(figures_of(RESULT)) == {
        "metrics.tokens_per_second": 5.0,
        "metrics.ttft_s.p99": 0.5,
        "accuracy.rouge1": 88.0,
        "queries": 3.0,
        "duration_s": 2.25,
    }
    tags = dict(verdict(RESULT))
    assert tags["valid"] == "False" and tags["invalid_reasons"] == "one; two" and tags["accuracy_passed"] == "undecided"
    config = {
        "model": "m",
        "engine_arg": {"a": 1, "b": {"c": True}},
        "endpoint": [],
        "samples": None,
        "long": "x" * 9999,
    }
    assert dict(parameters_of(config)) == {
        "model": "m",
        "engine_arg.a": "1",
        "engine_arg.b.c": "True",
        "long": "x" * LONGEST,
    }


def test_no_figure_of_many_replicas_is_left_out(tmp_path: Path) -> None:
    series = {f"echo-{place}": {"running": {"mean": 1.0, "max": float(place)}} for place in range(700)}
    save(tmp_path / "run", RESULT | {"telemetry": {"series": series}})
    assert call(["track", str(tmp_path / "run"), "--mlflow-uri", f"file:{tmp_path / 'store'}"]) == 0
    _, (kept,) = browse(tmp_path / "store")
    assert kept.data.metrics["telemetry.series.echo-699.running.max"] == 699.0


def test_a_folder_is_no_server() -> None:
    refuse_unreachable("file:/some/where")
    with pytest.raises(ConfigError):
        refuse_unreachable("http://host:port")
