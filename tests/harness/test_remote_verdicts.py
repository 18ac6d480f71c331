"""The verdict of a test of remote replicas in every case that goes wrong: fault × scenario × failure policy.

Each row is a real LoadGen test in a process of its own, over real sockets. Of two scripted servers the first has the
fault, in each sixteenth request after the harness has found out what it is, and the second is sound.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from tests.stub_replica import FAULTS, Script, Stub

SCENARIOS = {
    "Offline": ["--samples", "128", "--min-queries", "128"],
    "Server": ["--samples", "64", "--target-qps", "2000", "--min-duration", "0", "--min-queries", "512"],
}
QUERIES = {"Offline": 128, "Server": 512}
POLICIES = ("strict", "resilient")

LIMIT = 40.0
"""Seconds after which a run has hung."""

TOKENS = 32
"""Of each right answer."""

# A first token 62 ms before the rest: what breaks off in the middle breaks off after it was seen.
SOUND = Script(tokens=TOKENS, tpot=0.002)
STRUCK = replace(SOUND, fault_every=16, fault_after=12)
STRIKES = {"Offline": 3, "Server": 15}
"""How often a fault strikes: of a half of the queries each sixteenth, less what is exempt."""


@dataclass(frozen=True)
class Done:
    """A run that has ended, what it left, and what the servers saw."""

    code: int
    out: str
    err: str
    folder: Path
    truths: Sequence[Mapping[str, int]]
    took: float

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def output_tokens(self) -> list[int]:
        """Of each query, in the order of their ends."""
        return parquet.read_table(self.folder / "samples.parquet")["output_tokens"].to_pylist()

    @property
    def error_lines(self) -> list[Any]:
        """Of LoadGen's log."""
        lines = (self.folder / "mlperf_log_detail.txt").read_text().splitlines()
        entries = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line]
        return [entry["value"] for entry in entries if entry["metadata"]["is_error"]]


@dataclass(frozen=True)
class Case:
    """A run: how its servers behave, its options, and what happens while it is under way."""

    scripts: Sequence[Script]
    options: Sequence[str] = ()
    meanwhile: Callable[[Sequence[Stub]], None] = field(default=lambda stubs: None)

    def run(self, folder: Path) -> Done:
        with ExitStack() as stack:
            stubs = [stack.enter_context(Stub(script)) for script in self.scripts]
            words = [word for stub in stubs for word in ("--endpoint", stub.url)]
            words += [*self.options, "--quiet", "--output-dir", str(folder / "out")]
            command = [sys.executable, "-m", "harness", *words]
            pipe, began = subprocess.PIPE, time.monotonic()
            with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
                hung = threading.Timer(LIMIT, process.kill)  # a hang is a failure of its test, not of the suite
                hung.start()
                self.meanwhile(stubs)
                out, err = process.communicate()
                hung.cancel()
            truths = [stub.truth() for stub in stubs]
        return Done(process.returncode, out, err, folder / "out", truths, time.monotonic() - began)


Runs = dict[Any, Done]
RunAll = Callable[[Mapping[Any, Case]], Runs]


@pytest.fixture(scope="module")
def run_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunAll]:
    """Several runs side by side, by name."""
    with ThreadPoolExecutor(3) as pool:

        def all_of(cases: Mapping[Any, Case]) -> Runs:
            folders = [tmp_path_factory.mktemp("run") for _ in cases]
            return dict(zip(cases, pool.map(Case.run, cases.values(), folders), strict=True))

        yield all_of


