"""Mutated responses against the exchanges of the remote backend: no broken answer may pass for a good one.

    python scripts/fuzz_responses.py --inputs 1000000 --seed 0

No sockets: a Connection gets the bytes of a sound response of some dialect, streamed or whole, mutated and cut into
packets, and what comes out is judged as the SUT judges it. Each input must end each of its queries exactly once and
raise nothing; an answer judged good must be what a slow reader, written here from http.client and json, makes of the
same bytes; a response that is not mutated must be good, or a failure if its status says so. Prints a summary by
outcome; exit code 1 with the inputs in hex if one breaks a rule.

What the slow reader lets pass, as llhttp and msgspec do, though a pedant would not:
- empty lines before a response, bytes after its end (its connection is not used again), headers that have no meaning
  here, transfer codings before `chunked`;
- invalid UTF-8 in those fields of a frame that nobody reads;
- token ids beyond the vocabulary, which is not known here;
- an SSE line `data` without a colon, which is ignored.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

from sut.backends import Generation, Plan
from sut.backends.dialects import COMPLETIONS, GENERATE, OPENAI, SGLANG, TGI, Dialect
from sut.backends.http import Connection, Origin
from sut.backends.probe import Found, Prompts
from sut.backends.remote import Exchange, Remote, Streamed
from sut.dispatch import Replica
from sut.health import Flight, judge
from sut.query import NO_TOKENS, Outcome, Query, Tokens

BASES = 400
SHARE = 20_000
"""Inputs that a process does between two reports."""

MOST_VIOLATIONS = 5

# -- sound responses --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A sound response: `frames` are its body, event by event if it is streamed; a `status` but 200 is an error."""

    dialect: Dialect
    stream: bool
    prompts: int
    framing: str
    frames: tuple[bytes, ...]
    status: bytes = b"200 OK"


def make_base(chance: random.Random) -> Base:
    dialect = chance.choice([GENERATE, GENERATE, COMPLETIONS, OPENAI, SGLANG, TGI])
    stream = chance.random() < 0.65
    prompts = chance.choice([1, 1, 3]) if dialect.many and not stream else 1
    framing = chance.choice(["chunked", "chunked", "length", "close"])
    if chance.random() < 0.05:
        status = chance.choice([b"400 Bad Request", b"429 Too Many Requests\r\nRetry-After: 7", b"500 Dead"])
        body = json.dumps({"error": {"message": "dead ü", "code": 400}}, ensure_ascii=False).encode()
        return Base(dialect, stream, prompts, framing, (body,), status)
    answers = [[chance.choice([0, 7, 300, 31999]) for _ in range(chance.randint(2, 12))] for _ in range(prompts)]
    contents = list(streamed(chance, dialect, answers[0])) if stream else [whole(chance, dialect, answers)]
    separators = chance.choice([(",", ":"), (", ", ": ")])
    texts = [part if isinstance(part, str) else json.dumps(part, separators=separators) for part in contents]
    if not stream:
        return Base(dialect, stream, prompts, framing, (texts[0].encode(),))
    line_end = chance.choice(["\n", "\n", "\n", "\r\n"])
    frames = [f"data: {text}\n\n" if text[:1] in "{[" else f"{text}\n\n" for text in texts]
    return Base(dialect, stream, prompts, framing, tuple(frame.replace("\n", line_end).encode() for frame in frames))


