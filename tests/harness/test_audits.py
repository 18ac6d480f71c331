"""The compliance tests' settings: LoadGen reads them from a file, and a file is recognised by them."""

from __future__ import annotations

import pytest

from harness import benchmarks
from harness.audits import AUDITS, which
from sut.errors import ConfigError


def test_the_rounds_settings() -> None:
    """compliance/TEST06/audit.config of mlcommons/inference, line by line."""
    assert AUDITS["TEST06"].text().splitlines()[1:] == [
        "*.*.mode = 2",
        "*.*.accuracy_log_rng_seed = 720381539243781796",
        "*.*.accuracy_log_sampling_target = 100",
        "*.*.min_query_count = 100",
        "*.*.min_duration = 0",
        "*.*.sample_concatenate_permutation = 0",
    ]


@pytest.mark.parametrize("name", AUDITS)
def test_a_file_is_recognised_by_its_settings(name: str) -> None:
    lines = AUDITS[name].text().splitlines()
    assert which("\n".join(["# in another order", *reversed(lines[1:])])) is AUDITS[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("min_query_count = 100", "min_query_count = 10"),  # fewer samples
        ("*.*.min_duration = 0\n", ""),  # a setting is missing
        ("*.*.mode", "*.Server.mode"),  # not for every scenario
        ("min_duration = 0", "min_duration = 0\n*.*.max_query_count = 5"),  # one more
    ],
)
def test_another_file_is_no_compliance_test(old: str, new: str) -> None:
    text = AUDITS["TEST06"].text()
    assert old in text
    assert which(text.replace(old, new)) is None


def test_a_file_that_loadgen_could_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="line 1"):
        which("*.*.mode 2")


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_benchmarks_ask_for_tests_that_are_known(name: str) -> None:
    assert set(benchmarks.find(name).audits) <= AUDITS.keys()
