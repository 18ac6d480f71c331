"""Server processes of our own: up, down, dead, and what they are started with.

A small program stands in for vLLM; one test starts the real server.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.demo import MODEL
from sut.backends import Generation, Plan, serve, vllm_engine
from sut.backends.serve import Server, command, environment, make_servers, reason, refuse
from sut.errors import ConfigError, SetupError

FAKE = """
import json, os, signal, socket, subprocess, sys, time
port, how, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(os.path.join(folder, "seen"), "a") as seen:
    seen.write(json.dumps({"argv": sys.argv, "env": dict(os.environ)}) + "\\n")
print("INFO booting")
if how == "broken":
    print("(APIServer pid=7) ERROR 01-01 00:00:00 [core.py:1] ValueError: no such model")
    print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
    sys.exit(3)
if how == "port taken" and not os.path.exists(os.path.join(folder, "taken")):
    open(os.path.join(folder, "taken"), "w").close()
    sys.exit("OSError: [Errno 98] Address already in use")
if how == "deaf":
    time.sleep(60)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
open(os.path.join(folder, "child"), "w").write(str(child.pid))
listener = socket.create_server(("127.0.0.1", port))
answers = 0
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    answers += 1
    status = "503 Service Unavailable" if answers < 3 else "200 OK"
    connection.sendall(f"HTTP/1.1 {status}\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    connection.close()
"""


def plan(**changes: Any) -> Plan:
    return Plan(
        **{"replicas": 1, "model": "M", "dtype": "auto", "max_model_len": None, **changes}, generation=Generation(8)
    )


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOADGEN_HARNESS_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that run FAKE; what it saw is in tmp_path."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    made: list[Server] = []

    def make(how: str, place: dict[str, str] | None = None, cores: tuple[int, ...] = (), **changes: Any) -> Server:
        monkeypatch.setattr(
            serve, "command", lambda _, port: [sys.executable, str(program), str(port), how, str(tmp_path)]
        )
        changes = {"log_dir": tmp_path, "ready_timeout": 20.0, **changes}
        server = Server("vllm-0", plan(**changes), place or {}, cores)
        made.append(server)
        return server

    yield make
    for server in made:
        asyncio.run(server.stop())


def seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def gone(pid: int) -> bool:
    """Within a few seconds; a zombie whose new parent has not reaped it yet is gone."""
    for _ in range(300):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def failure(doing: Coroutine[Any, Any, None]) -> str:
    with pytest.raises(SetupError) as refusal:
        asyncio.run(doing)
    return str(refusal.value)


# -- up and down ------------------------------------------------------------------------------------------------------


def test_a_server_is_up_once_it_is_healthy_and_down_with_its_children(fake, tmp_path):
    async def session() -> tuple[str, str | None, int]:
        server = fake("ready")
        await server.start()
        process = server._process.pid
        told = server.url, server.trouble(), process
        assert os.getsid(process) == process, "Ctrl-C of a terminal would reach it"
        await server.stop()
        await server.stop()
        assert server.trouble() is None
        return told

    url, trouble, process = asyncio.run(session())
    port = seen(tmp_path)[0]["argv"][1]
    assert (url, trouble) == (f"http://127.0.0.1:{port}", None)
    assert not psutil.pid_exists(process)
    assert gone(int((tmp_path / "child").read_text()))
    assert "INFO booting" in (tmp_path / "vllm-0.log").read_text()


def test_a_server_that_never_started_can_be_stopped(fake):
    asyncio.run(fake("ready").stop())


def test_one_that_is_only_spawned_is_looked_after_by_who_has_spawned_it(fake):
    async def session() -> tuple[str, str | None]:
        server = fake("broken")
        server.spawn()
        while server.trouble() is None:
            await asyncio.sleep(0.01)
        told = server.url, server.trouble()
        await server.stop()
        return told

    url, after = asyncio.run(session())
    assert url.startswith("http://127.0.0.1:")
    assert after == "the server vllm-0 exited with code 3; vllm-0.log ends: ValueError: no such model"


def test_one_that_cannot_even_be_spawned_says_so(fake, monkeypatch):
    server = fake("ready")
    monkeypatch.setattr(serve, "command", lambda _, port: ["/no/such/program"])
    with pytest.raises(SetupError, match="the server vllm-0 did not start: "):
        server.spawn()


def test_many_start_at_the_same_time(fake):
    async def session() -> list[str]:
        servers = [fake("ready") for _ in range(4)]
        await asyncio.gather(*(server.start() for server in servers))
        urls = [server.url for server in servers]
        await asyncio.gather(*(server.stop() for server in servers))
        return urls

    assert len(set(asyncio.run(session()))) == 4


def test_one_that_is_stopped_while_it_starts_says_so(fake):
    async def session() -> None:
        server = fake("deaf")
        start = asyncio.create_task(server.start())
        await asyncio.sleep(0.1)
        await server.stop()
        await start

    assert failure(session()) == "the server vllm-0 did not start: it was stopped"


def test_one_that_ignores_the_signal_is_killed_with_its_children(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "_STOP_LIMIT", 0.3)

    async def session() -> int:
        server = fake("stubborn")
        await server.start()
        process = server._process.pid
        await server.stop()
        return process

    assert not psutil.pid_exists(asyncio.run(session()))
    assert gone(int((tmp_path / "child").read_text()))


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_one_that_exits_is_told_with_the_cause_in_its_log(fake, tmp_path):
    (tmp_path / "vllm-0.log").write_text("ValueError: of an earlier run\n")
    said = failure(fake("broken").start())
    assert said == (
        "the server vllm-0 did not start: it exited with code 3; vllm-0.log ends: ValueError: no such model"
    )


def test_a_log_without_a_folder_is_read_too(fake):
    assert failure(fake("broken", log_dir=None).start()).endswith("; its log ends: ValueError: no such model")


def test_one_that_is_never_ready_is_given_up_and_killed(fake, tmp_path):
    server = fake("deaf", ready_timeout=0.6)
    assert failure(server.start()) == (
        "the server vllm-0 did not start: it was not ready within 0.6 s; vllm-0.log ends: INFO booting"
    )
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]


def test_one_that_dies_later_says_how(fake, tmp_path):
    async def session() -> tuple[str | None, str | None]:
        server = fake("ready")
        await server.start()
        os.kill(server._process.pid, signal.SIGKILL)
        while server.trouble() is None:
            await asyncio.sleep(0.01)
        first = server.trouble()
        await server.stop()
        return first, server.trouble()

    first, after = asyncio.run(session())
    assert first == after == "the server vllm-0 was killed by signal 9 (Killed); vllm-0.log ends: INFO booting"
    assert gone(int((tmp_path / "child").read_text())), "its children had outlived it"


def test_a_port_that_was_taken_meanwhile_is_changed_once(fake, tmp_path):
    async def session() -> str:
        server = fake("port taken")
        await server.start()
        return server.url

    url = asyncio.run(session())
    first, second = (entry["argv"][1] for entry in seen(tmp_path))
    assert url == f"http://127.0.0.1:{second}" and first != second


# -- what it is started with ------------------------------------------------------------------------------------------


def test_a_server_gets_its_environment_and_the_key_where_nobody_reads_it(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("LOADGEN_HARNESS_API_KEY", "s3cret")
    monkeypatch.setenv("LOADGEN_HARNESS_MARK", "of the guard")
    asyncio.run(fake("ready", {"OMP_NUM_THREADS": "3"}).start())
    (entry,) = seen(tmp_path)
    wanted = {
        "OMP_NUM_THREADS": "3",
        "PYTHONUNBUFFERED": "1",
        "LOADGEN_HARNESS_MARK": "of the guard",
        "VLLM_API_KEY": "s3cret",
    }
    assert {name: entry["env"].get(name) for name in wanted} == wanted
    assert "LOADGEN_HARNESS_API_KEY" not in entry["env"]
    assert not any("s3cret" in word for word in entry["argv"])


def test_a_server_is_pinned_to_its_cores(fake):
    core = max(os.sched_getaffinity(0))

    async def session() -> set[int]:
        server = fake("ready", cores=(core,))
        await server.start()
        return os.sched_getaffinity(server._process.pid)

    assert asyncio.run(session()) == {core}


def test_without_a_key_the_server_asks_for_none():
    assert "VLLM_API_KEY" not in environment({})


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM of 0.32 on a CPU that need not be imported."""
    monkeypatch.setattr(vllm_engine, "_on_cpu", lambda: True)
    monkeypatch.setattr(
        serve, "_frontend_fields", lambda: ["host", "port", "enable_scale_out", "disable_uvicorn_access_log"]
    )


OURS = [
    sys.executable,
    "-m",
    "vllm.entrypoints.openai.api_server",
    "--model",
    "M",
    "--host",
    "127.0.0.1",
    "--port",
    "7",
]
FIXED = ["--dtype", "auto", "--no-enable-prefix-caching", "--generation-config", "vllm"]


def test_the_command_line_says_what_an_engine_in_process_would_get(bare):
    assert command(plan(max_model_len=2048, served_model="name"), 7) == [
        *OURS,
        *FIXED,
        *("--max-model-len", "2048", "--enforce-eager", "--served-model-name", "name"),
        *("--enable-scale-out", "--disable-uvicorn-access-log"),
    ]


def test_an_older_server_is_not_asked_for_what_it_does_not_know(bare, monkeypatch):
    monkeypatch.setattr(serve, "_frontend_fields", list)
    assert command(plan(), 7) == [*OURS, *FIXED, "--enforce-eager"]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"max_num_seqs": 64}, ["--max-num-seqs", "64"]),
        ({"enable_chunked_prefill": False}, ["--no-enable-chunked-prefill"]),
        ({"disable_log_stats": True}, ["--disable-log-stats"]),
        ({"disable_log_stats": False}, []),  # has no opposite
        ({"hf_overrides": {"a": [1]}}, ["--hf-overrides", '{"a": [1]}']),
        ({"cudagraph_capture_sizes": [1, 2]}, ["--cudagraph-capture-sizes", "1", "2"]),
        ({"lora_modules": [{"name": "n"}]}, ["--lora-modules", '{"name": "n"}']),
        ({"quantization": None}, ["--quantization", "None"]),
    ],
)
def test_an_argument_becomes_a_flag(bare, given, flags):
    without = command(plan(), 7)
    words = command(plan(engine_args=given), 7)
    at = words.index("--enforce-eager") + 1
    assert words[at : at + len(flags)] == flags
    assert words[:at] + words[at + len(flags) :] == without


