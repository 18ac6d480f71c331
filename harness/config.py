"""A run's configuration: every option resolved once, before anything starts.

Precedence: option > user.conf > the benchmark's row > the mlperf.conf compiled into LoadGen. What results is written as
user.conf into the output directory; LoadGen reads that file, and is then held to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from difflib import get_close_matches
from itertools import count
from math import isfinite
from pathlib import Path
from sysconfig import get_path
from typing import Any

from harness import benchmarks
from harness.benchmarks import SCENARIOS, Benchmark, Number
from sut.backends import BACKENDS, Generation
from sut.dispatch import POLICIES
from sut.errors import ConfigError

# Names of variables whose values are never saved or shown.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)

MODES = ("performance", "accuracy")
FAILURE_POLICIES = ("strict", "resilient")

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


@dataclass(frozen=True)
class RunConfig:
    """Every option by its long name, resolved, in seconds; `settings` are LoadGen's keys, in milliseconds."""

    scenario: str
    mode: str
    benchmark: str
    model: str
    dataset: str
    backend: str
    replicas: int
    dispatch: str
    engine_arg: Mapping[str, Any]
    engine_env: Mapping[str, str]
    max_in_flight: int | None
    stream_interval: int | None
    generation: Generation
    dtype: str
    max_model_len: int | None
    failure_policy: str
    first_token_timeout: float | None
    stall_timeout: float | None
    request_timeout: float | None
    samples: int | None
    user_conf: str | None
    audit_config: str | None
    settings: Mapping[str, Number]
    chosen: frozenset[str]
    """The keys of `settings` that a person set, by user.conf or an option."""
    output_dir: Path

    @property
    def row(self) -> Benchmark:
        return benchmarks.find(self.benchmark)

    @property
    def loadgen_scenario(self) -> str:
        return "Server" if self.scenario == "Interactive" else self.scenario

    @property
    def loadgen_model(self) -> str:
        return self.row.model_key(self.scenario)

    def has_own_dataset(self, samples: int) -> bool:
        """Whether these are all of the benchmark's own samples, which alone have targets; told by number where the
        benchmark's dataset does not ship with the harness."""
        return samples == self.row.samples and self.row.dataset in (None, self.dataset)

    @property
    def stream(self) -> bool:
        """Offline has no first token to report."""
        return self.loadgen_scenario != "Offline"


def resolve(
    *,
    scenario: str,
    mode: str = "performance",
    benchmark: str = "demo",
    model: str | None = None,
    dataset: str | None = None,
    backend: str = "vllm",
    replicas: int = 1,
    dispatch: str = "auto",
    engine_arg: Mapping[str, Any] | None = None,
    engine_env: Mapping[str, str] | None = None,
    max_in_flight: int | None = None,
    stream_interval: int | None = None,
    failure_policy: str = "strict",
    first_token_timeout: float | None = None,
    stall_timeout: float | None = 300.0,
    request_timeout: float | None = None,
    samples: int | None = None,
    user_conf: Path | None = None,
    audit_config: Path | None = None,
    target_qps: float | None = None,
    min_duration: float | None = None,
    min_queries: int | None = None,
    output_dir: Path | None = None,
) -> RunConfig:
    """Resolve options; starts nothing and writes nothing. Raises ConfigError for what cannot be honoured."""
    row = benchmarks.find(benchmark)
    one_of(scenario, SCENARIOS, "scenario")
    one_of(mode, MODES, "mode")
    one_of(backend, BACKENDS, "backend")
    one_of(dispatch, ("auto", *POLICIES), "dispatch policy")
    one_of(failure_policy, FAILURE_POLICIES, "failure policy")
    at_least_one(replicas=replicas, max_in_flight=max_in_flight, stream_interval=stream_interval, samples=samples)
    engine_arg = dict(engine_arg or {})
    source = dataset or row.dataset
    if source is None:
        raise ConfigError(f"benchmark {benchmark} ships no dataset: name one with --dataset.")
    conf_path = user_conf or default_file("user.conf")
    conf = read_conf(conf_path) if conf_path else {}
    refuse_odd_seconds(first_token_timeout, stall_timeout, request_timeout, min_duration)
    options = given(
        target_qps=target_qps,
        min_duration=None if min_duration is None else round(min_duration * 1000),
        min_query_count=min_queries,
    )
    own_model = model is None or model == row.model
    return RunConfig(
        scenario=scenario,
        mode=mode,
        benchmark=benchmark,
        model=model or row.model,
        dataset=source,
        backend=backend,
        replicas=replicas,
        dispatch=("pull" if scenario == "Offline" else "round-robin") if dispatch == "auto" else dispatch,
        engine_arg=engine_arg,
        engine_env=dict(engine_env or {}),
        max_in_flight=max_in_flight,
        stream_interval=stream_interval,
        generation=row.generation,
        dtype=str(engine_arg.get("dtype", row.dtype if own_model else "auto")),
        max_model_len=row.max_model_len if own_model else None,
        failure_policy=failure_policy,
        first_token_timeout=first_token_timeout,
        stall_timeout=stall_timeout,
        request_timeout=request_timeout,
        samples=samples,
        user_conf=str(conf_path) if conf_path else None,
        audit_config=str(audit_config) if audit_config else None,
        settings=resolve_settings(row, scenario, conf, options),
        chosen=chosen_keys(row, scenario, conf, options),
        output_dir=output_dir or default_output(benchmark, scenario, mode),
    )


