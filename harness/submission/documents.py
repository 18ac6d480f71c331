"""The texts of a package that no run leaves: READMEs, measurements.json, provenance.json, the calibration note."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import __version__
from harness.config import shown_arguments, without_userinfo
from harness.submission.runs import Run
from harness.submission.system import FILL
from harness.submission.tree import REHEARSAL
from harness.submission.verdicts import accuracy_verdict, decided_later, file_scores, targets

# Format of provenance.json.
#   1   the first
FORMAT_VERSION = 1

# MLCommons' names of the types that weights come in.
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}

# LoadGen's keys that an option sets too, and the factor from the option's unit to the key's.
_LOAD = {
    "target_qps": ("--target-qps", 1),
    "min_duration": ("--min-duration", 1000),
    "min_query_count": ("--min-queries", 1),
}

# Options by the name that result.json records them by, with the value that need not be said.
_OPTIONS: Mapping[str, Any] = {
    "scenario": None,
    "benchmark": None,
    "model": None,
    "dataset": None,
    "backend": None,
    "replicas": None,
    "endpoint": [],
    "serve": False,
    "served_model": None,
    "dialect": None,
    "ca_file": None,
    "insecure": False,
    "ready_timeout": 1800.0,
    "ray_address": None,
    "dispatch": None,
    "offline_batch": 1,
    "engine_arg": {},
    "engine_env": {},
    "max_in_flight": None,
    "stream_interval": "auto",
    "failure_policy": "strict",
    "first_token_timeout": None,
    "stall_timeout": None,
    "request_timeout": None,
    "no_telemetry": False,
    "samples": None,
    "audit_dataset": None,
    "audit_config": None,
}

# What stands in a command for what no result records.
_HIDDEN = "***"


def command(run: Run) -> str:
    """The command that makes a run again, from the options that it recorded; what is secret is hidden."""
    config, chosen = run.config, set(run.config["chosen"])
    mode, folder = ("submission", run.together) if run.together else (str(run["mode"]), run.folder)
    words = ["python", "-m", "harness", "run", "--mode", str(mode)]
    for name, unsaid in _OPTIONS.items():
        if name not in config or config[name] is None or config[name] == unsaid:
            continue
        if (name == "replicas" and config["endpoint"]) or (name == "audit_config" and run.together):
            continue
        if name == "audit_dataset" and not run.together:
            continue  # its own --dataset names them
        words += _said(name, config[name])
    for key, (option, factor) in _LOAD.items():
        if key in chosen and key in config["settings"]:
            value = config["settings"][key]
            words += [option, repr(value / factor if factor != 1 else value)]
    if chosen - set(_LOAD):
        words += ["--user-conf", "user.conf"]
    return shlex.join(without_userinfo(word) for word in [*words, "--output-dir", str(folder)])


def commands(members: Mapping[str, Run]) -> dict[str, str]:
    """By role, the command that makes each run again; runs made together share the one of the performance run, for
    compliance tests may have asked samples of their own."""
    speakers: dict[Path, Run] = {}
    for run in sorted(members.values(), key=lambda run: run.role != "performance"):
        if run.together:
            speakers.setdefault(run.together, run)
    return {role: command(speakers[run.together] if run.together else run) for role, run in members.items()}


def _said(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    if isinstance(value, dict):
        pairs = (f"{key}={_text(each, name == 'engine_env')}" for key, each in shown_arguments(value).items())
        return [word for pair in pairs for word in (option, pair)]
    if isinstance(value, list):
        return [word for each in value for word in (option, str(each))]
    return [option, str(value)]


def _text(value: Any, literal: bool) -> str:
    """A value as an option says it, which is read as JSON where it can be unless it is `literal`."""
    if not isinstance(value, str):
        return json.dumps(value)
    if literal:
        return value
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value) if value in ("True", "False") else value
    return json.dumps(value)


# -- one scenario -----------------------------------------------------------------------------------------------------


def scenario_readme(system: str, members: Mapping[str, Run], reasons: Sequence[str], rehearsal: bool) -> str:
    """How a scenario's results were made. `members` are its runs by role, `reasons` what a rehearsal keeps it from."""
    run = members["performance"]
    environment, packages = run.environment, run.environment["packages"]
    head = f"{REHEARSAL}: no submission; {'; '.join(reasons)}.\n\n" if rehearsal else ""
    said = list(dict.fromkeys(commands(members).values()))
    hidden = any(_HIDDEN in each for each in said)
    versions = {**packages, "Python": environment["machine"]["python"], "LoadGen": run["loadgen"]["version"]}
    lines = [
        f"{head}# {run['benchmark']}, {run['scenario']}, on {system}\n",
        f"Made with loadgen-harness {packages.get('loadgen-harness', __version__)}, commit "
        f"{environment['commit'] or 'not recorded'}. `user.conf` in this directory is what LoadGen read in the "
        "performance run. The commands, in the order of performance, accuracy and compliance:\n",
        "```sh",
        *said,
        "```\n",
        *([f"`{_HIDDEN}` stands for a secret, which no result records: fill it in.\n"] if hidden else []),
        f"- model: `{run.config['model']}`, dtype {run.config['dtype']}",
        f"- dataset: `{run.config['dataset']}`, SHA-256 {environment.get('dataset_sha256')}",
        f"- replicas: {len(run['replicas'])} ({run.config['backend']}, dispatch {run.config['dispatch']})",
        f"- answers: {_pairs(run.config['generation'])}",
        f"- result: {run['metrics']['samples_per_second']:.2f} samples/s, "
        f"{run['metrics']['tokens_per_second']:.1f} tokens/s; LoadGen says {run['loadgen']['verdict']}",
        f"- accuracy: {_scores(members['accuracy'])}",
        f"- versions: {_pairs(versions)}",
        *([f"- variables: {_pairs(environment['variables'])}"] if environment["variables"] else []),
    ]
    return without_userinfo("\n".join(lines) + "\n")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _scores(run: Run) -> str:
    if run.row.ungraded is not None:
        scores = {name: values[0] for name, values in file_scores(run).items() if values}
    else:
        scores = {name: run["accuracy"][name] for name in targets(run) if name in run["accuracy"]}
    return _pairs(scores) or str(run["accuracy"].get("why"))


