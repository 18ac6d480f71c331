"""The Pareto front of noisy figures: nothing is called dominated that chance may have put there."""

from __future__ import annotations

import numpy as np
import pytest

from harness.studies.front import DOMINATED, FRONT, NEAR, Aim, stand

AIMS = [Aim("rate", True), Aim("delay", False)]
Table = dict[str, tuple[float, float]]


def standing(table: Table, assumed: float = 0.05) -> dict[str, str]:
    measured = {name: {"rate": [rate], "delay": [delay]} for name, (rate, delay) in table.items()}
    return {name: own.where for name, own in stand(measured, AIMS, assumed).items()}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"a": (100, 1.0), "b": (200, 2.0)}, {"a": FRONT, "b": FRONT}),
        ({"a": (200, 1.0), "b": (100, 2.0)}, {"a": FRONT, "b": DOMINATED}),
        ({"a": (200, 1.0), "b": (100, 1.0)}, {"a": FRONT, "b": DOMINATED}),
        ({"a": (102, 0.99), "b": (100, 1.0)}, {"a": FRONT, "b": NEAR}),
        ({"a": (102, 0.5), "b": (100, 1.0)}, {"a": FRONT, "b": DOMINATED}),
        ({"a": (200, 1.01), "b": (100, 1.0)}, {"a": FRONT, "b": FRONT}),
        ({"a": (100, 1.0), "b": (100, 1.0)}, {"a": FRONT, "b": FRONT}),
        ({"a": (100, 1.0)}, {"a": FRONT}),
        ({}, {}),
    ],
    ids=[
        "a trade-off",
        "worse in both",
        "worse in one, equal in the other",
        "beaten on paper in both, within the noise",
        "beaten in one beyond the noise, on paper in the other",
        "far behind in one, ahead on paper in the other",
        "equal in all",
        "alone",
        "nobody",
    ],
)
def test_where_layouts_stand(table: Table, expected: dict[str, str]) -> None:
    assert standing(table) == expected


def test_who_dominates_is_named() -> None:
    measured = {"slow": {"rate": [1.0]}, "quick": {"rate": [2.0]}}
    assert stand(measured, AIMS[:1], 0.05)["slow"].by == "quick"


def test_a_layout_without_a_figure_stands_nowhere() -> None:
    measured = {"a": {"rate": [1.0], "delay": [1.0]}, "b": {"rate": [2.0], "delay": []}}
    assert list(stand(measured, AIMS, 0.05)) == ["a"]


def test_repeats_replace_the_assumed_noise() -> None:
    """The same means 20 % apart: decided where runs agree, undecided where they scatter."""
    for scatter, expected in ((0.01, DOMINATED), (0.3, NEAR)):
        apart = [1 - scatter, 1.0, 1 + scatter]
        measured = {"a": {"rate": [120 * x for x in apart]}, "b": {"rate": [100 * x for x in apart]}}
        assert stand(measured, AIMS[:1], 0.05)["b"].where == expected


def test_of_equals_few_are_called_dominated() -> None:
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(500):
        runs = {name: {"rate": list(np.exp(draw.normal(0, 0.1, 3)))} for name in ("a", "b")}
        wrong += DOMINATED in {own.where for own in stand(runs, AIMS[:1], 0.05).values()}
    assert wrong / 500 <= 0.07
