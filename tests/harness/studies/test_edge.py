"""What a length without an answer means, and which length is asked next: tables, and a search with a known answer."""

from __future__ import annotations

import pytest

from harness.studies.edge import (
    COSTLY_STEPS,
    CUT_SHORT,
    DIED,
    FAILED,
    FITS,
    LATE,
    MEMORY,
    REFUSED,
    Growth,
    Probe,
    bounds,
    edge_of,
    next_length,
    says_no_memory,
    time_limit,
    why,
)
from sut import errors

GROWTH = Growth(start=1000, factor=2.0, longest=100_000)


@pytest.mark.parametrize(
    ("kind", "facts", "edge"),
    [
        ("rejected", {"status": 400}, REFUSED),
        ("rejected", {"status": 422}, REFUSED),  # TGI
        ("rejected", {"status": 413}, REFUSED),  # a proxy in front
        ("rejected", {}, REFUSED),  # an engine in this process
        ("rejected", {"status": 401}, FAILED),  # about something else than the length
        ("rejected", {"status": 404}, FAILED),
        ("cut_short", {}, CUT_SHORT),
        ("timed_out", {}, LATE),
        ("first_token_late", {}, LATE),
        ("stalled", {}, LATE),
        ("timed_out", {"no_memory": True}, LATE),  # nobody has died of it, and the deadline passed
        ("timed_out", {"dead": True}, DIED),  # nothing came because there is no engine any more
        ("replica_died", {"dead": True}, DIED),
        ("unreachable", {}, DIED),
        ("server_error", {"status": 500}, FAILED),
        ("server_error", {"status": 500, "dead": True}, DIED),  # HTTP 500, and then the server went
        ("server_error", {"status": 500, "no_memory": True}, MEMORY),
        ("replica_died", {"dead": True, "no_memory": True}, MEMORY),
        ("disconnected", {}, FAILED),
        ("malformed", {}, FAILED),
    ],
)
def test_what_a_failure_means(kind: str, facts: dict[str, bool], edge: str) -> None:
    assert edge_of(kind, **facts) == edge  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", errors.QueryFailed.__subclasses__())
def test_every_kind_of_failure_means_something(cls: type[errors.QueryFailed]) -> None:
    assert edge_of(cls.kind) in (REFUSED, CUT_SHORT, LATE, DIED, FAILED)