def streamed(chance: random.Random, dialect: Dialect, ids: list[int]) -> Iterator[dict[str, Any] | str]:
    """The contents of an answer's events: JSON, or another line."""
    finish = "stop"  # "length" is right at the full length alone
    last_apart = chance.random() < 0.5
    for number, token in enumerate(ids):
        if chance.random() < 0.03:
            yield ": ping"
        last = number == len(ids) - 1 and not last_apart
        if dialect is OPENAI:
            yield {
                "id": "c",
                "choices": [{"index": 0, "text": f" w{token}ü", "finish_reason": finish if last else None}],
            }
        elif dialect is SGLANG:
            shown = ids[: number + 1] if len(ids) % 2 else [token]
            reason = {"type": finish} if last else None
            yield {"output_ids": shown, "meta_info": {"completion_tokens": number + 1, "finish_reason": reason}}
        elif dialect is TGI:
            end = {"finish_reason": "eos_token", "generated_tokens": len(ids)} if number == len(ids) - 1 else None
            yield {"index": number, "token": {"id": token, "text": "w"}, "details": end}
        else:
            choice = {"index": 0, "finish_reason": finish if last else None, "token_ids": [token]}
            yield {"id": "c", "choices": [choice]}
    if dialect is TGI:
        return
    if dialect is SGLANG:
        if last_apart:
            shown = ids if len(ids) % 2 else []
            meta = {"completion_tokens": len(ids), "finish_reason": {"type": finish}}
            yield {"output_ids": shown, "meta_info": meta}
    else:
        if last_apart:
            yield {"id": "c", "choices": [{"index": 0, "finish_reason": finish}]}
        if dialect is OPENAI or chance.random() < 0.7:
            yield {"id": "c", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(ids)}}
    yield "[DONE]"


def whole(chance: random.Random, dialect: Dialect, answers: list[list[int]]) -> Any:
    finish = "stop"  # "length" is right at the full length alone
    if dialect is SGLANG:
        frames = [
            {"output_ids": ids, "meta_info": {"completion_tokens": len(ids), "finish_reason": {"type": finish}}}
            for ids in answers
        ]
        return frames if len(frames) > 1 else frames[0]
    if dialect is TGI:
        tokens = [{"id": token, "text": "w"} for token in answers[0]]
        return {"details": {"finish_reason": finish, "generated_tokens": len(tokens), "tokens": tokens}}
    content = "text" if dialect is OPENAI else "token_ids"
    choices = [
        {"index": index, "finish_reason": finish, content: f" ü{ids}" if dialect is OPENAI else ids}
        for index, ids in enumerate(answers)
    ]
    chance.shuffle(choices)
    usage = {"usage": {"completion_tokens": sum(map(len, answers))}}
    return {"id": "c", "choices": choices} | (usage if dialect is OPENAI or chance.random() < 0.7 else {})


def on_the_wire(base: Base, frames: Sequence[bytes]) -> bytes:
    """The response whose body is these frames, each a chunk of its own where there are chunks."""
    framing = base.framing
    head = b"HTTP/1.1 %b\r\ncontent-type: x/y\r\n" % base.status
    body = b"".join(frames)
    if framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames if frame)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Connection: close\r\n\r\n" + body


# -- mutations --------------------------------------------------------------------------------------------------------

