"""A small LLM server with scripted behaviour: in process for fault tests, a process of its own for a client benchmark.

    with Stub(Script(fault="reset-mid", fault_every=3)) as stub: ...      # stub.url, stub.truth(), stub.kill()
    python tests/stub_replica.py --tokens 100 --ttft 0.02 --tpot 0.002 --fast

The program prints {"port": N} once it listens and runs until SIGTERM or the end of stdin. A request passes five steps,
and a fault acts on one of them:

    Ask (what is wanted) → Said (ids and texts) → events (JSON) → pieces (bytes, due times) → writes

One protocol object per connection, one timer for all streams, no tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import threading
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, fields
from http import HTTPStatus
from time import perf_counter
from typing import Any, cast
from zlib import crc32

import msgspec
import uvloop

END = 2  # the end-of-sequence id
TICK = 0.0005  # seconds between two looks at the clock
ALL = 1 << 30

FAULTS = {
    # Instead of an answer.
    **{str(code): f"HTTP {code} with a JSON error" for code in (400, 401, 404, 413, 429, 500, 503)},
    "reset-early": "RST before any byte of the response",
    "close-early": "FIN before any byte of the response",
    "stall-before": "nothing at all, for ever",
    "bad-status": "a status line that is not HTTP's",
    # The response breaks off.
    "reset-mid": "RST after two frames, or half the body",
    "fin-mid": "FIN after two frames, or half the body",
    "stall-head": "a 200 head, then nothing",
    "stall-after": "one frame, or half the body, then nothing",
    # The response is not well formed.
    "malformed": "a frame in the middle, or the body, is cut-off JSON in sound framing",
    "bad-chunk": "a chunk-size line `zz` in the middle",
    "long-head": "a head of 200 kB",
    "extra-bytes": "bytes after the end of the response",
    "oversized": "one frame, or the body, of `oversize` bytes of sound JSON",
    "comment": "comment and `event:` lines between frames, which is sound",
    # The response is well formed, the answer is not good.
    "no-terminator": "the stream ends cleanly without finish reason, usage and [DONE]; the body has finish reason null",
    "error-frame": "an error object after two good frames, then [DONE]; or HTTP 200 whose body is the error",
    "abort": "the finish reason is 'abort'",
    "wrong-usage": "usage counts one token too many",
    "no-usage": "usage is missing, which is sound",
    "no-tokens": "the answer is empty",
    "one-token": "the answer has one token",
    "out-of-order": "the answers of a batch come last index first, which is sound",
    "missing-index": "the last answer of a batch is missing",
    # The request is read slowly.
    "slow-read": "a pause of 50 ms between reads of the request",
}

# How many pieces are left (streamed: head, frames, end; else: head and two halves of the body), and what follows.
CUTS = {
    "reset-early": (0, 0, "reset"),
    "close-early": (0, 0, "close"),
    "stall-before": (0, 0, "stall"),
    "stall-head": (1, 1, "stall"),
    "stall-after": (2, 2, "stall"),
    "reset-mid": (3, 2, "reset"),
    "fin-mid": (3, 2, "close"),
}

METRICS = {
    "": "vLLM's, as far as the stub has something to say",
    "hang": "no answer for ever",
    "drip": "a byte of the page every 50 ms",
    "huge": "200 MB",
    "garbage": "bytes that are no text",
    "html": "a login page with HTTP 200",
    "lies": "numbers that cannot be",
    "404": "HTTP 404",
    "500": "HTTP 500, with the API key in its text",
}

# Routes that generate, and where their requests have the prompt.
ROUTES = {
    "vllm": {"/inference/v1/generate": "token_ids", "/v1/completions": "prompt"},
    "vllm-completions": {"/v1/completions": "prompt"},
    "openai": {"/v1/completions": "prompt"},
    "sglang": {"/generate": "input_ids"},
    "tgi": {"/generate": "inputs", "/generate_stream": "inputs"},
}
TEXT_ONLY = ("openai", "tgi")
ERROR = {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}


@dataclass(frozen=True)
class Script:
    """How the stub behaves. A frame is one event of a stream."""

    family: str = "vllm"  # one of ROUTES
    model: str = "stub"  # the one model served; requests that name another get 404
    max_model_len: int = 4096  # prompt and answer tokens; more gets 400
    api_key: str | None = None  # then 401 without it on every route but /health
    tokens: int = 32  # length of an answer, cut to the request's max_tokens
    ttft: float = 0.0  # seconds from the start of service to the first token
    tpot: float = 0.0  # seconds per further token
    slots: int = 0  # requests served at a time, the others wait in order; 0: no limit
    framing: str = "frame"  # a write per "frame", per "byte", one for "many", or each frame "split" at an awkward place
    newline: str = "\n"  # ends an SSE line; or "\r\n"
    chunked: bool = True  # a stream's frames are HTTP chunks; else its body ends with the connection
    fault: str = ""  # one of FAULTS
    fault_every: int = 1  # strikes each so-manieth generation request
    fault_after: int = 0  # generation requests exempt before the count begins
    fault_beyond: int = 0  # strikes only prompts of more tokens
    message: str = "a scripted fault"  # of a fault that is an HTTP status
    armed: bool = True  # faults strike
    oversize: int = 32_000_000  # bytes of the fault "oversized"
    retry_after: float | None = None  # Retry-After of 429 and 503
    sampling: bool = False  # answers are random in spite of temperature 0
    keep_alive: bool = True  # else each response ends its connection
    idle_close: float | None = None  # seconds after which an idle connection is closed
    unhealthy: bool = False  # /health answers 503
    fast: bool = False  # requests are skimmed, answers made once; frames due together are one write
    metrics: str = ""  # what /metrics answers, one of METRICS
    metrics_bytes: int = 0  # its page is at least as long
    narrow: bool = True  # /metrics/?name[]=… answers with what is named; else 404
    tokenize: Callable[[str], Sequence[int]] | None = None  # serves /tokenize

    def __post_init__(self) -> None:
        if self.family not in ROUTES or self.fault not in ("", *FAULTS):
            raise ValueError(f"unknown family {self.family!r} or fault {self.fault!r}")
        if self.metrics not in METRICS:
            raise ValueError(f"unknown metrics {self.metrics!r}")
        if self.framing not in ("frame", "byte", "many", "split"):
            raise ValueError(f"unknown framing {self.framing!r}")


class Refused(Exception):
    """The request gets this HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


