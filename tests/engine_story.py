"""Tests on one start of real vLLM engines, in a process of their own since LoadGen serves one scenario per process.

    python -m tests.engine_story Offline FOLDER

Run once per session by the fixtures of test_engine.py, which read what it leaves in FOLDER.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config import RunConfig, resolve
from harness.demo import MODEL
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import check, open_sut, run_test
from harness.tables import COLUMNS

# Raw rows as people bring them: no system prompt, other scripts, a line separator, a long prompt.
ROWS = [
    ("flan.1", "", "Is the sky blue?", "Yes."),
    ("cot.2", "Think.", "日本の首都はどこですか。\u2028¿Y la de España?", "東京 y Madrid"),
    ("niv.3", "You are terse.", "Repeat: " + "one two three " * 250, "ok"),
    ("t0.4", "", "A\tB\r\nC 😀 d", "A B C"),
]


def rows_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def passes_conf(folder: Path) -> Path:
    """Whole passes over the samples, which a closed loop would not make: LoadGen keeps this of the process's first
    test."""
    path = folder / "passes.conf"
    path.write_text("demo.Offline.sample_concatenate_permutation = 1\n")
    return path


def zeroed_model(folder: Path, share: float = 0.05) -> Path:
    """The demo's model with a share of its weights, spread evenly, set to zero."""
    import torch
    from safetensors.torch import load_file, save_file

    target = folder / "zeroed"
    target.mkdir()
    for file in MODEL.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(MODEL / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        tensor[torch.rand(tensor.shape, generator=generator) < share] = 0
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def run_all(plans: list[dict[str, Any]], first: RunConfig) -> None:
    """Several tests of one scenario on one SUT, each in its own folder and with its own dataset."""
    first, samples, tokenizer = check(first)
    first.output_dir.mkdir(parents=True)
    with Progress(quiet=True) as progress, open_sut(first, samples, tokenizer, progress) as system:
        for plan in plans:
            config, samples, _ = check(resolve(**plan))
            prepare_folder(config)
            run_test(config, replace(system, samples=samples), progress)


def offline(folder: Path) -> None:
    """Two replicas: accuracy, performance, raw rows, those in a closed loop; then a model with zeroed weights."""
    common = {"scenario": "Offline", "replicas": 2}
    rows = {**common, "dataset": str(rows_file(folder))}
    closed = {**rows, "concurrency": 3, "min_queries": 12, "user_conf": passes_conf(folder)}
    plans = [
        {**common, "mode": "accuracy", "output_dir": folder / "accuracy"},
        {**common, "output_dir": folder / "performance"},
        {**rows, "output_dir": folder / "rows"},
        {**closed, "output_dir": folder / "closed"},
    ]
    run_all(plans, resolve(**common, output_dir=folder / "engines"))
    zeroed = {"scenario": "Offline", "model": str(zeroed_model(folder)), "engine_arg": {"dtype": "float32"}}
    plan = {**zeroed, "mode": "accuracy", "output_dir": folder / "zeroed-accuracy"}
    run_all([plan], resolve(**zeroed, output_dir=folder / "zeroed-engine"))


def server(folder: Path) -> None:
    """One replica: raw rows in accuracy mode, accuracy and performance on the demo's questions."""
    common = {"scenario": "Server"}
    quick = {**common, "target_qps": 100.0}
    plans = [
        {**quick, "mode": "accuracy", "dataset": str(rows_file(folder)), "output_dir": folder / "rows"},
        {**quick, "mode": "accuracy", "output_dir": folder / "accuracy"},
        {**common, "output_dir": folder / "performance"},
    ]
    run_all(plans, resolve(**common, output_dir=folder / "engines"))


if __name__ == "__main__":
    {"Offline": offline, "Server": server}[sys.argv[1]](Path(sys.argv[2]))
