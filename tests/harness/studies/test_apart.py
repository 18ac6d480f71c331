"""A run in a process of its own: how it is started, what is saved of that, and what it says when it cannot run."""

from __future__ import annotations

from pathlib import Path

import psutil

from harness.studies.rig import finish_apart, start_apart


def test_a_run_apart_gets_its_variables_and_leaves_no_secret_in_its_folder(tmp_path: Path) -> None:
    options = {"scenario": "Offline", "backend": "vlm", "engine_env": {"HF_TOKEN": "precious", "OMP_NUM_THREADS": "2"}}
    process = start_apart(options, tmp_path / "p", {"MY_API_KEY": "dear", "CUDA_VISIBLE_DEVICES": "0,1"})
    environment = psutil.Process(process.pid).environ()
    apart = finish_apart(process, tmp_path / "p")
    assert (environment["MY_API_KEY"], environment["CUDA_VISIBLE_DEVICES"]) == ("dear", "0,1")
    assert (tmp_path / "p" / "command.txt").read_text() == (
        "'MY_API_KEY=***' CUDA_VISIBLE_DEVICES=0,1 python -m harness run --scenario Offline --backend vlm "
        f"--engine-env 'HF_TOKEN=***' --engine-env OMP_NUM_THREADS=2 --output-dir {tmp_path / 'p'} --quiet\n"
    )
    assert apart.result is None and apart.code == 2 and apart.said.startswith("unknown backend 'vlm'")
