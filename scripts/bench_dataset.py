"""What loading 24,576 prompts of 1,024 tokens costs: peak and resident memory over the imports, and seconds.

    python scripts/bench_dataset.py

Each format is loaded in a process of its own, from a file made up in a temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from harness.dataset import Tokenizer, load
from harness.demo import MODEL

SAMPLES, LENGTH = 24_576, 1024


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


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--load":
        return load_one(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        for path in make_files(Path(folder)):
            command = [sys.executable, __file__, "--load", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, resident, seconds, samples = json.loads(done.stdout)
            print(
                f"{path.name:<20}{samples:,} samples: peak +{peak:.0f} MB, resident +{resident:.0f} MB, {seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
