"""The command line as a user meets it: a real process, whole sentences, the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import __version__
from harness.demo import MODEL

ROOT = Path(__file__).parent.parent.parent.parent

ECHO = ["--scenario", "Offline", "--backend", "echo", "--samples", "64"]

HEAVY = {"numpy", "mlperf_loadgen", "vllm", "torch", "datasets", "pandas", "pyarrow", "rich", "transformers", "uvloop"}


def python(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=50)


# -- help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["--quiet", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = python("-X", "importtime", "-m", "harness", *words)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "click" in imported
    assert not imported & HEAVY


def test_help_shows_a_command_to_try_and_every_option_says_something() -> None:
    assert "python -m harness --scenario Offline" in python("-m", "harness", "--help").stdout
    text = python("-m", "harness", "run", "--help").stdout
    options = re.findall(r"^  (--[\w-]+)(.*)$(?:\n(?!  --)(.*))?", text, re.MULTILINE)
    assert {"--scenario", "--mode", "--backend", "--output-dir", "--json", "--dry-run"} <= {
        name for name, *_ in options
    }
    for name, beside, below in options:
        assert re.search(r"[A-Z]\w+", beside + below), f"{name} has no help"


def test_version() -> None:
    assert python("-m", "harness", "--version").stdout == f"loadgen-harness, version {__version__}\n"


# -- what cannot be done ---------------------------------------------------------------------------------------

BAD = {
    "unknown scenario": (["--scenario", "Ofline"], 2, "unknown scenario 'Ofline' (nearest: Offline): choose one of "),
    "no scenario": (["--backend", "echo"], 2, "Missing option '--scenario'; --help lists the options."),
    "unknown benchmark": ([*ECHO, "--benchmark", "demoo"], 2, "unknown benchmark 'demoo' (nearest: demo): choose one "),
    "unknown backend": (["--scenario", "Server", "--backend", "ecko"], 2, "unknown backend 'ecko' (nearest: echo): "),
    "unknown dispatch": ([*ECHO, "--dispatch", "pul"], 2, "unknown dispatch policy 'pul' (nearest: pull): choose one "),
    "unknown mode": ([*ECHO, "--mode", "acuracy"], 2, "unknown mode 'acuracy' (nearest: accuracy): choose one of "),
    "unknown engine argument": (
        [*ECHO, "--engine-arg", "slotz=3"],
        2,
        "unknown engine argument of the echo backend 'slotz': did you mean 'slots'?",
    ),
    "engine argument of a wrong type": (
        [*ECHO, "--engine-arg", "slots=x"],
        2,
        "echo: slots='x' is not a whole number.",
    ),
    "unknown fault": ([*ECHO, "--engine-arg", "fault=fire"], 2, "echo: unknown fault 'fire': choose one of error, "),
    "no K=V": ([*ECHO, "--engine-arg", "slots"], 2, "Invalid value for '--engine-arg': 'slots' is not of the form "),
    "no K": ([*ECHO, "--engine-env", "=4"], 2, "Invalid value for '--engine-env': '=4' is not of the form KEY=VALUE"),
    "no replica": ([*ECHO, "--replicas", "0"], 2, "Invalid value for '--replicas': 0 is not in the range x>=1; "),
    "no sample": ([*ECHO, "--samples", "0"], 2, "Invalid value for '--samples': 0 is not in the range x>=1; "),
    "unknown option": ([*ECHO, "--frobnicate"], 2, "No such option '--frobnicate'; --help lists the options."),
    "unknown command": (["frobnicate"], 2, "No such command 'frobnicate'; --help lists the options."),
    "a word too many": (["run", *ECHO, "more"], 2, "Got unexpected extra argument (more); --help lists the options."),
    "missing model": ([*ECHO, "--model", "./nowhere"], 3, "the model ./nowhere is no folder here: name a folder with "),
    "no config.json": ([*ECHO, "--model", "empty"], 3, "cannot read empty/config.json: No such file or directory."),
    "unreadable config.json": ([*ECHO, "--model", "broken"], 3, "broken/config.json is not valid JSON: "),
    "no tokenizer": ([*ECHO, "--model", "mute"], 3, "mute has no tokenizer.json: name a model folder that has one "),
    "missing dataset": (
        [*ECHO, "--dataset", "nowhere.jsonl"],
        3,
        "cannot read the dataset nowhere.jsonl: No such file or directory; name a JSONL file with --dataset.",
    ),
    "cut-off dataset": ([*ECHO, "--dataset", "cut.jsonl"], 3, "cut.jsonl, line 1: not a JSON object ("),
    "prompts that do not fit": (
        [*ECHO, "--engine-arg", "max_model_len=170"],
        3,
        "64 prompts of ",
    ),
    "no dataset": (
        ["--scenario", "Offline", "--benchmark", "llama2-70b-99.9", "--backend", "echo"],
        2,
        "benchmark llama2-70b-99.9 ships no dataset: name one with --dataset (MLCommons",
    ),
    "no load": (["--scenario", "Server", "--target-qps", "0"], 2, "target_qps is 0.0: it must be a positive number."),
    "a load that is none": (["--scenario", "SingleStream", "--target-qps", "3"], 2, "--target-qps has no meaning in "),
    "a typo in user.conf": (
        [*ECHO, "--user-conf", "typo.conf"],
        2,
        "typo.conf, line 1: LoadGen knows no key 'traget_qps'; did you mean 'target_qps'?",
    ),
    "no user.conf": ([*ECHO, "--user-conf", "no.conf"], 2, "Invalid value for '--user-conf': File 'no.conf' does not "),
    "no place": ([*ECHO, "--output-dir", "typo.conf/out"], 3, "cannot write to the output directory typo.conf/out: "),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with broken things in it."""
    place = tmp_path_factory.mktemp("workplace")
    for name in ("empty", "broken", "mute"):
        (place / name).mkdir()
    (place / "broken" / "config.json").write_text("{")
    (place / "mute" / "config.json").write_text("{}")
    (place / "cut.jsonl").write_text('{"id": "a", "quest')
    (place / "typo.conf").write_text("demo.Server.traget_qps = 4\n")
    return place


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_one_sentence_and_an_exit_code(what: str, workplace: Path) -> None:
    words, code, sentence = BAD[what]
    # Quiet: without it a run also says what it is doing.
    quiet = [] if what == "unknown command" else ["--quiet"]
    done = python("-m", "harness", *words, *quiet, cwd=workplace)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip()[-1] in ".?"


