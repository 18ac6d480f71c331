"""`--mode submission` and `compliance run`: several genuine LoadGen tests in one process, on one start of the SUT."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.config import resolve
from harness.demo import MODEL
from harness.parts import exit_code, plan
from harness.results import RunResult
from tests.harness.conftest import Done

Many = Callable[[Mapping[Any, Sequence[str]]], dict[Any, Done]]
Run = Callable[..., Done]

OPTIONS = {"Offline": [], "Server": ["--target-qps", "1000", "--min-duration", "0"]}


@pytest.fixture(scope="module")
def submissions(many: Many) -> dict[Any, Done]:
    return many({name: ["--scenario", name, "--mode", "submission", "--json", *more] for name, more in OPTIONS.items()})


def part(run: Done, name: str) -> Done:
    return Done(run.code, run.out, run.err, run.folder / name)


@pytest.mark.parametrize("scenario", OPTIONS)
def test_every_part_is_a_run_of_its_own(submissions: dict[Any, Done], scenario: str) -> None:
    run = submissions[scenario]
    assert run.code == 5, run.err  # the echo backend's answers are below the target
    summary = json.loads((run.folder / "submission.json").read_text())
    assert summary["runs"] == {"accuracy": "accuracy", "performance": "performance", "TEST06": "TEST06"}
    assert summary["status"] == "complete"
    assert (summary["benchmark"], summary["scenario"], summary["submission_ready"]) == ("demo", scenario, False)
    assert json.loads(run.out.splitlines()[-1]) == summary | {"exit_code": 5}
    for name, mode, queries in (("accuracy", "AccuracyOnly", 1024), ("TEST06", "PerformanceOnly", 100)):
        own = part(run, name)
        assert own.result["valid"] and own.error_lines == [], name
        assert own.logged["effective_test_mode"] == mode
        assert own.result["queries"] == queries
    assert part(run, "performance").result["valid"]
    assert part(run, "performance").logged["effective_sample_concatenate_permutation"] is True


@pytest.mark.parametrize("scenario", OPTIONS)
def test_the_seeds_of_the_round_hold_in_every_part(submissions: dict[Any, Done], scenario: str) -> None:
    """A second FromConfig in a process would make them 0."""
    for name in ("accuracy", "performance", "TEST06"):
        assert part(submissions[scenario], name).logged["effective_qsl_rng_seed"] == 2085463073848966840


def test_performance_takes_its_accuracy_from_the_same_start(submissions: dict[Any, Done]) -> None:
    shown = part(submissions["Offline"], "performance").result["accuracy"]
    assert shown == {"passed": False, "why": "shown by the accuracy run of the same start"}


@pytest.mark.parametrize("scenario", OPTIONS)
def test_the_compliance_run_is_verified(submissions: dict[Any, Done], scenario: str, harness: Run) -> None:
    own = part(submissions[scenario], "TEST06")
    first = None if scenario == "Offline" else True
    checks = {"first_token": first, "eos": True, "sample_length": True}
    assert own.result["audit"] == "TEST06"
    assert own.result["compliance"] == {"test": "TEST06", "passed": True, "checks": checks, "why": []}
    assert "TEST06 verification complete" in (own.folder / "verify_accuracy.txt").read_text()
    # As another harness's log: nothing is known but LoadGen's own files.
    elsewhere = own.folder.parent / "logs"
    elsewhere.mkdir(exist_ok=True)
    for name in ("mlperf_log_accuracy.json", "mlperf_log_detail.txt"):
        (elsewhere / name).write_bytes((own.folder / name).read_bytes())
    verified = call("compliance", "verify", str(elsewhere), "--eos", "2", "--json", "--output", str(elsewhere))
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["checks"] == checks
    assert (elsewhere / "verify_accuracy.txt").read_bytes() == (own.folder / "verify_accuracy.txt").read_bytes()


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness", *words], capture_output=True, text=True, timeout=50)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["verify", "FOLDER/performance"], 3, "of no compliance test"),
        (["verify", "FOLDER"], 3, "there is no mlperf_log_detail.txt in FOLDER: verify FOLDER/TEST06."),
        (["run", "TEST09", "--scenario", "Offline"], 2, "demo asks for TEST06, not for TEST09."),
        (["verify", "FOLDER/TEST06", "--test", "TEST01"], 2, "TEST01 is no compliance test of a language model"),
        (["run", "TEST6", "--scenario", "Offline"], 2, "unknown compliance test 'TEST6' (nearest: TEST06)"),
        (["plan", "--benchmark", "llama"], 2, "unknown benchmark 'llama'"),
    ],
)
def test_a_mistake_is_one_sentence(submissions: dict[Any, Done], words: list[str], code: int, says: str) -> None:
    folder = str(submissions["Offline"].folder)
    run = call("compliance", *[word.replace("FOLDER", folder) for word in words])
    assert (run.returncode, run.stdout) == (code, ""), run.stderr
    assert says.replace("FOLDER", folder) in run.stderr and run.stderr.count("\n") == 1


def test_a_compliance_run_by_itself(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compliance", "run", "TEST06", "--scenario", "Offline", "--backend", "echo", "--output-dir", str(out)]
    run = call(*words, "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result["audit"], result["compliance"]["passed"], result["queries"]) == ("TEST06", True, 100)
    again = call(*words)
    assert again.returncode == 2 and "already holds a run" in again.stderr


def test_the_plan_names_the_tests(tmp_path: Path) -> None:
    run = call("compliance", "plan", "--benchmark", "llama2-70b-99.9", "--output", str(tmp_path))
    assert run.returncode == 0 and "logs 100 answers" in run.stdout
    assert "accuracy_log_sampling_target = 100" in (tmp_path / "TEST06" / "audit.config").read_text()


def test_ctrl_c_leaves_the_parts_that_are_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--scenario", "Server", "--mode", "submission", "--target-qps", "1000", "--min-duration", "60"]
    run = subprocess.Popen(
        [sys.executable, "-m", "harness", *words, "--backend", "echo", "--output-dir", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 40
    while not (out / "performance" / "mlperf_log_detail.txt").exists():
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    summary = json.loads((out / "submission.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["runs"] == {"accuracy": "accuracy", "performance": "performance"}
    assert "TEST06 was not run to its end" in summary["not_ready_reasons"]
    assert Done(130, "", err, out / "accuracy").result["valid"]
    assert Done(130, "", err, out / "performance").result["status"] == "interrupted"


def test_a_folder_that_holds_a_submission_is_left_as_it_is(submissions: dict[Any, Done]) -> None:
    folder = submissions["Offline"].folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    words = ["--scenario", "Offline", "--mode", "submission", "--backend", "echo", "--output-dir", str(folder)]
    assert call(*words).returncode == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("performance/result.json", "{}"), ("TEST06/audit.config", "# mine\n"), ("accuracy/user.conf", "# mine\n")],
)
def test_a_part_that_is_there_is_found_before_anything_runs(
    tmp_path: Path, harness: Run, name: str, content: str
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    run = harness("--scenario", "Offline", "--mode", "submission", "--backend", "echo")
    assert run.code == 2 and f"already holds a run's {path.name}" in run.err
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [path]
    assert path.read_text() == content


@pytest.mark.parametrize("more", [["--mode", "submission"], ["--mode", "accuracy"], ["--audit-config", __file__]])
def test_a_compliance_run_has_settings_of_its_own(tmp_path: Path, more: list[str]) -> None:
    words = ["compliance", "run", "TEST06", "--scenario", "Offline", "--backend", "echo"]
    run = call(*words, *more, "--output-dir", str(tmp_path / "out"))
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_plan_is_not_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "TEST06" / "audit.config"
    path.parent.mkdir()
    path.write_text("# mine\n")
    run = call("compliance", "plan", "--benchmark", "demo", "--output", str(tmp_path))
    assert run.returncode == 2 and path.read_text() == "# mine\n"


def test_the_order_of_the_parts() -> None:
    config = resolve(scenario="Server", mode="submission", backend="echo", output_dir=Path("out"))
    parts = plan(config)
    assert list(parts) == ["accuracy", "performance", "TEST06"]
    assert [part.mode for part in parts.values()] == ["accuracy", "performance", "performance"]
    assert {part.output_dir.name for part in parts.values()} == parts.keys()
    assert parts["TEST06"].audit_config == "out/TEST06/audit.config"


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((0, 3), 3), ((5, 3), 5), ((4, 5), 4), ((130, 4), 130)],
)
def test_the_gravest_part_decides(codes: tuple[int, ...], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {str(number): RunResult({"code": number}, Path()) for number in codes}
    monkeypatch.setattr(RunResult, "exit_code", property(lambda self: self["code"]))
    assert exit_code(results) == code


# -- gpt-oss-120b: TEST07 on samples of its own, TEST09, and no accuracy part ------------------------------------------


def roomy_model(folder: Path) -> str:
    """The demo's tokenizer, in a model of a context as long as gpt-oss-120b's answers need."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 131072}')
    return str(folder)