def measurements(members: Mapping[str, Run], division: str, rehearsal: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """measurements.json, and by field what a person is asked where the run does not tell."""
    run = members["performance"]
    known = {"input_data_types": "int32", **weights(run, members)}
    questions = {
        "retraining": "whether the model was trained again (open division)",
        "weight_data_types": "the type of the weights that served, such as fp8, bf16 or int4",
        "weight_transformations": "what was done to the weights, such as none or quantization",
    }
    if division != "open":
        known["retraining"] = "No"
    asked = {name: text for name, text in questions.items() if name not in known}
    fields = known | {name: f"{FILL}: {text}" for name, text in asked.items()}
    return dict(sorted(fields.items())) | ({"rehearsal": True} if rehearsal else {}), asked


def weights(run: Run, members: Mapping[str, Run]) -> dict[str, str]:
    """What is known of the weights that served: from the engine's arguments, the engine itself, and the model's
    config.json."""
    if run.is_echo:
        none = "none: the echo simulator answers without a model"
        return dict.fromkeys(("starting_weights_filename", "weight_data_types", "weight_transformations"), none)
    folder = Path(str(run.config["model"]))
    known = {"starting_weights_filename": _model_name(str(folder))}
    method, stored, served = quantization(run), _model_config(run).get("dtype"), _served_dtype(run)
    if method is not None:
        known["weight_transformations"] = f"quantization ({method})"
        return known | ({"weight_data_types": method} if method in ("fp8", "int8", "nvfp4", "mxfp4") else {})
    if served is None or not _model_config(run):
        return known
    known["weight_data_types"] = _TYPES.get(served, served)
    if stored == served:
        known["weight_transformations"] = "none"
    elif isinstance(stored, str):
        known["weight_transformations"] = f"cast from {_TYPES.get(stored, stored)} to {_TYPES.get(served, served)}"
    return known


def _model_name(model: str) -> str:
    """A hub id as it is; of a folder only its name: where it lies on this machine is nobody's business."""
    return Path(model).name if Path(model).is_dir() else model


def quantization(run: Run) -> str | None:
    """How the weights are quantised, as far as it is known; None for weights that are not, or of which nobody knows."""
    asked = run.config["engine_arg"].get("quantization")
    own = (_model_config(run).get("quantization_config") or {}).get("quant_method")
    method = asked or own
    return str(method) if method else None


def _served_dtype(run: Run) -> str | None:
    said = {str(facts["dtype"]) for facts in run.engines if facts.get("dtype")}
    return said.pop() if len(said) == 1 else None


def _model_config(run: Run) -> Mapping[str, Any]:
    """config.json of a model that is a folder here or in the hub's cache, its type under `dtype` as newer ones call it;
    else empty, as for endpoints, which serve what nobody here has seen."""
    path = None if run.config["endpoint"] else _config_file(str(run.config["model"]))
    try:
        config = json.loads(path.read_text()) if path is not None else None
    except (OSError, ValueError):
        return {}
    return {**config, "dtype": config.get("dtype", config.get("torch_dtype"))} if isinstance(config, dict) else {}


def _config_file(model: str) -> Path | None:
    if Path(model).is_dir():
        return Path(model) / "config.json"
    if model.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")  # a path, or that it is not there
    return Path(found) if isinstance(found, str) else None


def provenance(system: str, members: Mapping[str, Run], reasons: Sequence[str], rehearsal: bool) -> dict[str, Any]:
    """Where a scenario's files come from. `reasons` are what keeps it out of a submission."""
    run = members["performance"]
    return {
        "format_version": FORMAT_VERSION,
        "harness": run.environment["packages"].get("loadgen-harness", __version__),
        "packed_by": __version__,
        "commit": run.environment["commit"],
        "system": system,
        "benchmark": run["benchmark"],
        "scenario": run["scenario"],
        "dataset_sha256": run.environment.get("dataset_sha256"),
        "rehearsal": rehearsal,
        "submission_ready": not reasons,
        "not_ready_reasons": list(reasons),
        "runs": {role: _origin(members[role], text) for role, text in commands(members).items()},
    }


def _origin(run: Run, text: str) -> dict[str, Any]:
    passed = accuracy_verdict(run).passed if run.role == "accuracy" else run["accuracy"]["passed"]
    return {
        "command": text,
        "valid": run["valid"],
        "dataset_sha256": run.environment.get("dataset_sha256"),
        "accuracy_passed": passed,
        "replicas": run["replicas"],
        "engines": run.environment.get("engines", {}),
        "failures": run["failures"]["count"],
        "retries": run["retries"],
        "resumed": run.content.get("resumed", 0),
        "client_limited": run["client_limited"],
        "files": {name: digest for name, digest in run.files.items() if name not in decided_later(run)} or None,
    }


# -- a submitter's own ------------------------------------------------------------------------------------------------


def calibration(runs: Sequence[Run]) -> tuple[str, bool]:
    """documentation/calibration.md, and whether a person must write on: how weights were calibrated is nothing that a
    run records."""
    lines, asked = [], False
    for path in sorted({str(run.config["model"]) for run in runs}):
        own, model = [run for run in runs if run.config["model"] == path], _model_name(path)
        methods = sorted({method for run in own if (method := quantization(run))})
        known = own[0].is_echo or all(_model_config(run) for run in own)
        if methods:
            lines.append(
                f"- `{model}`: quantised ({', '.join(methods)}). {FILL}: how, and with which calibration data."
            )
        elif own[0].is_echo:
            lines.append(f"- `{model}`: the echo simulator answers without weights, so nothing was calibrated.")
        elif known:
            lines.append(f"- `{model}`: the weights are not quantised, so nothing was calibrated.")
        else:
            lines.append(f"- `{model}`: {FILL}: whether the weights are quantised, and how they were calibrated.")
        asked = asked or bool(methods) or not known
    return "# Calibration and quantisation\n\n" + "\n".join(lines) + "\n", asked


def source_readme(benchmark: str, runs: Sequence[Run], copied: bool) -> str:
    """src/<benchmark>/README.md: what code ran."""
    commits = sorted({str(run.environment["commit"] or "not recorded") for run in runs})
    version = runs[0].environment["packages"].get("loadgen-harness", __version__)
    backends = ", ".join(sorted({str(run.config["backend"]) for run in runs}))
    beside = "Its source lies beside this file. " if copied else ""
    return (
        f"# {benchmark}\n\nloadgen-harness {version}, commit {', '.join(commits)}: a system under test for MLPerf "
        f"LoadGen, serving with {backends}.\n{beside}The commands stand in the README.md of each scenario under "
        "`results/`.\n"
    )


def open_points_text(package: Path, points: Sequence[tuple[str, str, str]]) -> str:
    """What a person must still write: (file, field, question)."""
    lines = [f"# What a person must still write in {package}\n"]
    for file in dict.fromkeys(point[0] for point in points):
        lines.append(f"- `{file}`")
        lines += [f"  - `{field}`: {question}" for path, field, question in points if path == file]
    return "\n".join(lines) + "\n"
