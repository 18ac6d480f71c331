"""When a running Server test cannot be VALID any more."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from harness.config import resolve
from harness.progress import Progress
from harness.run import watch_hopes
from harness.signals import Noted
from harness.tally import Tally
from sut.errors import BackendError
from sut.query import TOKEN_DTYPE, Outcome, Query
from sut.work import Counts
from tests.harness.conftest import call

PROMPT = np.arange(4, dtype=TOKEN_DTYPE)


def query(age: float) -> Query:
    """A query that was issued so many seconds ago."""
    return Query(1, 0, PROMPT, True, 100, perf_counter() - age)


def answer(pace: float) -> Outcome:
    """Eleven tokens, each further one `pace` seconds after the one before it."""
    return Outcome(np.arange(11, dtype=TOKEN_DTYPE), "stop", first_token=100.0, last_byte=100.0 + 10 * pace)


@pytest.mark.parametrize(
    ("allowed", "late", "slow", "failed", "says"),
    [
        (0, 0, 0, 0, None),
        (2, 2, 2, 0, None),  # each limit has its own count
        (2, 3, 0, 0, "3 queries are over the limit on the first token, and 2 may be"),
        (2, 0, 3, 0, "3 queries are over the limit on the time per output token, and 2 may be"),
        (-1, 0, 0, 0, None),  # too short for any verdict but INVALID, which LoadGen shall say
        (-1, 1, 0, 0, "1 query is over the limit on the first token, and 0 may be"),
        (5, 0, 0, 1, "1 query has failed"),
    ],
)
def test_more_over_a_limit_than_may_be_is_hopeless(
    allowed: int, late: int, slow: int, failed: int, says: str | None
) -> None:
    tally = Tally(ttft=2.0, tpot=0.2, allowed=allowed)
    for age in [3.0] * late + [1.0] * 5:
        tally.first(query(age))
    tally.done([(query(0), answer(0.3))] * slow + [(query(0), answer(0.1))] * 5)
    tally.done([(query(0), Outcome(np.empty(0, TOKEN_DTYPE), failure=BackendError("no")))] * failed)
    assert tally.hopeless() == says


TWO_TESTS = """
from dataclasses import replace
from pathlib import Path
from harness.config import resolve
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import check, open_sut, run_test
from harness.tally import Tally

engine = {"slots": 16, "ttft": 0.01, "tpot": 0.002, "tokens": "20"}
first = resolve(scenario="Server", backend="echo", engine_arg=engine, samples=64, output_dir=Path("first"))
first, samples, tokenizer = check(first)
keys = {"target_qps": 2000.0, "min_duration": 20_000, "min_query_count": 500, "max_async_queries": 300}
calm = {"target_qps": 150.0, "min_duration": 0, "min_query_count": 500, "max_async_queries": 0}
first = replace(first, settings={**first.settings, **keys})
second = replace(first, settings={**first.settings, **calm}, output_dir=Path("second"))
with Progress(quiet=True) as progress, open_sut(first, samples, tokenizer, progress) as system:
    run_test(first, system, progress, tally=Tally(0.1, 0.2, 5))
    prepare_folder(second)
    run_test(second, system, progress, tally=Tally(1.0, 0.2, 5))
"""


class Failing:
    """A test that is hopeless, and whose LoadGen fails while answers are held back; in the place of its SUT too."""

    aborted = None

    def __init__(self) -> None:
        self.done, self.issued = threading.Event(), threading.Event()
        self.said: list[str] = []

    def run(self, what: str) -> None:
        self.said.append(what)
        self.done.set()

    def hold(self) -> str:
        return "hold"

    def cut(self, reason: str) -> str:
        return reason

    def release(self) -> str:
        return "release"

    def counts(self) -> Counts:
        return Counts(1, 0, 0, 0, 1)


def test_a_hopeless_test_whose_loadgen_fails_is_not_waited_for(tmp_path: Path) -> None:
    config = resolve(scenario="Server", backend="echo", target_qps=5.0, output_dir=tmp_path)
    test: Any = Failing()
    with Progress(quiet=True) as progress:
        watch_hopes(test, test, Tally(0.1, 0.1, 0, failed=1), test, config, progress, Noted())
    assert test.said == ["hold", "the test was hopeless: 1 query has failed", "release"]


def test_a_hopeless_test_ends_at_once_and_the_next_one_in_its_process_is_none_the_worse(tmp_path: Path) -> None:
    """Twenty seconds at six times what sixteen slots can serve."""
    done = call(["-c", TWO_TESTS], tmp_path / "first", tmp_path)
    assert done.code == 0, done.err
    first, second = done.result, json.loads((tmp_path / "second/result.json").read_text())
    assert first["status"] == "complete" and not first["valid"]
    assert set(first["failures"]["by_kind"]) == {"abandoned"}
    assert "the test was hopeless: " in first["failures"]["first"]
    assert any("Too many outstanding queries" in str(line) for line in done.error_lines)
    assert done.logged["generated_query_count"] > 39_000 > 5_000 > first["queries"]
    assert second["valid"], second["invalid_reasons"]
    assert second["failures"]["count"] == 0
