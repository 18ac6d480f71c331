"""`submission pack` as a process: its help comes at once, its refusals are sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = {"numpy", "mlperf_loadgen", "pyarrow", "pandas", "transformers"}


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=50)


def test_help_imports_nothing_heavy_and_names_the_exit_codes(tmp_path: Path) -> None:
    done = python("-X", "importtime", "-m", "harness", "submission", "pack", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "4 a run is not valid, 5 accuracy or compliance is not shown" in " ".join(done.stdout.split())
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "click" in imported
    assert not imported & HEAVY


def test_every_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["nowhere", "empty", "--submitter", "Acme", "--division", "closed", "--output", "package"]
    done = python("-m", "harness", "submission", "pack", *words, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: nowhere is no directory: name the --output-dir of a run.",
        "error: empty holds neither submission.json nor result.json: name the --output-dir of a run that came to its "
        "end.",
    ]
    assert done.stdout == "Nothing was packed; what stands against it: 2.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
