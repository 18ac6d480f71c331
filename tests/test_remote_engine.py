"""The harness against real servers: two `vllm serve` on the demo's model, and `transformers serve`.

The two servers are started once per session; what is killed is started again on its port.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.benchmarks import find
from harness.demo import MODEL
from harness.results import read_detail
from sut.backends import Plan
from sut.backends.serve import command

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parent.parent
READY = 120.0


class Process:
    """A server on a port of its own, killed and started again at will."""

    def __init__(self, words: Callable[[int], list[str]], environment: dict[str, str], log: Path) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = int(held.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = words(self.port)
        self._environment = os.environ | environment
        self._log = log
        self.spawn()

    def spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        limit = time.monotonic() + READY
        while time.monotonic() < limit:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(f"not ready: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """As kill -9 of the server and of its engine: nothing says goodbye."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


def words() -> list[str]:
    """The command line of one server, its port 0."""
    row = find("demo")
    return command(Plan(2, str(MODEL), row.dtype, row.max_model_len, row.generation, served_model="demo"), 0)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    # In a process of its own: vLLM's import warns, and warnings are errors here.
    program = "import json; from tests.test_remote_engine import words; print(json.dumps(words()))"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    template = json.loads(told.stdout.splitlines()[-1])
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    folder = tmp_path_factory.mktemp("servers")
    both = [
        Process(
            lambda port: [str(port) if word == "0" else word for word in template], environment, folder / f"{i}.log"
        )
        for i in range(2)
    ]
    try:
        for server in both:
            server.wait()
        yield both
    finally:
        for server in both:
            server.kill()


@pytest.fixture
def up(servers: list[Process]) -> list[Process]:
    """Both servers, whatever the test before has done to them."""
    for server in servers:
        if not server.alive:
            server.spawn()
    for server in servers:
        server.wait()
    return servers


def start(out: Path, servers: list[Process], *options: str) -> subprocess.Popen[str]:
    endpoints = [word for server in servers for word in ("--endpoint", server.url)]
    words = [sys.executable, "-m", "harness", *endpoints, "--output-dir", str(out), *options]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(run: subprocess.Popen[str], out: Path) -> tuple[int, dict[str, Any]]:
    stdout, stderr = run.communicate(timeout=200)
    assert (out / "result.json").exists(), (stdout, stderr)
    return run.returncode, json.loads((out / "result.json").read_text())


def wait_until_issued(out: Path, run: subprocess.Popen[str]) -> None:
    """The first queries are in flight a moment after LoadGen has begun its log."""
    while not (out / "mlperf_log_summary.txt").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    time.sleep(1.5)


@pytest.mark.parametrize(
    ("options", "route"),
    [
        (("--scenario", "Offline"), "/inference/v1/generate"),
        (("--scenario", "Offline", "--offline-batch", "64"), "/v1/completions"),
        (("--scenario", "Server", "--target-qps", "50"), "/inference/v1/generate"),
    ],
    ids=["Offline", "batched", "Server"],
)
def test_two_real_servers_give_a_valid_run_without_an_error_line(
    up: list[Process], tmp_path: Path, options: tuple[str, ...], route: str
) -> None:
    code, result = finish(start(tmp_path / "out", up, *options), tmp_path / "out")
    assert (code, result["valid"], result["invalid_reasons"]) == (0, True, [])
    assert read_detail(tmp_path / "out" / "mlperf_log_detail.txt").errors == ()
    for facts in result["environment"]["engines"].values():
        assert (facts["dialect"], facts["route"], facts["tokenizer"]) == ("vllm", route, "the same")
        assert facts["prefix_caching"] is False
    shares = [replica["queries"] for replica in result["replicas"]]
    assert min(shares) > 0.3 * sum(shares), "each has done its part"


def test_the_accuracy_is_that_of_engines_in_process(up: list[Process], tmp_path: Path) -> None:
    code, result = finish(start(tmp_path / "out", up, "--scenario", "Offline", "--mode", "accuracy"), tmp_path / "out")
    scores = result["accuracy"]
    assert (code, scores["passed"]) == (0, True)
    assert (scores["rouge1"], scores["rouge2"], scores["rougeL"]) == (88.24, 83.6907, 87.5542), "to the last digit"