WORDS = (
    *(b"\r\n", b"\n", b"\n\n", b"\r", b" ", b"\x00", b"\xff", b"\xc3", b"0", b"9", b"-", b"1e1", b".0", b"null", b"{}"),
    *(
        b"}",
        b"{",
        b"]",
        b"[",
        b",",
        b":",
        b'"',
        b"\\",
        b"\\ud800",
        b"data:",
        b"data: [DONE]\n\n",
        b": c\n",
        b"0\r\n\r\n",
    ),
    *(
        b'"error":"dead",',
        b'"message":1,',
        b'"index":1,',
        b'"token_ids":[],',
        b'"finish_reason":"stop",',
        b'"text":"a",',
    ),
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 E\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(
        b"Connection: close\r\n",
        b"Retry-After: \xb2\r\n",
        b"99999999999999999999",
        b'"choices":[',
        b'"usage":{"completion_tokens":3},',
        b"[" * 3000,
    ),
)


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One small or large change."""
    size = len(data)
    at = chance.randrange(size + 1)
    to = min(size, at + chance.choice([1, 1, 2, 4, 16, 64, 400]))
    match chance.randrange(9):
        case 0:  # flip a bit
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :] if at < size else data
        case 1:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[to:]
        case 3:
            return data[:at] + chance.choice(WORDS) + data[at:]
        case 4:
            return data[:to] + data[at:]
        case 5:
            return data[:at]
        case 6:  # swap two neighbours
            further = min(size, to + to - at)
            return data[:at] + data[to:further] + data[at:to] + data[further:]
        case 7:
            return data[:at] + chance.choice(WORDS) + data[to:]
        case _:
            return data[:at] + other[chance.randrange(len(other) + 1) :]


def mutated_frames(base: Base, other: Base, chance: random.Random) -> list[bytes]:
    """A change of the body; what stands around it stays sound."""
    frames = list(base.frames)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        at = chance.randrange(len(frames))
        match chance.randrange(6):
            case 0:
                frames.insert(chance.randrange(len(frames) + 1), frames[at])
            case 1 if len(frames) > 1:
                del frames[at]
            case 2:
                to = chance.randrange(len(frames))
                frames[at], frames[to] = frames[to], frames[at]
            case 3:
                frames.insert(at, chance.choice(other.frames))
            case _:
                frames[at] = mutated(frames[at], chance.choice(other.frames), chance)
    return frames


class Input(NamedTuple):
    """What a connection gets: packets, and how it ends: FIN, RST, or not until the test itself ends it."""

    base: Base
    packets: list[bytes]
    close: str
    sound: bool

    def __str__(self) -> str:
        base = self.base
        packets = " ".join(packet.hex() for packet in self.packets)
        kind = f"{base.dialect.name}{base.dialect.path(base.stream)}, {'streamed' if base.stream else 'whole'}"
        return f"{kind}, {base.prompts} prompts, close {self.close!r}, packets {packets}"


def make_input(bases: Sequence[Base], chance: random.Random) -> Input:
    base, other = chance.choice(bases), chance.choice(bases)
    how = chance.random()
    if how < 0.05:
        wire = on_the_wire(base, base.frames)
    elif how < 0.5:
        wire = on_the_wire(base, mutated_frames(base, other, chance))
    else:
        wire = on_the_wire(base, base.frames)
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            wire = mutated(wire, on_the_wire(other, other.frames), chance)
    sound = how < 0.05
    close = chance.choice(["FIN", "FIN", "FIN", "RST", ""])
    if sound and base.framing == "close":
        close = "FIN"
    return Input(base, packets_of(wire, chance), close, sound)


def packets_of(wire: bytes, chance: random.Random) -> list[bytes]:
    """Cut anywhere, or as a server does: behind chunks and lines."""
    how = chance.random()
    if how < 0.3 or len(wire) < 2:
        return [wire]
    if how < 0.35 and len(wire) < 2000:
        return [wire[i : i + 1] for i in range(len(wire))]
    if how < 0.7:
        places = [match.end() for match in re.finditer(rb"\n\r\n|\r\n\r\n", wire)]
        places = [place for place in places if chance.random() < 0.8]
    else:
        places = sorted(chance.randrange(1, len(wire)) for _ in range(chance.randint(1, 8)))
    cuts = [0, *places, len(wire)]
    return [wire[a:b] for a, b in pairwise(cuts) if a < b]


# -- what the harness makes of it -------------------------------------------------------------------------------------


class Wire:
    """A transport to nowhere."""

    closed = False

    def write(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed


class Keeper:
    """A pool of one connection."""

    def made(self, connection: Connection) -> None:
        pass

    free = lost = made


class Judge:
    """A sink that judges as the SUT does."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.flights = {query.id: Flight(query, _REPLICA, 0.0) for query in queries}
        self.ends: Counter[int] = Counter()
        self.outcomes: dict[int, Outcome] = {}

    def first(self, query: Query, ids: Tokens) -> None:
        assert not self.ends[query.id], "a first token after the end"
        flight = self.flights[query.id]
        assert not flight.first_token, "a second first token"
        flight.first_token = 1.0
        flight.first_id = int(ids[0]) if len(ids) else -1

    def progress(self, query: Query, tokens: int) -> None:
        assert not self.ends[query.id], "progress after the end"

    def done(self, query: Query, outcome: Outcome) -> None:
        self.ends[query.id] += 1
        outcome.failure = judge(self.flights[query.id], outcome)
        self.outcomes[query.id] = outcome