def test_the_person_may_close_the_route_of_token_ids(bare):
    words = command(plan(engine_args={"enable_scale_out": False}), 7)
    assert "--no-enable-scale-out" in words and "--enable-scale-out" not in words


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model", "use --model"),
        ("tokenizer", "use --model"),
        ("served_model_name", "use --served-model"),
        ("host", "decides where its own servers listen"),
        ("port", "decides where its own servers listen"),
        ("api_key", "set LOADGEN_HARNESS_API_KEY"),
        ("max_num_seq", "did you mean 'max_num_seqs'"),
        ("enable_scaleout", "did you mean 'enable_scale_out'"),
    ],
)
def test_an_argument_that_is_not_open_is_refused(bare, name, says):
    with pytest.raises(ConfigError, match=says):
        refuse(plan(engine_args={name: 1}), ["model", "max_num_seqs"])


def test_a_key_that_only_the_server_would_know_is_refused(bare, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a")
    with pytest.raises(ConfigError, match="set LOADGEN_HARNESS_API_KEY instead"):
        refuse(plan(), [])
    monkeypatch.setenv("LOADGEN_HARNESS_API_KEY", "a")
    refuse(plan(), [])


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("", ""),
        ("one\n\ntwo\n", "two"),
        (
            "usage: x\nserver.py: error: unrecognized arguments: --foo\n",
            "server.py: error: unrecognized arguments: --foo",
        ),
        ("(EngineCore pid=1) ERROR 11-21 14:24:06 [core.py:1510] ValueError: too big\nbye\n", "ValueError: too big"),
        ("a.b.HFError: gone\nRuntimeError: Failed. See root cause above. {}\n", "a.b.HFError: gone"),
        ("(API pid=1) WARNING 1 [x.py:2] such as `OSError: [Errno 24]`.\nlast\n", "last"),
        (
            "p.ValidationError: 1 error for C\n  Value error, too long\n    For more\nend\n",
            "p.ValidationError: 1 error for C Value error, too long For more",
        ),
        ("ValueError: " + "x" * 400, "ValueError: " + "x" * 288),
    ],
)
def test_the_reason_is_found_in_a_log(log, says):
    assert reason(log) == says


