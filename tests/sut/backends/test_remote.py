"""Remote replicas without LoadGen: what is found out before the clock, and how the SUT serves on them while they fail,
die and come back. The servers are scripted ones in this process, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tests.stub_replica as stub_replica
from sut.backends import Generation, Plan
from sut.backends.dialects import error_of
from sut.backends.http import KEY, failure_of, pause_of
from sut.backends.probe import Probe, kv_cache_tokens, prefix_caching
from sut.backends.remote import Remote, make_replicas
from sut.dispatch import POLICIES, Replica
from sut.errors import ConfigError, SetupError
from sut.health import Deadlines, Flight, judge
from sut.query import Outcome, Query, Tokens, as_tokens
from sut.sut import SUT
from sut.work import Work
from tests.stub_replica import FAULTS, Refused, Script, Stub

PATIENCE = 10.0
"""Seconds after which a test has hung."""

SECRET = "sk-nobody-sees-this"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """All that is looked at now and then is looked at often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(KEY, raising=False)
        patch.setattr("sut.sut.SWEEP_INTERVAL", 0.02)
        patch.setattr("sut.backends.remote.PROBE_INTERVAL", 0.1)
        patch.setattr("sut.backends.probe.LOOK_LIMIT", 0.2)
        patch.setattr("sut.backends.remote.MISSES", 2)
        patch.setattr("sut.backends.probe.FIRST_LIMIT", PATIENCE)
        patch.setattr("sut.backends.remote.RETURN_INTERVAL", 0.05)
        yield


# -- doubles ----------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer: token n is the word w<n>, and each text begins with token 1."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[1, *(int("".join(filter(str.isdigit, word)) or "7") for word in text.split())] for text in texts]

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(f"w{token}" for token in ids if token > 2) for ids in answers]