def test_a_mistake_leaves_nothing_behind(tmp_path: Path) -> None:
    assert python("-m", "harness", *ECHO, "--engine-arg", "slotz=3", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["ttft=NaN", "tpot=Infinity"])
def test_a_number_of_the_echo_backend_is_finite(argument: str, tmp_path: Path) -> None:
    words = [*ECHO, "--engine-arg", argument, "--stall-timeout", "0.5", "--quiet"]
    done = python("-m", "harness", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: echo: ")


def test_a_traceback_is_for_those_who_ask(workplace: Path) -> None:
    done = python("-m", "harness", *ECHO, "--model", "./nowhere", "--debug", cwd=workplace)
    assert done.returncode == 3
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: the model ./nowhere is no folder here: ")


def test_without_a_word_the_help_is_shown(tmp_path: Path) -> None:
    done = python("-m", "harness", cwd=tmp_path)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).startswith("Usage: loadgen-harness [OPTIONS] COMMAND [ARGS]...")


# -- what a run says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["run"]])
def test_run_is_the_default_command_and_json_ends_with_the_result(command: list[str], tmp_path: Path) -> None:
    done = python("-m", "harness", *command, *ECHO, "--json", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    head, *_, last = done.stdout.splitlines()
    assert head == "demo · Offline · performance: VALID"
    (folder,) = (tmp_path / "results").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-demo-Offline-performance", folder.name)
    assert json.loads(last) == json.loads((folder / "result.json").read_text())


def test_without_quiet_the_steps_are_told_on_stderr_and_the_result_on_stdout(tmp_path: Path) -> None:
    done = python("-m", "harness", *ECHO, "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["Starting 1 echo replica …", "Stopping the replicas …"]
    assert done.stdout.startswith("demo · Offline · performance: VALID\n\n  ")
    assert done.stdout.endswith("\nFiles: out/\n")


def test_the_exit_code_is_5_below_the_accuracy_target(tmp_path: Path) -> None:
    """Echo gives the question back; all 1,024 are scored, on all cores."""
    words = ["--scenario", "Offline", "--mode", "accuracy", "--backend", "echo", "--json", "--quiet"]
    done = python("-m", "harness", *words, cwd=tmp_path)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, done.stderr) == (5, "")
    assert (result["valid"], result["accuracy"]["passed"], result["submission_ready"]) == (True, False, False)
    assert "accuracy is below its target" in result["not_ready_reasons"]
    assert "\n  accuracy FAILED: rouge1 is " in done.stdout


def test_engine_arguments_and_environment_are_recorded_as_given(tmp_path: Path) -> None:
    given = ["--engine-arg", "slots=7", "--engine-arg", "tokens=8-9", "--engine-env", "OMP_NUM_THREADS=1"]
    done = python("-m", "harness", *ECHO, *given, "--json", "--quiet", cwd=tmp_path)
    recorded = json.loads(done.stdout.splitlines()[-1])["config"]
    assert recorded["engine_arg"] == {"slots": 7, "tokens": "8-9"}
    assert recorded["engine_env"] == {"OMP_NUM_THREADS": "1"}
    assert recorded["samples"] == 64


def test_a_secret_for_the_engine_is_not_recorded(tmp_path: Path) -> None:
    done = python("-m", "harness", *ECHO, "--engine-env", "HF_TOKEN=s3cret", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "s3cret" not in done.stdout


def test_a_reader_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "harness", *ECHO, "--quiet", "--output-dir", "out"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (0, "")


# -- a dry run -------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    done = python("-m", "harness", "--scenario", "Server", "--backend", "echo", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(done.stdout)
    assert plan["config"]["model"] == str(MODEL)
    assert plan["dataset"]["samples"] == 1024
    assert len(plan["dataset"]["sha256"]) == 64
    assert 0 < plan["dataset"]["prompt_tokens"]["min"] <= plan["dataset"]["prompt_tokens"]["max"]
    assert "demo.Server.target_qps = 20" in plan["user_conf"]


def test_a_dry_run_starts_no_test_and_imports_no_loadgen(tmp_path: Path) -> None:
    done = python("-X", "importtime", "-m", "harness", *ECHO, "--dry-run", cwd=tmp_path)
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert done.returncode == 0
    assert not imported & {"mlperf_loadgen", "vllm", "torch", "transformers"}


def test_a_dry_run_finds_mistakes_of_the_backend_too(tmp_path: Path) -> None:
    done = python("-m", "harness", *ECHO, "--engine-arg", "slotz=3", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: unknown engine argument of the echo backend 'slotz': did you mean 'slots'?\n"
    assert list(tmp_path.iterdir()) == []