# -- what is asked and what is said -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Ask:
    """A generation request. `interval` tokens per frame after the first."""

    path: str
    prompts: list[Any]
    batch: bool
    max_tokens: int
    stream: bool
    interval: int = 1
    ids: bool = False
    usage: bool = False


def understand(script: Script, path: str, body: bytes) -> Ask:
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"malformed JSON: {error}") from None
    if request.get("model", script.model) != script.model:
        raise Refused(404, f"The model `{request['model']}` does not exist.")
    prompt = request.get(ROUTES[script.family][path])
    batch = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], list)
    prompts = cast(list[Any], prompt if batch else [prompt])
    takes_text = path not in ("/inference/v1/generate", "/generate") or script.family == "tgi"
    if script.family in TEXT_ONLY and not isinstance(prompt, str):
        raise Refused(400, "prompt must be a string.")
    if not all(isinstance(one, list | str if takes_text else list) and one for one in prompts):
        raise Refused(400, "prompt must be token ids" + " or a string." * takes_text)
    settings = request.get("sampling_params") or request.get("parameters") or request
    return Ask(
        path,
        prompts,
        batch,
        max_tokens=int(settings.get("max_tokens") or settings.get("max_new_tokens") or 16),
        stream=path == "/generate_stream" or (script.family != "tgi" and bool(request.get("stream"))),
        interval=int(settings.get("stream_interval") or 1),
        ids=bool(request.get("return_token_ids")),
        usage=bool((request.get("stream_options") or {}).get("include_usage")),
    )


def longest(script: Script, path: str, body: bytes) -> int:
    """Tokens of the longest prompt of a request."""
    return max(len(prompt) for prompt in understand(script, path, body).prompts)


NUMBERS = re.compile(rb'"(max_tokens|max_new_tokens|stream_interval)":\s*(\d+)')


def skim(path: str, body: bytes) -> tuple[Any, ...]:
    """What a fast answer depends on; equal for requests that may have the same answer."""
    stream = path == "/generate_stream" or b'"stream":true' in body or b'"stream": true' in body
    prompts = 1 + body.count(b"],[") + body.count(b"], [")
    return (path, stream, prompts, b"[[" in body, *NUMBERS.findall(body))


def guess(script: Script, skimmed: tuple[Any, ...]) -> Ask:
    path, stream, prompts, batch, *numbers = skimmed
    found = {name.decode(): int(value) for name, value in numbers}
    prompt: Any = "word " * 128 if script.family in TEXT_ONLY else list(range(3, 131))
    longest = found.get("max_tokens") or found.get("max_new_tokens") or 16
    return Ask(path, [prompt] * prompts, batch, longest, stream, found.get("stream_interval", 1), ids=True, usage=True)


@dataclass(slots=True)
class Said:
    """One prompt's answer: ids and, for each of them, its text."""

    prompt_ids: list[int]
    ids: list[int]
    texts: list[str]
    finish: str | None