def chosen_keys(row: Benchmark, scenario: str, conf: Conf, options: Mapping[str, Number]) -> frozenset[str]:
    """The keys that a person set, whatever their value."""
    place = row.model_key(scenario), "Server" if scenario == "Interactive" else scenario
    return frozenset(options) | {key for key in INTEGER_KEYS | REAL_KEYS if lookup(conf, *place, key) is not None}


def resolve_settings(row: Benchmark, scenario: str, conf: Conf, options: Mapping[str, Number]) -> dict[str, Number]:
    """LoadGen's keys for one test: the benchmark's row, then user.conf, then the options."""
    model, row_scenario = row.model_key(scenario), scenario
    scenario = "Server" if scenario == "Interactive" else scenario
    settings: dict[str, Number] = {}
    for part in ("*", scenario, row_scenario):
        settings |= row.settings.get(part, {})
    for key in INTEGER_KEYS | REAL_KEYS:
        value = lookup(conf, model, scenario, key)
        if value is not None:
            settings[key] = value
    if "target_qps" in options and scenario not in ("Server", "Offline"):
        raise ConfigError(
            f"--target-qps has no meaning in {scenario}, which issues the next query when the last is answered."
        )
    for key, value in (settings | dict(options)).items():
        if not isfinite(value) or value < 0 or (key == "target_qps" and value == 0):
            raise ConfigError(f"{key} is {value}: it must be a positive number.")
    return settings | dict(options)


def fit_to_dataset(config: RunConfig, samples: int) -> dict[str, Number]:
    """Counts for a dataset that is not the benchmark's whole one, so that LoadGen neither asks for samples that are not
    there nor repeats a handful of them thousands of times; what a person set stays."""
    settings, row = dict(config.settings), config.row
    if samples == row.samples:
        return settings
    fitted: dict[str, Number] = {"performance_sample_count_override": min(samples, row.performance_samples)}
    if config.loadgen_scenario == "Offline":
        fitted |= {"min_query_count": samples, "min_duration": settings.get("min_duration", 0)}
    return settings | {key: value for key, value in fitted.items() if key not in config.chosen}


def asked_settings(config: RunConfig) -> dict[str, Number]:
    """The settings that LoadGen is to report back: those of the run, and over them those of an audit file."""
    if config.audit_config is None:
        return dict(config.settings)
    conf = read_conf(Path(config.audit_config), refuse=False)
    keys = {key for _, _, key in conf}
    place = config.loadgen_model, config.loadgen_scenario
    audit = {key: value for key in keys if (value := lookup(conf, *place, key)) is not None}
    return dict(config.settings) | audit


