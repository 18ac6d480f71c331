"""The simulator does what it is told: the same answers each time, in time, and faults where they were asked for."""

from __future__ import annotations

import asyncio
from time import perf_counter

import numpy as np
import pytest

from sut.backend import Gauges
from sut.backends import Generation, Plan
from sut.backends.echo import END, FAULTS, make_replicas
from sut.errors import ConfigError, Rejected
from sut.query import Outcome, Query, Tokens, as_tokens

LATE = 0.15
"""Seconds that a busy machine may be late with an event."""


class Notes:
    """A sink that writes down what it hears and how long after the start of the test."""

    def __init__(self) -> None:
        self.start = perf_counter()
        self.firsts: dict[int, tuple[float, Tokens]] = {}
        self.ends: dict[int, tuple[float, Outcome]] = {}
        self._more = asyncio.Event()

    def first(self, query: Query, ids: Tokens) -> None:
        assert query.id not in self.firsts
        assert query.id not in self.ends
        self.firsts[query.id] = (perf_counter() - self.start, ids)

    def progress(self, query: Query, tokens: int) -> None:
        raise AssertionError("the simulator has no frames between the first and the last")

    def done(self, query: Query, outcome: Outcome) -> None:
        self.ends[query.id] = (perf_counter() - self.start, outcome)
        self._more.set()

    async def ended(self, number: int) -> None:
        async with asyncio.timeout(5):
            while len(self.ends) < number:
                self._more.clear()
                await self._more.wait()


def plan(replicas: int = 1, **options) -> Plan:
    return Plan(replicas, "", "auto", None, Generation(max_tokens=8), None, options)


def query(index: int = 0, stream: bool = True, max_tokens: int = 1024, prompt: int = 40) -> Query:
    return Query(1000 + index, index, as_tokens(range(100, 100 + prompt)), stream, max_tokens, 0.0)


def serve(queries: list[Query], replica: int = 0, cancel: int | None = None, **options) -> Notes:
    """Have these answered by the replica of that number."""

    async def session() -> Notes:
        echo = make_replicas(plan(replica + 1, **options))[replica]
        await echo.start()
        notes = Notes()
        echo.submit(queries, notes)
        if cancel is not None:
            echo.cancel(queries[cancel])
        await notes.ended(len(queries) - (cancel is not None))
        await echo.stop()
        return notes

    return asyncio.run(session())


def answers(notes: Notes) -> list[list[int]]:
    return [outcome.tokens.tolist() for _, (_, outcome) in sorted(notes.ends.items())]


# -- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "prompt", "answer", "reason"),
    [
        ("4", 8, 40, [100, 101, 102, END], "stop"),  # the head of the prompt, ended
        ("8", 8, 3, [100, 101, 102, 100, 101, 102, 100, 101], "length"),  # a short prompt is repeated
        ("9", 4, 40, [100, 101, 102, 103], "length"),  # cut at what the query allows
        ("5", 6, 2, [100, 101, 100, 101, END], "stop"),
    ],
)
def test_the_answer_is_the_prompt_at_the_length_asked_for(tokens, max_tokens, prompt, answer, reason):
    notes = serve([query(max_tokens=max_tokens, prompt=prompt)], tokens=tokens)
    assert answers(notes) == [answer]
    (_, outcome) = notes.ends[1000]
    assert (outcome.finish_reason, outcome.failure) == (reason, None)


def test_all_arrays_are_int32_and_the_first_token_heads_the_answer():
    notes = serve([query(index) for index in range(4)], tokens="2-30", tpot=0.0001)
    for key, (_, outcome) in notes.ends.items():
        _, first = notes.firsts[key]
        assert first.dtype == outcome.tokens.dtype == np.int32
        assert first.tolist() == outcome.tokens[:1].tolist()


def test_prompt_and_answer_together_must_fit_the_context():
    notes = serve([query(0, max_tokens=8, prompt=40), query(1, max_tokens=8, prompt=41)], max_model_len=48)
    assert notes.ends[1000][1].failure is None
    assert isinstance(notes.ends[1001][1].failure, Rejected)
    assert list(notes.firsts) == [1000]


