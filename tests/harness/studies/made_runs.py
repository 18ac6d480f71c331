"""Made-up saved runs: a result.json with what `compare` reads, and its samples.parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.results import RunResult, summarise
from harness.studies.releases import Release, Run

CONFIG: dict[str, Any] = {
    "scenario": "Server",
    "mode": "performance",
    "benchmark": "demo",
    "model": "/models/llama",
    "dataset": "/data/rows.jsonl",
    "backend": "vllm",
    "replicas": 1,
    "engine_arg": {"max_num_seqs": 16},
    "settings": {"target_qps": 20.0, "min_duration": 10000},
    "output_dir": "somewhere",
}
ENVIRONMENT: dict[str, Any] = {
    "machine": {"hostname": "a", "cpu": "Xeon", "python": "3.12", "memory_bytes": 16 << 30},
    "devices": [{"name": "H200", "uuid": "GPU-1"}],
    "packages": {"vllm": "0.11"},
    "commit": "abc",
    "variables": {},
    "dataset_sha256": "d1",
    "engines": {"vllm-0": {"max_num_seqs": 16, "dtype": "bfloat16", "version": "0.11"}},
}


def columns(seed: int, slower: float = 1.0, queries: int = 400, offline: bool = False) -> dict[str, Any]:
    """The columns of a run: the same samples at the same moments in each, served with some scatter."""
    plan, chance = np.random.default_rng(1), np.random.default_rng(seed)
    tokens = plan.integers(10, 100, queries)
    speed = slower * float(chance.lognormal(0, 0.005))
    ttft = 0.05 * speed * chance.lognormal(0, 0.2, queries)
    rest = 0.01 * speed * (tokens - 1) * chance.lognormal(0, 0.05, queries)
    return {
        "sample_index": np.arange(queries) % 64,
        "replica": ["vllm-0"] * queries,
        "output_tokens": tokens,
        "issued_s": np.zeros(queries) if offline else np.cumsum(plan.exponential(0.05, queries)),
        "ttft_s": np.full(queries, np.nan) if offline else ttft,
        "latency_s": np.cumsum(ttft + rest) / 8 if offline else ttft + rest,
        "error": [None] * queries,
    }


def content(table: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """result.json; `config` and `environment` among the changes are merged in, everything else replaces."""
    latency, ttft, tokens = (np.asarray(table[name], float) for name in ("latency_s", "ttft_s", "output_tokens"))
    duration = float((table["issued_s"] + latency).max())
    config = CONFIG | changes.pop("config", {})
    environment = ENVIRONMENT | changes.pop("environment", {})
    return {
        "format_version": 1,
        "status": "complete",
        "valid": True,
        "invalid_reasons": [],
        "scenario": config["scenario"],
        "mode": config["mode"],
        "benchmark": config["benchmark"],
        "queries": len(latency),
        "duration_s": duration,
        "metrics": {
            "source": "loadgen",
            "samples_per_second": len(latency) / duration,
            "tokens_per_second": float(tokens.sum()) / duration,
            "ttft_s": summarise(ttft),
            "tpot_s": summarise((latency - ttft) / (tokens - 1)),
            "latency_s": summarise(latency),
        },
        "accuracy": {"passed": None, "why": "accuracy is scored in accuracy mode"},
        "config": config,
        "environment": environment,
    } | changes


def run(seed: int, slower: float = 1.0, offline: bool = False, **changes: Any) -> Run:
    """A run in memory."""
    table = columns(seed, slower, offline=offline)
    config = changes.pop("config", {}) | ({"scenario": "Offline"} if offline else {})
    return Run(RunResult(content(table, config=config, **changes), Path(f"/made/{seed}")), table)


def release(name: str, seeds: Sequence[int], slower: float = 1.0, **changes: Any) -> Release:
    return Release(name, [run(seed, slower, **changes) for seed in seeds])


def save(folder: Path, seed: int, slower: float = 1.0, **changes: Any) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True)
    table = columns(seed, slower)
    (folder / "result.json").write_text(json.dumps(content(table, **changes)))
    arrays = {name: pa.array(values, from_pandas=True) for name, values in table.items()}
    arrays["error"] = pa.array(table["error"], pa.string())
    pq.write_table(pa.table(arrays), folder / "samples.parquet")
    return folder


def save_release(folder: Path, seeds: Sequence[int], slower: float = 1.0, **changes: Any) -> Path:
    for seed in seeds:
        save(folder / f"run-{seed}", seed, slower, **changes)
    return folder