def dataset(path: Path, number: int) -> str:
    rows = ({"id": str(n), "tok_input": [1, 10 + n % 90, 11], "output": "x"} for n in range(number))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_compliance_test_may_ask_samples_of_its_own(tmp_path: Path, harness: Run) -> None:
    words = ["--benchmark", "gpt-oss-120b", "--mode", "submission", "--scenario", "Offline", "--min-duration", "0"]
    words += ["--model", roomy_model(tmp_path / "model"), "--backend", "echo", "--engine-arg", "tokens=1278"]
    words += ["--dataset", dataset(tmp_path / "perf.jsonl", 6396)]
    run = harness(*words, "--audit-dataset", dataset(tmp_path / "gpqa.jsonl", 990))
    assert run.code == 3, run.err  # TEST07 is not decided without the reference's graders
    summary = json.loads((run.folder / "submission.json").read_text())
    assert list(summary["runs"]) == ["performance", "TEST07", "TEST09"]
    for name, samples in (("TEST07", 990), ("TEST09", 6396)):
        own = part(run, name)
        log = json.loads((own.folder / "mlperf_log_accuracy.json").read_text())
        assert sorted(entry["qsl_idx"] for entry in log) == list(range(samples)), "each once"
        assert own.result["valid"] and own.error_lines == []
        assert not any("benchmark's" in reason and "model" not in reason for reason in own.result["not_ready_reasons"])
    assert part(run, "TEST09").result["compliance"]["passed"] is True
    assert part(run, "TEST07").result["compliance"]["passed"] is None
    graded = ["--accuracy-script", "echo \"'exact_match': 70.0\" # {accuracy_log}"]
    folder = run.folder / "TEST07"
    assert not (folder / "verify_accuracy.txt").exists(), "nothing has been decided"
    assert call("compliance", "verify", str(folder), *graded, "--output", str(folder)).returncode == 0
    assert "TEST PASS" in (folder / "verify_accuracy.txt").read_text()


