"""The search for the peak, in virtual time: on servers whose peak is known, and on such as have none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.studies.search import FULL, TOLERANCE, Answer, Ask, Limits, Probe, Terms, estimate, next_step
from tests.virtual_server import VirtualLoadGen, VirtualServer, find_truth

SEED = 16159082839903944936  # the round's

SERVERS = {
    "queries wait for a slot": VirtualServer(),
    "few slots, short answers": VirtualServer(slots=16, tpot=0.01),
    "slower under load": VirtualServer(load=1.0),
    "the time per output token binds": VirtualServer(slots=512, tpot=0.04, load=9.0),
    "it rises by the square of the load": VirtualServer(slots=512, tpot=0.1, load=1.5, bend=2.0),
    "first tokens are all it has time for": VirtualServer(slots=100_000, tpot=0.0002, stall=0.04),
}


def terms_of(server: VirtualServer, seed: int = 0, **changes: object) -> Terms:
    own = {"seconds": 300.0, "queries": 512, "whole": 1024, "start": 0.9 * server.capacity, "longest": 30.0, **changes}
    return Terms(limits=Limits(2.0, 0.2), seed=SEED + seed, **own)  # type: ignore[arg-type]


def search(server: VirtualServer, terms: Terms) -> tuple[Answer, list[Probe], VirtualLoadGen]:
    loadgen, history = VirtualLoadGen(server, terms), list[Probe]()
    while isinstance(step := next_step(terms, history), Ask):
        history.append(loadgen.test(step))
    return step, history, loadgen


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SERVERS)
def test_the_peak_is_found_within_its_tolerance(name: str, seed: int) -> None:
    server = replace(SERVERS[name], seed=seed)
    terms = terms_of(server, seed)
    answer, history, _ = search(server, terms)
    assert answer.confirmed and answer.rate is not None
    assert answer.rate == pytest.approx(find_truth(server, terms), rel=TOLERANCE)
    full = {probe.rate: probe.valid for probe in history if probe.full}
    assert full[answer.rate]
    assert any(not valid and answer.rate < rate <= answer.rate * (1 + TOLERANCE) for rate, valid in full.items())


@pytest.mark.parametrize("start", [0.02, 0.3, 3.0, 40.0])
def test_the_search_may_begin_anywhere(start: float) -> None:
    server = VirtualServer()
    terms = terms_of(server, start=start * server.capacity)
    assert search(server, terms)[0].rate == pytest.approx(find_truth(server, terms), rel=TOLERANCE)


def test_few_tests_of_full_length_are_run_to_their_end() -> None:
    for name in ("slower under load", "the time per output token binds"):
        for seed in range(4):
            server = replace(SERVERS[name], seed=seed)
            _, history, _ = search(server, terms_of(server, seed))
            assert sum(probe.valid for probe in history if probe.full) <= 2


def test_a_server_that_its_probe_does_not_explain_is_no_guess() -> None:
    """Its queries waited, and none of its slots says why."""
    server = VirtualServer()
    terms = terms_of(server)
    probe = VirtualLoadGen(server, terms).test(Ask(FULL, True, server.capacity, 300.0, 512, 10_000))
    assert probe.batch is not None
    assert estimate(terms, probe) == pytest.approx(find_truth(server, terms), rel=0.03)
    idle = replace(probe, rate=probe.rate / 100, batch=replace(probe.batch, slots=1e6))
    assert estimate(terms, idle) is None
    assert estimate(terms, replace(idle, rate=probe.rate / 101, batch=None)) is None


def test_a_quick_search_runs_no_test_of_full_length() -> None:
    server = VirtualServer()
    terms = terms_of(server, quick=True, times=3)
    answer, history, _ = search(server, terms)
    assert not answer.confirmed
    assert not any(probe.full for probe in history)
    assert [probe.level for probe in history].count("edge") == 3
    assert answer.rate == pytest.approx(find_truth(server, terms), rel=0.1)


def test_where_a_test_is_no_longer_than_a_probe_every_probe_is_one() -> None:
    server = VirtualServer()
    answer, history, _ = search(server, terms_of(server, seconds=10.0, whole=512, times=3))
    assert all(probe.full for probe in history)
    assert answer.confirmed
    assert sum(probe.rate == answer.rate and probe.valid for probe in history) == 2, "two of three are most"


def test_slow_first_probes_that_were_tests_of_full_length_do_not_hold_it_back() -> None:
    """A test of few seconds is the shorter probe while the rate is low; what quick ones then point to is tried next."""
    server = VirtualServer(slots=128, tpot=0.005, load=5.0, tokens=(5, 60))
    terms = terms_of(server, seconds=10.0, whole=512, start=20.0)
    answer, history, _ = search(server, terms)
    assert answer.rate is not None
    quick = next(number for number, probe in enumerate(history) if not probe.full)
    assert any(probe.full for probe in history[:quick])
    assert all(probe.rate > 0.7 * answer.rate for probe in history[quick:] if probe.full)


def test_where_runs_differ_the_peak_is_valid_in_most_tests_and_the_rate_above_in_few() -> None:
    """Each run is some percent quicker or slower than another: no single verdict can be trusted."""
    server = VirtualServer(noise=0.03)
    for seed in range(4):
        own = replace(server, seed=seed)
        terms = terms_of(own, seed, times=3)
        answer, history, _ = search(own, terms)
        assert answer.rate is not None
        tried = [probe.valid for probe in history if probe.full and probe.rate == answer.rate]
        assert tried.count(True) >= 2 > tried.count(False)
        above = [p.valid for p in history if p.full and answer.rate < p.rate <= answer.rate * (1 + TOLERANCE)]
        assert above.count(False) >= above.count(True)
        assert answer.rate == pytest.approx(find_truth(replace(own, noise=0.0), terms), rel=0.05)


def test_no_rate_is_valid_where_the_unloaded_server_misses_the_limit() -> None:
    server = VirtualServer(ttft=3.0)
    answer, history, _ = search(server, terms_of(server))
    assert answer == Answer(None, note="even a query that waits for nobody is over the limit on the first token")
    assert len(history) == 1


def test_no_rate_is_valid_where_tokens_are_too_slow() -> None:
    server = VirtualServer(tpot=0.3)
    answer, history, _ = search(server, terms_of(server))
    assert answer.rate is None
    assert answer.note.startswith("not even ")
    assert len(history) == 8


def probe_of(ask: Ask, **changes: object) -> Probe:
    """A probe that meets the limits by far."""
    own = {"valid": True, "seen": ask.queries, "over": 1, "ttft": 0.01, "tpot": 0.001, "base": 0.01, "latency": 0.1}
    return Probe(ask.level, ask.full, ask.rate, **{**own, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limited", "says"), [(False, "at every rate that was tried"), (True, "it is the client that limits the fastest")]
)
def test_limits_that_are_met_at_every_rate_are_said_so(limited: bool, says: str) -> None:
    terms, history = terms_of(VirtualServer()), list[Probe]()
    while isinstance(step := next_step(terms, history), Ask):
        history.append(probe_of(step, client_limited=limited and step.rate > 1000))
    assert step.rate == history[-1].rate
    assert says in step.note
    assert not step.confirmed


def test_verdicts_that_follow_no_rule_end_the_search() -> None:
    terms, history = terms_of(VirtualServer()), list[Probe]()
    while isinstance(step := next_step(terms, history), Ask):
        history.append(probe_of(step, valid=len(history) % 3 == 0, ttft=2.0 + 0.1 * (-1) ** len(history)))
    assert len(history) <= 40


def test_probes_are_long_enough_for_early_stopping_and_their_bound_grows_with_the_rate() -> None:
    server = VirtualServer()
    for rate in (1.0, 100.0):
        ask = next_step(terms_of(server, start=rate, whole=24_576), [])
        assert isinstance(ask, Ask)
        assert (ask.level, ask.full, ask.seconds, ask.queries) == ("short", False, 30.0, 662)
        assert ask.in_flight == 2 * rate * 32 + 16


def test_a_probe_that_was_ended_for_its_crowd_is_made_again_with_more_room_and_counts_for_nothing() -> None:
    """Every probe that is new gets too little room here."""
    server = VirtualServer()
    terms = terms_of(server)
    loadgen, history = VirtualLoadGen(server, terms), list[Probe]()
    while isinstance(step := next_step(terms, history), Ask):
        if history and history[-1].crowded:
            assert (step.level, step.full, step.rate) == (history[-1].level, history[-1].full, history[-1].rate)
            assert step.in_flight == 4 * history[-1].crowded
            history.append(loadgen.test(step))
        else:
            history.append(loadgen.test(replace(step, in_flight=40)))
    assert any(probe.crowded for probe in history)
    assert not any(probe.valid for probe in history if probe.crowded)
    assert step.rate == pytest.approx(find_truth(server, terms), rel=TOLERANCE)


def test_the_next_probe_depends_on_the_history_alone() -> None:
    server = VirtualServer()
    terms = terms_of(server)
    _, history, _ = search(server, terms)
    for done in range(len(history)):
        step = next_step(terms_of(server), history[:done])
        assert isinstance(step, Ask)
        assert (step.level, step.rate) == (history[done].level, history[done].rate)
    assert history[-1].level in (FULL, "short")