@pytest.mark.parametrize(
    ("text", "no_memory"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("torch.cuda.OutOfMemoryError: …", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory", True),
        ("MemoryError", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("ValueError: To serve at least one request with the model's max seq len (8192), (0.02 GiB KV cache is needed, "
         "which is larger than the available KV cache memory (0.01 GiB).", True),
        ("ValueError: No available memory for the cache blocks.", True),
        ("EngineCore encountered an issue. See stack trace (above) for the root cause.", False),
        ("INFO: 12 GiB of memory are free", False),
        ("", False),
    ],
)  # fmt: skip
def test_what_says_that_there_is_no_memory(text: str, no_memory: bool) -> None:
    assert says_no_memory(text) is no_memory


# -- the search -------------------------------------------------------------------------------------------------------


def probe(length: int, edge: str = FITS, **facts: object) -> Probe:
    return Probe(length, 32, edge, 60.0, **facts)  # type: ignore[arg-type]


def search(longest: int, edge: str, growth: Growth = GROWTH, said: int | None = None) -> list[Probe]:
    """All that is asked of an engine whose longest prompt is this."""
    probes: list[Probe] = []
    while (length := next_length(growth, probes)) is not None:
        assert length not in {one.prompt_tokens for one in probes}, "nothing is asked twice"
        probes.append(probe(length, FITS if length <= longest else edge, context=said))
        assert len(probes) < 100
    return probes


def lengths(probes: list[Probe]) -> list[int]:
    return [one.prompt_tokens for one in probes]


@pytest.mark.parametrize("longest", [0, 1, 2, 999, 1000, 1001, 2047, 2048, 5000, 31_999, 63_999, 99_999])
@pytest.mark.parametrize("edge", [REFUSED, CUT_SHORT, FAILED])
def test_an_edge_is_found_to_the_token(longest: int, edge: str) -> None:
    low, high = bounds(search(longest, edge))
    assert high is not None
    assert (low, high.prompt_tokens, high.edge) == (longest, longest + 1, edge)


@pytest.mark.parametrize(
    ("longest", "said", "asked"),
    [
        (8160, 8192, [1000, 2000, 4000, 8000, 16_000, 8160, 8161]),  # it says the truth: two more settle it
        (8191, 8192, [1000, 2000, 4000, 8000, 16_000, 8160, 8161, 12_080]),  # it takes more than it says: bisected
        (5000, 8192, [1000, 2000, 4000, 8000, 6000, 5000, 5500]),  # it takes less, and the hint lies beyond
        (8160, 32, [1000, 2000, 4000, 8000, 16_000, 12_000]),  # it says nonsense
    ],
)
def test_what_a_replica_says_of_its_context_is_tried_first_and_never_believed(
    longest: int, said: int, asked: list[int]
) -> None:
    probes = search(longest, REFUSED, said=said)
    assert lengths(probes)[: len(asked)] == asked
    low, high = bounds(probes)
    assert (low, high and high.prompt_tokens) == (longest, longest + 1)


def test_an_edge_that_costs_a_new_start_is_known_to_a_sixteenth_of_the_last_step() -> None:
    for edge in (LATE, DIED, MEMORY):
        probes = search(5000, edge)
        assert lengths(probes)[:4] == [1000, 2000, 4000, 8000]
        assert len(probes) == 4 + COSTLY_STEPS
        low, high = bounds(probes)
        assert high is not None
        assert (low, high.prompt_tokens) == (5000, 5250)


def test_a_refusal_below_a_costly_edge_is_bisected_to_the_token_all_the_same() -> None:
    probes = [probe(4000), probe(8000, DIED)]
    while (length := next_length(GROWTH, probes)) is not None:
        probes.append(probe(length, FITS if length <= 4100 else REFUSED))
    low, high = bounds(probes)
    assert high is not None
    assert (low, high.prompt_tokens, high.edge) == (4100, 4101, REFUSED)


@pytest.mark.parametrize(
    ("growth", "asked"),
    [
        (Growth(1000, 2.0, 5000), [1000, 2000, 4000, 5000]),  # the last is what was allowed
        (Growth(1000, 1.5, 4000), [1000, 1500, 2250, 3375, 4000]),
        (Growth(1, 1.1, 4), [1, 2, 3, 4]),  # always one more at least
        (Growth(7000, 2.0, 5000), [5000]),
        (Growth(1000, 2.0, 10**6, (10, 300, 20_000)), [10, 300, 20_000]),
    ],
)
def test_growth_ends_where_it_was_told_to(growth: Growth, asked: list[int]) -> None:
    assert lengths(search(10**9, REFUSED, growth)) == asked


def test_given_lengths_are_bisected_between_too() -> None:
    assert bounds(search(1234, REFUSED, Growth(1, 2.0, 10**6, (1000, 2000))))[0] == 1234


def test_the_time_limit_grows_with_the_square_of_the_length() -> None:
    took = [probe(1000, latency_s=2.0), probe(4000, latency_s=20.0)]
    assert time_limit(5.0, took, 8000) == 5.0, "a person's own wins"
    assert time_limit(None, [], 1000) == 600.0
    assert time_limit(None, took, 8000) == 10 * 4 * 20.0
    assert time_limit(None, took[:1], 1000) == 60.0, "never less than a minute"
    assert time_limit(None, [*took, probe(8000, LATE)], 6000) == 10 * 1.5**2 * 20.0, "what failed tells no time"


@pytest.mark.parametrize(
    ("edge", "remote", "facts", "said"),
    [
        (REFUSED, True, {"status": 400}, "refused by the server (HTTP 400)"),
        (REFUSED, False, {}, "refused by the engine"),
        (CUT_SHORT, False, {}, "the engine's context is full: the answer is cut short"),
        (LATE, True, {}, "no answer within 60 s"),
        (FAILED, True, {"status": 500}, "failed (HTTP 500)"),
    ],
)
def test_a_reason_names_who_and_what(edge: str, remote: bool, facts: dict[str, int], said: str) -> None:
    assert why(probe(1, edge, **facts), remote) == said