def test_the_context_study_finds_the_exact_length_of_a_real_server(up: list[Process], tmp_path: Path) -> None:
    """vLLM refuses a prompt longer than its context with HTTP 400, and cuts short the answer to one that just fits."""
    out = tmp_path / "out"
    words = ["context", "--endpoint", up[0].url, "--lengths", "4000,9000", "--repeats", "2", "--output-dir", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words, "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "findings.json").read_text())
    (answer,) = found["summary"]
    assert (answer["prompt_tokens"], answer["total_tokens"], answer["exact"]) == (8160, 8192, True)
    assert (answer["edge"], answer["context_said"]) == ("cut short", 8192)
    refused = json.loads(next((out / "points").glob("*-asks-9000/point.json")).read_text())
    assert (refused["edge"], refused["status"]) == ("refused", 400)
    assert [row["prompt_tokens"] for row in found["rows"] if row.get("ttft_s")] == [4000, 8160]
    assert answer["kv_cache_tokens"] > 8192


def test_a_killed_replica_is_ejected_and_its_queries_move_on(up: list[Process], tmp_path: Path) -> None:
    """Then it is started again, comes back by answering a prompt, and gets work."""
    out = tmp_path / "out"
    options = ("--scenario", "Server", "--target-qps", "20", "--min-duration", "40", "--failure-policy", "resilient")
    run = start(out, up, *options)
    wait_until_issued(out, run)
    up[0].kill()
    up[0].spawn()
    code, result = finish(run, out)
    first, second = result["replicas"]
    assert result["status"] == "complete"
    assert first["ejected_s"] is not None
    assert second["ejected_s"] is None
    assert first["queries"] > 60, "what it served in the 1.5 s before is 15"
    kinds = result["failures"]["by_kind"]
    assert set(kinds) <= {"replica_died"}, "only streams that had begun are lost"
    assert result["valid"] is (not kinds)
    assert code == (0 if result["valid"] else 4)


def test_under_strict_a_killed_replica_makes_the_run_not_valid(up: list[Process], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start(out, up, "--scenario", "Offline")
    wait_until_issued(out, run)
    up[0].kill()
    code, result = finish(run, out)
    assert (code, result["status"], result["valid"]) == (4, "complete", False)
    assert result["failures"]["count"] > 0
    assert result["retries"] == 0


def test_without_any_replica_the_run_is_aborted(up: list[Process], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start(out, up, "--scenario", "Offline", "--failure-policy", "resilient")
    wait_until_issued(out, run)
    killed = time.monotonic()
    for server in up:
        server.kill()
    code, result = finish(run, out)
    assert (code, result["status"]) == (4, "aborted")
    assert time.monotonic() - killed < 10
    assert "no replica is left" in result["invalid_reasons"][0]


def test_transformers_serve_is_spoken_to_in_the_openai_dialect(tmp_path: Path) -> None:
    """A server that is not vLLM: text in and out, no [DONE], strict about fields, its model list broken offline."""
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    words = ["serve", str(MODEL), "--host", "127.0.0.1", "--device", "cpu"]
    server = Process(
        lambda port: [sys.executable, "-c", program, *words, "--port", str(port)],
        {"HF_HUB_OFFLINE": "1"},
        tmp_path / "server.log",
    )
    try:
        server.wait()
        options = ("--served-model", str(MODEL), "--samples", "24", "--scenario")
        out = tmp_path / "performance"
        code, result = finish(start(out, [server], *options, "Offline"), out)
        assert (code, result["valid"], result["invalid_reasons"]) == (0, True, [])
        facts = result["environment"]["engines"]["remote-0"]
        assert (facts["dialect"], facts["prompts"], facts["answers"]) == ("openai", "text", "text")
        assert result["text_answers"]["answers"] == result["queries"]
        assert not result["submission_ready"]
        out = tmp_path / "accuracy"
        code, result = finish(
            start(out, [server], *options, "Server", "--mode", "accuracy", "--target-qps", "1.5"), out
        )
        assert result["invalid_reasons"] == []
        assert result["accuracy"]["rouge1"] > 80
    finally:
        server.kill()
