"""The Pareto front of what was measured with noise.

A layout is dominated when another one is at least as good in every aim and better in one by more than chance explains.
One that another beats on paper only, within the noise, is neither on the front nor dominated: more runs may tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import NamedTuple

from harness.studies.spread import Noise, pooled

FRONT, NEAR, DOMINATED = "front", "within noise", "dominated"


class Aim(NamedTuple):
    """A figure and which way it is better."""

    key: str
    larger: bool


class Standing(NamedTuple):
    """Where one stands, and who dominates it (or would, but for the noise)."""

    where: str
    by: str | None


Runs = Mapping[str, Sequence[float]]
"""By aim, a figure for each run; all positive."""


def stand(measured: Mapping[str, Runs], aims: Sequence[Aim], assumed: float) -> dict[str, Standing]:
    """Where each of those that have all aims stands. `assumed`: the share by which single runs differ by chance, where
    nothing was repeated."""
    full = {name: runs for name, runs in measured.items() if all(runs.get(aim.key) for aim in aims)}
    noises = {aim: pooled({name: runs[aim.key] for name, runs in full.items()}, assumed) for aim in aims}
    return {name: _standing(name, full, noises) for name in full}


def _standing(name: str, full: Mapping[str, Runs], noises: Mapping[Aim, Noise]) -> Standing:
    near = None
    for other in full:
        gains = {aim: gain(full[other][aim.key], full[name][aim.key], aim) for aim in noises}
        if other == name or min(gains.values()) < 0 or max(gains.values()) == 0:
            continue
        if any(
            gains[aim] > noise.margin(len(full[other][aim.key]), len(full[name][aim.key]))
            for aim, noise in noises.items()
        ):
            return Standing(DOMINATED, other)
        near = near or other
    return Standing(FRONT if near is None else NEAR, near)


def gain(now: Sequence[float], before: Sequence[float], aim: Aim) -> float:
    """The logarithm of how many times better one is than another; negative where it is worse."""
    ratio = _middle(now) - _middle(before)
    return ratio if aim.larger else -ratio


def _middle(values: Sequence[float]) -> float:
    return sum(log(value) for value in values) / len(values)


def mean(values: Sequence[float]) -> float:
    """The geometric mean, by which ratios are taken."""
    return exp(_middle(values))