_REPLICA: Any = Replica("fuzzed", None)  # type: ignore[arg-type]
_PLAN = Plan(1, "M", "auto", None, Generation(64))


def make_remote(dialect: Dialect) -> Remote:
    remote = Remote(Origin("http", "nowhere", 80), _PLAN, Prompts(_PLAN))
    remote._found = Found("m", dialect, None, {})
    return remote


def feed(remote: Remote, given: Input) -> Judge:
    """The queries' ends; whatever is raised is a violation."""
    queries = [Query(number, number, NO_TOKENS, given.base.stream, 64, 0.0) for number in range(given.base.prompts)]
    sink, wire = Judge(queries), Wire()
    kind = Streamed if given.base.stream else Exchange
    exchange = kind(remote, given.base.dialect, queries, sink)
    remote._flying = dict.fromkeys(range(len(queries)), exchange)
    connection = Connection(Keeper())  # type: ignore[arg-type]
    connection.connection_made(wire)  # type: ignore[arg-type]
    connection.send(b"", exchange)
    for packet in given.packets:
        if wire.closed:
            break
        connection.data_received(packet)
    reset = given.close == "RST" and not wire.closed
    wire.closed = True
    connection.connection_lost(ConnectionResetError() if reset else None)
    remote._end_doubts()  # what looks after the replica does that soon after a broken connection
    return sink


# -- what the slow reader makes of it ---------------------------------------------------------------------------------


class Refused(Exception):
    """This is no answer."""


Reading = tuple[list[int], str, int, str]
"""Token ids, text, count, finish reason."""