# -- conf files -------------------------------------------------------------------------------------------------------


def read_conf(path: Path, refuse: bool = True) -> Conf:
    """Read a user.conf. Raises ConfigError, naming the line, for anything that LoadGen would skip or misread."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.") from error
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
        return float(text) if key in REAL_KEYS else int(text)
    except ValueError:
        kind = "a number" if key in REAL_KEYS else "a whole number (LoadGen would cut it at the first other character)"
        raise ConfigError(f"{where}: {key} = {text} is not {kind}.") from None


def lookup(conf: Conf, model: str, scenario: str, key: str) -> Number | None:
    """A key's value by LoadGen's order: exact, any model, any scenario, any. Any model goes before any scenario."""
    for place in ((model, scenario), ("*", scenario), (model, "*"), ("*", "*")):
        if (*place, key) in conf:
            return conf[*place, key]
    return None


def conf_text(model: str, scenario: str, settings: Mapping[str, Number]) -> str:
    """A user.conf that holds exactly these settings."""
    head = "# The effective user.conf of this run: what LoadGen read beside its built-in mlperf.conf.\n"
    return head + "".join(f"{model}.{scenario}.{key} = {value}\n" for key, value in sorted(settings.items()))


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


def _same(asked: Number, used: Number) -> bool:
    """Seeds have 64 bits, so whole numbers are compared as such; the rest may have been through a multiplication."""
    if isinstance(asked, int) and isinstance(used, int):
        return asked == used
    return abs(used - asked) <= 1e-9 * abs(asked)


def round_settings(model: str, scenario: str, keys: Iterable[str] | None = None) -> dict[str, Number]:
    """What the top-level mlperf.conf, the round's values, says for a model and scenario."""
    path = default_file("mlperf.conf")
    conf = read_conf(path, refuse=False) if path else {}
    wanted = keys if keys is not None else {key for _, _, key in conf}
    return {key: value for key in wanted if (value := lookup(conf, model, scenario, key)) is not None}


# -- small things
# -------------------------------------------------------------------------------------------------------


def default_file(name: str) -> Path | None:
    """The project's own conf file: beside the packages in a checkout, under the prefix where it was installed."""
    for place in (Path(__file__).parent.parent, Path(get_path("data")) / "share" / "loadgen-harness"):
        if (place / name).is_file():
            return place / name
    return None


def default_output(benchmark: str, scenario: str, mode: str) -> Path:
    """A folder that is not there yet."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{benchmark}-{scenario}-{mode}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(path for name in names if not (path := Path("results") / name).exists())


def given(**options: Number | None) -> dict[str, Number]:
    return {name: value for name, value in options.items() if value is not None}


def one_of(value: str, names: Iterable[str], what: str) -> None:
    names = list(names)
    if value not in names:
        near = get_close_matches(value, names, n=1, cutoff=0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(f"unknown {what} {value!r}{hint}: choose one of {', '.join(names)}.")


def refuse_odd_seconds(*durations: float | None) -> None:
    for seconds in durations:
        if seconds is not None and not isfinite(seconds):
            raise ConfigError(f"a duration or deadline of {seconds} seconds makes no sense: give a number.")


def at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {number}: it must be at least 1.")


def as_json(config: RunConfig) -> dict[str, Any]:
    """Every option by its long name, as result.json holds it."""
    plain = {field.name: getattr(config, field.name) for field in fields(config)}
    milliseconds = config.settings.get("min_duration")
    return plain | {
        "output_dir": str(config.output_dir),
        "generation": asdict(config.generation),
        "chosen": sorted(config.chosen),
        "stream_interval": config.stream_interval or "auto",
        "target_qps": config.settings.get("target_qps"),
        "min_duration": None if milliseconds is None else milliseconds / 1000,
        "min_queries": config.settings.get("min_query_count"),
        "engine_env": {name: "***" if SECRET.search(name) else value for name, value in config.engine_env.items()},
    }
