"""Options are resolved once, and whatever LoadGen would skip or misread is refused with one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import benchmarks, config
from harness import conf as conf_files
from harness.cli.run import run
from harness.conf import Conf
from harness.config import RunConfig, as_arguments, as_json, doubts, resolve
from sut.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_conf(text: str) -> Path:
        path = tmp_path / "user.conf"
        path.write_text(text)
        return path

    return write_conf


def echo(scenario: str = "Offline", **options: Any) -> RunConfig:
    return resolve(scenario=scenario, backend="echo", **options)


# -- precedence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "options", "rate", "why"),
    [
        ("", {}, 20.0, "the benchmark's row"),
        ("demo.Server.target_qps = 7\n", {}, 7.0, "user.conf goes before the row"),
        ("demo.Server.target_qps = 7\n", {"target_qps": 3.5}, 3.5, "the option goes before user.conf"),
        ("*.*.target_qps = 7\n", {}, 7.0, "a wildcard of user.conf, too, goes before the row"),
        ("demo.Offline.target_qps = 7\n", {}, 20.0, "another scenario's line says nothing"),
        ("llama2-70b.Server.target_qps = 7\n", {}, 20.0, "nor does another model's"),
    ],
)
def test_an_option_goes_before_user_conf_and_that_before_the_row(
    write: Write, conf: str, options: dict[str, float], rate: float, why: str
) -> None:
    resolved = echo("Server", user_conf=write(conf), **options)
    assert resolved.settings["target_qps"] == rate, why
    assert set(options) <= resolved.chosen


@pytest.mark.parametrize(
    ("conf", "value"),
    [
        ("demo.Offline.min_duration = 1\n*.Offline.min_duration = 2\n", 1),
        # any model goes before any scenario
        ("*.Offline.min_duration = 2\ndemo.*.min_duration = 3\n", 2),
        ("demo.*.min_duration = 3\n*.*.min_duration = 4\n", 3),
        ("*.*.min_duration = 4\n", 4),
        ("demo.Server.min_duration = 5\n", None),
        # of two lines for one place the later holds
        ("*.*.min_duration = 4\n*.*.min_duration = 6\n", 6),
    ],
)
def test_lookup_order(write: Write, conf: str, value: int | None) -> None:
    assert conf_files.lookup(conf_files.read_conf(write(conf)), "demo", "Offline", "min_duration") == value


# -- conf files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "demo.Server.traget_qps = 4",
            "line 1: LoadGen knows no key 'traget_qps'; did you mean 'target_qps'?",
        ),
        ("demo.Server.zzzz = 4", "line 1: LoadGen knows no key 'zzzz'."),
        ("demo.server.target_qps = 4", "line 1: LoadGen knows no scenario 'server'; did you mean 'Server'?"),
        ("llama2-70.Server.target_qps = 4", "line 1: LoadGen knows no model 'llama2-70'; did you mean 'llama2-70b'?"),
        (
            "llama2-70b-99.9.Server.target_qps = 4",
            "line 1: LoadGen knows no model 'llama2-70b-99.9'; did you mean 'llama2-70b'?",
        ),
        (
            "demo.Server.min_duration = 1e3",
            "line 1: min_duration = 1e3 is not a whole number (LoadGen would cut it at the first other character).",
        ),
        (
            "demo.Server.ttft_latency = 450.5",
            "line 1: ttft_latency = 450.5 is not a whole number (LoadGen would cut it at the first other character).",
        ),
        ("demo.Server.target_qps = fast", "line 1: target_qps = fast is not a number."),
        (
            "demo.Server.target_qps 4",
            "line 1: 'demo.Server.target_qps 4' is not of the form 'model.scenario.key = value'.",
        ),
        (
            "demo.Server.target_qps=4",
            "line 1: 'demo.Server.target_qps=4' is not of the form 'model.scenario.key = value'.",
        ),
        (
            "demo.Server.target_qps = 4 # fast",
            "line 1: 'demo.Server.target_qps = 4 # fast' is not of the form 'model.scenario.key = value'.",
        ),
        ("target_qps = 4", "line 1: 'target_qps' is not of the form model.scenario.key."),
        ("# fine\n\ndemo.target_qps = 4", "line 3: 'demo.target_qps' is not of the form model.scenario.key."),
        (
            "*.*.qsl_rng_seed = 4",
            "line 1: qsl_rng_seed cannot be set in user.conf; LoadGen takes it from its own mlperf.conf only.",
        ),
        ("*.*.mode = 1", "line 1: mode cannot be set in user.conf; use --mode."),
    ],
)
def test_a_line_that_loadgen_would_skip_or_misread_is_refused(write: Write, line: str, sentence: str) -> None:
    path = write(line + "\n")
    with pytest.raises(ConfigError) as refused:
        conf_files.read_conf(path)
    assert str(refused.value) == f"{path}, {sentence}"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.conf"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.conf", tmp_path, binary):
        with pytest.raises(ConfigError, match=f"^cannot read {path}: .*\\.$"):
            conf_files.read_conf(path)


def test_blank_lines_and_comments_are_no_settings(write: Write) -> None:
    assert conf_files.read_conf(write("\n   \n# a comment = 4\n\t\ndemo.Server.target_qps = 2.5\n")) == {
        ("demo", "Server", "target_qps"): 2.5
    }


@pytest.mark.parametrize("scenario", benchmarks.SCENARIOS)
def test_the_effective_user_conf_reads_back_as_the_settings_it_was_written_from(write: Write, scenario: str) -> None:
    resolved = echo(scenario)
    text = conf_files.conf_text(resolved.loadgen_model, resolved.loadgen_scenario, resolved.settings)
    expected: Conf = {
        (resolved.loadgen_model, resolved.loadgen_scenario, key): value for key, value in resolved.settings.items()
    }
    assert conf_files.read_conf(write(text)) == expected


# -- resolve ---------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    resolved, row = resolve(scenario="Offline"), benchmarks.find("demo")
    assert (resolved.backend, resolved.mode, resolved.failure_policy) == ("vllm", "performance", "strict")
    assert (resolved.replicas, resolved.stall_timeout, resolved.request_timeout) == (1, 300.0, None)
    assert (resolved.model, resolved.dataset, resolved.dtype) == (row.model, row.dataset, row.dtype)
    assert resolved.has_own_dataset(1024)
    assert resolved.user_conf == str(ROOT / "user.conf")
    assert resolved.output_dir.parent == Path("results")
    assert resolved.output_dir.name.endswith("-demo-Offline-performance")


@pytest.mark.parametrize(
    ("scenario", "asked", "dispatch", "stream", "loadgen"),
    [
        ("Offline", "auto", "pull", False, ("demo", "Offline")),
        ("Offline", "round-robin", "round-robin", False, ("demo", "Offline")),
        ("Server", "auto", "round-robin", True, ("demo", "Server")),
        ("Interactive", "auto", "round-robin", True, ("demo-interactive", "Server")),
        ("SingleStream", "auto", "round-robin", True, ("demo", "SingleStream")),
        ("MultiStream", "pull", "pull", True, ("demo", "MultiStream")),
    ],
)
def test_what_a_scenario_means(
    scenario: str, asked: str, dispatch: str, stream: bool, loadgen: tuple[str, str]
) -> None:
    resolved = echo(scenario, dispatch=asked)
    assert (resolved.dispatch, resolved.stream) == (dispatch, stream)
    assert (resolved.loadgen_model, resolved.loadgen_scenario) == loadgen


@pytest.mark.parametrize(
    ("conf", "asked", "dispatch", "passes"),
    [
        ("", "auto", "least-outstanding", 0),  # as many queries as asked, and no whole passes over the samples
        ("", "pull", "pull", 0),
        ("demo.Offline.sample_concatenate_permutation = 1\n", "auto", "least-outstanding", 1),  # a person wants them
    ],
)
def test_what_a_closed_loop_means(write: Write, conf: str, asked: str, dispatch: str, passes: int) -> None:
    resolved = echo(concurrency=8, dispatch=asked, user_conf=write(conf))
    assert (resolved.dispatch, resolved.stream, resolved.loadgen_scenario) == (dispatch, True, "Offline")
    assert resolved.settings == echo().settings | {"sample_concatenate_permutation": passes}
    assert as_json(resolved)["concurrency"] == 8


def test_another_model_brings_its_own_type_and_context() -> None:
    assert echo().max_model_len == benchmarks.find("demo").max_model_len
    other = echo(model="/some/model", dataset="/some/data.jsonl")
    assert (other.dtype, other.max_model_len, other.has_own_dataset(1024)) == ("auto", None, False)


@pytest.mark.parametrize(
    ("mode", "samples", "others", "limit"), [("performance", 6396, 4395, 10_240), ("accuracy", 4395, 6396, 32_768)]
)
def test_gpt_oss_is_asked_other_samples_in_another_way_in_each_mode(
    mode: str, samples: int, others: int, limit: int
) -> None:
    resolved = echo(benchmark="gpt-oss-120b", dataset="rows.parquet", mode=mode)
    assert (resolved.generation.max_tokens, resolved.generation.temperature) == (limit, 1.0)
    assert (resolved.has_own_dataset(samples), resolved.has_own_dataset(others)) == (True, False)
    # LoadGen's own counts stand for the whole dataset, and only for that
    assert config.fit_to_dataset(resolved, samples) == resolved.settings
    assert config.fit_to_dataset(resolved, 100)["performance_sample_count_override"] == 100


def test_seconds_become_milliseconds_for_loadgen() -> None:
    assert echo("Server", min_duration=0.25, min_queries=7).settings | {} == {
        **echo("Server").settings,
        "min_duration": 250,
        "min_query_count": 7,
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scenario": "offline"}, "unknown scenario 'offline' (nearest: Offline): choose one of "),
        ({"mode": "submision"}, "unknown mode 'submision' (nearest: submission): choose one of"),
        ({"backend": "vlm"}, "unknown backend 'vlm' (nearest: vllm): choose one of vllm, remote, ray, echo."),
        ({"dispatch": "robin"}, "unknown dispatch policy 'robin' (nearest: round-robin): choose one of auto, "),
        ({"failure_policy": "lax"}, "unknown failure policy 'lax': choose one of strict, resilient."),
        ({"replicas": 0}, "--replicas is 0: it must be at least 1."),
        ({"max_in_flight": 0}, "--max-in-flight is 0: it must be at least 1."),
        ({"benchmark": "llama2-70b-99.9"}, "benchmark llama2-70b-99.9 ships no dataset: name one with --dataset"),
        ({"scenario": "Server", "target_qps": 0.0}, "target_qps is 0.0: it must be a positive number."),
        ({"min_duration": -1.0}, "min_duration is -1000: it must be a positive number."),
        ({"scenario": "SingleStream", "target_qps": 1.0}, "--target-qps has no meaning in SingleStream, which issues "),
        ({"concurrency": 0}, "--concurrency is 0: it must be at least 1."),
        ({"concurrency": 4, "scenario": "Server"}, "--concurrency is a closed loop, which is Offline with a cap: in "),
        ({"concurrency": 4, "scenario": "SingleStream"}, "--concurrency is a closed loop, which is Offline with a cap"),
        ({"concurrency": 4, "mode": "submission"}, "--concurrency is for measuring: a closed loop is no submission"),
        (
            {"concurrency": 4, "endpoint": ["http://a"], "offline_batch": 2},
            "--concurrency releases one query as another ends: leave --offline-batch out.",
        ),
        ({"concurrency": 9, "max_in_flight": 4, "replicas": 2}, "--max-in-flight lets 8 queries together, and never "),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(**{"scenario": "Offline", **options})
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_is_a_finite_number(rate: float) -> None:
    with pytest.raises(ConfigError):
        echo("Server", target_qps=rate)


def test_every_option_is_in_the_json_by_its_name() -> None:
    document = json.loads(json.dumps(config.as_json(echo(target_qps=2.0))))
    assert set(document) == {*RunConfig.__dataclass_fields__, "target_qps", "min_duration", "min_queries"}
    assert (document["target_qps"], document["stream_interval"]) == (2.0, "auto")
    assert document["chosen"] == ["target_qps"]
    assert document["generation"]["temperature"] == 0.0


# -- counts for a dataset of another size ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "samples", "fitted", "why"),
    [
        ({}, 1024, {"performance_sample_count_override": 512, "min_query_count": 1024}, "the whole dataset"),
        ({}, 64, {"performance_sample_count_override": 64, "min_query_count": 64}, "each sample once"),
        (
            {},
            2000,
            {"performance_sample_count_override": 512, "min_query_count": 2000},
            "one set at most is loaded",
        ),
        ({"min_queries": 99}, 64, {"min_query_count": 99}, "a count that a person set stays"),
        ({"min_queries": 1024}, 64, {"min_query_count": 1024}, "also if it is the benchmark's own"),
        ({"min_duration": 5}, 64, {"min_query_count": 64, "min_duration": 5000}, "and so does a duration"),
        ({"scenario": "Server"}, 64, {"min_query_count": 512}, "Server's counts are early stopping's"),
    ],
)
def test_fit_to_dataset(options: dict[str, Any], samples: int, fitted: dict[str, int], why: str) -> None:
    resolved = resolve(**{"scenario": "Offline", "backend": "echo"} | options)
    assert fitted.items() <= config.fit_to_dataset(resolved, samples).items(), why


def test_a_set_of_loaded_samples_that_a_person_chose_stays(write: Callable[[str], Path]) -> None:
    resolved = echo("Offline", user_conf=write("demo.*.performance_sample_count_override = 32\n"))
    assert config.fit_to_dataset(resolved, 64)["performance_sample_count_override"] == 32


# -- what LoadGen says it ran with -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "scenario", "reported", "differences"),
    [
        ({"min_duration": 600}, "Offline", {"effective_min_duration_ms": 600}, []),
        (
            {"min_duration": 600},
            "Offline",
            {"effective_min_duration_ms": 0},
            ["min_duration is 600 and LoadGen ran with effective_min_duration_ms = 0"],
        ),
        # a key it does not report departs from what was asked, unless that is nothing
        ({"min_duration": 600}, "Offline", {}, ["min_duration is 600 and LoadGen ran with "
                                                "effective_min_duration_ms = None"]),
        ({"min_duration": 0}, "Offline", {}, []),
        # milliseconds are asked, nanoseconds reported
        ({"ttft_latency": 450}, "Server", {"requested_server_ttft_latency": 450_000_000}, []),
        (
            {"ttft_latency": 450},
            "Server",
            {"requested_server_ttft_latency": 450},
            ["ttft_latency is 450 and LoadGen ran with requested_server_ttft_latency = 450"],
        ),
        # limits of another scenario are not looked for
        ({"ttft_latency": 450}, "Offline", {}, []),
        ({"target_latency_percentile": 99}, "Server", {"effective_target_latency_percentile": 0.99}, []),
        ({"target_qps": 0.1}, "Server", {"effective_target_qps": 0.1}, []),
        ({"target_qps": 20}, "Server", {"effective_target_qps": 20.0}, []),
        ({"use_token_latencies": 1}, "Server", {"requested_use_token_latencies": True}, []),
        ({"sample_concatenate_permutation": 1}, "Offline", {"effective_sample_concatenate_permutation": False},
         ["sample_concatenate_permutation is 1 and LoadGen ran with effective_sample_concatenate_permutation = False"]),
        # seeds have 64 bits, more than a float can tell apart
        (
            {"schedule_rng_seed": 16159082839903944936},
            "Server",
            {"effective_schedule_rng_seed": 16159082839903944936},
            [],
        ),
        (
            {"schedule_rng_seed": 16159082839903944936},
            "Server",
            {"effective_schedule_rng_seed": 16159082839903944937},
            [
                "schedule_rng_seed is 16159082839903944936 and LoadGen ran with "
                "effective_schedule_rng_seed = 16159082839903944937"
            ],
        ),
    ],
)  # fmt: skip
def test_reported_differences(
    settings: dict[str, float], scenario: str, reported: dict[str, Any], differences: list[str]
) -> None:
    assert conf_files.reported_differences(settings, scenario, reported) == differences


# LoadGen's own values: the built-in mlperf.conf and an empty user.conf.
ASK_LOADGEN = """
import json, sys
import mlperf_loadgen as lg
settings = lg.TestSettings()
assert settings.FromConfig(sys.argv[1], sys.argv[2], sys.argv[3], 1) == 0
names = [name for name in dir(settings) if not name.startswith("_")]
fields = {name: getattr(settings, name) for name in names}
print(json.dumps({name: value for name, value in fields.items() if isinstance(value, (int, float))}))
"""

FIELDS = {
    "qsl_rng_seed": ("qsl_rng_seed", 1),
    "sample_index_rng_seed": ("sample_index_rng_seed", 1),
    "schedule_rng_seed": ("schedule_rng_seed", 1),
    "min_duration": ("min_duration_ms", 1),
    "min_query_count": ("min_query_count", 1),
    "performance_sample_count_override": ("performance_sample_count_override", 1),
    "accuracy_sample_count_override": ("accuracy_sample_count_override", 1),
    "sample_concatenate_permutation": ("sample_concatenate_permutation", 1),
    "use_token_latencies": ("use_token_latencies", 1),
    "ttft_latency": ("ttft_latency", 1_000_000),
    "tpot_latency": ("tpot_latency", 1_000_000),
}
SERVER_FIELDS = {
    "target_latency": ("server_target_latency_ns", 1_000_000),
    "target_latency_percentile": ("server_target_latency_percentile", 0.01),
}


@pytest.mark.parametrize(
    ("model", "scenario"),
    [("llama2-70b", "Offline"), ("llama2-70b", "Server"), ("llama3_1-8b-interactive", "Server")],
)
def test_the_rounds_values_are_what_loadgen_itself_has_built_in(model: str, scenario: str, write: Write) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK_LOADGEN, str(write("")), model, scenario], capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    ours = conf_files.round_settings(model, scenario)
    fields = FIELDS | (SERVER_FIELDS if scenario == "Server" else {})
    assert set(ours) <= set(fields) | {"target_latency_percentile", "samples_per_query"}
    assert {"qsl_rng_seed", "schedule_rng_seed", "min_duration"} <= set(ours)
    for key in set(ours) & set(fields):
        name, factor = fields[key]
        expected = ours[key] * factor if factor != 1 else ours[key]
        assert theirs[name] == pytest.approx(expected) if isinstance(expected, float) else theirs[name] == expected, key


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("hf_token", True),
        ("api_key", True),
        ("tokenizer_mode", False),
        ("max_num_batched_tokens", False),
        ("tokens", False),
    ],
)
def test_a_secret_among_engine_arguments_is_not_saved(name: str, hidden: bool) -> None:
    config = resolve(scenario="Offline", engine_arg={name: "precious"})
    assert as_json(config)["engine_arg"] == {name: "***" if hidden else "precious"}
    within = resolve(scenario="Offline", engine_arg={"overrides": {name: "precious"}})
    assert as_json(within)["engine_arg"] == {"overrides": {name: "***" if hidden else "precious"}}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scenario": "Server"}, "LoadGen offers its built-in 1 query/s, so 24,576 samples take 6.8 hours."),
        ({"scenario": "Server", "target_qps": 40.0}, None),
        ({"scenario": "Offline"}, "nobody has set --target-qps, the samples/s that you expect"),
        ({"scenario": "Offline", "mode": "accuracy"}, None),  # which knows how many samples it asks
        ({"scenario": "Offline", "benchmark": "demo"}, None),  # whose row has a rate
    ],
)
def test_a_rate_that_nobody_has_set_is_doubted(options: dict[str, Any], says: str | None) -> None:
    found = doubts(resolve(**({"benchmark": "llama2-70b-99.9", "dataset": "d", "backend": "echo"} | options)), 24_576)
    assert len(found) == (says is not None) and (says is None or says in found[0])


def test_options_become_the_command_line_that_gives_them() -> None:

    options = {
        "scenario": "Server",
        "replicas": 2,
        "serve": True,
        "insecure": False,
        "model": None,
        "endpoint": (),
        "engine_arg": {"max_num_seqs": 64, "dtype": "float32", "enforce_eager": True},
        "engine_env": {"A": "x=y"},
        "min_duration": 2.5,
    }
    words = as_arguments(options)
    with run.make_context("run", list(words)) as context:
        read = context.params
    assert {name: read[name] for name in options} == options