def say(script: Script, ask: Ask, prompt: Any, fault: str) -> Said:
    """The prompt over and over; ended by END if shorter than the request allows."""
    words = prompt.split() if isinstance(prompt, str) else []
    prompt_ids = prompt
    if isinstance(prompt, str):
        prompt_ids = list(script.tokenize(prompt)) if script.tokenize else [3 + crc32(w.encode()) % 997 for w in words]
    if len(prompt_ids) + ask.max_tokens > script.max_model_len:
        raise Refused(400, f"the prompt and max_tokens are beyond the context of {script.max_model_len} tokens.")
    length = min(script.tokens, ask.max_tokens, {"no-tokens": 0, "one-token": 1}.get(fault, ALL))
    ids = random.choices(range(3, 1000), k=length) if script.sampling else again(prompt_ids, length)
    finish = "stop" if length < ask.max_tokens else "length"
    if finish == "stop" and ids:
        ids[-1] = END
    if script.family not in TEXT_ONLY:
        texts = ["" if token == END else f"w{token}é " for token in ids]
    else:
        words = [f"w{token}é" for token in ids] if script.sampling else again(words, length)
        texts = [" " * (i > 0) + word for i, word in enumerate(words)]
        if script.family == "tgi" and finish == "stop" and texts:
            texts[-1] = "</s>"
    if fault == "abort":
        finish = "abort"
    return Said(prompt_ids, ids, texts, None if fault == "no-terminator" else finish)


def again(items: list[Any], length: int) -> list[Any]:
    items = items or [3]
    return (items * (length // len(items) + 1))[:length]


# -- events: the JSON of each dialect ---------------------------------------------------------------------------------


def usage(said: Sequence[Said], fault: str) -> dict[str, int]:
    prompt = sum(len(one.prompt_ids) for one in said)
    answer = sum(len(one.ids) for one in said) + (fault == "wrong-usage")
    return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}


def envelope(script: Script, ask: Ask) -> dict[str, Any]:
    """What the events and the body of /inference/v1/generate and /v1/completions have around their choices."""
    if ask.path == "/inference/v1/generate":
        return {"request_id": "generate-1", "usage": None, "prompt_token_ids": None, "output_mode": "tokens"}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1795253388, "model": script.model}


