"""The bootstrap over blocks: exact where it can be checked, wide where queries depend on one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.studies.blocks import BLOCKS, Samples, are_paired, block_of, change_error, draws, percentiles, replicates
from tests.harness.studies.made_runs import columns


def samples(offline: bool = False, **changes: Any) -> Samples:
    return Samples.of(columns(1, queries=1200, offline=offline) | changes, offline)


def test_percentiles_are_those_of_the_samples_drawn() -> None:
    """Against numpy on each draw's samples, written out; a histogram's step is the only difference."""
    run = samples()
    values = run.times["ttft_s"]
    place = block_of(len(values), BLOCKS)
    found = percentiles(values, place, BLOCKS)
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        for draw in range(5):
            drawn = np.repeat(values, draws(BLOCKS)[draw].astype(int)[place])
            assert found[name][draw] == pytest.approx(np.percentile(drawn, share), rel=0.02)


def test_means_are_those_of_the_samples_drawn() -> None:
    run = samples()
    values, drawn = run.times["latency_s"], draws(BLOCKS)[0].astype(int)
    found = replicates(run)["latency_s.mean"][0]
    assert np.exp(found) == pytest.approx(np.repeat(values, drawn[block_of(len(values), BLOCKS)]).mean())


def test_independent_samples_have_the_error_of_the_textbook() -> None:
    chance = np.random.default_rng(1)
    values = chance.normal(10, 1, 6000)
    run = samples_of(values)
    assert replicates(run)["latency_s.mean"].std() == pytest.approx(0.1 / 6000**0.5, rel=0.35)


def samples_of(latency: Any) -> Samples:
    count = len(latency)
    table = {"sample_index": np.arange(count), "issued_s": np.arange(count), "latency_s": latency}
    return Samples.of(table | {"ttft_s": latency / 2, "output_tokens": np.full(count, 10)}, offline=False)


def test_samples_that_depend_on_their_neighbours_are_less_sure() -> None:
    """A walk correlated over 50 queries has the error of 100 times fewer of them; single draws would not see it."""
    chance = np.random.default_rng(2)
    walk = np.zeros(6000)
    for at in range(1, 6000):
        walk[at] = 0.98 * walk[at - 1] + chance.normal(0, 0.2)
    error = replicates(samples_of(10 + walk))["latency_s.mean"].std()
    alone = walk.std() / 10 / 6000**0.5
    assert error > 5 * alone


def test_what_the_schedule_does_to_both_cancels_out() -> None:
    """Busy moments slow both releases: together they say little about the change, each by itself would say much."""
    busy = 1 + np.sin(np.linspace(0, 20, 3000)) ** 8
    chance = np.random.default_rng(3)
    runs = [replicates(samples_of(busy * chance.lognormal(0, 0.05, 3000))) for _ in range(2)]
    paired = change_error(runs[:1], runs[1:], "latency_s.mean", 30, paired=True)
    apart = change_error(runs[:1], runs[1:], "latency_s.mean", 30, paired=False)
    assert paired is not None and apart is not None
    assert paired.error < apart.error / 5


def test_identical_runs_have_no_error_together() -> None:
    run = replicates(samples())
    found = change_error([run], [run], "ttft_s.p99", 30, paired=True)
    assert found is not None and found.error == 0


def test_the_same_is_drawn_in_every_process() -> None:
    assert np.array_equal(draws(30), draws.__wrapped__(30))
    assert (draws(30).sum(axis=1) == 30).all()


@pytest.mark.parametrize(
    ("changes", "paired"),
    [
        ({}, True),  # the same samples in the same order
        ({"sample_index": np.arange(1200)[::-1]}, False),  # another order
    ],
)
def test_runs_are_paired_if_they_were_asked_the_same(changes: dict[str, Any], paired: bool) -> None:
    assert are_paired([samples(), samples(**changes)], offline=False) is paired


def test_in_offline_runs_of_one_length_are_paired() -> None:
    one, other = samples(offline=True), samples(offline=True, sample_index=np.arange(1200)[::-1])
    assert are_paired([one, other], offline=True)
    assert not are_paired([one, samples_of(np.ones(10))], offline=True)


@pytest.mark.parametrize(
    ("count", "figures"),
    [
        (3, set()),  # not two blocks
        (
            40,
            {f"{name}.{statistic}" for name in ("ttft_s", "tpot_s", "latency_s") for statistic in ("mean", "p50")},
        ),  # too few for a percentile's tail
    ],
)
def test_a_short_run_says_only_what_it_can(count: int, figures: set[str]) -> None:
    assert set(replicates(samples_of(np.random.default_rng(1).lognormal(0, 1, count)))) == figures


def test_the_samples_say_nothing_of_a_rate() -> None:
    assert not any("per_second" in figure for figure in replicates(samples()))


def test_a_run_that_does_not_stream_has_no_ttft() -> None:
    assert not any(figure.startswith(("ttft", "tpot")) for figure in replicates(samples(offline=True)))


def test_a_figure_that_one_run_lacks_has_no_error() -> None:
    assert change_error([{}], [replicates(samples())], "ttft_s.p99", 30, paired=True) is None
