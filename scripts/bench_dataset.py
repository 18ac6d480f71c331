"""What datasets cost: loading 24,576 prompts of 1,024 tokens, and preparing OpenOrca out of a million made-up rows.

    python scripts/bench_dataset.py                     peak and resident memory over the imports, and seconds
    python scripts/bench_dataset.py prepare             wall and CPU seconds, and the peak of the whole process tree
    python scripts/bench_dataset.py prepare --model DIR with that tokenizer; else with one of 32,000 tokens made here

Each is done in a process of its own, from a file made up in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped, unused-ignore]
import pyarrow as pa
import pyarrow.parquet as pq

from harness.dataset import Tokenizer, load
from harness.demo import MODEL
from harness.openorca import BAD_PROMPTS, FIRST_ANSWER_TOKEN

SAMPLES, LENGTH = 24_576, 1024

ROWS, GROUP = 1_000_000, 50_000

ORIGINS = {"flan": 0.48, "t0": 0.35, "cot": 0.09, "niv": 0.08}
"""About the shares that OpenOrca's GPT-4 rows have."""


# -- loading -----------------------------------------------------------------------------------------------------------


def make_files(folder: Path) -> list[Path]:
    """A processed set as parquet, as the pickle that MLCommons' scripts read, and as a JSON list like cnn_eval.json."""
    ids = np.random.default_rng(0).integers(3, 1000, (SAMPLES, LENGTH)).tolist()
    frame = pd.DataFrame({"tok_input": ids, "output": ["An answer of some words. " * 40] * SAMPLES})
    files = [folder / name for name in ("processed.parquet", "processed.pkl", "processed.json")]
    frame.to_parquet(files[0])
    frame.to_pickle(files[1])
    frame.to_json(files[2], orient="records")
    return files


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mb() -> float:
    """Of this program alone: ru_maxrss would count what the parent held when it forked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def load_one(path: Path) -> None:
    """A child process: load one file, and print what it took."""
    tokenizer = Tokenizer(MODEL)
    before, began = resident_mb(), perf_counter()
    samples = load(str(path), tokenizer)
    seconds = perf_counter() - began
    print(json.dumps([peak_mb() - before, resident_mb() - before, seconds, len(samples)]))


def bench_load(folder: Path) -> None:
    for path in make_files(folder):
        command = [sys.executable, __file__, "load-one", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, resident, seconds, samples = json.loads(done.stdout)
        print(f"{path.name:<20}{samples:,} samples: peak +{peak:.0f} MB, resident +{resident:.0f} MB, {seconds:.1f} s")


# -- preparing ---------------------------------------------------------------------------------------------------------


def made_up_text(rng: np.random.Generator) -> str:
    """20 million characters of words of some syllables, as unevenly common as those of a language."""
    begins, ends = [*"bcdfghlmnprstw", "st", "tr", "sh", "th"], [*"aeiou", "ea", "ou"]
    syllables = [begin + end for begin in begins for end in ends]
    words = ["".join(rng.choice(syllables, n)) for n in rng.integers(1, 5, 30_000)]
    words = [word.capitalize() if place % 7 == 3 else word for place, word in enumerate(words)]
    share = 1 / np.arange(2, len(words) + 2)
    gaps = rng.choice([" ", ", ", ". ", ".\n", "\n\n", " 12 "], 3_500_000, p=[0.85, 0.06, 0.05, 0.02, 0.01, 0.01])
    drawn = rng.choice(len(words), len(gaps), p=share / share.sum())
    return "".join(words[word] + gap for word, gap in zip(drawn.tolist(), gaps.tolist(), strict=True))


def made_up_rows(rows: int, text: str, rng: np.random.Generator) -> Iterator[pa.Table]:
    """OpenOrca's columns: questions and answers of 1,000 characters on average and of any up to ten times that."""
    system_prompts = [*sorted(BAD_PROMPTS), *(text[at : at + 100] for at in range(0, 1200, 100))]
    for begun in range(0, rows, GROUP):
        count = min(GROUP, rows - begun)
        origins = rng.choice(list(ORIGINS), count, p=list(ORIGINS.values()))
        sizes = np.minimum(rng.lognormal(6.6, 0.8, (2, count)), 10_000).astype(int)
        starts = rng.integers(0, len(text) - 10_000, (2, count))
        questions, answers = (
            [text[at : at + size] for at, size in zip(places.tolist(), lengths.tolist(), strict=True)]
            for places, lengths in zip(starts, sizes, strict=True)
        )
        for place in np.flatnonzero(rng.random(count) < 0.08).tolist():
            questions[place] += " é"
        for place in np.flatnonzero(rng.random(count) < 0.02).tolist():
            answers[place] = "B"
        yield pa.table(
            {
                "id": [f"{origin}.{begun + number}" for number, origin in enumerate(origins)],
                "system_prompt": rng.choice(system_prompts, count).tolist(),
                "question": questions,
                "response": answers,
            }
        )