class Bytes:
    """A socket for http.client."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def makefile(self, _: str) -> io.BytesIO:
        return self.file


INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d[ \r][^\n]*\n(?:[^\r\n][^\n]*\n)*\r\n")


def body_of(data: bytes, fin: bool) -> bytes:
    data = data.lstrip(b"\r\n")
    while interim := INTERIM.match(data):
        data = data[interim.end() :].lstrip(b"\r\n")
    try:
        response = http.client.HTTPResponse(Bytes(data), method="POST")  # type: ignore[arg-type]
        response.begin()
        refuse(response.status != 200, f"HTTP {response.status}")
        codings = ",".join(response.msg.get_all("transfer-encoding", [])).lower().split(",")
        if codings[-1].strip() == "chunked" and not response.chunked:
            response.chunked, response.chunk_left, response.length = True, None, None
        refuse(not response.chunked and response.length is None and not fin, "no end")
        return response.read()
    except (http.client.HTTPException, ValueError, OSError, OverflowError) as error:
        raise Refused(f"HTTP: {type(error).__name__} {error}") from error


def refuse(condition: bool, why: str) -> None:
    if condition:
        raise Refused(why)


def parsed(payload: bytes) -> Any:
    try:
        return json.loads(payload.decode(errors="surrogateescape"), parse_constant=lambda name: refuse(True, name))
    except (ValueError, RecursionError) as error:
        raise Refused(f"JSON: {error}") from error


def events_of(body: bytes) -> list[bytes]:
    """The data of each event (WHATWG HTML, 9.2.6), [DONE] left out."""
    events: list[bytes] = []
    data: list[bytes] = []
    *lines, rest = re.split(rb"\r\n|\r|\n", body)
    unread = False
    done = False
    for line in lines:
        if line:
            unread = unread or bool(line.strip())
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            continue
        if data:
            refuse(done, "data after [DONE]")
            payload = b"\n".join(data)
            done = payload.strip() == b"[DONE]"
            events += [] if done else [payload]
        data, unread = [], False
    refuse(unread or bool(rest.strip()), "half an event")
    return events


def field(content: Any, name: str, *types: type, default: Any = None) -> Any:
    """A field that is missing or of one of these types."""
    refuse(type(content) is not dict, "no object")
    value = content.get(name, default)
    refuse(name in content and type(value) not in types, f"{name} is no {types}")
    refuse(isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value), "no UTF-8")
    return value


NULL = type(None)
ANY = (dict, list, str, int, float, bool, NULL)


class Slow:
    """Reads one answer, frame by frame."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.said: int | None = None
        self.finish: str | None = None

    def add(self, ids: Any) -> None:
        refuse(any(type(token) is not int or not -(2**31) <= token < 2**31 for token in ids), "no token id")
        refuse(bool(ids) and self.finish is not None, "tokens after the finish reason")
        self.ids += ids

    def choice(self, choice: Any) -> None:
        self.add(field(choice, "token_ids", list, NULL) or [])
        self.finish = field(choice, "finish_reason", str, NULL) or self.finish

    def text_choice(self, choice: Any) -> None:
        text = field(choice, "text", str, NULL) or ""
        refuse(bool(text) and self.finish is not None, "text after the finish reason")
        self.text += text
        self.finish = field(choice, "finish_reason", str, NULL) or self.finish

    def sglang(self, frame: Any) -> None:
        meta, ids = field(frame, "meta_info", dict), field(frame, "output_ids", list)
        refuse(meta is None or ids is None, "no ids")
        said = field(meta, "completion_tokens", int)
        refuse(said is None, "no count")
        if said == len(ids) and ids[: len(self.ids)] == self.ids:
            ids = ids[len(self.ids) :]
        self.add(ids)
        self.said = said
        reason = field(meta, "finish_reason", dict, NULL)
        self.finish = field(reason, "type", str) if reason is not None else self.finish

    def tgi(self, frame: Any) -> None:
        token, details = field(frame, "token", dict, NULL), field(frame, "details", dict, NULL)
        refuse(token is None and details is None, "nothing known")
        self.add([field(token, "id", int)] if token is not None else [])
        if details is not None:
            self.add([field(each, "id", int) for each in field(details, "tokens", list, NULL) or ()])
            self.said = field(details, "generated_tokens", int, NULL)
            reason = field(details, "finish_reason", str, NULL)
            self.finish = {"eos_token": "stop", "stop_sequence": "stop"}.get(reason, reason)

    def reading(self, of_text: bool) -> Reading:
        refuse(self.finish not in ("stop", "length"), f"finish reason {self.finish}")
        refuse(of_text and self.said is None, "no count")
        count = self.said if of_text and self.said is not None else len(self.ids)
        refuse(self.said is not None and self.said != count, "another count")
        refuse(count < 2, f"{count} tokens")
        assert self.finish is not None
        return self.ids, self.text, count, self.finish


def slow_reading(given: Input) -> list[Reading | Refused]:
    """Each answer, or why there is none."""
    base, of_text = given.base, not given.base.dialect.ids_out
    answers = [Slow() for _ in range(base.prompts)]
    try:
        body = body_of(b"".join(given.packets), given.close != "RST")
        frames = [parsed(event) for event in events_of(body)] if base.stream else [parsed(body)]
        if base.dialect is SGLANG:
            if not base.stream and type(frames[0]) is list:
                frames = frames[0]
                refuse(len(frames) != base.prompts, "another number of answers")
            refuse(not base.stream and len(frames) != base.prompts, "another number of answers")
        for number, frame in enumerate(frames):
            refuse(field(frame, "error", *ANY) is not None, "an error")
            if base.dialect is SGLANG:
                answers[0 if base.stream else number].sglang(frame)
            elif base.dialect is TGI:
                answers[0].tgi(frame)
            else:
                read_choices(frame, answers, of_text, base.stream)
    except Refused as why:
        return [why] * base.prompts
    return [judged(answer, of_text) for answer in answers]


