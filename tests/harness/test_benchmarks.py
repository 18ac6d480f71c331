"""The benchmarks are data: each row is whole, and its limits are those of its sources."""

from __future__ import annotations

import json

import pytest

from harness import benchmarks
from harness.benchmarks import NAMES, SCENARIOS, Target
from harness.conf import INTEGER_KEYS, KNOWN_MODELS, REAL_KEYS
from harness.demo import QUESTIONS, REFERENCE
from sut.errors import ConfigError


@pytest.mark.parametrize(
    ("target", "value", "fault"),
    [
        (Target(low=10), 10.0, None),
        (Target(low=10), 9.9999, "is 9.9999, below 10"),
        (Target(high=10), 10.0, None),
        (Target(high=10), 10.1, "is 10.1, above 10"),
        (Target(9, 11), 10, None),
        (Target(), -1e9, None),
    ],
)
def test_a_target_says_what_is_wrong_with_a_value(target: Target, value: float, fault: str | None) -> None:
    assert target.fault(value) == fault


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_found_by_its_name_and_its_settings_are_keys_of_loadgen(name: str) -> None:
    row = benchmarks.find(name)
    assert row.name == name
    assert row.loadgen_model in KNOWN_MODELS
    assert row.generation.temperature == 0
    assert row.generation.min_tokens == 1
    assert set(row.settings) <= {"*", *SCENARIOS}
    assert {key for part in row.settings.values() for key in part} <= INTEGER_KEYS | REAL_KEYS
    assert set(row.targets) >= {"rouge1", "rouge2", "rougeL"}


@pytest.mark.parametrize(
    ("name", "scenario", "key"),
    [
        ("llama2-70b-99.9", "Offline", "llama2-70b"),
        ("llama2-70b-99.9", "Server", "llama2-70b"),
        ("llama2-70b-99.9", "Interactive", "llama2-70b-interactive"),
        ("llama3.1-8b", "Interactive", "llama3_1-8b-interactive"),
        ("demo", "SingleStream", "demo"),
    ],
)
def test_loadgen_knows_a_benchmark_by_another_name_and_interactive_as_a_model(
    name: str, scenario: str, key: str
) -> None:
    assert benchmarks.find(name).model_key(scenario) == key


@pytest.mark.parametrize(
    ("name", "hint"),
    [("demoo", " (nearest: demo)"), ("llama2-70b", " (nearest: llama2-70b-99.9)"), ("?", "")],
)
def test_an_unknown_name_lists_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        benchmarks.find(name)
    assert str(refused.value) == f"unknown benchmark '{name}'{hint}: choose one of {', '.join(NAMES)}."


def test_the_checkers_minimum_for_llama2_70b() -> None:
    targets = benchmarks.find("llama2-70b-99.9").targets
    lows = {name: round(target.low or 0, 7) for name, target in targets.items()}
    assert lows == {"rouge1": 44.3867688, "rouge2": 22.0131648, "rougeL": 28.5875838, "tokens_per_sample": 265.005}
    assert round(targets["tokens_per_sample"].high or 0, 3) == 323.895


def test_the_demos_targets_derive_from_its_reference_and_its_size_from_its_file() -> None:
    row, reference = benchmarks.find("demo"), json.loads(REFERENCE.read_text())["scores"]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert row.targets[name] == Target(low=reference[name] * 0.999)
    length = reference["tokens_per_sample"]
    assert row.targets["tokens_per_sample"] == Target(length * 0.9, length * 1.1)
    assert len(QUESTIONS.read_text().splitlines()) == row.samples
    assert not row.submittable
