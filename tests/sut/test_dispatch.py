"""The policies: whose turn it is, and that Pull never forgets or invents room."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sut.dispatch import POLICIES, Policy, Pull, Replica, RoundRobin, make_policy
from sut.errors import ConfigError
from sut.query import NO_TOKENS, Query

QUERY = Query(1, 0, NO_TOKENS, False, 8, 0.0)


def replicas(*caps: int | None) -> list[Replica]:
    """Replicas a, b, c … with these caps and no backend: policies do not look at it."""
    return [Replica(name, None, cap) for name, cap in zip("abcdef", caps, strict=False)]


def pick(policy: Policy) -> str | None:
    """Ask the policy and keep the books as the SUT does."""
    replica = policy.pick(QUERY)
    if replica is None:
        return None
    replica.in_flight += 1
    return replica.name


def finish(policy: Policy, replica: Replica) -> None:
    replica.in_flight -= 1
    policy.finished(replica)


def eject(policy: Policy, replica: Replica) -> None:
    """As the SUT does it: marked first, then taken out, then its queries fail one by one."""
    replica.ejected = "dead"
    policy.eject(replica)
    while replica.in_flight:
        finish(policy, replica)


def admit(policy: Policy, replica: Replica) -> None:
    replica.ejected = None
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

    @precondition(lambda self: any(r.in_flight for r in self.replicas))
    @rule(data=st.data())
    def a_query_ends(self, data):
        finish(self.policy, self.which(data, [r for r in self.replicas if r.in_flight]))

    @precondition(lambda self: any(r.ejected is None for r in self.replicas))
    @rule(data=st.data())
    def a_replica_is_found_dead(self, data):
        eject(self.policy, self.which(data, [r for r in self.replicas if r.ejected is None]))

    @precondition(lambda self: any(r.in_flight for r in self.replicas))
    @rule(data=st.data())
    def a_query_says_that_its_replica_died(self, data):
        replica = self.which(data, [r for r in self.replicas if r.in_flight])
        finish(self.policy, replica)  # the query leaves the books before its replica is ejected
        eject(self.policy, replica)

    @precondition(lambda self: any(r.ejected for r in self.replicas))
    @rule(data=st.data())
    def a_replica_comes_back(self, data):
        admit(self.policy, self.which(data, [r for r in self.replicas if r.ejected]))

    @invariant()
    def exactly_the_room_of_the_live_is_offered(self):
        policy = deepcopy(self.policy)
        offered = Counter(iter(lambda: pick(policy), None))
        assert offered == {r.name: r.room for r in self.replicas if r.ejected is None and r.room}


PullStaysTrue.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestPullStaysTrue = PullStaysTrue.TestCase


# -- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_made_by_its_name(name):
    assert pick(make_policy(name, replicas(1))) == "a"


def test_an_unknown_policy_is_refused_with_the_names():
    with pytest.raises(ConfigError, match="unknown dispatch policy 'fastest': choose one of pull, round-robin"):
        make_policy("fastest", replicas(1))