def test_a_long_prompt_takes_its_time():
    notes = serve([query(0, prompt=10), query(1, prompt=100)], prefill=0.003)
    assert 0.03 <= notes.firsts[1000][0] < 0.03 + LATE
    assert 0.3 <= notes.firsts[1001][0] < 0.3 + LATE


def test_answers_do_not_share_memory_with_the_prompt():
    asked = query(prompt=40)
    notes = serve([asked], tokens="8")
    assert not np.shares_memory(notes.ends[1000][1].tokens, asked.prompt), "ending an answer must not edit the dataset"


def test_lengths_fill_the_range_and_depend_on_seed_and_sample_alone():
    queries = [query(index) for index in range(200)]
    lengths = [len(ids) for ids in answers(serve(queries, tokens="8-16"))]
    assert set(lengths) == set(range(8, 17))
    assert [len(ids) for ids in answers(serve(queries, tokens="8-16", replica=1, slots=3))] == lengths
    assert [len(ids) for ids in answers(serve(queries, tokens="8-16", seed=1))] != lengths


def test_answers_are_the_same_each_time():
    queries = [query(index) for index in range(50)]
    once, again = (answers(serve(queries, tokens="2-40", jitter=0.5, seed=7)) for _ in range(2))
    assert once == again


def test_without_a_stream_there_is_no_first_token():
    assert serve([query(stream=False)], ttft=0.01, tpot=0.001).firsts == {}


# -- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttft", "tpot"),
    [
        (0.05, 0.01),
        (0.0, 0.01),  # the first token at once
        (0.05, 0.0),  # the rest along with the first token
        (0.0, 0.0),  # everything at once
    ],
)
def test_the_first_token_comes_after_ttft_and_the_end_a_tpot_per_further_token_later(ttft, tpot):
    notes = serve([query()], tokens="8", ttft=ttft, tpot=tpot)
    end, _ = notes.ends[1000]
    assert 1000 in notes.firsts, "a streamed answer has a first token"
    first, _ = notes.firsts[1000]
    assert ttft <= first <= ttft + LATE
    assert ttft + 7 * tpot <= end <= ttft + 7 * tpot + LATE


def test_each_replica_is_slower_than_the_one_before_it():
    first, third = (serve([query()], replica, tokens="2", ttft=0.02, tpot=0.01, slowdown=2.0) for replica in (0, 2))
    assert first.firsts[1000][0] >= 0.02
    assert 0.08 <= third.firsts[1000][0] <= 0.08 + LATE


def test_jitter_stays_in_its_range_and_differs_by_sample():
    queries = [query(index) for index in range(40)]
    firsts = [at for at, _ in serve(queries, tokens="2", ttft=0.1, tpot=0.001, jitter=0.5).firsts.values()]
    assert 0.05 <= min(firsts) < 0.08, "some of 40 samples are faster than the nominal 0.1 s"
    assert 0.12 < max(firsts) <= 0.15 + LATE


def test_queries_beyond_the_slots_wait_for_one():
    queries = [query(index) for index in range(6)]
    notes = serve(queries, slots=2, tokens="3", ttft=0.02, tpot=0.01)
    firsts = [at for at, _ in notes.firsts.values()]
    ends = [at for at, _ in notes.ends.values()]
    assert list(notes.firsts) == [query.id for query in queries], "in the order they came"
    for wave in range(1, 3):
        assert firsts[2 * wave] >= ends[2 * wave - 2] + 0.02, "no third query in two slots"
    assert max(ends) >= 3 * 0.04


def test_a_cancelled_query_is_not_heard_of_and_frees_its_slot():
    notes = serve([query(index) for index in range(3)], cancel=0, slots=1, tokens="2", ttft=0.01, tpot=0.01)
    assert list(notes.ends) == [1001, 1002]
    assert list(notes.firsts) == [1001, 1002]