def asked(cases: Sequence[tuple[str, ...]], request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """Of these cases those whose tests are to be run: -k may have chosen some."""
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = [tuple(item.callspec.params.values()) for item in here]
    return [case for case in cases if case in chosen]


# -- one server has a fault -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What a fault leads to: the kind of failure in a scenario, "" for none, and whether resilient may try elsewhere.

    `script` is what else is special about the server with the fault, `weight` how many queries a strike hits.
    """

    offline: str
    server: str
    offline_again: bool = False
    server_again: bool = False
    script: Mapping[str, Any] = field(default_factory=dict)
    offline_options: Sequence[str] = ()
    server_options: Sequence[str] = ()
    offline_weight: int = 1

    def kind(self, scenario: str) -> str:
        return self.offline if scenario == "Offline" else self.server

    def again(self, scenario: str) -> bool:
        return self.offline_again if scenario == "Offline" else self.server_again

    def options(self, scenario: str) -> Sequence[str]:
        return self.offline_options if scenario == "Offline" else self.server_options

    def weight(self, scenario: str) -> int:
        return self.offline_weight if scenario == "Offline" else 1


def same(kind: str, again: bool = False, **more: Any) -> Row:
    """In both scenarios."""
    return Row(kind, kind, again, again, **more)


def midway(kind: str, **more: Any) -> Row:
    """After the first token: where it is seen, it is too late to try elsewhere."""
    return Row(kind, kind, offline_again=True, **more)


LATE = {"offline_options": ["--request-timeout", "0.4"], "server_options": ["--first-token-timeout", "0.4"]}
FEW = {"fault_every": 50, "oversize": 20_000_000}
BATCH = {"offline_options": ["--offline-batch", "4"], "script": {"fault_every": 3}, "offline_weight": 4}

ROWS: dict[str, Row] = {
    # the request itself is refused: another replica would do the same
    "400": same("rejected"),
    "401": same("rejected"),
    "404": same("rejected"),
    "413": same("rejected"),
    # the replica cannot now
    "429": same("busy", again=True, script={"retry_after": 1}),
    "503": same("busy", again=True, script={"retry_after": 1}),
    "500": same("server_error", again=True),
    # no answer
    "reset-early": same("disconnected", again=True),
    "close-early": same("disconnected", again=True),
    "stall-before": Row("timed_out", "first_token_late", True, True, **LATE),
    "stall-head": Row("timed_out", "first_token_late", True, True, **LATE),
    "bad-status": same("malformed", again=True),
    "long-head": same("malformed", again=True),
    # half an answer
    "reset-mid": midway("disconnected"),
    "fin-mid": midway("disconnected"),
    "stall-after": Row(
        "timed_out",
        "stalled",
        offline_again=True,
        offline_options=["--request-timeout", "0.4"],
        server_options=["--stall-timeout", "0.4", "--stream-interval", "31"],
    ),
    "malformed": midway("malformed"),
    "bad-chunk": midway("malformed"),
    # a frame has a limit, a body a much higher one
    "oversized": Row("", "malformed", script=FEW),
    "error-frame": midway("error_frame"),
    # an answer that is wrong: it is not tried again
    "no-terminator": same("bad_finish"),
    "abort": same("bad_finish"),
    "wrong-usage": same("miscounted"),
    "no-tokens": same("no_tokens"),
    "one-token": same("one_token"),
    "missing-index": Row("malformed", "", offline_again=True, **BATCH),
    # odd, but an answer
    "out-of-order": Row("", "", **BATCH),
    "no-usage": same(""),
    "comment": same(""),
    "slow-read": same(""),
    "extra-bytes": same("", script={"framing": "many"}),  # in a write of their own they may meet the next request
}
# Where nothing fails, no policy is asked.
CASES = [
    (fault, scenario, policy)
    for fault in ROWS
    for scenario in SCENARIOS
    for policy in (POLICIES if ROWS[fault].kind(scenario) else POLICIES[:1])
]


def test_the_table_knows_every_fault() -> None:
    assert set(ROWS) == set(FAULTS)


@pytest.fixture(scope="module")
def struck(run_all: RunAll, request: pytest.FixtureRequest) -> Runs:
    def case(fault: str, scenario: str, policy: str) -> Case:
        row = ROWS[fault]
        options = ["--scenario", scenario, *SCENARIOS[scenario], "--failure-policy", policy, *row.options(scenario)]
        return Case([replace(STRUCK, fault=fault, **row.script), SOUND], options)

    return run_all({names: case(*names) for names in asked(CASES, request)})


@pytest.mark.parametrize(("fault", "scenario", "policy"), CASES)
def test_the_verdict(struck: Runs, fault: str, scenario: str, policy: str) -> None:
    run, row, number = struck[fault, scenario, policy], ROWS[fault], QUERIES[scenario]
    assert run.code in (0, 4), (run.took, run.truths, run.out, run.err)
    kind, again = row.kind(scenario), row.again(scenario) and policy == "resilient"
    result, strikes = run.result, run.truths[0]["faults"]
    assert strikes > 0
    if not row.script and not row.options(scenario):
        assert strikes == STRIKES[scenario]
    hit = strikes * row.weight(scenario) if kind else 0
    failed = 0 if again else hit
    assert result["failures"]["by_kind"] == ({kind: failed} if failed else {})
    assert result["failures"]["count"] == failed
    assert result["failures"]["by_replica"] == ({"remote-0": failed} if failed else {})
    assert (result["retries"], result["retries_by_kind"]) == ((hit, {kind: hit}) if again and hit else (0, {}))
    assert (result["status"], result["valid"], run.code) == ("complete", not failed, 4 if failed else 0), run.out
    assert bool(result["invalid_reasons"]) is bool(failed)
    assert len(run.error_lines) == failed, "LoadGen counts a failure as an error, each once"
    assert any("retried" in reason for reason in result["not_ready_reasons"]) is bool(again and hit)
    # what a failure leaves of an answer is not counted, and every other answer is whole
    assert sorted(run.output_tokens)[failed:] == [TOKENS] * (number - failed)
    assert sum(share["tokens"] for share in result["replicas"]) == TOKENS * (number - failed)
    assert sum(share["queries"] for share in result["replicas"]) == number - failed == result["queries"] - failed
    assert [share["failures"] for share in result["replicas"]] == [hit, 0]


# -- sound servers that look otherwise --------------------------------------------------------------------------------

ODD: dict[str, tuple[Script, Sequence[str]]] = {
    "one write per answer": (replace(SOUND, framing="many"), SCENARIOS),
    "frames cut at awkward places": (replace(SOUND, framing="split"), SCENARIOS),
    "a write per byte": (replace(SOUND, framing="byte"), ["Offline"]),
    "CRLF between events": (replace(SOUND, newline="\r\n"), ["Server"]),
    "streams that end with the connection": (replace(SOUND, chunked=False), ["Server"]),
    "a connection per request": (replace(SOUND, keep_alive=False), SCENARIOS),
    "an older vLLM": (replace(SOUND, family="vllm-completions"), SCENARIOS),
    "answers in text": (replace(SOUND, family="openai"), SCENARIOS),
    "SGLang": (replace(SOUND, family="sglang"), SCENARIOS),
    "TGI": (replace(SOUND, family="tgi"), SCENARIOS),
}
ODD_CASES = [(what, scenario) for what, (_, scenarios) in ODD.items() for scenario in scenarios]


@pytest.fixture(scope="module")
def odd(run_all: RunAll, request: pytest.FixtureRequest) -> Runs:
    def case(what: str, scenario: str) -> Case:
        return Case([ODD[what][0]], ["--scenario", scenario, *SCENARIOS[scenario]])

    return run_all({names: case(*names) for names in asked(ODD_CASES, request)})


@pytest.mark.parametrize(("what", "scenario"), ODD_CASES)
def test_a_sound_server_is_valid(odd: Runs, what: str, scenario: str) -> None:
    run = odd[what, scenario]
    assert run.code == 0, (run.took, run.truths, run.out, run.err)
    result = run.result
    assert (result["status"], result["valid"]) == ("complete", True)
    assert (result["failures"]["count"], result["retries"], run.error_lines) == (0, 0, [])
    assert run.output_tokens == [TOKENS] * QUERIES[scenario]
    assert ("text_answers" in result) is (what == "answers in text")


# -- a single server that asks for a pause ----------------------------------------------------------------------------

BUSY = replace(STRUCK, fault="429", retry_after=1)
WAITING: dict[str, tuple[Script, Sequence[str], bool]] = {
    "strict": (BUSY, ["--scenario", "Offline"], False),
    "resilient": (BUSY, ["--scenario", "Offline", "--failure-policy", "resilient"], True),
    "resilient, in Server": (
        replace(BUSY, fault="503", fault_every=400),
        ["--scenario", "Server", "--failure-policy", "resilient"],
        True,
    ),
    # a query that would have to wait longer than a query may take has failed at once
    "resilient, but the pause is too long": (
        BUSY,
        ["--scenario", "Offline", "--failure-policy", "resilient", "--request-timeout", "0.8"],
        False,
    ),
}


@pytest.fixture(scope="module")
def waiting(run_all: RunAll, request: pytest.FixtureRequest) -> Runs:
    chosen = [what for (what,) in asked([(what,) for what in WAITING], request)]
    options = {what: [*WAITING[what][1], *SCENARIOS[WAITING[what][1][1]]] for what in chosen}
    return run_all({what: Case([WAITING[what][0]], options[what]) for what in chosen})


@pytest.mark.parametrize("what", WAITING)
def test_a_pause_is_waited_for_or_is_a_failure(waiting: Runs, what: str) -> None:
    run, waited = waiting[what], WAITING[what][2]
    result, strikes = run.result, run.truths[0]["faults"]
    assert strikes > 0
    assert (result["status"], result["valid"], run.code) == ("complete", waited, 0 if waited else 4), run.out
    assert result["retries_by_kind"] == ({"busy": strikes} if waited else {})
    assert result["failures"]["by_kind"] == ({} if waited else {"busy": strikes})
    assert (result["duration_s"] > 1.0) is waited


# -- servers that die -------------------------------------------------------------------------------------------------

SLOW = Script(tokens=TOKENS, ttft=0.05, slots=16, framing="many")  # so no answer breaks off midway
GONE = {"disconnected", "unreachable", "replica_died"}


def kill_first(stubs: Sequence[Stub]) -> None:
    """In the middle of the test."""
    while stubs[0].truth()["requests"] < 40:
        time.sleep(0.005)
    stubs[0].kill()


def kill_all(stubs: Sequence[Stub]) -> None:
    kill_first(stubs)
    stubs[1].kill()


MEANWHILE = {"one dies": kill_first, "both die": kill_all}
DEATHS = [(what, scenario, policy) for what in MEANWHILE for scenario in SCENARIOS for policy in POLICIES]


@pytest.fixture(scope="module")
def deadly(run_all: RunAll, request: pytest.FixtureRequest) -> Runs:
    def case(what: str, scenario: str, policy: str) -> Case:
        load = ["--scenario", scenario, *SCENARIOS[scenario], "--min-queries", "512"]
        load += ["--target-qps", "300", "--max-in-flight", "16"]
        return Case([SLOW, SLOW], [*load, "--failure-policy", policy], MEANWHILE[what])

    return run_all({names: case(*names) for names in asked(DEATHS, request)})


@pytest.mark.parametrize(("what", "scenario", "policy"), DEATHS)
def test_servers_that_die(deadly: Runs, what: str, scenario: str, policy: str) -> None:
    """What one has in flight is lost or moves on; without any the test ends soon, with a sentence."""
    run = deadly[what, scenario, policy]
    result, moved_on = run.result, policy == "resilient"
    kinds = set(result["failures"]["by_kind"])
    assert result["replicas"][0]["ejected_s"] is not None
    if what == "both die":
        assert (result["status"], result["valid"], run.code) == ("aborted", False, 4), run.out
        assert "abandoned" in kinds <= GONE | {"abandoned"}
        assert "no replica is left; the last to go was remote-" in run.out
        assert run.took < 6.0
    else:
        assert (result["status"], result["valid"], run.code) == ("complete", moved_on, 0 if moved_on else 4), run.out
        assert kinds <= (set() if moved_on else GONE)
        assert set(result["retries_by_kind"]) <= (GONE if moved_on else set())
        assert (result["failures"]["count"] > 0, result["retries"] > 0) == (not moved_on, moved_on)
        assert result["queries"] - result["failures"]["count"] == sum(s["queries"] for s in result["replicas"])