@pytest.mark.parametrize(
    ("benchmark", "more", "says"),
    [
        ("gpt-oss-120b", ["--dataset", "any"], "TEST07 asks 990 samples of its own: name them with --audit-dataset."),
        ("demo", ["--audit-dataset", "any"], "only gpt-oss-120b's --mode submission asks."),
    ],
)
def test_an_audit_dataset_where_it_belongs(benchmark: str, more: list[str], says: str, harness: Run) -> None:
    run = harness("--benchmark", benchmark, "--mode", "submission", "--scenario", "Offline", "--backend", "echo", *more)
    assert run.code == 2 and says in run.err


def test_a_dataset_without_references_is_refused_where_answers_are_scored(tmp_path: Path, harness: Run) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tok_input": [1, 2]}\n')
    words = ["--scenario", "Offline", "--backend", "echo", "--dataset", str(path)]
    run = harness(*words, "--mode", "accuracy")
    assert run.code == 3 and "has no references (column output)" in run.err
    assert harness(*words).code == 0


def test_the_wrong_number_of_compliance_samples_is_refused(tmp_path: Path, harness: Run) -> None:
    words = ["--benchmark", "gpt-oss-120b", "--mode", "submission", "--scenario", "Offline", "--backend", "echo"]
    words += ["--model", roomy_model(tmp_path / "model"), "--dataset", dataset(tmp_path / "perf.jsonl", 8)]
    run = harness(*words, "--audit-dataset", dataset(tmp_path / "gpqa.jsonl", 12))
    assert run.code == 3 and "has 12 samples, and TEST07 asks 990." in run.err
