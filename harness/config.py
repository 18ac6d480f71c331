"""A run's configuration: every option resolved once, before anything starts.

Precedence: option > user.conf > the benchmark's row > the mlperf.conf compiled into LoadGen. What results is written as
user.conf into the output directory; LoadGen reads that file, and is then held to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from difflib import get_close_matches
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from harness import benchmarks
from harness.audits import AUDITS, Audit, which
from harness.benchmarks import SCENARIOS, Benchmark, Number, same_file
from harness.conf import INTEGER_KEYS, REAL_KEYS, Conf, default_file, lookup, parse_conf, read_conf
from sut.backends import BACKENDS, Generation
from sut.dispatch import POLICIES
from sut.errors import ConfigError

# Names of variables whose values are never saved or shown.
SECRET = re.compile(r"KEY|TOKEN(?!IZ|S)|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)

_USERINFO = re.compile(r"(?<=://)[^/?#\s\"]*@")

USER_CONF, AUDIT_FILE = "user.conf", "audit.config"
"""The settings that LoadGen reads, in a run's folder: in the working directory it would find the second by itself."""

MODES = ("performance", "accuracy", "submission")
"""`submission` is accuracy, performance and the compliance tests on one start of the engines (parts.py)."""

FAILURE_POLICIES = ("strict", "resilient")


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
    endpoint: tuple[str, ...]
    serve: bool
    served_model: str | None
    dialect: str | None
    ca_file: str | None
    insecure: bool
    ready_timeout: float
    ray_address: str | None
    dispatch: str
    offline_batch: int
    engine_arg: Mapping[str, Any]
    engine_env: Mapping[str, str]
    max_in_flight: int | None
    concurrency: int | None
    """Queries in flight in all: a closed loop."""
    stream_interval: int | None
    generation: Generation
    dtype: str
    max_model_len: int | None
    failure_policy: str
    first_token_timeout: float | None
    stall_timeout: float | None
    request_timeout: float | None
    audit_dataset: str | None
    samples: int | None
    resume: bool
    no_telemetry: bool
    user_conf: str | None
    audit_config: str | None
    audit_text: str | None
    """What the audit file says; LoadGen reads a copy of it in the output directory."""
    settings: Mapping[str, Number]
    chosen: frozenset[str]
    """The keys of `settings` that a person set, by user.conf or an option."""
    output_dir: Path

    @property
    def row(self) -> Benchmark:
        return benchmarks.find(self.benchmark)

    @property
    def loadgen_scenario(self) -> str:
        return loadgen_name(self.scenario)

    @property
    def loadgen_model(self) -> str:
        return self.row.model_key(self.scenario)

    def has_own_dataset(self, samples: int) -> bool:
        """Whether these are all of the benchmark's own samples, which alone have targets; told by number where the
        benchmark's dataset does not ship with the harness."""
        ships = self.row.dataset
        return samples == self.own_samples and (ships is None or same_file(ships, self.dataset))

    @property
    def own_samples(self) -> int:
        """How many samples the benchmark has for a run of this kind: a compliance test may have its own."""
        return self.audit.samples if self.audit and self.audit.distinct else self.row.samples_in(self.mode)

    @property
    def audit(self) -> Audit | None:
        """The compliance test that this run is, if it is one."""
        return which(self.audit_text) if self.audit_text is not None else None

    @property
    def stream(self) -> bool:
        """Offline has no first token to report; a closed loop wants to know when it came."""
        return self.loadgen_scenario != "Offline" or self.concurrency is not None


