"""The policies: whose turn it is, that the least loaded is picked, and that Pull never forgets or invents room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sut.dispatch import (
    POLICIES,
    Least,
    LeastOutstanding,
    LeastTokens,
    Policy,
    PowerOfTwo,
    Pull,
    Replica,
    RoundRobin,
    make_policy,
)
from sut.errors import ConfigError
from sut.query import TOKEN_DTYPE, Query


def ask(prompt: int = 0) -> Query:
    """A query with so many prompt tokens."""
    return Query(1, 0, np.zeros(prompt, TOKEN_DTYPE), False, 8, 0.0)


QUERY = ask()


def replicas(*caps: int | None) -> list[Replica]:
    """Replicas a, b, c … with these caps and no backend: policies do not look at it."""
    return [Replica(name, None, cap) for name, cap in zip("abcdef", caps, strict=False)]


def start(policy: Policy, replica: Replica, query: Query = QUERY) -> None:
    replica.in_flight += 1
    policy.started(replica, query)


def pick(policy: Policy, query: Query = QUERY) -> str | None:
    """Ask the policy and keep the books as the SUT does."""
    replica = policy.pick(query)
    if replica is None:
        return None
    start(policy, replica, query)
    return replica.name


def finish(policy: Policy, replica: Replica, query: Query = QUERY, tokens: int = 0) -> None:
    replica.in_flight -= 1
    policy.finished(replica, query, tokens)


def pause(policy: Policy, replica: Replica) -> None:
    """No more work for it; what it has goes on."""
    replica.serving = False
    policy.eject(replica)


def eject(policy: Policy, replica: Replica) -> None:
    """A dead one, as the SUT takes it out: marked first, then its queries fail one by one."""
    replica.ejected = "dead"
    pause(policy, replica)
    while replica.in_flight:
        finish(policy, replica)


def admit(policy: Policy, replica: Replica) -> None:
    replica.ejected = None
    replica.serving = True
    policy.admit(replica)


# -- room -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "in_flight", "room"),
    [
        (None, 1000, float("inf")),  # without a cap there is always room
        (4, 0, 4),
        (4, 3, 1),
        (4, 4, 0),
    ],
)
def test_room_is_what_the_cap_leaves(cap, in_flight, room):
    assert Replica("a", None, cap, in_flight).room == room


# -- round-robin ------------------------------------------------------------------------------------------------------


def test_round_robin_takes_turns_whatever_the_load():
    policy = RoundRobin(replicas(1, 1, 1))
    assert "".join(pick(policy) for _ in range(7)) == "abcabca"


def test_round_robin_gives_nothing_to_an_ejected_replica_until_it_is_back():
    three = replicas(None, None, None)
    policy = RoundRobin(three)
    eject(policy, three[1])
    assert Counter(pick(policy) for _ in range(6)) == {"a": 3, "c": 3}
    admit(policy, three[1])
    assert Counter(pick(policy) for _ in range(6)) == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("turns", range(4))
def test_round_robin_goes_on_when_replicas_leave_at_any_point_of_the_turn(turns):
    three = replicas(None, None, None)
    policy = RoundRobin(three)
    for _ in range(turns):
        pick(policy)
    eject(policy, three[2])
    eject(policy, three[0])
    assert {pick(policy) for _ in range(3)} == {"b"}


def test_round_robin_without_replicas_keeps_the_query_queued():
    one = replicas(None)
    policy = RoundRobin(one)
    eject(policy, one[0])
    assert pick(policy) is None
    admit(policy, one[0])
    assert pick(policy) == "a"


# -- pull -------------------------------------------------------------------------------------------------------------


def test_pull_spreads_over_the_replicas_and_stops_when_all_are_full():
    policy = Pull(replicas(1, 3, 2))
    picked = [pick(policy) for _ in range(7)]
    assert picked[:3] == ["a", "b", "c"], "each replica gets one before any gets a second"
    assert Counter(picked) == {"a": 1, "b": 3, "c": 2, None: 1}


def test_pull_goes_to_who_has_finished():
    two = replicas(1, 1)
    policy = Pull(two)
    assert [pick(policy) for _ in range(3)] == ["a", "b", None]
    finish(policy, two[1])
    assert [pick(policy), pick(policy)] == ["b", None]


def test_pull_takes_nothing_from_an_ejected_replica_even_when_its_queries_end():
    two = replicas(2, 2)
    policy = Pull(two)
    pick(policy)
    eject(policy, two[0])
    assert [pick(policy) for _ in range(3)] == ["b", "b", None]


def test_pull_gives_a_readmitted_replica_all_its_room():
    two = replicas(2, 1)
    policy = Pull(two)
    eject(policy, two[0])
    pick(policy)
    admit(policy, two[0])
    assert [pick(policy) for _ in range(3)] == ["a", "a", None]


def test_pull_passes_over_a_paused_replica_and_comes_back_to_it_when_it_may_work_again():
    two = replicas(2, 2)
    policy = Pull(two)
    pause(policy, two[0])
    assert [pick(policy) for _ in range(3)] == ["b", "b", None]
    admit(policy, two[0])
    assert [pick(policy) for _ in range(3)] == ["a", "a", None]


def test_pull_forgets_no_room_that_was_offered_and_not_taken():
    policy = Pull(replicas(1))
    policy.pick(QUERY)
    assert [pick(policy), pick(policy)] == ["a", None]


class PullStaysTrue(RuleBasedStateMachine):
    """Whatever happens to the replicas, Pull offers exactly the room that the live ones have."""

    @initialize(caps=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def set_up(self, caps):
        self.replicas = replicas(*caps)
        self.policy = Pull(self.replicas)

    def which(self, data: st.DataObject, candidates: list[Replica]) -> Replica:
        return data.draw(st.sampled_from([self.replicas.index(r) for r in candidates]).map(self.replicas.__getitem__))

    @rule()
    def a_query_comes(self):
        pick(self.policy)

    @rule(number=st.integers(0, 5))
    def a_second_attempt_is_made(self, number):
        replica = self.replicas[number % len(self.replicas)]
        if replica.serving and replica.room:
            start(self.policy, replica)  # given out past the policy

    @precondition(lambda self: any(r.in_flight for r in self.replicas))
    @rule(data=st.data())
    def a_query_ends(self, data):
        finish(self.policy, self.which(data, [r for r in self.replicas if r.in_flight]))

    @precondition(lambda self: any(r.serving for r in self.replicas))
    @rule(data=st.data(), dead=st.booleans())
    def a_replica_is_taken_out(self, data, dead):
        (eject if dead else pause)(self.policy, self.which(data, [r for r in self.replicas if r.serving]))

    @precondition(lambda self: any(r.in_flight for r in self.replicas))
    @rule(data=st.data())
    def a_query_says_that_its_replica_died(self, data):
        replica = self.which(data, [r for r in self.replicas if r.in_flight])
        finish(self.policy, replica)  # the query leaves the books before its replica is ejected
        eject(self.policy, replica)

    @precondition(lambda self: any(not r.serving for r in self.replicas))
    @rule(data=st.data())
    def a_replica_comes_back(self, data):
        admit(self.policy, self.which(data, [r for r in self.replicas if not r.serving]))

    @invariant()
    def exactly_the_room_of_the_live_is_offered(self):
        policy = deepcopy(self.policy)
        offered = Counter(iter(lambda: pick(policy), None))
        assert offered == {r.name: r.room for r in self.replicas if r.serving and r.room}


PullStaysTrue.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestPullStaysTrue = PullStaysTrue.TestCase


# -- least outstanding, least tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LeastOutstanding, LeastTokens])
def test_idle_replicas_take_turns(kind):
    three = replicas(None, None, None)
    policy = kind(three)
    order = ""
    for _ in range(7):
        replica = policy.pick(ask(5))
        start(policy, replica, ask(5))
        finish(policy, replica, ask(5))
        order += replica.name
    assert order == "abcabca"


def test_among_equals_the_one_that_was_given_work_longest_ago():
    three = replicas(None, None, None)
    policy = LeastOutstanding(three)
    assert "".join(pick(policy) for _ in range(3)) == "abc"
    start(policy, three[0])  # a second attempt counts as work given
    for replica in (three[0], three[0], three[2], three[1]):
        finish(policy, replica)
    assert "".join(pick(policy) for _ in range(3)) == "bca"


def test_least_outstanding_counts_queries_whatever_their_length():
    two = replicas(None, None)
    policy = LeastOutstanding(two)
    start(policy, two[0], ask(1000))
    policy.progressed(two[0], 1000)
    start(policy, two[1])
    start(policy, two[1])
    assert pick(policy) == "a"


def test_least_tokens_counts_prompts():
    two = replicas(None, None)
    policy = LeastTokens(two)
    assert pick(policy, ask(100)) == "a"
    assert [pick(policy, ask(30)) for _ in range(4)] == ["b", "b", "b", "b"]
    assert pick(policy, ask(30)) == "a"


def test_least_tokens_counts_what_has_been_answered_until_the_query_ends():
    two = replicas(None, None)
    policy = LeastTokens(two)
    start(policy, two[0], ask(10))
    start(policy, two[1], ask(20))
    assert policy.pick(QUERY) is two[0]
    policy.progressed(two[0], 8)
    policy.progressed(two[0], 8)
    assert policy.pick(QUERY) is two[1]
    finish(policy, two[0], ask(10), 16)
    assert policy.pick(QUERY) is two[0]


def test_what_ends_on_a_paused_replica_counts_when_it_is_back():
    two = replicas(None, None)
    policy = LeastOutstanding(two)
    for replica in (two[0], two[0], two[1]):
        start(policy, replica)
    pause(policy, two[0])
    assert pick(policy) == "b"
    finish(policy, two[0])
    admit(policy, two[0])
    assert pick(policy) == "a", "one query against two"


@pytest.mark.parametrize("kind", [LeastOutstanding, LeastTokens])
def test_the_heap_stays_short(kind):
    some = replicas(None, None, None, None)
    policy = kind(some)
    flights: list[tuple[Replica, Query]] = []
    for number in range(3000):
        query = ask(1 + number * 7919 % 100)
        replica = policy.pick(query)
        start(policy, replica, query)
        flights.append((replica, query))
        while len(flights) > 50 - number % 40:
            finish(policy, *flights.pop(number * 31 % len(flights)))
        assert len(policy._heap) <= 4 * len(some) + 64


class LeastStaysTrue(RuleBasedStateMachine):
    """Whatever happens, the pick is the least loaded of those that serve, and of several the one whose turn it is."""

    kind: type[Least]

    @initialize(number=st.integers(1, 5), longest=st.integers(5, 20))
    def set_up(self, number, longest):
        self.replicas = replicas(*[None] * number)
        self.policy = self.kind(self.replicas)
        self.policy._longest = longest  # so short that it is made anew now and then
        self.turns: Iterator[int] = count(1)
        self.turn = dict.fromkeys(self.replicas, 0)
        self.flights: list[tuple[Replica, Query, list[int]]] = []

    def load(self, replica: Replica) -> int:
        mine = [(query, heard) for where, query, heard in self.flights if where is replica]
        if self.kind is LeastOutstanding:
            return len(mine)
        return sum(len(query.prompt) + sum(heard) for query, heard in mine)

    def begin(self, replica: Replica, query: Query) -> None:
        start(self.policy, replica, query)
        self.turn[replica] = next(self.turns)
        self.flights.append((replica, query, []))

    @rule(prompt=st.integers(0, 6))
    def a_query_comes(self, prompt):
        replica = self.policy.pick(ask(prompt))
        if replica is not None:
            self.begin(replica, ask(prompt))

    @rule(prompt=st.integers(0, 6), number=st.integers(0, 5))
    def a_second_attempt_is_made(self, prompt, number):
        self.begin(self.replicas[number % len(self.replicas)], ask(prompt))

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), tokens=st.integers(1, 5))
    def an_answer_grows(self, which, tokens):
        replica, _, heard = self.flights[which % len(self.flights)]
        self.policy.progressed(replica, tokens)
        heard.append(tokens)

    @precondition(lambda self: self.flights)
    @rule(which=st.lists(st.integers(0, 99), min_size=1, max_size=4))
    def queries_end(self, which):
        for number in which:
            if self.flights:
                replica, query, heard = self.flights.pop(number % len(self.flights))
                finish(self.policy, replica, query, sum(heard))

    @rule(number=st.integers(0, 5))
    def a_replica_is_taken_out(self, number):
        pause(self.policy, self.replicas[number % len(self.replicas)])

    @rule(number=st.integers(0, 5))
    def a_replica_may_work(self, number):
        admit(self.policy, self.replicas[number % len(self.replicas)])

    def check(self, policy: Policy) -> None:
        picked = policy.pick(QUERY)
        live = [replica for replica in self.replicas if replica.serving]
        expected = min(live, key=lambda r: (self.load(r), self.turn[r], r.name), default=None)
        assert (picked and picked.name) == (expected and expected.name)

    @invariant()
    def the_least_loaded_would_be_picked(self):
        self.check(deepcopy(self.policy))  # the pick itself corrects the heap, which would hide what is wrong with it

    @rule()
    def the_least_loaded_is_picked(self):
        self.check(self.policy)


class LeastOutstandingStaysTrue(LeastStaysTrue):
    kind = LeastOutstanding


class LeastTokensStaysTrue(LeastStaysTrue):
    kind = LeastTokens


for machine in (LeastOutstandingStaysTrue, LeastTokensStaysTrue):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeastOutstandingStaysTrue = LeastOutstandingStaysTrue.TestCase
TestLeastTokensStaysTrue = LeastTokensStaysTrue.TestCase


# -- power of two -----------------------------------------------------------------------------------------------------


def test_power_of_two_with_two_replicas_is_least_outstanding():
    two = replicas(None, None)
    policy = PowerOfTwo(two)
    start(policy, two[0])
    start(policy, two[0])
    assert [pick(policy) for _ in range(2)] == ["b", "b"]
    finish(policy, two[0])
    assert pick(policy) == "a"


def test_power_of_two_never_picks_the_most_loaded_and_all_others_sometimes():
    four = replicas(None, None, None, None)
    policy = PowerOfTwo(four)
    for replica, load in zip(four, (3, 2, 1, 0), strict=True):
        for _ in range(load):
            start(policy, replica)
    picked = Counter(policy.pick(QUERY).name for _ in range(600))
    # Of the six pairs, d is the less loaded in three, c in two, b in one.
    assert set(picked) == {"b", "c", "d"}
    assert picked["d"] > picked["c"] > picked["b"]


def test_power_of_two_spreads_evenly_over_equals():
    policy = PowerOfTwo(replicas(None, None, None, None))
    picked = Counter(policy.pick(QUERY).name for _ in range(4000))
    assert all(900 < picked[name] < 1100 for name in "abcd")


def test_power_of_two_draws_the_same_in_each_run():
    first, second = (PowerOfTwo(replicas(*[None] * 6)) for _ in range(2))
    assert [pick(first) for _ in range(100)] == [pick(second) for _ in range(100)]


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_nobody_picks_a_replica_that_is_not_serving(name):
    five = replicas(*[50] * 5)
    policy = make_policy(name, five)
    pause(policy, five[1])
    eject(policy, five[4])
    assert {pick(policy) for _ in range(60)} == {"a", "c", "d"}
    admit(policy, five[1])
    pause(policy, five[2])
    assert {pick(policy) for _ in range(30)} <= {"a", "b", "d"}


@pytest.mark.parametrize("name", POLICIES)
def test_without_a_serving_replica_nothing_is_picked(name):
    two = replicas(4, 4)
    policy = make_policy(name, two)
    pick(policy)
    for replica in two:
        pause(policy, replica)
    assert policy.pick(QUERY) is None
    admit(policy, two[1])
    assert [pick(policy) for _ in range(3)] == ["b", "b", "b"]


@pytest.mark.parametrize("name", POLICIES)
def test_taking_out_and_letting_in_twice_is_as_once(name):
    two = replicas(8, 8)
    policy = make_policy(name, two)
    admit(policy, two[0])
    pause(policy, two[0])
    pause(policy, two[0])
    assert {pick(policy) for _ in range(2)} == {"b"}
    admit(policy, two[0])
    admit(policy, two[0])
    assert Counter(pick(policy) for _ in range(14)).keys() == {"a", "b"}
    pause(policy, two[0])
    assert policy.pick(QUERY) is not two[0]


@pytest.mark.parametrize("name", POLICIES)
def test_queries_of_a_paused_replica_may_end_before_and_after_it_is_back(name):
    two = replicas(2, 2)
    policy = make_policy(name, two)
    start(policy, two[0])
    start(policy, two[0])
    policy.progressed(two[0], 3)
    pause(policy, two[0])
    assert policy.pick(QUERY) is two[1]
    finish(policy, two[0], QUERY, 3)
    assert policy.pick(QUERY) is two[1]
    admit(policy, two[0])
    finish(policy, two[0])
    assert Counter(pick(policy) for _ in range(4)).keys() == {"a", "b"}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_made_by_its_name(name):
    assert pick(make_policy(name, replicas(1))) == "a"


def test_an_unknown_policy_is_refused_with_the_names():
    with pytest.raises(ConfigError, match="unknown dispatch policy 'fastest': choose one of pull, round-robin, least-"):
        make_policy("fastest", replicas(1))