# -- the real one -----------------------------------------------------------------------------------------------------


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer s3cret"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")  # what vLLM's import warns about is its own affair
def test_a_real_server_answers_token_ids_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOADGEN_HARNESS_API_KEY", "s3cret")
    demo = plan(model=str(MODEL), dtype="float32", log_dir=tmp_path, served_model="demo", ready_timeout=120.0)
    with pytest.raises(ConfigError, match=r"refuses its arguments: argument --seed: invalid"):
        make_servers(plan(engine_args={"seed": "x"}))
    with pytest.raises(ConfigError, match="would take '2' for its model"):
        make_servers(plan(engine_args={"seed": [1, 2]}))
    (server,) = make_servers(demo)

    async def session() -> list[psutil.Process]:
        try:
            began = time.monotonic()
            await server.start()
            print(f"ready after {time.monotonic() - began:.1f} s")
            assert server.trouble() is None
            top = psutil.Process(server._process.pid)
            assert not any("s3cret" in word for word in top.cmdline())
            (model,) = (await asyncio.to_thread(ask, f"{server.url}/v1/models"))["data"]
            assert (model["id"], model["root"]) == ("demo", str(MODEL))
            how = {"temperature": 0, "max_tokens": 8, "min_tokens": 1, "detokenize": False}
            body = {"model": "demo", "token_ids": [1, *range(10, 18)], "sampling_params": how}
            (answer,) = (await asyncio.to_thread(ask, f"{server.url}/inference/v1/generate", body))["choices"]
            assert len(answer["token_ids"]) >= 2 and answer["finish_reason"] in ("stop", "length")
            return [top, *top.children(recursive=True)]
        finally:
            began = time.monotonic()
            await server.stop()
            print(f"stopped after {time.monotonic() - began:.1f} s")

    family = asyncio.run(session())
    assert len(family) >= 2, "an engine process of its own"
    assert all(gone(process.pid) for process in family)
