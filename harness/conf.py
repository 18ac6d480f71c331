"""LoadGen's conf files: read, refused, looked up, written, and compared with what LoadGen reports to have used.

Lines have the form `model.scenario.key = value`, * is a wildcard, times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from sysconfig import get_path
from typing import Any

from harness.benchmarks import Number
from sut.errors import ConfigError

# Keys that LoadGen reads from user.conf (loadgen/test_settings_internal.cc). It skips unknown ones without a word and
# cuts a number at the first character that does not fit its type, so both are refused here.
INTEGER_KEYS = frozenset(
    [
        "use_token_latencies",
        "ttft_latency",
        "tpot_latency",
        "infer_token_latencies",
        "token_latency_scaling_factor",
        "samples_per_query",
        "target_latency",
        "performance_issue_unique",
        "performance_issue_same",
        "performance_issue_same_index",
        "sample_concatenate_permutation",
        "coalesce_queries",
        "max_async_queries",
        "min_duration",
        "max_duration",
        "min_query_count",
        "max_query_count",
        "performance_sample_count_override",
        "accuracy_sample_count_override",
        "print_timestamps",
        "accuracy_log_rng_seed",
        "accuracy_log_sampling_target",
    ]
)
REAL_KEYS = frozenset({"target_qps", "target_latency_percentile"})
VERIFIER_KEYS = frozenset({"test07_accuracy_threshold", "test09_min_output_tokens", "test09_max_output_tokens"})
"""Real numbers in a compliance test's file that its verifier reads and LoadGen does not."""
FIXED_KEYS = frozenset(
    ["qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "accuracy_log_probability", "mode"]
)
KNOWN_MODELS = frozenset(
    [
        "*",
        "demo",
        "demo-interactive",
        "llama2-70b",
        "llama2-70b-interactive",
        "llama3_1-8b",
        "llama3_1-8b-interactive",
        "llama3_1-8b-edge",
        "llama3_1-405b",
        "llama3_1-405b-interactive",
        "mixtral-8x7b",
        "deepseek-r1",
        "deepseek-r1-interactive",
        "gpt-oss-120b",
        "gpt-oss-120b-interactive",
        "gptj",
        "qwen3-vl-235b-a22b",
    ]
)
LOADGEN_SCENARIOS = ("*", "Offline", "Server", "SingleStream", "MultiStream")

Conf = dict[tuple[str, str, str], Number]
"""(model, scenario, key) -> value, as in LoadGen's conf files."""


def read_conf(path: Path, refuse: bool = True) -> Conf:
    """Read a user.conf. Raises ConfigError, naming the line, for anything that LoadGen would skip or misread."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.") from error
    return parse_conf(lines, path, refuse)


def parse_conf(lines: Iterable[str], path: Path, refuse: bool) -> Conf:
    """The lines of a conf file; `path` is for the messages, `refuse` whether unknown keys are."""
    conf: Conf = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0] == "#":
            continue
        where = f"{path}, line {number}"
        if len(words) != 3 or words[1] != "=":
            raise ConfigError(f"{where}: {line.strip()!r} is not of the form 'model.scenario.key = value'.")
        parts = words[0].rsplit(".", 2)
        if len(parts) != 3:
            raise ConfigError(f"{where}: {words[0]!r} is not of the form model.scenario.key.")
        model, scenario, key = parts
        if refuse:
            refuse_key(model, scenario, key, where)
        conf[model, scenario, key] = parse_value(key, words[2], where)
    return conf


def refuse_key(model: str, scenario: str, key: str, where: str) -> None:
    if key in FIXED_KEYS:
        hint = "use --mode" if key == "mode" else "LoadGen takes it from its own mlperf.conf only"
        raise ConfigError(f"{where}: {key} cannot be set in user.conf; {hint}.")
    for value, known, what in (
        (key, INTEGER_KEYS | REAL_KEYS, "key"),
        (scenario, LOADGEN_SCENARIOS, "scenario"),
        (model, KNOWN_MODELS, "model"),
    ):
        if value not in known:
            near = get_close_matches(value, known, n=1, cutoff=0.4)
            raise ConfigError(
                f"{where}: LoadGen knows no {what} {value!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
            )


def parse_value(key: str, text: str, where: str) -> Number:
    try:
        return float(text) if key in REAL_KEYS | VERIFIER_KEYS else int(text)
    except ValueError:
        kind = "a number" if key in REAL_KEYS else "a whole number (LoadGen would cut it at the first other character)"
        raise ConfigError(f"{where}: {key} = {text} is not {kind}.") from None


def lookup(conf: Conf, model: str, scenario: str, key: str) -> Number | None:
    """A key's value by LoadGen's order: exact, any model, any scenario, any. Any model goes before any scenario."""
    for place in ((model, scenario), ("*", scenario), (model, "*"), ("*", "*")):
        if (*place, key) in conf:
            return conf[*place, key]
    return None


CONF_HEAD = "# The effective user.conf of this run: what LoadGen read beside its built-in mlperf.conf.\n"


def conf_text(model: str, scenario: str, settings: Mapping[str, Number]) -> str:
    """A user.conf that holds exactly these settings."""
    return CONF_HEAD + "".join(f"{model}.{scenario}.{key} = {value}\n" for key, value in sorted(settings.items()))


# LoadGen's key -> (the name it reports it by, factor), per scenario where it differs; nanoseconds are reported for
# latencies.
_REPORTED: Mapping[str, tuple[str, float]] = {
    "qsl_rng_seed": ("effective_qsl_rng_seed", 1),
    "sample_index_rng_seed": ("effective_sample_index_rng_seed", 1),
    "schedule_rng_seed": ("effective_schedule_rng_seed", 1),
    "min_duration": ("effective_min_duration_ms", 1),
    "max_duration": ("effective_max_duration_ms", 1),
    "min_query_count": ("requested_min_query_count", 1),
    "max_query_count": ("effective_max_query_count", 1),
    "performance_sample_count_override": ("effective_performance_sample_count", 1),
    "sample_concatenate_permutation": ("effective_sample_concatenate_permutation", 1),
    "use_token_latencies": ("requested_use_token_latencies", 1),
    "accuracy_log_rng_seed": ("effective_accuracy_log_rng_seed", 1),
    "accuracy_log_sampling_target": ("effective_accuracy_log_sampling_target", 1),
    "performance_issue_unique": ("effective_performance_issue_unique", 1),
}
_REPORTED_IN: Mapping[str, Mapping[str, tuple[str, float]]] = {
    "Offline": {"target_qps": ("effective_target_qps", 1)},
    "Server": {
        "target_qps": ("effective_target_qps", 1),
        "target_latency": ("effective_target_latency_ns", 1e6),
        "target_latency_percentile": ("effective_target_latency_percentile", 0.01),
        "ttft_latency": ("requested_server_ttft_latency", 1e6),
        "tpot_latency": ("requested_server_tpot_latency", 1e6),
    },
    "SingleStream": {"target_latency": ("requested_single_stream_expected_latency_ns", 1e6)},
    "MultiStream": {
        "target_latency": ("requested_multi_stream_expected_latency_ns", 1e6),
        "samples_per_query": ("effective_samples_per_query", 1),
    },
}


def reported_differences(settings: Mapping[str, Number], scenario: str, reported: Mapping[str, Any]) -> list[str]:
    """Where LoadGen's report of its settings departs from these; a key that it does not report does so too."""
    names = dict(_REPORTED) | dict(_REPORTED_IN[scenario])
    differences = []
    for key, value in settings.items():
        if key not in names:
            continue
        name, factor = names[key]
        asked, used = value * factor if factor != 1 else value, reported.get(name)
        if used is None and not value:
            continue
        if used is None or not _same(asked, used):
            differences.append(f"{key} is {value} and LoadGen ran with {name} = {used}")
    return differences


def _same(asked: Number, used: Any) -> bool:
    """Seeds have 64 bits, so whole numbers are compared as such; the rest LoadGen logs with six digits. A log may hold
    anything."""
    if not isinstance(used, int | float):
        return False
    if isinstance(asked, int) and isinstance(used, int):
        return asked == used
    return abs(used - asked) <= 1e-5 * abs(asked)


def round_settings(model: str, scenario: str, keys: Iterable[str] | None = None) -> dict[str, Number]:
    """What the top-level mlperf.conf, the round's values, says for a model and scenario."""
    path = default_file("mlperf.conf")
    conf = read_conf(path, refuse=False) if path else {}
    wanted = keys if keys is not None else {key for _, _, key in conf}
    return {key: value for key in wanted if (value := lookup(conf, model, scenario, key)) is not None}


def default_file(name: str) -> Path | None:
    """The project's own conf file: beside the packages in a checkout, under the prefix where it was installed."""
    for place in (Path(__file__).parent.parent, Path(get_path("data")) / "share" / "loadgen-harness"):
        if (place / name).is_file():
            return place / name
    return None
