"""`dataset prepare` and `dataset show` as a user meets them: a real process, whole sentences, the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.demo import MODEL, QUESTIONS
from tests.llama_tokenizer import write_tokenizer

ROOT = Path(__file__).parent.parent.parent.parent


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "harness", "dataset", *map(str, words)]


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=50)


def make_source(path: Path, rows: int) -> Path:
    numbers = range(rows)
    table = pa.table(
        {
            "id": [f"{('cot', 'flan', 'niv', 't0')[number % 4]}.{number}" for number in numbers],
            "system_prompt": ["Be kind."] * rows,
            "question": [f"What is {number}?" * (1 + number % 40) for number in numbers],
            "response": [f"It is {number}." * 5 for number in numbers],
        }
    )
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model") / "llama")


def prepare(source: Path, tokenizer: Path, output: Path, *more: object) -> list[object]:
    words = ["prepare", "openorca", "--source", source, "--model", tokenizer, "--output", output]
    return [*words, "--per-origin", 5, "--workers", 2, *more]


def test_prepare_and_show(tmp_path: Path, tokenizer: Path) -> None:
    source, output = make_source(tmp_path / "rows.parquet", 60), tmp_path / "new" / "out"
    done = call(*prepare(source, tokenizer, output, "--pickle", "--json"))
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout.splitlines()[-1])
    assert manifest == json.loads((output / "trial.json").read_text())
    assert f"         20 rows in {output / 'trial.sampled_20.parquet'}" in done.stdout.splitlines()
    assert done.stderr.splitlines() == [
        f"reading {source}",
        "filtered 60 of 60 rows",
        "tokenising the 20 rows of the outcome",
        "writing",
    ]
    told = call("show", output / "trial.sampled_20.pkl", "--picture", tmp_path / "a.svg", "--quiet")
    assert told.returncode == 0 and told.stderr == ""
    assert told.stdout.splitlines()[1] == "20 processed rows"
    assert manifest["outputs"]["trial.sampled_20.pkl"]["sha256"] in told.stdout
    assert (tmp_path / "a.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize("words", [[], ["prepare", "openorca"], ["show"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = [sys.executable, "-X", "importtime", "-m", "harness", "dataset", *words, "--help"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=50)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith("Usage: ")
    assert "click" in imported and not imported & {"numpy", "pandas", "datasets", "pyarrow", "tokenizers"}


def test_show_ends_in_one_line_of_json() -> None:
    done = call("show", QUESTIONS, "--model", MODEL, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["as_many_as"] == ["demo"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["prepare", "openorca", "--output", "o"], 2, "Missing option '--source'; --help lists the options."),
        (["prepare", "cnn"], 2, "No such command 'cnn'; --help lists the options."),
        (
            ["prepare", "openorca", "--source", "s", "--output", ROOT / "tests", "--model", MODEL],
            2,
            f"{ROOT / 'tests'} already holds __init__.py, and nothing is overwritten: name a new folder with --output.",
        ),
        (
            ["prepare", "openorca", "--source", "s", "--output", "/nowhere", "--model", ROOT / "docs"],
            3,
            f"{ROOT / 'docs'} has no tokenizer.json: name a model folder that has one with --model.",
        ),
        (["show", "none.jsonl"], 3, "none.jsonl is no file here: name a dataset's file, or a hub id."),
        (["show", QUESTIONS, "--picture", "a.png"], 2, "--picture a.png: a picture is written as SVG; end its name"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words: list[object], code: int, sentence: str) -> None:
    done = call(*words)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1
    assert not Path("/nowhere").exists()


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    """A limit on the size of files stands for it: 8 blocks of 1,024 bytes."""
    source = make_source(tmp_path / "rows.parquet", 400)
    words = command(*prepare(source, tokenizer, tmp_path / "out", "--quiet"))
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *words]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: cannot write below {tmp_path / 'out'} (")
    assert done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)]
)
def test_an_interrupted_preparation_leaves_nothing(
    tmp_path: Path, tokenizer: Path, number: signal.Signals, whole_group: bool
) -> None:
    """While workers write; a terminal's Ctrl-C goes to the whole process group."""
    source, output = make_source(tmp_path / "rows.parquet", 40_000), tmp_path / "out"
    words = command(*prepare(source, tokenizer, output))
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while len(list(output.glob(".preparing/tmp*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert [line for line in told.splitlines() if line] == [f"reading {source}", "error: interrupted."]
    assert not output.exists()
    while any(map(runs, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(children) == 3 and not any(map(runs, children))


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_interrupt_that_python_drops_is_heeded_all_the_same(tmp_path: Path) -> None:
    """One that comes within a hook around fork(2), or in a destructor as here, raises nothing where it comes."""
    program = """
import os, signal
from harness.cli.dataset import alone_with_signals
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass
heed = alone_with_signals()
heed()
deaf = Deaf()
del deaf
try:
    heed()
except KeyboardInterrupt:
    print("heeded")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.stdout == "heeded\n" and "Exception ignored" in done.stderr