def test_a_query_cancelled_while_it_waits_is_not_begun():
    notes = serve([query(index) for index in range(3)], cancel=1, slots=1, tokens="2", ttft=0.01, tpot=0.01)
    assert list(notes.firsts) == [1000, 1002]


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_fault_strikes_every_nth_query_of_its_replica():
    queries = [query(index) for index in range(9)]
    struck = serve(queries, replica=1, fault="error", fault_every=3, fault_replica=1)
    assert [key for key, (_, outcome) in struck.ends.items() if outcome.failure] == [1002, 1005, 1008]
    spared = serve(queries, replica=1, fault="error", fault_every=3, fault_replica=0)
    assert not any(outcome.failure for _, outcome in spared.ends.values())


def test_a_replica_that_died_says_so_until_it_is_back():
    async def session() -> list[bool]:
        (echo,) = make_replicas(plan(fault="die", fault_every=1, down=0.05))
        notes = Notes()
        well = [echo.trouble() is None]
        echo.submit([query()], notes)
        well.append(echo.trouble() is None)
        await asyncio.sleep(0.06)  # the outage itself
        well.append(echo.trouble() is None)
        return well

    assert asyncio.run(session()) == [True, False, True]


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slot": 3}, "did you mean 'slots'?"),
        ({"colour": 3}, "unknown engine argument of the echo backend 'colour'"),
        ({"slots": "many"}, "slots='many' is not a whole number"),
        ({"slots": 2.5}, "slots=2.5 is not a whole number"),
        ({"ttft": "soon"}, "ttft='soon' is not a number"),
        ({"ttft": None}, "ttft=None is not a number"),
        ({"ttft": float("nan")}, "ttft"),
        ({"tpot": float("inf")}, "tpot"),
        ({"slots": 0}, "slots and fault_every are at least 1"),
        ({"fault_every": 0}, "slots and fault_every are at least 1"),
        ({"ttft": -0.1}, "ttft and tpot not negative"),
        ({"tpot": -1}, "ttft and tpot not negative"),
        ({"prefill": -1}, "prefill and max_model_len not negative"),
        ({"max_model_len": 2.5}, "is not a whole number"),
        ({"jitter": 1.0}, "jitter from 0 to below 1"),
        ({"jitter": -0.1}, "jitter from 0 to below 1"),
        ({"tokens": "0"}, "tokens='0' is neither"),
        ({"tokens": "9-8"}, "tokens='9-8' is neither"),
        ({"tokens": "some"}, "tokens='some' is neither"),
        ({"tokens": "8-"}, "tokens='8-' is neither"),
        ({"fault": "flood"}, f"unknown fault 'flood': choose one of {', '.join(FAULTS)}"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(options, says):
    with pytest.raises(ConfigError) as refusal:
        make_replicas(plan(**options))
    sentence = str(refusal.value)
    assert says in sentence
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "options",
    [
        {"slots": "8", "ttft": "0.5", "tokens": 32},  # as text or as JSON, whichever the command line gives
        {"tokens": "8-64", "jitter": 0, "fault": "", "seed": -3},
        *({"fault": fault} for fault in FAULTS),
    ],
)
def test_options_that_make_sense(options):
    assert len(make_replicas(plan(2, **options))) == 2


def test_gauges_tell_what_it_is_doing():
    async def session() -> list[Gauges]:
        replica = make_replicas(plan(slots=1, tokens=8, ttft=0.01))[0]
        notes, told = Notes(), [replica.gauges()]
        replica.submit([query(0), query(1)], notes)
        told.append(replica.gauges())
        await notes.ended(2)
        return [*told, replica.gauges()]

    before, during, after = [
        (g.running, g.waiting, g.prompt_tokens, g.generation_tokens) for g in asyncio.run(session())
    ]
    assert (before, during, after) == ((0, 0, 0, 0), (1, 1, 40, 0), (0, 0, 80, 16))