class Recorder:
    """A responder that writes down what it hears."""

    def __init__(self) -> None:
        self.firsts: dict[int, list[int]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.ends: Counter[int] = Counter()
        self._changed = threading.Condition()

    def first(self, query: Query, ids: Tokens) -> None:
        assert query.id not in self.firsts and query.id not in self.outcomes
        self.firsts[query.id] = ids.tolist()

    def close(self) -> None:
        pass

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        with self._changed:
            for query, outcome in finished:
                self.outcomes[query.id] = outcome
                self.ends[query.id] += 1
            self._changed.notify_all()

    def wait(self, number: int, limit: float = PATIENCE) -> None:
        """Until so many queries have ended; a test that hangs fails here."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.ends.total() >= number, limit)
        assert came, f"{self.ends.total()} of {number} queries were answered"

    @property
    def kinds(self) -> Counter[str]:
        return Counter(outcome.failure.kind for outcome in self.outcomes.values() if outcome.failure is not None)

    @property
    def served_by(self) -> Counter[str]:
        return Counter(outcome.replica for outcome in self.outcomes.values() if outcome.failure is None)


def prompt(index: int) -> Tokens:
    return as_tokens(range(100 + index, 106 + index))


PROMPTS = [prompt(index) for index in range(10)]


def plan(**options: Any) -> Plan:
    how = {"replicas": 1, "model": "some-model", "dtype": "auto", "max_model_len": None, "codec": Words()}
    return Plan(**(how | {"generation": Generation(max_tokens=8)} | options))


class Bench:
    """A SUT on remote replicas that is up and bound to a test."""

    def __init__(self, sut: SUT, stream: bool, most: int = 8) -> None:
        self.sut = sut
        self.responder = Recorder()
        self.work = Work(lambda index: PROMPTS[index % 10], stream, most, self.responder)
        sut.begin(self.work)

    def issue(self, ids: Sequence[int]) -> None:
        self.sut.issue(list(ids), [number % 10 for number in ids])

    def serve(self, number: int) -> Recorder:
        """Issue queries 1 … number and wait for their ends."""
        self.issue(range(1, number + 1))
        self.responder.wait(number)
        return self.responder

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the first replica turned out to be."""
        return self.sut.replicas[0].backend.facts


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


@contextmanager
def bench(
    *stubs: Stub,
    stream: bool = True,
    dispatch: str | None = None,
    cap: int | None = None,
    resilient: bool = False,
    deadlines: Deadlines | None = None,
    prepare: bool = True,
    **options: Any,
) -> Iterator[Bench]:
    what = plan(**({"endpoints": [stub.url for stub in stubs], "batch": not stream, "max_in_flight": cap} | options))
    replicas = [Replica(name, backend, cap) for name, backend in zip("abcd", make_replicas(what), strict=False)]
    policy = dispatch or ("round-robin" if stream else "pull")
    sut = SUT(replicas, policy, deadlines or Deadlines(stall=5.0), resilient)
    try:
        sut.open()
        if prepare:
            sut.prepare(PROMPTS)
        yield Bench(sut, stream, what.generation.max_tokens)
    finally:
        sut.close()


def answers(recorder: Recorder) -> dict[int, list[int]]:
    return {key: outcome.tokens.tolist() for key, outcome in recorder.outcomes.items()}


def expected(number: int, length: int = 8) -> dict[int, list[int]]:
    """What a stub says to queries 1 … number: their prompts over and over."""
    return {key: (PROMPTS[key % 10].tolist() * 2)[:length] for key in range(1, number + 1)}


@contextmanager
def listing(*cards: dict[str, Any] | None) -> Iterator[None]:
    """Stubs list these models; None: they list none at all."""
    usual = stub_replica.Connection._fact

    def fact(self: stub_replica.Connection, head: stub_replica.Head, body: bytes) -> dict[str, Any]:
        if head.path != "/v1/models":
            return usual(self, head, body)
        if None in cards:
            raise Refused(404, "Not Found")
        return {"object": "list", "data": list(cards)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stub_replica.Connection, "_fact", fact)
        yield


# -- refused before the clock -----------------------------------------------------------------------------------------

# what the server is, what is asked of it -> what the one sentence says
REFUSALS: dict[str, tuple[Script, dict[str, Any], str]] = {
    "another model is asked for": (
        Script(model="llama"), {"served_model": "lama"}, r"does not serve 'lama': it serves llama\.$"
    ),
    "an unknown dialect": (Script(), {"dialect": "vlm"}, r"^unknown dialect 'vlm': choose one of vllm, sglang, tgi,"),
    "a dialect that is not spoken": (
        Script(), {"dialect": "sglang"}, r"does not speak the dialect sglang: /generate answers HTTP 404: Not Found\.$"
    ),
    "a dialect whose answers have no ids": (
        Script(family="openai"), {"dialect": "vllm"}, r"does not speak the dialect vllm: .*/v1/completions"
    ),
    "nothing that is known": (
        Script(family="openai"), {"codec": None}, r"speaks no dialect known here: .*needs a tokenizer"
    ),
    "text without a count": (
        Script(family="openai", fault="no-usage"), {}, r"/v1/completions answers without saying how many .*\(usage\)"
    ),
    "no batches": (
        Script(family="openai"), {"batch": True, "offline_batch": 4}, r"/v1/completions takes no batches"
    ),
    "TGI takes no batches either": (
        Script(family="tgi"), {"batch": True, "offline_batch": 4, "dialect": "tgi"}, r"/generate takes no batches\.$"
    ),
    "it samples": (Script(sampling=True), {}, r"samples although temperature 0 is asked: 4 answers .* differ"),
    "another tokenizer": (Script(tokenize=lambda text: [4, 5]), {}, r"has another tokenizer than some-model: name"),
    "too short a context": (
        Script(max_model_len=32), {"generation": Generation(max_tokens=30)}, r"takes 32 tokens.* has 6 beside the 30 of"
    ),
    "broken": (Script(fault="500"), {}, r"speaks no dialect known here: .*HTTP 500: a scripted fault"),
    "busy": (Script(fault="429"), {}, r"is not ready: HTTP 429: a scripted fault\.$"),
    "cut off": (Script(fault="reset-early"), {}, r"known here: .*the connection was reset before its first byte"),
    "streams without an end": (Script(fault="no-terminator"), {"batch": False}, r"without a finish reason"),
}  # fmt: skip


def opened(*stubs: Stub, **options: Any) -> None:
    with bench(*stubs, **options):
        pass


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_before_the_clock(what: str) -> None:
    script, options, says = REFUSALS[what]
    with Stub(script) as stub, pytest.raises((ConfigError, SetupError), match=says) as refused:
        opened(stub, **options)
    sentence = str(refused.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert "unknown" in sentence or stub.url in sentence, "it says which one of many"


CARD = {"id": "base", "max_model_len": 4096}


@pytest.mark.parametrize(
    ("cards", "asked", "says"),
    [
        ([CARD, CARD | {"id": "other"}], None, r"serves base, other: choose with --served-model\."),
        ([], None, r"does not list its models: name the one to ask for with --served-model\."),
        ([None], None, r"does not list its models: name the one to ask for with --served-model\."),
        ([CARD, CARD | {"id": "adapter", "parent": "base"}], None, "base"),
        ([CARD, CARD | {"id": "other"}], "base", "base"),
        ([None], "base", "base"),
        ([], "base", "base"),
    ],
)
def test_which_model(cards: list[Any], asked: str | None, says: str) -> None:
    """One that is not an adapter, or the one asked for; where none is listed, whatever is asked for."""
    with listing(*cards), Stub(Script(model="base")) as stub:
        if says != "base":
            with pytest.raises(SetupError, match=says):
                opened(stub, served_model=asked)
            return
        with bench(stub, served_model=asked) as it:
            assert it.facts["model"] == "base"
            assert it.facts["max_model_len"] == (4096 if CARD in cards else None)
            assert answers(it.serve(3)) == expected(3)


@pytest.mark.parametrize("key", ["", "wrong"])
def test_the_api_key_is_missing_or_wrong(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if key:
        monkeypatch.setenv(KEY, key)
    with Stub(Script(api_key=SECRET)) as stub, pytest.raises(SetupError, match=KEY) as refused:
        opened(stub)
    assert SECRET not in str(refused.value) and (not key or key not in str(refused.value))


def test_the_api_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with Stub(Script(api_key=SECRET, fault="500", fault_every=2, fault_after=6)) as stub, bench(stub) as it:
        responder = it.serve(4)
        assert responder.kinds == {"server_error": 2}
        told = [repr(it.facts), str(it.work.first_failure), repr(responder.outcomes), repr(plan())]
    assert not any(SECRET in text for text in told)
    monkeypatch.setenv(KEY, "two\nlines")
    with pytest.raises(ConfigError, match=f"{KEY} holds characters that no API key has") as refused:
        make_replicas(plan(endpoints=["http://localhost:1"]))
    assert "two" not in str(refused.value)


def test_an_endpoint_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SetupError, match=rf"^{url} is not ready: cannot connect to {url}: Connection refused\.$"):
        opened(endpoints=[url])
    with pytest.raises(SetupError, match=r"^the host of http://no-such-host\.invalid is not known"):
        opened(endpoints=["http://no-such-host.invalid"])
    with pytest.raises(ConfigError, match="--endpoint"):
        opened()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed one for 127.0.0.1, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=stub", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path)]
    subprocess.run([*words, "-out", str(path.with_suffix(".crt"))], check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_https(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Stub(Script(tpot=0.001), tls=context) as stub:
        with pytest.raises(SetupError, match=r"its certificate is not accepted .*--ca-file"):
            opened(stub)
        for options in ({"ca_file": certificate.with_suffix(".crt")}, {"insecure": True}):
            with bench(stub, **options) as it:
                assert answers(it.serve(20)) == expected(20)
                assert it.responder.kinds == {}
        with pytest.raises(SetupError, match="cannot read the certificates in"):
            opened(stub, ca_file=Path("/no/such/file"))


# -- dialects ---------------------------------------------------------------------------------------------------------

FAMILIES = {
    # family: dialect, route streamed, route whole, prompts, answers
    "vllm": ("vllm", "/inference/v1/generate", "/inference/v1/generate", "token ids", "token ids"),
    "vllm-completions": ("vllm", "/v1/completions", "/v1/completions", "token ids", "token ids"),
    "openai": ("openai", "/v1/completions", "/v1/completions", "text", "text"),
    "sglang": ("sglang", "/generate", "/generate", "token ids", "token ids"),
    "tgi": ("tgi", "/generate_stream", "/generate", "text", "token ids"),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_dialect_is_found_and_spoken(family: str, stream: bool) -> None:
    name, streamed, whole, prompts, kind = FAMILIES[family]
    with Stub(Script(family=family, tokens=5, tpot=0.001, max_model_len=100)) as stub, bench(stub, stream=stream) as it:
        responder, facts = it.serve(12), it.facts
    found = [facts[key] for key in ("dialect", "route", "prompts", "answers", "url")]
    assert found == [name, streamed if stream else whole, prompts, kind, stub.url]
    assert facts["tried"] is (name in ("vllm", "openai"))
    assert facts["version"] == ("0.32.0" if name == "vllm" else None)
    assert (facts["model"], facts["max_model_len"], facts["tokenizer"]) == ("stub", 100, "not checked")
    assert responder.kinds == {}
    assert {outcome.count for outcome in responder.outcomes.values()} == {5}
    assert {outcome.finish_reason for outcome in responder.outcomes.values()} == {"stop"}
    assert set(responder.firsts) == (set(range(1, 13)) if stream else set())
    if kind == "text":
        assert {len(first) for first in responder.firsts.values()} <= {0}
        assert responder.outcomes[3].text == "w103 w104 w105 w106 w107"
    elif prompts == "token ids":
        assert answers(responder) == {key: [*ids[:4], 2] for key, ids in expected(12).items()}
        assert all(first == [PROMPTS[key % 10][0]] for key, first in responder.firsts.items())


def test_a_tokenizer_that_is_the_same_is_said_to_be() -> None:
    with Stub(Script(tokenize=lambda text: Words().encode([text])[0][1:])) as stub, bench(stub) as it:
        assert it.facts["tokenizer"] == "the same"


@pytest.mark.parametrize("stream", [True, False])
def test_text_is_counted_by_the_server_and_cut_into_tokens_only_if_asked(stream: bool) -> None:
    with Stub(Script(family="openai", tokens=5)) as stub:
        with bench(stub, stream=stream) as it:
            outcomes = it.serve(4).outcomes
            assert {(len(o.tokens), o.said, o.count) for o in outcomes.values()} == {(0, 5, 5)}
        with bench(stub, stream=stream, tokens_now=True) as it:
            outcomes = it.serve(4).outcomes
            assert outcomes[2].tokens.tolist() == [102, 103, 104, 105, 106], "without what begins each text"
            assert outcomes[2].tokens.dtype == "int32"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("family", "failures"), [("openai", {"miscounted": 2}), ("vllm", {}), ("vllm-completions", {}), ("tgi", {})]
)
def test_a_missing_count_is_a_failure_only_where_nothing_else_counts(family: str, failures: Any, stream: bool) -> None:
    script = Script(family=family, fault="no-usage", fault_every=2, armed=False)
    with Stub(script) as stub, bench(stub, stream=stream) as it:
        stub.arm()
        responder = it.serve(4)
    assert responder.kinds == failures
    assert {o.count for o in responder.outcomes.values() if o.failure is None} == {8}


# -- the wire ---------------------------------------------------------------------------------------------------------

WIRES = [
    *(Script(framing=framing, tpot=0.001) for framing in ("frame", "byte", "many", "split")),
    *(Script(framing=framing, tpot=0.001, newline="\r\n") for framing in ("frame", "byte", "split")),
    *(Script(framing=framing, tpot=0.001, chunked=False) for framing in ("frame", "byte")),
    Script(keep_alive=False),
    Script(fault="comment"),
    Script(fault="comment", framing="byte", newline="\r\n"),
    Script(fault="slow-read"),
    Script(fault="extra-bytes", tpot=0.001, slots=1, keep_alive=False),
]


@pytest.mark.parametrize(
    ("family", "interval"), [("vllm", None), ("vllm", 1), ("openai", 1), ("sglang", 1), ("tgi", None)]
)
def test_answers_are_the_same_however_they_are_framed(family: str, interval: int | None) -> None:
    """Streamed; 40 tokens, so that many frames are read together."""
    long = {"generation": Generation(max_tokens=40), "stream_interval": interval}
    for wire in WIRES:
        with Stub(replace(wire, family=family, tokens=40)) as stub, bench(stub, **long) as it:
            responder = it.serve(4)
        assert (responder.kinds, wire) == ({}, wire)
        assert {outcome.count for outcome in responder.outcomes.values()} == {40}
        if family in ("vllm", "sglang"):
            assert answers(responder) == {key: (PROMPTS[key].tolist() * 7)[:40] for key in range(1, 5)}


def test_bytes_after_the_end_do_not_keep_the_end_from_being_seen() -> None:
    """The last read of a stream then does not end as a stream's last read does."""
    with Stub(Script(fault="extra-bytes", tpot=0.005, armed=False)) as stub, bench(stub) as it:
        stub.arm()
        for key in (1, 2, 3):
            it.issue([key])
            it.responder.wait(key, 2.0)
            time.sleep(0.01)
    assert answers(it.responder) == expected(3)


def test_connections_are_kept() -> None:
    with Stub(Script(ttft=0.002)) as stub, bench(stub, cap=8) as it:
        it.serve(200)
        truth = stub.truth()
    assert truth["requests"] >= 200
    assert truth["connections"] <= 8 + 1, "those that are warm, and one to look after the replica"


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is about to close it, and a request that meets the closing would be lost."""
    monkeypatch.setattr("sut.backends.http.IDLE_LIMIT", 0.03)
    with Stub(Script(idle_close=0.06)) as stub, bench(stub, cap=2) as it:
        for key in range(1, 6):
            it.issue([key])
            it.responder.wait(key)
            time.sleep(0.04)
    assert it.responder.kinds == {}


# -- batches ----------------------------------------------------------------------------------------------------------

BATCHED = {"stream": False, "offline_batch": 4}


# SGLang's batches are lists without indices: their order is all there is.
@pytest.mark.parametrize(("family", "fault"), [("vllm", ""), ("vllm", "out-of-order"), ("sglang", "")])
def test_the_answers_of_a_batch_find_their_queries(family: str, fault: str) -> None:
    with Stub(Script(family=family, fault=fault)) as stub, bench(stub, **BATCHED) as it:
        before = stub.truth()["requests"]
        assert answers(it.serve(18)) == expected(18)
        assert stub.truth()["requests"] - before == 5, "four of four, and one of two"
        assert it.facts["route"] == ("/generate" if family == "sglang" else "/v1/completions")


@pytest.mark.parametrize("family", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("missing-index", "malformed"), ("reset-mid", "disconnected"), ("wrong-usage", "miscounted"), ("400", "rejected")],
)
def test_a_batch_fails_together(fault: str, kind: str, family: str) -> None:
    script = Script(family=family, fault=fault, fault_every=3, armed=False)
    with Stub(script) as stub, bench(stub, **BATCHED) as it:
        stub.arm()
        responder = it.serve(16)
    assert responder.kinds == {kind: 4}


def test_one_query_of_a_batch_is_cancelled_and_then_all() -> None:
    with Stub(Script(ttft=0.1)) as stub, bench(stub, **BATCHED) as it:
        it.issue([1, 2, 3, 4])
        until(lambda: stub.truth()["running"] == 1)
        (replica,), flights = it.sut.replicas, it.sut._flights

        async def cancel(*ids: int) -> None:
            for key in ids:
                replica.backend.cancel(flights[key].query)

        it.sut.run(cancel(2))
        it.responder.wait(3)
        assert answers(it.responder) == {key: ids for key, ids in expected(4).items() if key != 2}
        assert stub.truth()["aborted"] == 0, "the others still wait for it"
        it.issue([5, 6, 7, 8])
        until(lambda: stub.truth()["running"] == 1)
        it.sut.run(cancel(5, 6, 7, 8))
        until(lambda: stub.truth()["aborted"] == 1)
        assert len(it.responder.outcomes) == 3
        assert replica.backend._flying == {}


# -- every fault, without LoadGen -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", POLICIES)
def test_a_pause_is_kept_and_others_serve_meanwhile(dispatch: str) -> None:
    with (
        Stub(Script(fault="503", fault_every=4, armed=False, retry_after=1)) as busy,
        Stub() as other,
        bench(busy, other, dispatch=dispatch, resilient=True) as it,
    ):
        busy.arm()
        responder = it.serve(40)
        until(lambda: it.sut.replicas[0].serving)
        assert busy.truth()["faults"] == it.work.retries["busy"] >= 1
    assert responder.kinds == {}
    assert it.work.retries.keys() == {"busy"}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 1), (b"3", 3), (b" 7 ", 7), (b"0", 0.1), (b"soon", 1), (b"-5", 1), (b"Mon, 01 Jan 2001 00:00:00 GMT", 0.1)],
)
def test_retry_after(header: bytes | None, seconds: float) -> None:
    assert pause_of(header) == seconds


@pytest.mark.parametrize("header", [b"\xb2", b"", b"9" * 400, b"Mon, 99 Foo 99999 99:99:99 GMT", b"\xff"])
def test_a_retry_after_that_is_nonsense_harms_nobody(header: bytes) -> None:
    assert 0 <= pause_of(header) <= float("inf")


# -- the life of replicas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("resilient", [False, True])
def test_a_replica_that_is_killed(resilient: bool, stream: bool) -> None:
    with (
        Stub(Script(ttft=0.2)) as one,
        Stub(Script(ttft=0.02)) as other,
        bench(one, other, stream=stream, cap=8, resilient=resilient) as it,
    ):
        it.issue(range(1, 61))
        until(lambda: one.truth()["running"] == 8)
        one.kill()
        it.responder.wait(60)
        until(lambda: it.sut.replicas[0].ejected)
        assert str(it.sut.replicas[0].ejected).endswith(f"cannot connect to {one.url}: Connection refused")
        assert it.sut.aborted is None
        kinds, served = it.responder.kinds, it.responder.served_by
        retries = it.work.retries
    assert set(kinds) | set(retries) <= {"disconnected", "unreachable", "replica_died"}
    if resilient:
        assert (kinds, served) == ({}, {"b": 60})
        assert retries.total() >= 8
    else:
        assert (8 <= kinds.total() <= 24, served) == (True, {"b": 60 - kinds.total()})
        assert retries == {}


def test_a_replica_that_comes_back_works_again() -> None:
    with Stub() as one, Stub() as other, bench(one, other, resilient=True) as it:
        one.kill()
        until(lambda: it.sut.replicas[0].ejected)
        it.issue(range(1, 11))
        it.responder.wait(10)
        assert it.responder.served_by == {"b": 10}
        one.revive()
        until(lambda: it.sut.replicas[0].ejected is None)
        it.issue(range(11, 31))
        it.responder.wait(30)
        assert it.responder.served_by == {"a": 10, "b": 20}


def test_what_waits_for_the_only_replica_is_served_when_it_is_back() -> None:
    """Never dead for long: with another one alive but full, nothing is given up."""
    with Stub(Script(ttft=0.3)) as full, Stub() as one, bench(full, one, cap=1, stream=False) as it:
        one.kill()
        until(lambda: it.sut.replicas[1].ejected)
        it.issue(range(1, 5))
        one.revive()
        it.responder.wait(4)
        assert it.responder.kinds == {}
        assert it.responder.served_by["b"] >= 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("resilient", [False, True])
def test_without_any_replica_the_test_is_given_up_soon(resilient: bool, stream: bool) -> None:
    with (
        Stub(Script(ttft=0.2)) as one,
        Stub(Script(ttft=0.2)) as other,
        bench(one, other, stream=stream, cap=4, resilient=resilient) as it,
    ):
        it.issue(range(1, 101))
        until(lambda: one.truth()["running"] == other.truth()["running"] == 4)
        began = time.monotonic()
        one.kill()
        other.kill()
        it.responder.wait(100, 3.0)
        assert time.monotonic() - began < 2.0
        assert str(it.sut.aborted).startswith("no replica is left; the last to go was ")
        assert it.responder.kinds["abandoned"] > 50
        assert it.responder.kinds.total() == 100


def test_idle_replicas_that_die_are_noticed() -> None:
    with Stub() as one, bench(one) as it:
        one.kill()
        until(lambda: it.sut.aborted)
        began = time.monotonic()
        it.issue([1, 2])
        it.responder.wait(2, 1.0)
        assert it.responder.kinds == {"abandoned": 2}
        assert time.monotonic() - began < 0.5


def close_the_door(stub: Stub) -> None:
    """What uvicorn does on SIGTERM: no new connections, idle ones are closed, answers go on."""

    def close() -> None:
        assert stub._server._listener is not None
        stub._server._listener.close()
        for connection in list(stub._server.connections):
            if connection.exchange is None:
                connection.transport.close()

    stub._loop.call_soon_threadsafe(close)


@pytest.mark.parametrize("stream", [True, False])
def test_a_replica_that_drains_may_finish_what_it_has(stream: bool) -> None:
    with (
        Stub(Script(tokens=8, tpot=0.04)) as leaving,
        Stub() as other,
        bench(leaving, other, stream=stream, cap=4) as it,
    ):
        it.issue(range(1, 9))
        until(lambda: leaving.truth()["running"] == 4)
        close_the_door(leaving)
        until(lambda: it.sut.replicas[0].ejected)
        it.issue(range(9, 13))
        it.responder.wait(12)
    assert it.responder.kinds == {}
    assert it.responder.served_by == {"a": 4, "b": 8}
    assert it.sut.aborted is None


def test_the_last_replica_drains_too() -> None:
    with Stub(Script(tokens=8, tpot=0.04)) as leaving, bench(leaving, cap=4) as it:
        it.issue(range(1, 9))
        until(lambda: leaving.truth()["running"] == 4)
        close_the_door(leaving)
        it.responder.wait(8, 3.0)
        assert it.sut.aborted is not None
    assert it.responder.served_by == {"a": 4}
    assert it.responder.kinds == {"abandoned": 4}


def test_a_replica_that_says_it_is_not_healthy_is_out_until_it_is() -> None:
    with Stub() as ill, Stub() as other, bench(ill, other) as it:
        ill.set_unhealthy(True)
        until(lambda: it.sut.replicas[0].ejected)
        assert it.sut.replicas[0].ejected == f"{ill.url} says that it is not healthy (HTTP 503)"
        assert it.serve(6).served_by == {"b": 6}
        ill.set_unhealthy(False)
        until(lambda: it.sut.replicas[0].ejected is None)
        it.issue(range(7, 13))
        it.responder.wait(12)
        assert it.responder.served_by == {"a": 3, "b": 9}
    assert it.responder.kinds == {}


@pytest.mark.parametrize("resilient", [False, True])
def test_a_replica_that_answers_no_more_is_given_up(resilient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port is open and it says nothing, also not to /health: after some looks its queries fail, or move on."""
    with Stub(Script(ttft=30.0, armed=False)) as hung, Stub() as other:
        script = hung.script
        hung._server.script = replace(script, ttft=0.0)  # until the clock starts
        with bench(hung, other, resilient=resilient) as it:
            hung._server.script = script
            reply = stub_replica.Connection._reply

            def silent(self: stub_replica.Connection, body: Any, status: int = 200) -> None:
                if self.server is not hung._server:
                    reply(self, body, status)

            monkeypatch.setattr(stub_replica.Connection, "_reply", silent)
            began = time.monotonic()
            responder = it.serve(10)
            assert time.monotonic() - began < 3.0
            assert f"{hung.url} does not answer /health" in str(it.sut.replicas[0].ejected)
            assert it.sut.replicas[1].ejected is None
            retried = dict(it.work.retries)
    assert responder.kinds == ({} if resilient else {"replica_died": 5})
    assert retried == ({"replica_died": 5} if resilient else {})
    assert responder.served_by["b"] == (10 if resilient else 5)


LOOKS = {
    "the first look is dropped by a server that dies": (
        [("it does not answer", False), ("refused", True)],
        "replica_died",
    ),
    "two looks in a row time out": ([("it does not answer", False)] * 2, "replica_died"),
    "the server is well, and only the stream is lost": ([(None, False)], "disconnected"),
    "a slow look, then it is well": ([("it does not answer", False), (None, False)], "disconnected"),
}


@pytest.mark.parametrize("what", LOOKS)
def test_a_broken_stream_is_judged_once_it_is_known_what_has_broken(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, kind = LOOKS[what]
    left = [*looks]

    async def look(self: Probe) -> tuple[str | None, bool]:
        return left.pop(0) if left else looks[-1]

    with Stub(Script(fault="reset-mid", fault_every=1, armed=False)) as stub, bench(stub) as it:
        monkeypatch.setattr(Probe, "look", look)
        stub.arm()
        assert it.serve(1).kinds == {kind: 1}


def test_a_stream_that_breaks_after_its_replica_is_known_to_be_down_has_died_with_it() -> None:
    with Stub(Script(fault="reset-mid", fault_every=1, armed=False)) as stub, bench(stub) as it:
        backend = it.sut.replicas[0].backend
        stub.arm()

        async def know() -> None:
            backend._down = "its port is closed"  # type: ignore[attr-defined]

        it.issue([1])
        it.sut.run(know())
        it.responder.wait(1)
    assert it.responder.kinds == {"replica_died": 1}


def test_nothing_is_left_after_stop() -> None:
    with Stub(Script(ttft=0.2)) as one, Stub() as other:
        with bench(one, other, cap=8) as it:
            loop = it.sut._loop
            it.issue(range(1, 31))
            until(lambda: one.truth()["running"] == 8)
            it.sut.abandon("enough.")

            async def left() -> list[str]:
                await it.sut._stop_replicas()
                await asyncio.sleep(0.05)
                return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

            assert it.sut.run(left()) == []
            until(lambda: one.truth()["connections_now"] == other.truth()["connections_now"] == 0)
            backends = [replica.backend for replica in it.sut.replicas]
            assert [backend._flying for backend in backends if isinstance(backend, Remote)] == [{}, {}]
        assert not loop.is_running()
    gc.collect()  # a socket that nobody has closed would warn, which is an error here


@pytest.mark.parametrize("ticks", range(6))
def test_a_replica_stops_in_whatever_tick_it_was_suspected(ticks: int) -> None:
    """The watcher may have been woken and not yet have run when it is cancelled."""

    async def stop(backend: Remote) -> None:
        backend._suspected.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        await backend.stop()

    with Stub() as stub, bench(stub) as it:
        it.sut.run(stop(it.sut.replicas[0].backend), PATIENCE)  # type: ignore[arg-type]


def test_close_returns_although_a_replica_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(backend: Remote) -> None:
        await asyncio.sleep(3600)

    with Stub() as stub, monkeypatch.context() as patch:
        with bench(stub) as it:
            it.serve(3)  # there are open connections now
            patch.setattr("sut.sut.STOP_LIMIT", 0.2)
            patch.setattr(Remote, "stop", for_ever)
        patch.undo()
        loop = it.sut._loop
        loop.run_until_complete(it.sut._stop_replicas())
        loop.close()


# -- anything at all --------------------------------------------------------------------------------------------------

# A stall lasts until a deadline, and an oversized body takes its time.
QUICK_FAULTS = sorted(set(FAULTS) - {"oversized", "stall-before", "stall-head", "stall-after"})

SERVER = st.builds(
    Script,
    family=st.sampled_from(["vllm", "vllm-completions", "openai", "sglang", "tgi"]),
    tokens=st.sampled_from([2, 8]),
    ttft=st.sampled_from([0.0, 0.002]),
    tpot=st.sampled_from([0.0, 0.001]),
    slots=st.sampled_from([0, 2]),
    framing=st.sampled_from(["frame", "many", "split"]),
    chunked=st.booleans(),
    keep_alive=st.booleans(),
    fault=st.sampled_from(["", *QUICK_FAULTS, "stall-after"]),
    fault_every=st.integers(1, 5),
    armed=st.just(False),
    retry_after=st.sampled_from([0, 1]),
)


# Not shrunk: a query that is lost takes PATIENCE each time, and the examples are small.
@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    scripts=st.lists(SERVER, min_size=1, max_size=3),
    dispatch=st.sampled_from(list(POLICIES)),
    cap=st.none() | st.integers(1, 3),
    resilient=st.booleans(),
    stream=st.booleans(),
    together=st.integers(1, 3),
    batches=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    killed=st.none() | st.integers(0, 2),
    revived=st.booleans(),
)
def test_every_query_is_answered_exactly_once(
    scripts: list[Script],
    dispatch: str,
    cap: int | None,
    resilient: bool,
    stream: bool,
    together: int,
    batches: list[int],
    killed: int | None,
    revived: bool,
) -> None:
    many = all(script.family not in ("openai", "tgi") for script in scripts) and not stream
    size = together if many and (cap is None or cap >= together) else 1
    number, ids = sum(batches), iter(range(1, sum(batches) + 1))
    with ExitStack() as stack:
        stubs = [stack.enter_context(Stub(script)) for script in scripts]
        how = {"dispatch": dispatch, "cap": cap, "resilient": resilient, "stream": stream, "offline_batch": size}
        it = stack.enter_context(bench(*stubs, deadlines=Deadlines(stall=1.5, request=0.3), **how))
        for stub in stubs:
            stub.arm()
        for turn, issued in enumerate(batches):
            it.issue([next(ids) for _ in range(issued)])
            if turn == 1 and killed is not None and killed < len(stubs):
                stubs[killed].kill()
                if revived:
                    stubs[killed].revive()
        it.responder.wait(number)
        work, books = it.sut.end()
        counts = it.sut.counts()
        flying = [replica.backend._flying for replica in it.sut.replicas if isinstance(replica.backend, Remote)]
    assert it.responder.ends == dict.fromkeys(range(1, number + 1), 1)
    assert (counts.issued, counts.completed, counts.in_flight) == (number, number, 0)
    assert work.failures == it.responder.kinds
    good = [outcome for outcome in it.responder.outcomes.values() if outcome.failure is None]
    assert sum(book.queries for book in books) == len(good)
    assert sum(book.tokens for book in books) == sum(outcome.count for outcome in good)
    assert all(outcome.count >= 2 for outcome in good)
    assert resilient or not work.retries
    assert all(replica.in_flight == 0 and not replica.waiting for replica in it.sut.replicas)
    assert flying == [{} for _ in stubs]
    assert "error inside" not in str(it.sut.aborted)


# -- what nobody is to fall for ---------------------------------------------------------------------------------------


def test_the_longest_of_several_pauses_counts() -> None:
    """The first that came back would otherwise end the pause of the others."""
    with Stub() as one, Stub() as other, bench(one, other, resilient=True) as it:
        first, sut = it.sut.replicas[0], it.sut

        async def ask() -> None:
            sut._rest(first, 0.3)
            sut._rest(first, 1.2)

        began = time.monotonic()
        sut.run(ask())
        until(lambda: first.serving)
        assert 1.1 < time.monotonic() - began < 2.5


def test_a_replica_that_fails_whatever_it_is_given_does_not_take_the_whole_queue() -> None:
    with (
        Stub(Script(fault="500", armed=False)) as broken,
        Stub(Script(ttft=0.002)) as sound,
        bench(broken, sound, stream=False, cap=4, resilient=True) as it,
    ):
        broken.arm()
        responder = it.serve(400)
        assert broken.truth()["faults"] < 60
    assert responder.kinds == {}


def test_an_answer_that_never_ends_is_cut() -> None:
    """It goes on after what was asked for: more tokens a second, and maybe for ever."""
    script = Script(tokens=8)
    with Stub(script) as stub, bench(stub, generation=Generation(max_tokens=8)) as it:
        it.work.max_tokens = 6  # the server is told 8
        responder = it.serve(3)
    assert responder.kinds == {"miscounted": 3}


def test_one_word_and_its_end_are_two_tokens_in_text_too() -> None:
    answer = Outcome(as_tokens([5]), "stop", text="Yes", said=2)
    query = Query(1, 0, as_tokens([1]), True, 8, 0.0)
    assert judge(Flight(query, Replica("a", object()), 0.0), answer) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"Incorrect API key: sk-0123456789-secret"}}',
        b'{"detail":"' + b"x" * 190 + b'sk-0123456789-secret"}',  # across the place where the sentence is cut
        b"x" * 110 + b"sk-0123456789-secret",
    ],
)
def test_an_api_key_that_a_server_repeats_is_hidden(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_HARNESS_API_KEY", "sk-0123456789-secret")
    for failure in (failure_of(401, body, None), error_of(body)):
        assert "sk-0" not in str(failure)


def test_a_server_that_is_not_healthy_is_refused_before_the_clock() -> None:
    refused = pytest.raises(SetupError, match="says that it is not healthy")
    with Stub(Script(unhealthy=True)) as stub, refused, bench(stub):
        pass


@pytest.mark.parametrize("metrics", ["hang", "huge", "garbage", "500"])
def test_metrics_that_say_nothing_hold_up_no_start(metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sut.backends.probe.METRICS_LIMIT", 0.2)
    with Stub(Script(metrics=metrics)) as stub, bench(stub) as it:
        assert it.sut.replicas[0].backend.facts["prefix_caching"] is None


def test_prefix_caching_is_read_from_metrics() -> None:
    line = b'vllm:cache_config_info{block_size="16",enable_prefix_caching="%b",engine="0"} 1.0\n'
    assert [prefix_caching(200, line % flag) for flag in (b"True", b"False")] == [True, False]
    assert [prefix_caching(404, line % b"True"), prefix_caching(200, b"")] == [None, None]


def test_the_size_of_the_kv_cache_is_read_from_metrics() -> None:
    line = b'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="%b",engine="0"} 1.0\n'
    assert [kv_cache_tokens(200, line % b"349440"), kv_cache_tokens(200, line % b"None")] == [349_440, None]
    assert [kv_cache_tokens(404, line % b"1"), kv_cache_tokens(200, b"")] == [None, None]


def test_a_failure_knows_the_http_status_it_came_with() -> None:
    assert [failure_of(status, b"", None).status for status in (400, 413, 429, 500)] == [400, 413, 429, 500]
    assert [error_of(body).status for body in (b'{"code": 400}', b'{"code": "500"}', b"{}")] == [400, 500, None]