def resolve(
    *,
    scenario: str,
    mode: str = "performance",
    benchmark: str = "demo",
    model: str | None = None,
    dataset: str | None = None,
    backend: str | None = None,
    replicas: int | None = None,
    endpoint: Sequence[str] = (),
    serve: bool = False,
    served_model: str | None = None,
    dialect: str | None = None,
    ca_file: Path | None = None,
    insecure: bool = False,
    ready_timeout: float = 1800.0,
    ray_address: str | None = None,
    dispatch: str = "auto",
    offline_batch: int = 1,
    engine_arg: Mapping[str, Any] | None = None,
    engine_env: Mapping[str, str] | None = None,
    max_in_flight: int | None = None,
    concurrency: int | None = None,
    stream_interval: int | None = None,
    failure_policy: str = "strict",
    first_token_timeout: float | None = None,
    stall_timeout: float | None = 300.0,
    request_timeout: float | None = None,
    audit_dataset: str | None = None,
    samples: int | None = None,
    resume: bool = False,
    no_telemetry: bool = False,
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
    where = Where.resolve(backend, replicas, tuple(endpoint), serve, bool(engine_arg or engine_env))
    refuse_remote_options(where.backend, served_model=served_model, dialect=dialect, ca_file=ca_file, insecure=insecure)
    if ray_address and where.backend != "ray":
        raise ConfigError("--ray-address is for --backend ray.")
    one_of(dispatch, ("auto", *POLICIES), "dispatch policy")
    one_of(failure_policy, FAILURE_POLICIES, "failure policy")
    at_least_one(max_in_flight=max_in_flight, stream_interval=stream_interval, samples=samples)
    refuse_odd_loops(concurrency, scenario, mode, offline_batch, (max_in_flight or 0) * where.replicas)
    refuse_odd_batches(offline_batch, scenario, where.backend, max_in_flight)
    refuse_odd_modes(mode, resume, output_dir, audit_config, samples)
    refuse_odd_audits(row, mode, audit_dataset)
    engine_arg = dict(engine_arg or {})
    source = dataset or row.dataset
    if source is None:
        raise ConfigError(
            f"benchmark {benchmark} ships no dataset: name one with --dataset (MLCommons' is {row.file_in(mode)})."
        )
    conf_path = user_conf or default_file("user.conf")
    conf = read_conf(conf_path) if conf_path else {}
    refuse_odd_seconds(first_token_timeout, stall_timeout, request_timeout, ready_timeout, min_duration)
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
        backend=where.backend,
        replicas=where.replicas,
        endpoint=where.endpoint,
        serve=serve,
        served_model=served_model,
        dialect=dialect,
        ca_file=str(ca_file) if ca_file else None,
        insecure=insecure,
        ready_timeout=ready_timeout,
        ray_address=(ray_address or "auto") if where.backend == "ray" else None,
        offline_batch=offline_batch,
        dispatch=default_dispatch(scenario, concurrency) if dispatch == "auto" else dispatch,
        engine_arg=engine_arg,
        engine_env=dict(engine_env or {}),
        max_in_flight=max_in_flight,
        concurrency=concurrency,
        stream_interval=stream_interval,
        generation=row.generation_in(mode),
        dtype=str(engine_arg.get("dtype", row.dtype if own_model else "auto")),
        max_model_len=row.max_model_len if own_model else None,
        failure_policy=failure_policy,
        first_token_timeout=first_token_timeout,
        stall_timeout=stall_timeout,
        request_timeout=request_timeout,
        audit_dataset=audit_dataset,
        samples=samples,
        resume=resume,
        no_telemetry=no_telemetry,
        user_conf=str(conf_path) if conf_path else None,
        audit_config=str(audit_config) if audit_config else None,
        audit_text=read_audit(audit_config) if audit_config else None,
        settings=loop_settings(row, scenario, conf, options, concurrency),
        chosen=chosen_keys(row, scenario, conf, options),
        output_dir=output_dir or default_output(benchmark, scenario, mode),
    )


class Where(NamedTuple):
    """Who serves: the backend, how many replicas it has, and their URLs if they are up already."""

    backend: str
    replicas: int
    endpoint: tuple[str, ...]

    @classmethod
    def resolve(
        cls, backend: str | None, replicas: int | None, endpoint: tuple[str, ...], serve: bool, engine: bool
    ) -> Where:
        """Endpoints and --serve mean the remote backend. Raises ConfigError for options that contradict each other."""
        remote = bool(endpoint) or serve
        backend = backend or ("remote" if remote else "vllm")
        one_of(backend, BACKENDS, "backend")
        at_least_one(replicas=replicas)
        if endpoint and serve:
            raise ConfigError("--serve starts servers here and --endpoint names some that are up: choose one.")
        if remote and backend != "remote":
            raise ConfigError(f"--endpoint and --serve are for remote replicas, and --backend says {backend}.")
        if backend == "remote" and not remote:
            raise ConfigError("remote replicas are named with --endpoint, or started with --serve.")
        if endpoint and replicas not in (None, len(endpoint)):
            raise ConfigError(f"{len(endpoint)} endpoints are {len(endpoint)} replicas: leave --replicas out.")
        if endpoint and engine:
            raise ConfigError("--engine-arg and --engine-env are for engines started here: an endpoint has its own.")
        if len(set(endpoint)) < len(endpoint):
            raise ConfigError("an --endpoint is named twice: each replica once.")
        return cls(backend, len(endpoint) or replicas or 1, endpoint)


