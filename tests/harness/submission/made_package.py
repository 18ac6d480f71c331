"""A whole v6.1 package that nothing ever ran: SYNTHETIC logs in LoadGen's form whose figures fit each other.

It passes `submission check`, so that a test can spoil one thing and see that thing said. Its machine, its answers and
its figures are made up; it never leaves a test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from harness.audits import AUDITS
from harness.benchmarks import Benchmark, find
from harness.conf import round_settings
from harness.submission.fields import MEASUREMENTS, NETWORK_FIELDS, SYSTEM_FIELDS
from harness.submission.figures import PERCENTILES
from harness.submission.form import FIGURES
from harness.submission.tree import truncated

SYSTEM = "made-up-system"
SUBMITTER = "ACME"
VERSION = "6.0.17 @ d6147c7eb7"
AUDITED = "Found Audit Config file (audit.config). Overriding TestSettings from audit.config file."
# Tokens of an answer: nine of some kind and the model's end of sequence.
ENDS = {"llama2-70b": 2, "llama3_1-8b": 128_009, "llama3_1-8b-edge": 128_009, "deepseek-r1": 1, "gpt-oss-120b": 200_002}
TOKENS = 10
# What the performance run says of the length of answers, where it is scored too; the made-up answers are shorter.
MEAN_TOKENS = {"deepseek-r1": 3886.2}

SCORES = {
    "llama2-70b-99.9": "{'rouge1': 44.4, 'rouge2': 22.03, 'rougeL': 28.6, 'gen_num': 24576, 'tokens_per_sample': 10.0}",
    "llama3.1-8b": "{'rouge1': '38.8', 'rouge2': '15.9', 'rougeL': '24.5', 'rougeLsum': '35.8', 'gen_len': 8167644, "
    "'gen_num': 13368}",
    "llama3.1-8b-edge": "{'rouge1': '39.1', 'rouge2': '16.1', 'rougeL': '24.6', 'rougeLsum': '36.1', "
    "'gen_len': 3051113, 'gen_num': 5000}",
    "deepseek-r1": "{'exact_match': 81.0, 'tokens_per_sample': 3886.2}",
    "gpt-oss-120b": "{'exact_match': 83.1, 'tokens_per_sample': 10.0}",
}

KINDS = ("requested", "effective")

# -- one log ----------------------------------------------------------------------------------------------------------


def six(value: float) -> float:
    """As LoadGen logs it."""
    return float(f"{value:.6g}")


def line(key: str, value: Any, time_ms: float, *, is_error: bool = False, is_warning: bool = False) -> str:
    facts = {"is_error": is_error, "is_warning": is_warning, "file": "made_up.cc", "line_no": 1, "pid": 7, "tid": 8}
    entry = {"key": key, "value": value, "time_ms": time_ms, "namespace": "mlperf::logging"}
    return ":::MLLOG " + json.dumps({**entry, "event_type": "POINT_IN_TIME", "metadata": facts})


def settings(row: Benchmark, scenario: str, mode: str, audit: str | None = None) -> dict[str, Any]:
    """What LoadGen reports to have run with: the round's settings, or those of an audit."""
    loadgen_scenario = "Server" if scenario == "Interactive" else scenario
    limits = round_settings(row.model_key(scenario), loadgen_scenario)
    seeds = {name: limits[name] for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")}
    sampling = {None: 0, "TEST06": 100, "TEST07": 990, "TEST09": 10_000}[audit]
    offline = 100 if audit else row.samples
    asked = int(AUDITS[audit].settings["min_query_count"]) if audit else limits.get("min_query_count", 100)
    plain = ("accuracy_log_rng_seed", "accuracy_log_probability", "accuracy_log_sampling_target", "print_timestamps")
    issue = ("performance_issue_unique", "performance_issue_same", "performance_issue_same_index")
    shortest, fewest = 0 if audit else limits["min_duration"], 1 if scenario == "Offline" else 100
    reported = {
        **{f"{kind}_{name}": 0 for kind in KINDS for name in (*plain, *issue)},
        "requested_min_duration_ms": shortest,
        "requested_max_duration_ms": 0,
        "requested_max_query_count": 0,
        "requested_performance_sample_count_override": row.performance_samples,
        "requested_sample_concatenate_permutation": not audit,
        "effective_min_query_count": fewest,
        "effective_min_sample_count": fewest,
        "effective_max_async_queries": 0,
        "effective_target_duration_ms": shortest,
        "requested_scenario": loadgen_scenario,
        "requested_test_mode": mode,
        "requested_min_query_count": asked,
        **{f"requested_{name}": seed for name, seed in seeds.items()},
        "requested_use_token_latencies": True,
        "effective_scenario": loadgen_scenario,
        "effective_test_mode": mode,
        "effective_samples_per_query": offline if scenario == "Offline" else 1,
        "effective_target_qps": 40,
        "effective_target_latency_ns": 0,
        "effective_target_latency_percentile": limits.get("target_latency_percentile", 99) / 100,
        "effective_min_duration_ms": shortest,
        "effective_max_duration_ms": 0,
        "effective_max_query_count": 0,
        **{f"effective_{name}": seed for name, seed in seeds.items()},
        **{f"{kind}_accuracy_log_rng_seed": 720381539243781796 if audit else 0 for kind in KINDS},
        **{f"{kind}_accuracy_log_sampling_target": sampling for kind in KINDS},
        **{f"{kind}_performance_issue_unique": audit in ("TEST07", "TEST09") for kind in KINDS},
        **{f"{kind}_performance_issue_same": False for kind in KINDS},
        "effective_performance_sample_count": row.performance_samples,
        "effective_accuracy_sample_count": row.accuracy_samples,
        "effective_sample_concatenate_permutation": not audit,
    }
    if loadgen_scenario == "Server":
        reported |= {
            f"requested_server_{name}_latency": limits[f"{name}_latency"] * 1_000_000 for name in ("ttft", "tpot")
        }
    return reported


def spread(plain: str, percentile: str, lowest: int) -> dict[str, int]:
    """A family of latencies, rising from `lowest` by the same step."""
    keys = [plain.format("min"), *(percentile.format(name) for name in PERCENTILES), plain.format("max")]
    return {key: lowest + lowest // 10 * step for step, key in enumerate(keys)} | {
        plain.format("mean"): 2 * lowest // 2 + 1
    }


def figures(row: Benchmark, scenario: str) -> dict[str, Any]:
    """A valid result of one pass over the dataset; Offline and Server last 640 s and more, as samples come."""
    latency = spread("result_{}_latency_ns", "result_{}_percentile_latency_ns", 2_000_000_000)
    tokens = MEAN_TOKENS.get(row.name, TOKENS)
    found: dict[str, Any] = {"result_validity": "VALID"}
    if scenario in ("Server", "Interactive"):
        found["result_perf_constraints_met"] = True
    found |= dict.fromkeys(("result_min_duration_met", "result_min_queries_met", "early_stopping_met"), True)
    found |= {"early_stopping_ttft_result": "", "early_stopping_tpot_result": ""}
    if scenario == "Offline":
        longest = 640 * 10**9
        latency |= {"result_max_latency_ns": longest}
        found |= {"result_query_count": 1, "result_samples_per_second": six(row.samples / 640), **latency}
        return found | {"result_tokens_per_second": six(row.samples * tokens / 640), "num_errors": 0}
    found |= {"early_stopping_ttft_result": " * Run successful.", "early_stopping_tpot_result": " * Run successful."}
    found |= {"result_query_count": row.samples}
    if scenario == "SingleStream":
        found |= {"result_qps_with_loadgen_overhead": six((row.samples - 1) / 640)}
        found |= {"result_qps_without_loadgen_overhead": six(1e9 / latency["result_mean_latency_ns"])}
        found |= {"early_stopping_latency_ss": 130_000_000, "early_stopping_latency_ms": 160_000_000}
    else:
        found |= {"result_scheduled_samples_per_sec": six((row.samples - 1) / 640)}
        found |= {"result_completed_samples_per_sec": six((row.samples - 1) / 641)}
    found |= latency
    found |= spread("result_first_token_{}_latency_ns", "result_first_token_{}_percentile_latency_ns", 100_000_000)
    found |= {"result_token_throughput": six(tokens / latency["result_mean_latency_ns"])}
    found |= spread("result_time_to_output_token_{}", "result_time_per_output_token_{}_percentile_ns", 8_000_000)
    return found | {"result_completed_tokens_per_second": six(row.samples * tokens / 641), "num_errors": 0}


def detail(row: Benchmark, scenario: str, mode: str, audit: str | None = None, sut: str = "SYNTHETIC") -> str:
    """mlperf_log_detail.txt of a test."""
    total = row.samples if mode == "PerformanceOnly" else row.accuracy_samples
    audited = {None: total, "TEST06": 100, "TEST07": 990, "TEST09": 6396}[audit]
    queries = (1, audited) if scenario == "Offline" else (audited, 1)
    began = datetime(2026, 11, 1, 12)
    rows = [line("loadgen_version", VERSION, 0.01), line("loadgen_git_status_message", "", 0.01)]
    rows += [line("loadgen_file_sha1", {"/loadgen.cc": "made up"}, 0.01), line("test_datetime", "2026-11-01", 0.02)]
    rows += [line("sut_name", sut, 0.02), line("qsl_name", "SYNTHETIC", 0.02)]
    rows += [line(f"qsl_reported_{name}_count", total, 0.02) for name in ("total", "performance")]
    rows += [line("warning_generic_message", AUDITED, 0.03, is_warning=True)] if audit else []
    rows += [line(key, value, 0.04) for key, value in settings(row, scenario, mode, audit).items()]
    rows += [line("loaded_qsl_set", list(range(total)), 0.05), line("generated_query_count", queries[0], 0.06)]
    rows += [line("generated_samples_per_query", queries[1], 0.06), line("generated_query_duration", 640 * 10**9, 0.06)]
    ended = 645_000.0
    rows += [line("power_begin", f"{began:%m-%d-%Y %H:%M:%S}.000", ended)]
    rows += [line("power_end", f"{began + timedelta(seconds=645):%m-%d-%Y %H:%M:%S}.000", ended)]
    if mode == "PerformanceOnly":
        rows += [line(key, value, ended + 1) for key, value in figures(row, scenario).items()]
    return "\n".join(rows) + "\n"


def summary(log: str) -> str:
    """mlperf_log_summary.txt that belongs to a detail log."""
    said = {entry["key"]: entry["value"] for entry in (json.loads(each[9:]) for each in log.splitlines())}
    counts = "\nNo warnings encountered during test.\n\nNo errors encountered during test.\n"
    if "result_validity" not in said:
        return counts
    rows = [f"SUT name : {said['sut_name']}", f"Scenario : {said['effective_scenario']}", "Mode     : PerformanceOnly"]
    rows += [f"Result is : {said['result_validity']}", "  Min duration satisfied : Yes"]
    rows += [f"{label} : {said[key]}" for label, key in FIGURES.items() if key in said]
    return "\n".join(rows) + "\n" + counts


# -- answers ----------------------------------------------------------------------------------------------------------


def answers(row: Benchmark, count: int, scenario: str) -> str:
    """mlperf_log_accuracy.json with an answer to each of the first `count` samples."""
    rows = []
    for index in range(count):
        ids = [index % 30_000 + 3, *range(10, TOKENS + 8), ENDS[row.loadgen_model]]
        data = b"".join(each.to_bytes(4, "little") for each in ids).hex().upper()
        first = f'"token_data" : "{data[:8]}", ' if scenario != "Offline" else ""
        text = f'"seq_id" : {index}, "qsl_idx" : {index}, "data" : "{data}", {first}"token_count" : {len(ids)}'
        rows.append("{ " + text + " }")
    return "[\n" + ",\n".join(rows) + "\n]\n"


# -- the tree ---------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_test(folder: Path, log: str) -> None:
    write(folder / "mlperf_log_detail.txt", log)
    write(folder / "mlperf_log_summary.txt", summary(log))


def write_scenario(folder: Path, original: Path, row: Benchmark, scenario: str, sut: str) -> None:
    """One scenario's directory, and the whole accuracy log beside the package."""
    write_test(folder / "performance" / "run_1", detail(row, scenario, "PerformanceOnly", sut=sut))
    write(folder / "performance" / "run_1" / "mlperf_log_accuracy.json", "[\n]\n")
    write_test(folder / "accuracy", detail(row, scenario, "AccuracyOnly", sut=sut))
    whole = answers(row, row.accuracy_samples, scenario)
    write(original / "accuracy" / "mlperf_log_accuracy.json", whole)
    write(folder / "accuracy" / "mlperf_log_accuracy.json", truncated(whole.encode()).decode())
    digest = hashlib.sha256(whole.encode()).hexdigest()
    write(folder / "accuracy" / "accuracy.txt", f"{SCORES[row.name]}\n\nhash={digest}\n")
    for test in row.audits:
        write_audit(folder / test, original / test, row, scenario)
    loadgen_scenario = "Server" if scenario == "Interactive" else scenario
    write(folder / "user.conf", f"{row.model_key(scenario)}.{loadgen_scenario}.target_qps = 40\n")
    write(folder / "README.md", "Made up: see the test that wrote this.\n")
    write(folder / "measurements.json", json.dumps(dict.fromkeys(MEASUREMENTS, "made up") | {"retraining": "No"}))


def write_audit(folder: Path, original: Path, row: Benchmark, scenario: str) -> None:
    """An audit's directory; truncate_accuracy_log.py shortens the answers of all but TEST06."""
    test = folder.name
    whole = answers(row, {"TEST06": 100, "TEST07": 990, "TEST09": 6396}[test], scenario)
    log = folder / "accuracy" / "mlperf_log_accuracy.json"
    write(log, whole if test == "TEST06" else truncated(whole.encode()).decode())
    if test != "TEST06":
        write(original / "accuracy" / "mlperf_log_accuracy.json", whole)
        write(folder / "accuracy" / "accuracy.txt", f"hash={hashlib.sha256(whole.encode()).hexdigest()}\n")
    first = "Skipped" if scenario == "Offline" else "True"
    texts = {
        "TEST06": f"First token check pass: {first}\nEOS check pass: True\nSample length check pass: True\n"
        "TEST06 verification complete\n",
        "TEST07": "Accuracy score: 62.15\nAccuracy threshold: 60.698\nTEST PASS\n",
        "TEST09": "Mean output tokens: 1278.20\nMin threshold: 1150.38\nMax threshold: 1406.02\n\nTEST PASS\n",
    }
    write(folder / ("verify_output_len.txt" if test == "TEST09" else "verify_accuracy.txt"), texts[test])
    write_test(folder / "performance" / "run_1", detail(row, scenario, "PerformanceOnly", test))


def description(division: str, system_type: str) -> dict[str, Any]:
    """systems/<system>.json of a machine that is not."""
    fields: dict[str, Any] = dict.fromkeys(SYSTEM_FIELDS, "made up, with ECC")
    fields |= {"number_of_nodes": 1, "accelerators_per_node": 8, "host_processors_per_node": 2}
    fields |= {"host_processor_core_count": "64", "status": "rdi", "system_type": system_type}
    network: Mapping[str, Any] = dict.fromkeys(NETWORK_FIELDS, "made up") | {"is_network": "true"}
    return fields | {"division": division, "submitter": SUBMITTER} | (network if division == "network" else {})


def make_package(
    root: Path,
    benchmark: str = "deepseek-r1",
    scenarios: tuple[str, ...] = ("Offline", "Server"),
    division: str = "closed",
    system_type: str = "datacenter",
) -> Path:
    """Write a package to root/package, and the untruncated accuracy logs to root/originals; the first is returned."""
    row, package, originals = find(benchmark), root / "package", root / "originals"
    base = Path(division) / SUBMITTER
    for scenario in scenarios:
        place = base / "results" / SYSTEM / benchmark / scenario
        sut = "SYNTHETIC Network SUT" if division == "network" else "SYNTHETIC"
        write_scenario(package / place, originals / place, row, scenario, sut)
    write(package / base / "systems" / f"{SYSTEM}.json", json.dumps(description(division, system_type)))
    write(package / base / "src" / benchmark / "README.md", "Nothing ran.\n")
    write(package / base / "documentation" / "calibration.md", "Nothing was calibrated.\n")
    return package