def train_tokenizer(text: str, folder: Path) -> None:
    """A tokenizer built as Llama 2's is: 32,000 tokens, BPE over the whole text, bytes for what is not known."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    fast = Fast(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special: list[str | Any] = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    fast.train_from_iterator(
        text[:5_000_000].splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=32_000, special_tokens=special, show_progress=False),
    )
    content = json.loads(fast.to_str())
    vocabulary = content["model"]["vocab"]
    for filler in range(len(vocabulary), 32_000):
        vocabulary[f"<filler {filler}>"] = filler
    names = {number: name for name, number in vocabulary.items()}
    vocabulary[names[FIRST_ANSWER_TOKEN]], vocabulary["▁"] = vocabulary["▁"], FIRST_ANSWER_TOKEN
    content["pre_tokenizer"] = None
    content["added_tokens"] = content["added_tokens"][:3]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def tree_mb(process: psutil.Process) -> dict[str, float]:
    """Memory of a process and all below it, pages that several share counted once: anonymous, and mapped files."""
    total = {"Pss_Anon": 0.0, "Pss_File": 0.0}
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for member in members:
        try:
            lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        fields = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
        total = {name: total[name] + fields[name] for name in total}
    return total


def bench_prepare(folder: Path, rows: int, model: Path | None, workers: int) -> None:
    rng = np.random.default_rng(0)
    text = made_up_text(rng)
    source = folder / "1M-GPT4-Augmented.parquet"
    tables = made_up_rows(rows, text, rng)
    first = next(tables)
    with pq.ParquetWriter(source, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    if model is None:
        model = folder / "tokenizer"
        train_tokenizer(text, model)
    print(f"{rows:,} rows in {source.stat().st_size / 2**20:,.0f} MB of parquet; tokenizer {model}", flush=True)
    command = [sys.executable, "-m", "harness", "dataset", "prepare", "openorca", "--source", str(source)]
    command += ["--model", str(model), "--output", str(folder / "out"), "--workers", str(workers)]
    command += ["--per-origin", str(min(6144, rows // 50))] if rows < ROWS else []
    began = perf_counter()
    process = psutil.Popen(command)
    peak = {"Pss_Anon": 0.0, "Pss_File": 0.0}
    while process.poll() is None:
        now = tree_mb(process)
        peak = max(peak, now, key=lambda sizes: sum(sizes.values()))
        try:
            process.wait(0.25)
        except psutil.TimeoutExpired:
            continue
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"exit code {process.returncode}, {perf_counter() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s CPU, "
        f"{workers} workers; peak of the tree {sum(peak.values()):,.0f} MB, {peak['Pss_File']:,.0f} of it mapped files"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="load", choices=["load", "load-one", "prepare"])
    parser.add_argument("file", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.what == "load-one":
        return load_one(options.file)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "load":
            bench_load(Path(folder))
        else:
            bench_prepare(Path(folder), options.rows, options.model, options.workers)


if __name__ == "__main__":
    main()