def refuse_remote_options(backend: str, **options: object) -> None:
    """Raises ConfigError for an option of remote replicas without any."""
    for name, value in options.items():
        if value and backend != "remote":
            raise ConfigError(f"--{name.replace('_', '-')} is for remote replicas: name them with --endpoint.")


def refuse_odd_batches(size: int, scenario: str, backend: str, max_in_flight: int | None) -> None:
    at_least_one(offline_batch=size)
    if size > 1 and (scenario != "Offline" or backend != "remote"):
        raise ConfigError("--offline-batch is for remote replicas in Offline: there, prompts may share a request.")
    if max_in_flight is not None and max_in_flight < size:
        raise ConfigError(f"--max-in-flight {max_in_flight} never lets a batch of --offline-batch {size} together.")


def refuse_odd_loops(concurrency: int | None, scenario: str, mode: str, offline_batch: int, most: int) -> None:
    """Raises ConfigError for a closed loop where there is none; `most`: what the replicas' own caps let together, 0 if
    there are none."""
    if concurrency is None:
        return
    at_least_one(concurrency=concurrency)
    if scenario != "Offline":
        raise ConfigError(
            f"--concurrency is a closed loop, which is Offline with a cap: in {scenario} LoadGen itself says when a "
            "query comes."
        )
    if mode == "submission":
        raise ConfigError("--concurrency is for measuring: a closed loop is no submission, leave one of the two out.")
    if offline_batch > 1:
        raise ConfigError("--concurrency releases one query as another ends: leave --offline-batch out.")
    if 0 < most < concurrency:
        raise ConfigError(f"--max-in-flight lets {most} queries together, and never --concurrency {concurrency}.")


def default_dispatch(scenario: str, concurrency: int | None) -> str:
    """Whom `auto` asks: Offline's replicas pull; a closed loop's next query goes where fewest are."""
    if scenario != "Offline":
        return "round-robin"
    return "pull" if concurrency is None else "least-outstanding"


def loop_settings(
    row: Benchmark, scenario: str, conf: Conf, options: Mapping[str, Number], concurrency: int | None
) -> dict[str, Number]:
    """LoadGen's keys; a closed loop asks as many queries as it is told, and not whole passes over the samples, unless a
    person wants them: with few in flight, a pass may take hours."""
    settings = resolve_settings(row, scenario, conf, options)
    key = "sample_concatenate_permutation"
    if concurrency is None or key in chosen_keys(row, scenario, conf, options):
        return settings
    return settings | {key: 0}


def refuse_odd_modes(
    mode: str, resume: bool, output_dir: Path | None, audit_config: Path | None, samples: int | None
) -> None:
    """Raises ConfigError for options that a mode cannot honour."""
    if resume and mode != "accuracy":
        raise ConfigError("--resume goes on with an accuracy test: a clock cannot be resumed (--mode accuracy).")
    if resume and output_dir is None:
        raise ConfigError("--resume needs --output-dir: the folder of the test that was interrupted.")
    if audit_config is not None and mode != "performance":
        raise ConfigError(f"--audit-config is for a run in performance mode, and --mode says {mode}.")
    if samples is not None and mode == "submission":
        raise ConfigError("--samples is for trials: a submission asks all samples of the benchmark.")


def refuse_odd_audits(row: Benchmark, mode: str, dataset: str | None) -> None:
    """Raises ConfigError if the compliance samples of TEST07 are missing, or named where nobody asks them."""
    asked = mode == "submission" and "TEST07" in row.audits
    if asked and dataset is None:
        raise ConfigError(
            f"{row.name}'s TEST07 asks {AUDITS['TEST07'].samples} samples of its own: name them with --audit-dataset."
        )
    if dataset is not None and not asked:
        raise ConfigError(
            "--audit-dataset names the samples of TEST07, which only gpt-oss-120b's --mode submission asks."
        )


