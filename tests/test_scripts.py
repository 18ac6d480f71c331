"""scripts/*.sh: what they say when a machine cannot do what they need, each time in one sentence and exit code 3."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the scripts touch before the harness itself runs, without a .venv."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("scripts", "setup.cfg", "setup.py", "README.md", "LICENSE"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    return copy


def command(folder: Path, name: str, text: str) -> Path:
    """An executable of that name, to stand before the real one in PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(project / "scripts" / "run.sh"), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHON": sys.executable, "ENGINE": "none", **environment},
    )


def test_an_old_python_is_named(project: Path, tmp_path: Path) -> None:
    old = command(tmp_path, "python3.9", 'case "$1" in --version) echo Python 3.9.18;; *) exit 1;; esac')
    done = run(project, PYTHON=str(old))
    assert done.returncode == 3
    assert done.stderr.startswith("error: Python 3.9.18 is not supported: Python 3.11 to 3.13 is needed")
    assert not (project / ".venv").exists()


def test_a_missing_python_is_named(project: Path) -> None:
    done = run(project, PYTHON="no-such-python")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: no no-such-python here")


def test_a_full_disk_is_seen_before_the_install(project: Path, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command(bin_folder, "df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\nx 9 9 99 99%% /\\n'")
    done = run(project, PATH=f"{bin_folder}:{os.environ['PATH']}")
    assert done.returncode == 3
    assert (
        done.stderr == "error: 0 GB are free here and the install needs about 1 GB; free some room and start again.\n"
    )


def test_an_index_out_of_reach_is_one_sentence(project: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0"}
    done = run(project, PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="0", PIP_FIND_LINKS="", **nowhere)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the package index is out of reach or lacks a package: ")


def test_a_second_start_installs_nothing(project: Path) -> None:
    """The stamp holds all that the install depends on; the harness is stood for by a script that says so."""
    (project / "harness").mkdir()
    told = subprocess.run(
        [
            "bash",
            "-c",
            '. scripts/venv.sh; VENV=$PWD/.venv; mkdir -p "$VENV"; '
            'touch "$VENV/.installed-$({ echo " $PWD"; "$PYTHON" --version; cat setup.cfg scripts/constraints.txt; } '
            '| sha256sum | cut -c1-16)"; prepare_venv "$PWD" ""; echo rc=$?',
        ],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "ENGINE": "none"},
    )
    assert (told.stdout, told.stderr) == ("rc=0\n", "")
