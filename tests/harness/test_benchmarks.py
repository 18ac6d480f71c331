"""The benchmarks are data: each row is whole, and its limits are those of its sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import benchmarks
from harness.benchmarks import NAMES, SCENARIOS, Target, same_file
from harness.conf import INTEGER_KEYS, KNOWN_MODELS, REAL_KEYS, round_settings
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
    assert {row.generation.min_tokens, row.generation_in("accuracy").min_tokens} == {1}
    assert set(row.settings) <= {"*", *SCENARIOS}
    assert {key for part in row.settings.values() for key in part} <= INTEGER_KEYS | REAL_KEYS
    # what accuracy is measured by is either ROUGE, or named as missing here
    assert (row.ungraded is None) == (set(row.metrics) >= {"rouge1", "rouge2", "rougeL"})
    assert {scenario for groups in row.required.values() for group in groups for scenario in group} <= set(SCENARIOS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_a_row_and_the_rounds_mlperf_conf_say_the_same(name: str) -> None:
    row = benchmarks.find(name)
    for groups in row.required.values():
        for scenario in [scenario for group in groups for scenario in group]:
            loadgen_scenario = "Server" if scenario == "Interactive" else scenario
            said = round_settings(row.model_key(scenario), loadgen_scenario)
            assert said["performance_sample_count_override"] == row.performance_samples
            assert said.get("accuracy_sample_count_override", row.samples) == row.accuracy_samples
            assert said["use_token_latencies"] == 1
            assert {"ttft_latency", "tpot_latency"} <= set(said) or loadgen_scenario != "Server"
            if scenario == "Offline":
                assert said.get("min_query_count", row.offline_min_samples) == row.offline_min_samples


# (samples, accuracy samples, output limits, temperature, compliance tests), of constants.py and the references of v6.1
FACTS = {
    "llama2-70b-99.9": (24_576, 24_576, 1024, 1024, 0.0, ("TEST06",)),
    "llama3.1-8b": (13_368, 13_368, 128, 128, 0.0, ("TEST06",)),
    "llama3.1-8b-edge": (5000, 5000, 128, 128, 0.0, ()),
    "deepseek-r1": (4388, 4388, 20_000, 20_000, 0.0, ("TEST06",)),
    "gpt-oss-120b": (6396, 4395, 10_240, 32_768, 1.0, ("TEST07", "TEST09")),
}

# (minima, maxima) that the checker of v6.1 compares with, rounded
LIMITS = {
    "llama2-70b-99.9": (
        {"rouge1": 44.3867688, "rouge2": 22.0131648, "rougeL": 28.5875838, "tokens_per_sample": 265.005},
        {"tokens_per_sample": 323.895},
    ),
    "llama3.1-8b": (
        {
            "rouge1": 38.391408,
            "rouge2": 15.748425,
            "rougeL": 24.250743,
            "rougeLsum": 35.43507,
            "gen_len": 7_350_879.6,
        },
        {"gen_len": 8_984_408.4},
    ),
    "llama3.1-8b-edge": (
        {
            "rouge1": 38.6694,
            "rouge2": 15.953553,
            "rougeL": 24.391125,
            "rougeLsum": 35.76276,
            "gen_len": 2_746_001.7,
        },
        {"gen_len": 3_356_224.3},
    ),
    "deepseek-r1": (
        {"exact_match": 80.544618, "tokens_per_sample": 3497.60466},
        {"tokens_per_sample": 4274.85014},
    ),
    "gpt-oss-120b": ({"exact_match": 82.2987}, {"tokens_per_sample": 10_998.9}),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_row_says_what_the_round_says(name: str) -> None:
    row = benchmarks.find(name)
    ways = row.generation_in("performance"), row.generation_in("accuracy")
    assert FACTS[name] == (
        row.samples,
        row.accuracy_samples,
        *(way.max_tokens for way in ways),
        row.generation.temperature,
        row.audits,
    )
    assert {(way.temperature, way.top_p, way.top_k) for way in ways} == {(row.generation.temperature, 1.0, 0)}
    assert (row.samples_in("performance"), row.samples_in("accuracy")) == (row.samples, row.accuracy_samples)


@pytest.mark.parametrize("name", LIMITS)
def test_the_targets_are_the_checkers(name: str) -> None:
    targets = benchmarks.find(name).targets
    lows = {metric: round(target.low, 7) for metric, target in targets.items() if target.low is not None}
    highs = {metric: round(target.high, 5) for metric, target in targets.items() if target.high is not None}
    assert (lows, highs) == LIMITS[name]


def test_a_file_is_the_same_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    for path in ("rows.jsonl", "./rows.jsonl", f"../{tmp_path.name}/rows.jsonl", "link.jsonl"):
        assert same_file(path, str(tmp_path / "rows.jsonl"))
    assert same_file("owner/name:test", "owner/name:test")
    assert not same_file("owner/name", str(tmp_path / "rows.jsonl"))


def test_a_benchmark_with_two_datasets_names_both_and_one_with_one_names_it_for_each_mode() -> None:
    both = benchmarks.find("gpt-oss-120b")
    assert both.file_in("performance") == "perf/perf_eval_ref.parquet"
    assert both.file_in("accuracy") == "acc_eval_inputs.parquet"
    one = benchmarks.find("llama3.1-8b-edge")
    assert one.file_in("performance") == one.file_in("accuracy") == "sample_cnn_eval_5000.json"
    assert benchmarks.find("demo").file_in("accuracy") is None


def test_a_benchmark_of_edge_has_no_interactive_limits_and_loadgen_would_say_nothing() -> None:
    with pytest.raises(ConfigError) as refused:
        benchmarks.find("llama3.1-8b-edge").model_key("Interactive")
    assert str(refused.value) == (
        "benchmark llama3.1-8b-edge has no Interactive scenario, and LoadGen no limits for one."
    )


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


def test_the_demos_targets_derive_from_its_reference_and_its_size_from_its_file() -> None:
    row, reference = benchmarks.find("demo"), json.loads(REFERENCE.read_text())["scores"]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert row.targets[name] == Target(low=reference[name] * 0.999)
    length = reference["tokens_per_sample"]
    assert row.targets["tokens_per_sample"] == Target(length * 0.9, length * 1.1)
    assert len(QUESTIONS.read_text().splitlines()) == row.samples
    assert not row.submittable
