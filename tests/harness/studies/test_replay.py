"""A server read from its queries, and a schedule replayed on it."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from harness.schedule import Times, unit_schedule
from harness.studies.replay import Batch, edge, highest_but, read
from tests.virtual_server import VirtualServer

SCHEDULE = unit_schedule(11, 6_000)


def batch_of(work: float, slots: float = inf, alone: float = 1.0, each: float = 0.0) -> Batch:
    """All answers alike."""
    return Batch(alone, each, slots, 0.0, np.array([work]), np.array([work]))


def seen(server: VirtualServer, rate: float, stop: float = inf) -> tuple[Times, Times, Times, Times]:
    """Arrivals, first tokens, ends and tokens of what began by `stop`."""
    arrivals = SCHEDULE / rate
    firsts, ends = server.serve(arrivals)
    rng = np.random.default_rng((server.seed, 1))
    order = np.concatenate([rng.permutation(server.samples) for _ in range(-(-len(arrivals) // server.samples))])
    tokens = server.lengths[order[: len(arrivals)]] - 1.0
    began = firsts <= stop
    return arrivals[began], firsts[began], np.where(ends <= stop, ends, inf)[began], tokens[began]


@pytest.mark.parametrize("load", [0.5, 0.9, 1.0, 1.3])
def test_one_slot_is_a_queue(load: float) -> None:
    """Each query's wait is what is left of the work of those before it."""
    arrivals = SCHEDULE[:2000] / load
    free, found = 0.0, []
    for arrival in arrivals:
        found.append(max(0.0, free - arrival))
        free = max(free, arrival) + 1
    waits, paces = batch_of(1.0, slots=1).serve(arrivals)
    assert waits == pytest.approx(np.array(found), abs=1e-6)
    assert paces == pytest.approx(1.0)


def test_queries_that_run_together_slow_each_other_down() -> None:
    waits, paces = batch_of(10.0, alone=1.0, each=0.5).serve(np.array([0.0, 0.0, 100.0]))
    assert waits == pytest.approx(0.0)
    assert paces == pytest.approx([2.0, 2.0, 1.5])


def test_a_factor_makes_every_answer_longer() -> None:
    waits, paces = batch_of(10.0, slots=1).serve(np.array([0.0, 0.0]), factor=2.0)
    assert waits == pytest.approx([0.0, 20.0])
    assert paces == pytest.approx(2.0), "of the tokens that it has"


@pytest.mark.parametrize("stop", [inf, 120.0])
def test_the_law_of_a_server_is_read_from_its_queries(stop: float) -> None:
    """Also of a probe that was ended in the middle."""
    server = VirtualServer(load=1.0)
    arrivals, firsts, ends, tokens = seen(server, 0.95 * server.capacity, stop)
    batch = read(firsts, ends, tokens, float(np.quantile(firsts - arrivals, 0.02)))
    assert batch is not None
    assert batch.slots == server.slots
    assert batch.alone == pytest.approx(server.tpot, rel=0.1)
    assert batch.alone + batch.each * server.slots == pytest.approx(2 * server.tpot, rel=0.03)
    assert batch.work.sum() == pytest.approx(tokens.sum(), rel=0.05)


def test_a_replay_shows_what_was_seen_and_what_another_rate_would_have_shown() -> None:
    server = VirtualServer(slots=512, tpot=0.04, load=9.0)
    rate = 0.75 * server.capacity
    arrivals, firsts, ends, tokens = seen(server, rate)
    batch = read(firsts, ends, tokens, float(np.quantile(firsts - arrivals, 0.02)))
    assert batch is not None
    for other, off in ((1.0, 0.01), (1.03, 0.03)):
        _, firsts, ends, tokens = seen(server, other * rate)
        _, paces = batch.serve(SCHEDULE / (other * rate))
        assert highest_but(paces, 40) == pytest.approx(highest_but((ends - firsts) / tokens, 40), rel=off)


def test_where_more_queries_are_no_slower_the_line_is_level() -> None:
    server = VirtualServer()
    arrivals, firsts, ends, tokens = seen(server, 0.5 * server.capacity)
    batch = read(firsts, ends, tokens, float(np.quantile(firsts - arrivals, 0.02)))
    assert batch is not None
    assert batch.each * 32 < 0.05 * batch.alone


def test_a_few_answers_tell_nothing() -> None:
    firsts = np.arange(100.0)
    ends = np.where(firsts < 20, firsts + 1, inf)
    assert read(firsts, ends, np.ones(100), 0.1) is None
    assert read(firsts[:0], ends[:0], ends[:0], 0.1) is None


def test_the_edge_is_where_something_ends_to_hold() -> None:
    assert edge(lambda value: value <= 3.0, 0.75, 12.0) == pytest.approx(3.0, rel=2e-3)


@pytest.mark.parametrize(("over", "value"), [(0, 9), (3, 6), (9, 0), (50, 0), (-1, 9)])
def test_the_highest_but_some(over: int, value: int) -> None:
    assert highest_but(np.random.default_rng(1).permutation(10).astype(float), over) == value