def doubts(config: RunConfig, samples: int) -> list[str]:
    """What of a configuration is allowed and most likely not meant, in sentences."""
    rate = config.settings.get("target_qps")
    if rate is not None or config.loadgen_scenario not in ("Server", "Offline"):
        return []
    if config.scenario == "Offline":
        if config.mode == "accuracy":
            return []
        return [
            "nobody has set --target-qps, the samples/s that you expect: LoadGen takes 1, and a system that is done "
            "with them before min_duration gives an INVALID run."
        ]
    return [
        f"nobody has set --target-qps: LoadGen offers its built-in 1 query/s, so {samples:,} samples take "
        f"{samples / 3600:.1f} hours."
    ]


def loadgen_name(scenario: str) -> str:
    """LoadGen has no Interactive scenario: it is Server with the limits of another model key."""
    return "Server" if scenario == "Interactive" else scenario


def chosen_keys(row: Benchmark, scenario: str, conf: Conf, options: Mapping[str, Number]) -> frozenset[str]:
    """The keys that a person set, whatever their value."""
    place = row.model_key(scenario), loadgen_name(scenario)
    return frozenset(options) | {key for key in INTEGER_KEYS | REAL_KEYS if lookup(conf, *place, key) is not None}


def resolve_settings(row: Benchmark, scenario: str, conf: Conf, options: Mapping[str, Number]) -> dict[str, Number]:
    """LoadGen's keys for one test: the benchmark's row, then user.conf, then the options."""
    model, row_scenario, scenario = row.model_key(scenario), scenario, loadgen_name(scenario)
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
    if samples == config.own_samples:
        return settings
    fitted: dict[str, Number] = {"performance_sample_count_override": min(samples, row.performance_samples)}
    if config.loadgen_scenario == "Offline":
        fitted |= {"min_query_count": samples, "min_duration": settings.get("min_duration", 0)}
    return settings | {key: value for key, value in fitted.items() if key not in config.chosen}


def asked_settings(config: RunConfig) -> dict[str, Number]:
    """The settings that LoadGen is to report back: those of the run, and over them those of an audit file."""
    if config.audit_text is None:
        return dict(config.settings)
    conf = parse_conf(config.audit_text.splitlines(), Path(AUDIT_FILE), refuse=False)
    keys = {key for _, _, key in conf}
    place = config.loadgen_model, config.loadgen_scenario
    audit = {key: value for key in keys if (value := lookup(conf, *place, key)) is not None}
    return dict(config.settings) | audit


# -- small things -----------------------------------------------------------------------------------------------------


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


def read_audit(path: Path) -> str:
    """An audit file's text. Raises ConfigError for one that LoadGen could not read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.") from error
    parse_conf(text.splitlines(), path, refuse=False)
    return text


def shown_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments as they may be shown and saved, those within them too."""
    return {
        name: shown_arguments(value) if isinstance(value, Mapping) else "***" if SECRET.search(name) else value
        for name, value in arguments.items()
    }


def shown_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as they may be shown and saved."""
    return {name: "***" if SECRET.search(name) else without_userinfo(value) for name, value in variables.items()}


def shown_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, the keywords of `resolve`, as they may be shown and saved."""
    masks: dict[str, Callable[[Any], Any]] = {"engine_arg": shown_arguments, "engine_env": shown_environment}
    return {name: masks[name](value) if name in masks and value else value for name, value in options.items()}


def without_userinfo(text: str) -> str:
    """A text whose URLs have lost user and password: http://u:P@host/ becomes http://host/."""
    return _USERINFO.sub("", text)


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """The command line that gives these options, the keywords of `resolve`; what is None, False or empty is left
    out."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            for key, own in value.items():
                words += [flag, f"{key}={own if isinstance(own, str) else json.dumps(own)}"]
        elif isinstance(value, list | tuple):
            for own in value:
                words += [flag, str(own)]
        elif value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words


def as_json(config: RunConfig) -> dict[str, Any]:
    """Every option by its long name, as result.json holds it."""
    plain = {field.name: getattr(config, field.name) for field in fields(config)}
    milliseconds = config.settings.get("min_duration")
    return plain | {
        "output_dir": str(config.output_dir),
        "endpoint": list(config.endpoint),
        "generation": asdict(config.generation),
        "chosen": sorted(config.chosen),
        "stream_interval": config.stream_interval or "auto",
        "target_qps": config.settings.get("target_qps"),
        "min_duration": None if milliseconds is None else milliseconds / 1000,
        "min_queries": config.settings.get("min_query_count"),
        "engine_arg": shown_arguments(config.engine_arg),
        "engine_env": shown_environment(config.engine_env),
    }