def read_choices(frame: Any, answers: list[Slow], of_text: bool, stream: bool) -> None:
    choices = field(frame, "choices", list)
    refuse(choices is None, "no choices")
    indices = [field(choice, "index", int, default=0) for choice in choices]
    refuse(any(index not in range(len(answers)) for index in indices), "another index")
    refuse(not stream and sorted(indices) != list(range(len(answers))), "not each answer once")
    for index, choice in zip(indices, choices, strict=True):
        (answers[index].text_choice if of_text else answers[index].choice)(choice)
    usage = field(frame, "usage", dict, NULL)
    said = field(usage, "completion_tokens", int, NULL) if usage is not None else None
    if said is not None:
        right = said == sum(len(answer.ids) for answer in answers)
        for answer in answers:
            answer.said = said if len(answers) == 1 else len(answer.ids) if right else -1


def judged(answer: Slow, of_text: bool) -> Reading | Refused:
    try:
        return answer.reading(of_text)
    except Refused as why:
        return why


# -- the comparison ---------------------------------------------------------------------------------------------------


def violation(remote: Remote, given: Input, outcomes: Counter[str]) -> str | None:
    """The rule that this input breaks, or None."""
    try:
        sink = feed(remote, given)
    except Exception as error:  # noqa: BLE001 - that is what this looks for
        return f"{type(error).__name__} was raised: {error}"
    if sink.ends != Counter(range(given.base.prompts)):
        return f"ends by query: {dict(sink.ends)}"
    right: list[Reading | Refused] | None = None
    for number, outcome in sink.outcomes.items():
        outcomes[outcome.failure.kind if outcome.failure else "good"] += 1
        if given.sound and (outcome.failure is None) != (given.base.status == b"200 OK"):
            return f"a sound response, and the outcome is {outcome.failure or 'good'}"
        if outcome.failure is None:
            right = right or slow_reading(given)
            seen = outcome.tokens.tolist(), outcome.text or "", outcome.count, outcome.finish_reason
            if seen != right[number]:
                return f"judged good: {seen}; the slow reader: {right[number]!r}"
    return None


class Report(NamedTuple):
    inputs: int
    outcomes: Counter[str]
    violations: list[str]


def work(seed: int, start: int, end: int) -> Report:
    bases = [make_base(random.Random(f"{seed} base {number}")) for number in range(BASES)]
    remotes = {id(dialect): make_remote(dialect) for dialect in (GENERATE, COMPLETIONS, OPENAI, SGLANG, TGI)}
    outcomes: Counter[str] = Counter()
    violations = []
    for number in range(start, end):
        given = make_input(bases, random.Random((seed << 40) + number))
        broken = violation(remotes[id(given.base.dialect)], given, outcomes)
        if broken is not None:
            violations.append(f"seed {seed}, input {number}: {broken}\n  {given}")
            if len(violations) >= MOST_VIOLATIONS:
                return Report(number + 1 - start, outcomes, violations)
    return Report(end - start, outcomes, violations)


def reports(seed: int, inputs: int, processes: int) -> Iterator[Report]:
    task: Callable[[int, int], Report] = partial(work, seed)
    starts = range(0, inputs, SHARE)
    ends = [min(start + SHARE, inputs) for start in starts]
    if processes == 1:
        yield from map(task, starts, ends)
    else:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(task, starts, ends)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began = perf_counter()
    done, outcomes, violations = 0, Counter[str](), 0
    for report in reports(options.seed, options.inputs, options.processes):
        done += report.inputs
        outcomes.update(report.outcomes)
        violations += len(report.violations)
        for line in report.violations:
            print(line, flush=True)
        if done % (10 * SHARE) == 0:
            print(f"{done:,} inputs, {perf_counter() - began:.0f} s, {violations} violations", flush=True)
        if violations >= MOST_VIOLATIONS:
            break
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in outcomes.most_common())
    print(f"{done:,} inputs in {perf_counter() - began:.1f} s, {violations} violations; outcomes: {kinds}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
