"""Results that nothing ever ran, small and with known figures, for tests of what is told of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.dataset import Tokenizer
from harness.demo import MODEL
from harness.tables import digest_of

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 \u0000 \u202egnp.exe {{ 7*7 }} \ud800"
"""Markup, a template, a line separator, NUL, a change of direction and half a surrogate pair."""

CONTENT: dict[str, Any] = {
    "format_version": 1,
    "status": "complete",
    "valid": True,
    "invalid_reasons": [],
    "submission_ready": False,
    "not_ready_reasons": ["demo is no benchmark of MLCommons"],
    "client_limited": False,
    "scenario": "Server",
    "mode": "performance",
    "benchmark": "demo",
    "queries": 60,
    "duration_s": 6.0,
    "metrics": {
        "source": "loadgen",
        "samples_per_second": 10.0,
        "tokens_per_second": 123.4,
        "ttft_s": {"mean": 0.1, "p50": 0.1, "p90": 0.15, "p99": 0.2, "p99_9": 0.2, "max": 0.2},
        "tpot_s": {},
        "latency_s": {"mean": 0.5, "p50": 0.5, "p90": 0.6, "p99": 0.7, "p99_9": 0.7, "max": 0.7},
    },
    "accuracy": {"passed": None, "why": "accuracy is scored in accuracy mode"},
    "audit": None,
    "compliance": None,
    "resumed": 0,
    "replicas": [
        {"name": f"echo-{n}", "queries": 30, "tokens": 370, "failures": 0, "busy_share": 0.9, "tail_idle_s": 0.1,
         "ejected_s": None}
        for n in range(2)
    ],
    "failures": {"count": 0, "by_kind": {}, "by_replica": {}, "first": None},
    "retries": 0,
    "config": {"benchmark": "demo", "model": str(MODEL), "backend": "echo", "samples": None},
    "environment": {"machine": {"cpu": "a processor", "caches": [{"level": 1}]}},
}  # fmt: skip


def columns(rows: int = 60) -> dict[str, Sequence[Any]]:
    """samples.parquet: ten queries a second, TTFT 100 to 200 ms, latency 400 to 700 ms, 5 to 19 tokens."""
    number = np.arange(rows)
    return {
        "sample_index": number.astype(np.int32),
        "replica": [f"echo-{n % 2}" for n in number],
        "input_tokens": (10 + number % 50).astype(np.int32),
        "output_tokens": (5 + number % 15).astype(np.int32),
        "issued_s": number / 10,
        "ttft_s": 0.1 + 0.1 * (number % 11) / 10,
        "latency_s": 0.4 + 0.3 * (number % 7) / 6,
        "attempts": np.ones(rows, np.int32),
        "error": pa.array([None] * rows, pa.string()),
    }


def write_samples(folder: Path, **changes: Any) -> None:
    pq.write_table(pa.table(columns() | changes), folder / "samples.parquet")


def make_run(folder: Path, samples: bool = True, **changes: Any) -> Path:
    """A run's folder with its result and samples."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(CONTENT | changes))
    if samples:
        write_samples(folder)
    return folder


def make_accuracy_run(folder: Path, answers: Sequence[str], questions: Sequence[str] | None = None) -> Path:
    """An accuracy run of the demo's tokenizer on a dataset of as many questions, beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"q.{number}", "system_prompt": "", "question": text, "response": f"reference {number}"}
        for number, text in enumerate(questions or [f"What is {number}?" for number in range(len(answers))])
    ]
    dataset = folder.parent / "questions.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer(MODEL)
    log = [
        {"seq_id": index, "qsl_idx": index, "data": np.array([*ids[1:], 2], np.int32).tobytes().hex(),
         "token_count": len(ids)}
        for index, ids in enumerate(tokenizer.encode(list(answers)))
    ]  # fmt: skip
    (folder / "mlperf_log_accuracy.json").write_text(json.dumps(log))
    scores = {
        "sample_index": np.arange(len(answers)), "id": [f"q.{n}" for n in range(len(answers))],
        "rouge1": np.linspace(100, 50, len(answers)), "output_tokens": np.ones(len(answers), np.int64),
    }  # fmt: skip
    pq.write_table(pa.table(scores), folder / "accuracy_samples.parquet")
    accuracy = {"rouge1": 75.0, "tokens_per_sample": 9.0, "samples": len(answers), "passed": True, "why": None}
    accuracy |= {"targets": {"rouge1": {"low": 70.0, "high": None}}}
    config = CONTENT["config"] | {"dataset": str(dataset)}
    environment = {"dataset_sha256": digest_of(dataset)}
    return make_run(
        folder, mode="accuracy", accuracy=accuracy, config=config, environment=environment, queries=len(answers)
    )


def make_study(folder: Path, finished: bool = True, **findings: Any) -> Path:
    """A sweep with two points, one of them not valid."""
    make_run(folder / "points" / "rate-10", samples=False)
    make_run(folder / "points" / "rate-20", samples=False, valid=False, invalid_reasons=["LoadGen says INVALID"])
    asked = {"format_version": 1, "study": "sweep", "question": {"rates": [10, 20]}, "options": {"benchmark": "demo"}}
    (folder / "study.json").write_text(json.dumps(asked))
    if finished:
        found = {"format_version": 1, "study": "sweep", "headline": "The knee is at 10 queries/s.", "notes": ["a note"]}
        found["rows"] = [{"rate": 10.0, "valid": True}, {"rate": 20.0, "valid": False}]
        (folder / "findings.json").write_text(json.dumps(found | findings))
        (folder / "figure.json").write_text(json.dumps(FIGURE))
    return folder


FIGURE: Mapping[str, Any] = {
    "data": {"values": [{"rate": 10, "ttft": 0.1}, {"rate": 20, "ttft": 0.4}]},
    "mark": "point",
    "encoding": {"x": {"field": "rate", "type": "quantitative"}, "y": {"field": "ttft", "type": "quantitative"}},
}


def make_submission(folder: Path) -> Path:
    """Two parts, the second of which is not there."""
    make_run(folder / "performance")
    content = {"format_version": 1, "benchmark": "demo", "scenario": "Server", "status": "interrupted"}
    content |= {"submission_ready": False, "not_ready_reasons": ["accuracy was not run to its end"]}
    content["runs"] = {"performance": "performance", "accuracy": "accuracy"}
    (folder / "submission.json").write_text(json.dumps(content))
    return folder
