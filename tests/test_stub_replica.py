"""The stub of a replica: what it says, and what each fault puts on the wire."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.stub_replica import CUTS, FAULTS, Script, Stub

GENERATE, COMPLETIONS = "/inference/v1/generate", "/v1/completions"
ASK: dict[str, Any] = {"model": "stub", "token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 9}}
TEXT: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 9, "return_token_ids": True, "stream": True}


def request(path: str, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: stub\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def talk(stub: Stub, path: str, body: Any, wait: float = 0.15) -> tuple[list[bytes], str]:
    """What each read brings, and how the connection ends: open, FIN or RST."""
    reads = []
    with closing(socket.create_connection(("127.0.0.1", stub.port))) as connection:
        connection.sendall(request(path, body))
        connection.settimeout(wait)
        try:
            while data := connection.recv(1 << 20):
                reads.append(data)
        except TimeoutError:
            return reads, "open"
        except ConnectionResetError:
            return reads, "RST"
    return reads, "FIN"


def call(stub: Stub, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", stub.port, timeout=5)) as connection:
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read().decode()
    if response.headers.get_content_type() == "text/event-stream":
        frames = [line.removeprefix("data:").strip() for line in data.splitlines() if line.startswith("data:")]
        return response, [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]
    return response, json.loads(data) if response.headers.get_content_type() == "application/json" else data


def said(events: list[Any]) -> list[int]:
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return [token for choice in choices for token in choice["token_ids"]]


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "answer", "finish"), [(4, [5, 6, 7, 2], "stop"), (20, [5, 6, 7] * 3, "length")])
def test_generate(tokens: int, answer: list[int], finish: str) -> None:
    with Stub(Script(tokens=tokens)) as stub:
        whole = call(stub, GENERATE, ASK)[1]
        settings = {"max_tokens": 9, "stream_interval": 2}
        wanted = ASK | {"stream": True, "sampling_params": settings, "stream_options": {"include_usage": True}}
        *frames, usage, done = call(stub, GENERATE, wanted)[1]
        assert stub.truth()["answers"] == 2
    assert whole["choices"][0]["token_ids"] == said(frames) == answer
    assert whole["choices"][0]["finish_reason"] == frames[-1]["choices"][0]["finish_reason"] == finish
    assert [len(said([frame])) for frame in frames[:2]] == [1, 2]
    assert (
        whole["usage"]
        == usage["usage"]
        == {"prompt_tokens": 3, "total_tokens": 3 + len(answer)} | {"completion_tokens": len(answer)}
    )
    assert done == "[DONE]"


def test_completions_of_a_batch() -> None:
    with Stub(Script(tokens=3)) as stub:
        batch = TEXT | {"prompt": [[5, 6], [8, 9]]}
        choices = call(stub, COMPLETIONS, batch | {"stream": False})[1]["choices"]
        frames = call(stub, COMPLETIONS, batch)[1]
    assert [(c["index"], c["token_ids"], c["prompt_token_ids"]) for c in choices] == [
        (0, [5, 6, 2], [5, 6]),
        (1, [8, 9, 2], [8, 9]),
    ]
    assert [c["text"] for c in choices] == ["w5é w6é ", "w8é w9é "]
    assert said([frame for frame in frames[:-1] if frame["choices"][0]["index"] == 1]) == [8, 9, 2]


def test_text_families() -> None:
    with Stub(Script(family="openai", tokens=4)) as stub:
        wanted = {"prompt": "oh dé ar", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
        *frames, end, usage, _ = call(stub, COMPLETIONS, wanted)[1]
        assert "".join(frame["choices"][0]["text"] for frame in frames) == "oh dé ar oh"
        assert (end["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"]) == ("stop", 4)
        assert call(stub, COMPLETIONS, TEXT)[0].status == 400
    with Stub(Script(family="tgi", tokens=4)) as stub:
        frames = call(stub, "/generate_stream", {"inputs": "oh dé", "parameters": {"max_new_tokens": 8}})[1]
        assert frames[-1]["generated_text"] == "oh dé oh"
        assert frames[-1]["details"] == {"finish_reason": "eos_token", "generated_tokens": 4, "seed": None}
        assert frames[-1]["token"]["special"]


def test_sglang_tells_everything_so_far() -> None:
    with Stub(Script(family="sglang", tokens=3)) as stub:
        wanted = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 8}, "stream": True}
        assert [frame["output_ids"] for frame in call(stub, "/generate", wanted)[1][:-1]] == [[5], [5, 6], [5, 6, 2]]


def test_refusals_and_facts() -> None:
    with Stub(Script(api_key="secret", max_model_len=20, tokenize=lambda text: [len(text)])) as stub:
        key = {"authorization": "Bearer secret"}
        assert call(stub, "/health")[0].status == 200
        assert call(stub, "/v1/models")[0].status == 401
        assert call(stub, "/v1/models", **key)[1]["data"][0]["max_model_len"] == 20
        assert call(stub, "/tokenize", {"prompt": "four"}, **key)[1]["tokens"] == [4]
        assert call(stub, "/nowhere", {}, **key)[0].status == 404
        assert call(stub, GENERATE, ASK | {"model": "other"}, **key)[0].status == 404
        assert call(stub, GENERATE, ASK | {"token_ids": [5] * 12}, **key)[0].status == 400
        stub.set_unhealthy(True)
        assert call(stub, "/health")[0].status == 503
    with Stub() as stub:
        assert talk(stub, GENERATE, b"{")[0][0].startswith(b"HTTP/1.1 400 ")


# -- time and slots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
def test_tokens_come_when_due(fast: bool) -> None:
    with Stub(Script(tokens=5, ttft=0.05, tpot=0.02, fast=fast)) as stub:
        began = time.perf_counter()
        reads, _ = talk(stub, GENERATE, ASK | {"stream": True})
        assert len(reads) >= 4
        assert time.perf_counter() - began >= 0.05 + 4 * 0.02
        figures = call(stub, "/stats")[1]["first_lateness_s"]
        assert figures["count"] == 1 and 0 <= figures["p50"] == figures["max"] < 0.05


def test_slots_serve_in_order() -> None:
    with Stub(Script(tokens=2, ttft=0.03, slots=1)) as stub:
        connections = [socket.create_connection(("127.0.0.1", stub.port)) for _ in range(3)]
        for connection in connections:
            connection.sendall(request(GENERATE, ASK))
            time.sleep(0.005)
        assert (stub.truth()["running"], stub.truth()["waiting"]) == (1, 2)
        connections.pop(1).close()
        times = []
        for connection in connections:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            times.append(time.perf_counter())
            connection.close()
        assert times[1] - times[0] > 0.02
        truth = stub.truth()
        assert (truth["peak_running"], truth["aborted"], truth["answers"], truth["running"]) == (1, 1, 2, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_fast_answers_like_the_thorough_path(stream: bool) -> None:
    shapes = []
    for fast in (False, True):
        with Stub(Script(tokens=4, fast=fast)) as stub:
            response = call(stub, GENERATE, ASK | {"stream": stream, "stream_options": {"include_usage": True}})[1]
            events = response if stream else [response]
            shapes.append([(len(said([e])), list(e)) for e in events if e != "[DONE]"])
    assert shapes[0] == shapes[1]


# -- the wire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False])
def test_framings_say_the_same(chunked: bool) -> None:
    answers = {}
    for framing in ("frame", "byte", "many", "split"):
        with Stub(Script(tokens=3, tpot=0.005, framing=framing, chunked=chunked, newline="\r\n")) as stub:
            answers[framing] = call(stub, COMPLETIONS, TEXT)[1]
            reads, end = talk(stub, COMPLETIONS, TEXT)
            assert end == ("open" if chunked else "FIN")
            assert (len(reads) == 1) == (framing == "many")
            writes = stub.truth()["writes"] // 2
            assert framing != "byte" or writes == len(b"".join(reads))
            # Some read ends within a character of two bytes, unless a busy machine brings two writes in each of them.
            for _ in range(20):
                if framing != "split" or any(read.endswith("é".encode()[:1]) for read in reads):
                    break
                reads, _ = talk(stub, COMPLETIONS, TEXT)
            else:
                raise AssertionError("no read ended within a character")
    assert answers["frame"] == answers["byte"] == answers["many"] == answers["split"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", CUTS)
def test_responses_that_break_off(fault: str, stream: bool) -> None:
    with Stub(Script(tokens=4, fault=fault)) as stub:
        reads, end = talk(stub, GENERATE, ASK | {"stream": stream})
        left, whole, then = CUTS[fault]
        wire = b"".join(reads)
        assert end == {"reset": "RST", "close": "FIN", "stall": "open"}[then]
        assert (wire == b"") == (whole == 0)
        assert wire.count(b"data: ") == (max(0, left - 1) if stream else 0)
        assert not wire.endswith((b"0\r\n\r\n", b"}"))
        time.sleep(0.02)
        assert stub.truth()["running"] == 0
        assert stub.truth()["aborted"] == (then == "stall")


def body(wire: bytes) -> bytes:
    return wire.partition(b"\r\n\r\n")[2]


STREAMED: dict[str, Callable[[bytes], bool]] = {
    "bad-status": lambda wire: not wire.startswith(b"HTTP/"),
    "malformed": lambda wire: wire.count(b"data: {") == wire.count(b"}\n\n") + 1,
    "bad-chunk": lambda wire: wire.count(b"\r\nzz\r\n") == 1,
    "long-head": lambda wire: len(wire) - len(body(wire)) > 200_000 and wire.endswith(b"\r\n0\r\n\r\n"),
    "extra-bytes": lambda wire: wire.endswith(b"\r\n0\r\n\r\nbytes after the end\r\n"),
    "oversized": lambda wire: len(wire) > 100_000 and b"[DONE]" in wire,
    "comment": lambda wire: b"\n\n\r\n" in wire and b": ping\n\nevent: message\ndata: " in wire,
    "no-terminator": lambda wire: (
        wire.endswith(b"\r\n0\r\n\r\n") and not any(word in wire for word in (b'stop"', b"DONE", b"completion_tokens"))
    ),
    "error-frame": lambda wire: wire.count(b'token_ids":[') == 2 and b'"code":500}}\n\n' in wire and b"DONE" in wire,
    "abort": lambda wire: b'"finish_reason":"abort"' in wire,
    "wrong-usage": lambda wire: b'"completion_tokens":5' in wire,
    "no-usage": lambda wire: b"completion_tokens" not in wire and b"DONE" in wire,
    "no-tokens": lambda wire: b'"token_ids":[]' in wire and b'"finish_reason":"stop"' in wire,
    "one-token": lambda wire: wire.count(b'"token_ids":[') == 1 and b'"token_ids":[2]' in wire,
    "slow-read": lambda wire: b"DONE" in wire,
}
WHOLE: dict[str, Callable[[bytes], bool]] = {
    "malformed": lambda wire: f"content-length: {len(body(wire))}\r\n".encode() in wire and not wire.endswith(b"}"),
    "bad-chunk": lambda wire: body(wire).startswith(b"zz\r\n"),
    "extra-bytes": lambda wire: wire.endswith(b"}bytes after the end\r\n"),
    "oversized": lambda wire: len(body(wire)) > 100_000 and "choices" in json.loads(body(wire)),
    "no-terminator": lambda wire: json.loads(body(wire))["choices"][0]["finish_reason"] is None,
    "error-frame": lambda wire: json.loads(body(wire))["error"]["code"] == 500,
    "wrong-usage": lambda wire: json.loads(body(wire))["usage"]["completion_tokens"] == 5,
    "no-usage": lambda wire: "usage" not in json.loads(body(wire)),
}


@pytest.mark.parametrize(("fault", "stream"), [(f, True) for f in STREAMED] + [(f, False) for f in WHOLE])
def test_other_faults(fault: str, stream: bool) -> None:
    with Stub(Script(tokens=4, fault=fault, oversize=100_000)) as stub:
        reads, end = talk(stub, GENERATE, ASK | {"stream": stream, "stream_options": {"include_usage": True}})
        assert (STREAMED if stream else WHOLE)[fault](b"".join(reads)), b"".join(reads)[:2000]
        assert end == "open"
        assert stub.truth()["faults"] == 1


def test_faults_of_a_batch_and_of_http() -> None:
    batch = TEXT | {"prompt": [[5], [6], [7]], "stream": False}
    for fault, order in (("out-of-order", [2, 1, 0]), ("missing-index", [0, 1])):
        with Stub(Script(fault=fault)) as stub:
            assert [c["index"] for c in call(stub, COMPLETIONS, batch)[1]["choices"]] == order
    for fault in filter(str.isdigit, FAULTS):
        with Stub(Script(fault=fault, retry_after=2)) as stub:
            response, error = call(stub, GENERATE, ASK)
            assert (response.status, list(error)) == (int(fault), ["error"])
            assert response.headers["retry-after"] == ("2" if fault in ("429", "503") else None)


def test_every_fault_is_tested() -> None:
    tested = {*CUTS, *STREAMED, "out-of-order", "missing-index", *filter(str.isdigit, FAULTS)}
    assert tested == set(FAULTS)


def test_slow_read_takes_its_time() -> None:
    with Stub(Script(fault="slow-read", max_model_len=10**7)) as stub:
        began = time.perf_counter()
        assert call(stub, GENERATE, ASK | {"token_ids": [5] * 400_000})[0].status == 200
        assert time.perf_counter() - began > 0.1


def test_when_faults_strike() -> None:
    with Stub(Script(fault="500", fault_every=2, fault_after=1)) as stub:
        assert [call(stub, GENERATE, ASK)[0].status for _ in range(5)] == [200, 200, 500, 200, 500]
        stub.disarm()
        assert [call(stub, GENERATE, ASK)[0].status for _ in range(3)] == [200] * 3
        stub.arm()
        assert [call(stub, GENERATE, ASK)[0].status for _ in range(3)] == [200, 200, 500]


def test_a_fault_may_strike_long_prompts_only() -> None:
    with Stub(Script(fault="413", fault_beyond=4, message="too large")) as stub:
        assert call(stub, GENERATE, ASK | {"token_ids": [5] * 4})[0].status == 200
        response, error = call(stub, GENERATE, ASK | {"token_ids": [5] * 5})
        assert (response.status, error["error"]["message"], stub.truth()["faults"]) == (413, "too large", 1)


# -- connections and life ---------------------------------------------------------------------------------------------


def test_connections_are_kept() -> None:
    with Stub() as stub, closing(http.client.HTTPConnection("127.0.0.1", stub.port)) as connection:
        for _ in range(3):
            connection.request("POST", GENERATE, json.dumps(ASK))
            assert connection.getresponse().read()
        assert stub.truth()["connections"] == stub.truth()["connections_now"] == 1


@pytest.mark.parametrize("script", [Script(keep_alive=False), Script(idle_close=0.02)])
def test_connections_end(script: Script) -> None:
    with Stub(script) as stub:
        assert talk(stub, GENERATE, ASK)[1] == "FIN"
        assert talk(stub, "/nowhere", {})[1] == "FIN"


def test_two_requests_in_one_write() -> None:
    with Stub(Script(ttft=0.01)) as stub, closing(socket.create_connection(("127.0.0.1", stub.port))) as connection:
        connection.sendall(request(GENERATE, ASK) * 2)
        time.sleep(0.1)
        assert connection.recv(1 << 16).count(b"HTTP/1.1 200") == 2


def test_kill_and_revive() -> None:
    with Stub(Script(ttft=5.0, slots=1)) as stub:
        connections = [socket.create_connection(("127.0.0.1", stub.port)) for _ in range(2)]
        for connection in connections:
            connection.sendall(request(GENERATE, ASK))
        time.sleep(0.05)
        stub.kill()
        for connection in connections:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            connection.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", stub.port))
        truth = stub.truth()
        assert (truth["connections_now"], truth["running"], truth["waiting"], truth["aborted"]) == (0, 0, 0, 0)
        stub.revive()
        assert call(stub, "/health")[0].status == 200


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    pem = tmp_path / "stub.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", str(tmp_path / "half.pem")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "half.pem").read_text())
    yield pem


def test_tls(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    context = ssl.create_default_context(cafile=certificate)
    with Stub(Script(fault="reset-mid", armed=False), tls=tls) as stub:
        assert stub.url.startswith("https://")
        with closing(http.client.HTTPSConnection("127.0.0.1", stub.port, context=context)) as connection:
            connection.request("POST", GENERATE, json.dumps(ASK))
            assert connection.getresponse().read()
            stub.arm()
            connection.request("POST", GENERATE, json.dumps(ASK))
            # Python's ssl tells an RST as the end of the stream.
            with pytest.raises((OSError, http.client.HTTPException)):
                connection.getresponse().read()


@pytest.mark.parametrize("end", ["SIGTERM", "stdin"])
def test_the_program(end: str) -> None:
    program = Path(__file__).with_name("stub_replica.py")
    command = [sys.executable, str(program), "--tokens", "3", "--fast", "--api-key", "k", "--idle-close", "9"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("GET", "/stats", headers={"authorization": "Bearer k"})
            stats = json.loads(connection.getresponse().read())
        assert (stats["other_requests"], stats["connections_now"]) == (1, 1) and stats["cpu_s"] > 0
        process.send_signal(signal.SIGTERM) if end == "SIGTERM" else process.stdin.close()
        assert process.wait(10) == 0