def choice(script: Script, ask: Ask, index: int, said: Said, start: int, stop: int, last: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": said.finish if last else None}
    if ask.path != "/inference/v1/generate":
        made["text"] = "".join(said.texts[start:stop])
    if script.family != "openai":
        made["stop_reason"] = None
        made["token_ids"] = said.ids[start:stop] if ask.ids or ask.path == "/inference/v1/generate" else None
    if script.family != "openai" and ask.path == "/v1/completions":
        made["prompt_token_ids"] = said.prompt_ids if ask.ids and start == 0 else None
    return made


def sglang(said: Said, stop: int, last: bool, fault: str) -> dict[str, Any]:
    """SGLang's events tell everything so far."""
    reasons = {"stop": {"type": "stop", "matched": END}, "length": {"type": "length", "length": stop}}
    finish = reasons.get(said.finish or "", said.finish and {"type": said.finish}) if last else None
    meta = {"id": "1", "finish_reason": finish, "prompt_tokens": len(said.prompt_ids)}
    if fault != "no-usage":
        meta["completion_tokens"] = stop + (last and fault == "wrong-usage")
    return {"text": "".join(said.texts[:stop]), "output_ids": said.ids[:stop], "meta_info": meta}


def tgi_token(said: Said, at: int) -> dict[str, Any]:
    special = said.texts[at] == "</s>"
    return {"id": said.ids[at], "text": said.texts[at], "logprob": -0.1, "special": special}


def tgi_end(said: Said, fault: str) -> dict[str, Any]:
    reason = {"stop": "eos_token"}.get(said.finish or "", said.finish)
    details = {"finish_reason": reason, "generated_tokens": len(said.ids) + (fault == "wrong-usage"), "seed": None}
    if fault == "no-usage":
        del details["generated_tokens"]
    return {"generated_text": "".join(said.texts).removesuffix("</s>"), "details": details}


def ordered(said: Sequence[Said], fault: str) -> list[tuple[int, Said]]:
    pairs = list(enumerate(said))
    if fault == "missing-index" and len(pairs) > 1:
        del pairs[-1]
    return pairs[::-1] if fault == "out-of-order" else pairs


def document(script: Script, ask: Ask, said: Sequence[Said], fault: str) -> Any:
    """The body of an answer that is not streamed."""
    if fault == "error-frame":
        return ERROR
    pairs = ordered(said, fault)
    padding = {"padding": "x" * script.oversize} if fault == "oversized" else {}
    if script.family == "tgi":
        made = tgi_end(said[0], fault)
        made["details"]["tokens"] = [tgi_token(said[0], at) for at in range(len(said[0].ids))]
        return made | padding
    if script.family == "sglang":
        bodies = [sglang(one, len(one.ids), True, fault) | padding for one in said[: len(pairs)]]
        return bodies if ask.batch else bodies[0]
    choices = [choice(script, ask, index, one, 0, len(one.ids), True) for index, one in pairs]
    made = envelope(script, ask) | {"choices": choices, "usage": usage(said, fault)} | padding
    if ask.path == "/inference/v1/generate":
        made |= {"model": script.model, "created": 1, "prompt_logprobs": None}
    if fault == "no-usage":
        del made["usage"]
    return made


def events(script: Script, ask: Ask, said: Sequence[Said], fault: str) -> list[tuple[int, Any]]:
    """A stream's events, each with the number of tokens of a prompt's answer so far; [DONE] is a plain string."""
    count = len(said[0].ids)
    stops = [*range(1, count, ask.interval), count]
    spans = list(zip([0, *stops], stops, strict=False))
    if script.family == "openai":
        spans.append((count, count))
    if fault == "no-terminator":
        del spans[-1]
    if fault == "error-frame":
        del spans[2:]
    made: list[tuple[int, Any]] = []
    if script.family == "sglang":
        made += [(stop, sglang(said[0], stop, (start, stop) == spans[-1], fault)) for start, stop in spans]
    elif script.family == "tgi":
        made += [(at + 1, tgi_event(said[0], at, fault)) for at in range(len(spans))]
    else:
        for start, stop in spans:
            for index, one in ordered(said, fault):
                choices = [choice(script, ask, index, one, start, stop, stop == count and (start, stop) == spans[-1])]
                made.append((stop, envelope(script, ask) | {"choices": choices}))
        if ask.usage and fault not in ("no-usage", "no-terminator", "error-frame"):
            made.append((count, envelope(script, ask) | {"choices": [], "usage": usage(said, fault)}))
    if fault == "oversized":
        made[len(made) // 2][1]["padding"] = "x" * script.oversize
    if fault == "error-frame":
        made.append((made[-1][0], ERROR))
    if fault != "no-terminator" and script.family != "tgi":
        made.append((made[-1][0], "[DONE]"))
    return made


def tgi_event(said: Said, at: int, fault: str) -> dict[str, Any]:
    token = tgi_token(said, at) if said.ids else {"id": END, "text": "", "logprob": None, "special": True}
    ended = at + 1 >= len(said.ids)
    return {"index": at + 1, "token": token, "generated_text": None, "details": None} | (
        tgi_end(said, fault) if ended else {}
    )


# -- pieces: bytes and when they are due ------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Wire:
    """A response: pieces, seconds from the start of service at which each is due, what follows: keep, close, reset or
    stall. Pieces `apart` are written in different turns of the loop even if due together."""

    pieces: list[bytes]
    dues: list[float]
    then: str
    apart: bool
    frames: int
    first: int  # the piece with the first token
    tokens: tuple[int, int] = (0, 0)  # of the prompts and of the answers


def make_wire(script: Script, ask: Ask, fault: str) -> Wire:
    said = [say(script, ask, prompt, fault) for prompt in ask.prompts]
    timed = stream_pieces(script, ask, said, fault) if ask.stream else body_pieces(script, ask, said, fault)
    frames = len(timed)
    then = "close" if not script.keep_alive or (ask.stream and not script.chunked) else "keep"
    if fault in CUTS:
        streamed, whole, then = CUTS[fault]
        timed = timed[: streamed if ask.stream else whole]
    if fault == "extra-bytes":
        timed.append((timed[-1][0], b"bytes after the end\r\n"))
    wire = cut_and_joined(script, ask, timed, then, frames)
    wire.tokens = sum(len(one.prompt_ids) for one in said), sum(len(one.ids) for one in said)
    return wire


def cut_and_joined(script: Script, ask: Ask, timed: list[tuple[float, bytes]], then: str, frames: int) -> Wire:
    if timed and (script.framing == "many" or (script.framing == "frame" and not ask.stream)):
        timed = [(timed[-1][0], b"".join(piece for _, piece in timed))]
    elif script.framing == "byte":
        timed = [(due, piece[i : i + 1]) for due, piece in timed for i in range(len(piece))]
    elif script.framing == "split":
        halved = [(due, half) for i, (due, piece) in enumerate(timed) for half in halves(piece, i)]
        # A reader with little else to do sees each half by itself.
        timed = [(max(due, i * 0.001), half) for i, (due, half) in enumerate(halved)]
    if script.fast:
        joined: dict[float, list[bytes]] = defaultdict(list)
        for due, piece in timed:
            joined[due].append(piece)
        timed = [(due, b"".join(pieces)) for due, pieces in joined.items()]
    first = int(len(timed) > 1 and timed[0][0] == 0.0)
    return Wire([piece for _, piece in timed], [due for due, _ in timed], then, not script.fast, frames, first)


def halves(piece: bytes, number: int) -> tuple[bytes, bytes]:
    """Cut within a character of several bytes; without one, and in each other piece, within the chunk-size line."""
    inside = next((i for i, byte in enumerate(piece) if byte & 0xC0 == 0x80), 1) if number % 2 else 1
    return piece[:inside], piece[inside:]


def head(script: Script, kind: str, body: str, fault: str = "", status: int = 200, close: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "server: uvicorn", f"content-type: {kind}", body]
    if fault == "bad-status":
        lines[0] = "TEAPOT short and stout"
    if fault == "long-head":
        lines.append("x-padding: " + "x" * 200_000)
    if close or not script.keep_alive:
        lines.append("connection: close")
    return "\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n"


def body_pieces(script: Script, ask: Ask, said: Sequence[Said], fault: str) -> list[tuple[float, bytes]]:
    body = msgspec.json.encode(document(script, ask, said, fault))
    if fault == "malformed":
        body = body[: len(body) // 2]
    framing = f"content-length: {len(body)}"
    if fault == "bad-chunk":
        framing, body = "transfer-encoding: chunked", b"zz\r\n" + body + b"\r\n0\r\n\r\n"
    due = script.ttft + script.tpot * max(0, len(said[0].ids) - 1)
    half = len(body) // 2
    return [(due, piece) for piece in (head(script, "application/json", framing, fault), body[:half], body[half:])]


def stream_pieces(script: Script, ask: Ask, said: Sequence[Said], fault: str) -> list[tuple[float, bytes]]:
    framing = "transfer-encoding: chunked" if script.chunked else ""
    timed = [(0.0, head(script, "text/event-stream; charset=utf-8", framing, fault, close=not script.chunked))]
    made = events(script, ask, said, fault)
    middle = len(made) // 2
    for i, (tokens, event) in enumerate(made):
        frame = sse(script, event, fault if i == middle or fault == "comment" else "")
        if script.chunked:
            size = b"zz" if fault == "bad-chunk" and i == middle else f"{len(frame):x}".encode()
            frame = size + b"\r\n" + frame + b"\r\n"
        timed.append((script.ttft + script.tpot * max(0, tokens - 1), frame))
    if script.chunked:
        timed.append((timed[-1][0], b"0\r\n\r\n"))
    return timed


def sse(script: Script, event: Any, fault: str) -> bytes:
    data = event.encode() if isinstance(event, str) else msgspec.json.encode(event)
    if fault == "malformed":
        data = data[: len(data) // 2]
    newline = script.newline.encode()
    before = b": ping" + newline + newline + b"event: message" + newline if fault == "comment" else b""
    return before + (b"data:" if script.family == "tgi" else b"data: ") + data + newline + newline


# -- the server -------------------------------------------------------------------------------------------------------


class Lateness:
    """How late pieces were written: a histogram in steps of 10 µs up to 100 ms."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * 10_001))
        self._worst = 0.0

    def add(self, late: float) -> None:
        self._counts[min(int(late * 1e5), 10_000)] += 1
        if late > self._worst:
            self._worst = late

    def figures(self) -> dict[str, float]:
        total = sum(self._counts)
        return {"count": total, "p50": self._rank(total / 2), "p99": self._rank(total * 0.99), "max": self._worst}

    def _rank(self, rank: float) -> float:
        seen = 0
        for step, count in enumerate(self._counts):
            seen += count
            if seen and seen >= rank:
                return min((step + 1) * 1e-5, self._worst)
        return 0.0


class Ticker:
    """Calls back on each multiple of TICK of the clock: a timerfd, since uvloop's own timers count milliseconds."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call, self.running = call, False
        self._libc = ctypes.CDLL(None)
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fd, self._ring)

    def run(self, running: bool) -> None:
        self.running = running
        seconds, rest = divmod((int(perf_counter() / TICK) + 1) * TICK, 1.0)
        when = (0, round(TICK * 1e9), int(seconds), int(rest * 1e9)) if running else (0, 0, 0, 0)
        self._libc.timerfd_settime(self._fd, 1, (ctypes.c_long * 4)(*when), None)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._call()


@dataclass(slots=True)
class Truth:
    """What happened, seen from the server."""

    requests: int = 0  # generation requests
    other_requests: int = 0  # all others
    refused: int = 0  # of all, answered with an HTTP error
    answers: int = 0  # answers written to their end, faults included
    frames: int = 0  # events of these, with head and last chunk; of a body that is not streamed 3
    writes: int = 0  # calls of write for answers
    faults: int = 0  # faults struck
    aborted: int = 0  # requests whose client closed the connection before the end
    connections: int = 0  # opened
    connections_now: int = 0
    running: int = 0  # in a slot
    waiting: int = 0  # for a slot
    peak_running: int = 0
    prompt_tokens: int = 0  # of answers written to their end
    answer_tokens: int = 0


@dataclass(slots=True, eq=False)
class Exchange:
    """A response on its way. `at` is the next piece."""

    connection: Connection
    wire: Wire
    began: float = 0.0  # 0: waits for a slot
    at: int = 0
    over: bool = False


class Server:
    """All connections, slots, timers and counters of a replica on the running loop."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script, self.armed, self.unhealthy = script, script.armed, script.unhealthy
        self.truth, self.lateness, self.first_lateness = Truth(), Lateness(), Lateness()
        self.connections: set[Connection] = set()
        self.routes = ROUTES[script.family]
        self.counted = 0
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._waiting: deque[Exchange] = deque()
        self._due: dict[int, list[Exchange]] = defaultdict(list)
        self._tick = 0
        self._ticker: Ticker | None = None
        self._cache: dict[tuple[Any, ...], Wire] = {}

    async def listen(self, port: int = 0) -> int:
        self._ticker = self._ticker or Ticker(self._on_tick)
        listening = socket.create_server(("127.0.0.1", port), backlog=4096)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self), sock=listening, backlog=4096, ssl=self._tls)
        return cast(int, listening.getsockname()[1])

    async def kill(self) -> None:
        """Like kill -9: the port is closed, each connection is reset."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        while self.connections:  # one may have been accepted in the same turn of the loop
            for connection in list(self.connections):
                connection.reset()
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.kill()
        if self._ticker is not None:
            self._ticker.close()

    def arm(self, armed: bool) -> None:
        """Faults strike or not; arming begins the count anew."""
        self.armed, self.counted = armed, 0

    def next_fault(self) -> str:
        """The fault that strikes this generation request, or "" for none."""
        self.truth.requests += 1
        script = self.script
        if not script.fault or not self.armed:
            return ""
        self.counted += 1
        counted = self.counted - script.fault_after
        if counted <= 0 or counted % script.fault_every:
            return ""
        self.truth.faults += 1
        return script.fault

    def wire(self, path: str, body: bytes, fault: str) -> Wire:
        """The response to a generation request. Raises Refused."""
        if fault and self.script.fault_beyond and longest(self.script, path, body) <= self.script.fault_beyond:
            self.truth.faults -= 1
            fault = ""
        if fault.isdigit():
            raise Refused(int(fault), self.script.message)
        if not self.script.fast or fault:
            return make_wire(self.script, understand(self.script, path, body), fault)
        skimmed = skim(path, body)
        wire = self._cache.get(skimmed)
        if wire is None:
            wire = self._cache[skimmed] = make_wire(self.script, guess(self.script, skimmed), "")
        return wire

    def begin(self, exchange: Exchange) -> None:
        if self.script.slots and (self._waiting or self.truth.running >= self.script.slots):
            self.truth.waiting += 1
            self._waiting.append(exchange)
        else:
            self._start(exchange)

    def drop(self, exchange: Exchange) -> None:
        """The connection is gone."""
        if exchange.over:
            return
        exchange.over = True
        if exchange.began:
            self._free_slot()
        else:
            self.truth.waiting -= 1
            self._waiting.remove(exchange)

    def stats(self) -> dict[str, Any]:
        lateness = {"lateness_s": self.lateness.figures(), "first_lateness_s": self.first_lateness.figures()}
        return asdict(self.truth) | lateness | {"cpu_s": time.process_time()}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start(self, exchange: Exchange) -> None:
        exchange.began = perf_counter()
        truth = self.truth
        truth.running += 1
        if truth.running > truth.peak_running:
            truth.peak_running = truth.running
        dues = exchange.wire.dues
        if dues and dues[0] > 0.0:
            self._later(exchange, exchange.began + dues[0])
        else:
            self._advance(exchange)

    def _later(self, exchange: Exchange, due: float) -> None:
        tick = int(due / TICK) + 1
        self._due[tick].append(exchange)
        ticker = cast(Ticker, self._ticker)
        if not ticker.running or tick < self._tick:  # it may be past by now
            self._tick = tick
        if not ticker.running:
            ticker.run(True)

    def _on_tick(self) -> None:
        now = int(perf_counter() / TICK)
        while self._tick <= now:
            for exchange in self._due.pop(self._tick, ()):
                self._advance(exchange)
            self._tick += 1
        if not self._due:
            cast(Ticker, self._ticker).run(False)

    def _advance(self, exchange: Exchange) -> None:
        """Write what is due."""
        if exchange.over:
            return
        wire, at, began = exchange.wire, exchange.at, exchange.began
        dues, count = wire.dues, len(wire.pieces)
        now = perf_counter()
        while at < count:
            due = dues[at]
            if due > 0.0:
                late = now - began - due
                if late < 0.0:
                    exchange.at = at
                    self._later(exchange, began + due)
                    return
                (self.first_lateness if at == wire.first else self.lateness).add(late)
            exchange.connection.transport.write(wire.pieces[at])
            self.truth.writes += 1
            at += 1
            if wire.apart and at < count and dues[at] <= now - began:
                exchange.at = at
                asyncio.get_running_loop().call_soon(self._advance, exchange)
                return
        self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        self.truth.answers += 1
        self.truth.frames += exchange.wire.frames
        self.truth.prompt_tokens += exchange.wire.tokens[0]
        self.truth.answer_tokens += exchange.wire.tokens[1]
        if exchange.wire.then == "stall":
            exchange.at = ALL
            return
        exchange.over = True
        self._free_slot()
        exchange.connection.answered(exchange.wire)

    def _free_slot(self) -> None:
        self.truth.running -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._fill_slot)

    def _fill_slot(self) -> None:
        if self._waiting and self.truth.running < self.script.slots:
            self.truth.waiting -= 1
            self._start(self._waiting.popleft())


def page(server: Server, length: int) -> bytes:
    """What /metrics says, in vLLM's names, among at least so many bytes of what nobody asked for."""
    truth = server.truth
    label = f'{{engine="0",model_name="{server.script.model}"}}'
    told = {
        "num_requests_running": truth.running,
        "num_requests_waiting": truth.waiting,
        "kv_cache_usage_perc": truth.running / server.script.slots if server.script.slots else 0.0,
        "num_preemptions_total": 0,
        "prompt_tokens_total": truth.prompt_tokens,
        "generation_tokens_total": truth.answer_tokens,
    }
    lines = [f"# TYPE vllm:{name} untyped\nvllm:{name}{label} {value:.1f}\n" for name, value in told.items()]
    text = "".join(lines)
    filler = f'vllm:time_to_first_token_seconds_bucket{label[:-1]},le="0.001"}} 0.0\n'
    return (filler * max(0, -(-(length - len(text)) // len(filler))) + text).encode()


@dataclass(slots=True)
class Head:
    """A request's head as far as it matters."""

    method: str
    path: str
    length: int
    key: str
    close: bool


class Connection(asyncio.Protocol):
    """Reads requests, one at a time, and answers all but generation requests at once."""

    heads: dict[bytes, Head] = {}  # noqa: RUF012  heads repeat, so they are parsed once

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport = cast(asyncio.Transport, None)
        self.exchange: Exchange | None = None
        self._buffer = bytearray()
        self._need = 0
        self._fault: str | None = None  # of the request that is being read
        self._last = False  # the connection ends with this response
        self._ended_here = False
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)
        self.server.truth.connections += 1
        self.server.truth.connections_now += 1
        self._watch_idle()

    def connection_lost(self, _: Exception | None) -> None:
        self.server.connections.discard(self)
        self.server.truth.connections_now -= 1
        if self._idle is not None:
            self._idle.cancel()
        if self.exchange is not None:
            self.server.truth.aborted += not self._ended_here
            self.server.drop(self.exchange)

    def data_received(self, data: bytes) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._buffer or self.exchange is not None:
            self._buffer += data
            if self.exchange is not None or len(self._buffer) < self._need:
                self._rest()
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        self._read(data)

    def reset(self) -> None:
        """RST."""
        self._ended_here = True
        if not self.transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def answered(self, wire: Wire) -> None:
        """The exchange has come to its end."""
        self.exchange = None
        if wire.then == "reset":
            # What was written before arrives before the RST.
            asyncio.get_running_loop().call_later(0.02 if wire.pieces else 0.0, self.reset)
        elif wire.then == "close" or self._last:
            self._end()
        elif self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            asyncio.get_running_loop().call_soon(self._read, data)
        else:
            self._watch_idle()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        while data and self.exchange is None and not self._ended_here:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                break
            raw = data[:end]
            head = self.heads.get(raw) or self._parse(raw)
            generates = head.method == "POST" and head.path in self.server.routes
            if self._fault is None:
                self._fault = self.server.next_fault() if generates else ""
            self._need = end + head.length
            if len(data) < self._need:
                break
            body, data = data[end : self._need], data[self._need :]
            fault, self._fault, self._need = self._fault, None, 0
            self._last = head.close or not self.server.script.keep_alive
            try:
                self._serve(head, body, fault, generates)
            except Refused as error:
                self.server.truth.refused += 1
                self._reply({"error": {"message": error.message, "code": error.status}}, error.status)
        if data:
            self._buffer += data
            self._rest()

    def _parse(self, raw: bytes) -> Head:
        first, *lines = raw.decode("latin-1").split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, target, *_ = [*first.split(" "), "", ""]
        close = named.get("connection", "").lower() == "close"
        length = int(named.get("content-length", "0"))
        if len(self.heads) > 1000:
            self.heads.clear()
        self.heads[raw] = made = Head(method, target.partition("?")[0], length, named.get("authorization", ""), close)
        return made

    def _rest(self) -> None:
        if self._fault == "slow-read" and self.exchange is None:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.05, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _serve(self, head: Head, body: bytes, fault: str, generates: bool) -> None:
        server, script = self.server, self.server.script
        if script.api_key is not None and head.path != "/health" and head.key != f"Bearer {script.api_key}":
            raise Refused(401, "the API key is missing or wrong.")
        if generates:
            self.exchange = exchange = Exchange(self, server.wire(head.path, body, fault))
            server.begin(exchange)
            return
        server.truth.other_requests += 1
        if head.path == "/metrics" and head.method == "GET":
            self._measure()
        elif head.path == "/metrics/" and script.narrow and not script.metrics:
            self._reply(page(server, 0))
        elif head.path == "/health":
            self._reply(b"", 503 if server.unhealthy else 200)
        else:
            self._reply(self._fact(head, body))

    def _measure(self) -> None:
        """Answer for /metrics, one way or another."""
        match self.server.script.metrics:
            case "404" | "500" as status:
                raise Refused(int(status), f"no metrics for {self.server.script.api_key}.")
            case "hang":
                pass
            case "drip":
                self._drip(head(self.server.script, "text/plain", "content-length: 4000") + page(self.server, 0))
            case "huge":
                self.transport.write(head(self.server.script, "text/plain", "content-length: 200000000"))
                self.transport.write(bytes(200_000_000))
            case "garbage":
                self._reply(b"vllm:num_requests_running{\xff\x00\n" + bytes(range(256)))
            case "html":
                self._reply(b"<html><body>Please log in: vllm:num_requests_running 3</body></html>")
            case "lies":
                lies = (b"NaN", b"-1", b"+Inf", b"1e999", b"three", b"")
                self._reply(b"".join(b"vllm:generation_tokens_total " + lie + b"\n" for lie in lies))
            case _:
                self._reply(page(self.server, self.server.script.metrics_bytes))

    def _drip(self, rest: bytes) -> None:
        if rest and not self.transport.is_closing():
            self.transport.write(rest[:1])
            asyncio.get_running_loop().call_later(0.05, self._drip, rest[1:])

    def _fact(self, head: Head, body: bytes) -> dict[str, Any]:
        script, vllm = self.server.script, self.server.script.family.startswith("vllm")
        card = {"id": script.model, "object": "model", "parent": None, "max_model_len": script.max_model_len}
        match head.method, head.path:
            case "GET", "/v1/models":
                return {"object": "list", "data": [card]}
            case "GET", "/version" if vllm:
                return {"version": "0.32.0"}
            case "GET", "/get_model_info" if script.family == "sglang":
                return {"model_path": script.model}
            case "GET", "/info" if script.family == "tgi":
                return {"model_id": script.model, "max_total_tokens": script.max_model_len}
            case "GET", "/stats":
                return self.server.stats()
            case "POST", "/tokenize" if vllm and script.tokenize is not None:
                ids = list(script.tokenize(json.loads(body)["prompt"]))
                return {"tokens": ids, "count": len(ids), "max_model_len": script.max_model_len}
        raise Refused(404, "Not Found")

    def _reply(self, body: Any, status: int = 200) -> None:
        """An answer in one write that waits for nothing."""
        kind = "text/plain" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        script = self.server.script
        lines = f"content-length: {len(data)}"
        if script.retry_after is not None and status in (429, 503):
            lines += f"\r\nretry-after: {script.retry_after:g}"
        self.transport.write(head(script, kind, lines, status=status, close=self._last) + data)
        if self._last:
            self._end()
        else:
            self._watch_idle()

    def _end(self) -> None:
        self._ended_here = True
        self.transport.close()

    def _watch_idle(self) -> None:
        if self.server.script.idle_close is not None:
            self._idle = asyncio.get_running_loop().call_later(self.server.script.idle_close, self._end_idle)

    def _end_idle(self) -> None:
        if self.exchange is None and not self._buffer:
            self._end()


# -- two ways to start ------------------------------------------------------------------------------------------------


class Stub:
    """A server on a thread of its own."""

    def __init__(self, script: Script = Script(), *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.script, self.port = script, port
        self._tls = tls

    def __enter__(self) -> Stub:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stub-replica", daemon=True)
        self._thread.start()
        self._server = Server(self.script, self._tls)
        self.port = self._wait(self._server.listen(self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def truth(self) -> dict[str, int]:
        return asdict(self._server.truth)

    def arm(self) -> None:
        self._server.arm(True)

    def disarm(self) -> None:
        self._server.arm(False)

    def set_unhealthy(self, unhealthy: bool) -> None:
        self._server.unhealthy = unhealthy

    def kill(self) -> None:
        self._wait(self._server.kill())

    def revive(self) -> None:
        self._wait(self._server.listen(self.port))

    def _wait(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(10)


async def serve(script: Script, port: int) -> None:
    server, stop, loop = Server(script), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def watch_stdin() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch_stdin, daemon=True).start()
    print(json.dumps({"port": await server.listen(port)}), flush=True)
    gc.freeze()
    await stop.wait()
    await server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    for each in fields(Script):
        kind = {"int": int, "float": float}.get(str(each.type).split(" ")[0], str)
        if each.name != "tokenize":
            how: dict[str, Any] = {"type": kind} if each.type != "bool" else {"action": argparse.BooleanOptionalAction}
            parser.add_argument(f"--{each.name.replace('_', '-')}", default=each.default, **how)
    options = vars(parser.parse_args())
    port = options.pop("port")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Script(**options), port))


if __name__ == "__main__":
    main()
