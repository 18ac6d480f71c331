"""Packing: what a package holds, and every reason not to make one."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cli import call
from harness.demo import MODEL
from harness.submission import documents, refusals, verdicts
from harness.submission.fields import MEASUREMENTS, SYSTEM_FIELDS, SYSTEM_FILLED
from harness.submission.pack import File
from harness.submission.runs import Run, gather
from harness.submission.system import FILL

# compliance/TEST06/audit.config of mlcommons/inference
TEST06 = """\
*.*.mode = 2
*.*.accuracy_log_rng_seed = 720381539243781796
*.*.accuracy_log_sampling_target = 100
*.*.min_query_count = 100
*.*.min_duration = 0
*.*.sample_concatenate_permutation = 0
"""
PASSED = """\
First token check pass: Skipped
EOS check pass: True
Sample length check pass: True
TEST06 verification complete
"""
ROW = "llama2-70b-99.9"
PARTS = ("accuracy", "performance", "TEST06")
CHECKSUMMED = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json", "user.conf")


@pytest.fixture(scope="module")
def echo_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real Offline runs of 96 made-up samples on echo: accuracy, performance, TEST06."""
    place = tmp_path_factory.mktemp("echo")
    rows = [{"id": f"r{n}", "tok_input": [1, 5 + n, 9], "output": "a reference"} for n in range(96)]
    pd.DataFrame(rows).to_parquet(place / "rows.parquet")
    (place / "test06.config").write_text(TEST06)
    shared = ["run", "--benchmark", ROW, "--scenario", "Offline", "--backend", "echo", "--model", str(MODEL)]
    shared += ["--dataset", "rows.parquet", "--quiet", "--engine-arg", "tokens=200"]
    more = {"accuracy": ["--mode", "accuracy"], "performance": [], "TEST06": ["--audit-config", "test06.config"]}

    def one(part: str) -> int:
        words = [sys.executable, "-m", "harness", *shared, *more[part], "--output-dir", part]
        return subprocess.run(words, cwd=place, capture_output=True, timeout=50).returncode

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, PARTS)) == [0, 0, 0]
    (place / "TEST06" / "verify_accuracy.txt").write_text(PASSED)
    for part in PARTS:
        edit(place / part, lambda result, part=part: result.update(audit=part if part == "TEST06" else None, resumed=0))
    edit(place / "TEST06", lambda result: result.update(compliance={"test": "TEST06", "passed": True, "why": []}))
    return place


@pytest.fixture
def rehearsal(echo_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of Offline and Server as echo left them; Server's are Offline's under its name."""
    monkeypatch.chdir(tmp_path)
    for scenario in ("Offline", "Server"):
        for part in PARTS:
            shutil.copytree(echo_runs / part, tmp_path / scenario / part)
            edit(tmp_path / scenario / part, lambda result, name=scenario: result.update(scenario=name))
    return tmp_path


@pytest.fixture
def real(rehearsal: Path) -> Path:
    """The same, as a submission's runs look: a model answered, the accuracy was met, the logs' checksums are there."""
    for folder in runs_in(rehearsal):
        edit(folder, make_real)
        known = {name: digest for name, digest in digests(folder).items() if name in CHECKSUMMED}
        edit(folder, lambda result, known=known: result.update(files=known))
    return rehearsal


def make_real(result: dict[str, Any]) -> None:
    result["config"] |= {"backend": "vllm", "engine_arg": {}}
    result["client_limited"], result["not_ready_reasons"] = False, []
    if result["mode"] == "performance" and result["audit"] is None:
        result["not_ready_reasons"] = ["this run does not show that accuracy is met"]
    if result["mode"] == "accuracy":
        scores = {name: result["accuracy"][name] for name in ("rouge1", "rouge2", "rougeL")}
        result["accuracy"] |= {"passed": True, "why": None, "targets": {name: {"low": 0} for name in scores}}


def runs_in(place: Path) -> list[Path]:
    return [place / scenario / part for scenario in ("Offline", "Server") for part in PARTS]


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def pack(place: Path, *more: str, division: str = "closed", runs: list[Path] | None = None) -> int:
    folders = map(str, runs if runs is not None else runs_in(place))
    where = ["--submitter", "Acme", "--division", division, "--output", str(place / "package"), "--system-name", "box"]
    return call(["submission", "pack", *folders, *where, *more])


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in tree(folder)}


SCENARIO_FILES = [
    "README.md",
    "TEST06/accuracy/mlperf_log_accuracy.json",
    "TEST06/performance/run_1/mlperf_log_detail.txt",
    "TEST06/performance/run_1/mlperf_log_summary.txt",
    "TEST06/verify_accuracy.txt",
    "accuracy/accuracy.txt",
    "accuracy/mlperf_log_accuracy.json",
    "accuracy/mlperf_log_detail.txt",
    "accuracy/mlperf_log_summary.txt",
    "measurements.json",
    "mlperf.conf",
    "performance/run_1/mlperf_log_accuracy.json",
    "performance/run_1/mlperf_log_detail.txt",
    "performance/run_1/mlperf_log_summary.txt",
    "provenance.json",
    "user.conf",
]


# -- a package --------------------------------------------------------------------------------------------------------


def test_a_package_has_the_tree_of_the_round_and_the_logs_as_they_were(real: Path) -> None:
    before = {folder: digests(folder) for folder in runs_in(real)}
    assert pack(real) == 0
    results = [f"results/box/{ROW}/{scenario}/{name}" for scenario in ("Offline", "Server") for name in SCENARIO_FILES]
    own = ["documentation/calibration.md", f"src/{ROW}/README.md", "systems/box.json"]
    assert tree(real / "package") == sorted(f"closed/Acme/{name}" for name in [*results, *own])
    for folder in runs_in(real):
        assert digests(folder) == before[folder], "a run's own files are never touched"
        packed = real / "package/closed/Acme/results/box" / ROW / folder.parent.name
        pairs = {"performance": ("performance/run_1", packed), "TEST06": ("TEST06/performance/run_1", packed)}
        inner, place = pairs.get(folder.name, ("accuracy", packed))
        for name in ("mlperf_log_summary.txt", "mlperf_log_detail.txt"):
            assert (place / inner / name).read_bytes() == (folder / name).read_bytes()


def test_the_accuracy_log_is_truncated_with_its_hash_and_kept_whole_elsewhere(real: Path) -> None:
    """As truncate_accuracy_log.py does it; TEST06's log is not truncated."""
    assert pack(real) == 0
    inner = Path("closed/Acme/results/box", ROW, "Offline")
    whole = (real / "Offline/accuracy/mlperf_log_accuracy.json").read_bytes()
    assert len(whole) > 20_000
    assert (real / "package" / inner / "accuracy/mlperf_log_accuracy.json").read_bytes() == (
        whole[:4096] + b"\n\n...\n\n" + whole[-4096:]
    )
    scores = (real / "Offline/accuracy/accuracy.txt").read_text()
    expected = f"{scores}\nhash={hashlib.sha256(whole).hexdigest()}\n"
    assert (real / "package" / inner / "accuracy/accuracy.txt").read_text() == expected
    assert (real / "package-originals" / inner / "accuracy/mlperf_log_accuracy.json").read_bytes() == whole
    audited = (real / "Offline/TEST06/mlperf_log_accuracy.json").read_bytes()
    assert (real / "package" / inner / "TEST06/accuracy/mlperf_log_accuracy.json").read_bytes() == audited


def test_the_hash_of_a_test_without_scores_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"answers")
    digest = hashlib.sha256(b"answers").hexdigest()
    assert File(Path("accuracy.txt"), hash_of=tmp_path / "log").content() == f"hash={digest}\n".encode()


def test_every_field_is_there_and_what_a_person_must_write_is_listed(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(real) == 0
    out, listed = capsys.readouterr().out, (real / "package-OPEN_POINTS.md").read_text()
    system = json.loads((real / "package/closed/Acme/systems/box.json").read_text())
    measured = json.loads((real / f"package/closed/Acme/results/box/{ROW}/Offline/measurements.json").read_text())
    assert len(SYSTEM_FIELDS) == 35
    assert set(system) == set(SYSTEM_FIELDS)
    assert all(system[name] for name in SYSTEM_FILLED)
    assert (system["submitter"], system["division"], system["status"]) == ("Acme", "closed", "rdi")
    assert sorted(measured) == sorted(MEASUREMENTS)
    missing = {name for name, value in {**system, **measured}.items() if str(value).startswith(FILL)} | {"status"}
    assert {"cooling", "host_memory_configuration"} <= missing
    for name in missing:
        assert f"`{name}`: " in listed
        assert f"{name}: " in out
    assert not {"host_processor_model_name", "host_memory_capacity", "framework", "operating_system"} & missing
    assert out.splitlines()[-1] == (
        f"Next: python -m harness submission check {real / 'package'} --originals {real / 'package-originals'}"
    )


def test_a_description_given_by_a_person_leaves_nothing_open(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = dict.fromkeys(SYSTEM_FILLED, "said") | {"accelerators_per_node": 0, "status": "preview"}
    given |= {"submitter": "Acme", "division": "closed", "system_type": "datacenter", "rack": "third"}
    (real / "given.json").write_text(json.dumps(given))
    assert pack(real, "--system", "given.json") == 0
    system = json.loads((real / "package/closed/Acme/systems/box.json").read_text())
    # The official checker takes an integer 0 for an empty value.
    assert system == {**dict.fromkeys(SYSTEM_FIELDS, ""), **system, **given, "accelerators_per_node": "0"}
    assert "systems/box.json" not in capsys.readouterr().out


def test_provenance_names_harness_commit_dataset_and_replicas(real: Path) -> None:
    assert pack(real) == 0
    folder = real / f"package/closed/Acme/results/box/{ROW}/Server"
    origin, run = (
        json.loads((folder / "provenance.json").read_text()),
        json.loads((real / "Server/performance/result.json").read_text()),
    )
    assert (origin["submission_ready"], origin["not_ready_reasons"], origin["rehearsal"]) == (True, [], False)
    assert origin["dataset_sha256"] == run["environment"]["dataset_sha256"]
    assert origin["commit"] == run["environment"]["commit"]
    assert origin["runs"]["performance"]["replicas"] == run["replicas"]
    assert set(origin["runs"]) == set(PARTS)


def test_calibration_and_source_are_copied_without_hidden_files(real: Path) -> None:
    (real / "note.md").write_text("calibrated on 1,000 rows")
    for name in ("code/main.py", "code/deep/more.py", "code/.git/config", "code/__pycache__/main.pyc"):
        path = real / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert pack(real, "--calibration", "note.md", "--src", "code") == 0
    own = real / "package/closed/Acme"
    assert (own / "documentation/calibration.md").read_text() == "calibrated on 1,000 rows"
    assert tree(own / "src") == [f"{ROW}/README.md", f"{ROW}/code/deep/more.py", f"{ROW}/code/main.py"]


def test_a_rehearsal_says_so_everywhere(rehearsal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On echo without being asked: neither model nor accuracy is a submission's, and the package is marked."""
    assert pack(rehearsal) == 0
    assert "This is a REHEARSAL (echo answered, and no model)" in capsys.readouterr().out
    folder = rehearsal / f"package/closed/Acme/results/box/{ROW}/Offline"
    assert (folder / "README.md").read_text().startswith("REHEARSAL: ")
    assert json.loads((folder / "measurements.json").read_text())["rehearsal"] is True
    origin = json.loads((folder / "provenance.json").read_text())
    assert (origin["rehearsal"], origin["submission_ready"]) == (True, False)
    assert "the echo backend is a rehearsal: no model answered" in origin["not_ready_reasons"]


def test_a_real_run_is_packed_as_a_rehearsal_only_when_asked(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(real / "Server/performance", lambda result: result["not_ready_reasons"].append("the model is a small one"))
    assert pack(real) == 3
    assert "the model is a small one: only --rehearsal packs it" in capsys.readouterr().err
    assert pack(real, "--rehearsal") == 0
    text = (real / f"package/closed/Acme/results/box/{ROW}/Server/README.md").read_text()
    assert text.startswith("REHEARSAL: no submission; the model is a small one.\n")


def test_the_parts_of_a_submission_run_are_found_in_its_directory(real: Path) -> None:
    for scenario in ("Offline", "Server"):
        runs = {"format_version": 1, "runs": {part: part for part in PARTS}}
        (real / scenario / "submission.json").write_text(json.dumps(runs))
    assert pack(real, runs=[real / "Offline", real / "Server"]) == 0
    text = (real / f"package/closed/Acme/results/box/{ROW}/Server/README.md").read_text()
    assert text.count("python -m harness run --mode submission ") == 1


def test_two_systems_are_told_apart_by_name(real: Path) -> None:
    (real / "cool.json").write_text('{"cooling": "liquid"}')
    words = [f"{name}={folder}" for name in ("a", "b") for folder in runs_in(real)]
    where = ["--submitter", "Acme", "--division", "closed", "--output", "package", "--system", "b=cool.json"]
    assert call(["submission", "pack", *words, *where]) == 0
    own = real / "package/closed/Acme"
    assert sorted(path.name for path in (own / "results").iterdir()) == ["a", "b"]
    cooling = {name: json.loads((own / f"systems/{name}.json").read_text())["cooling"] for name in ("a", "b")}
    assert cooling["a"].startswith(FILL)
    assert cooling["b"] == "liquid"


def test_a_dry_run_prints_the_plan_and_writes_nothing(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(real)
    assert pack(real, "--dry-run", "--json") == 0
    assert tree(real) == before
    lines = capsys.readouterr().out.splitlines()
    whole = real / "Offline/accuracy/mlperf_log_accuracy.json"
    inner = f"closed/Acme/results/box/{ROW}/Offline/accuracy/mlperf_log_accuracy.json"
    assert f"  {inner}: truncated from {whole}" in lines
    assert f"  {inner}: copied from {whole}" in lines, "among the originals"
    plan = json.loads(lines[-1])
    assert plan["packed"] is False
    assert pack(real, "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == plan | {"packed": True}
    assert sorted(said["files"]) == tree(real / "package")


# -- what is refused --------------------------------------------------------------------------------------------------


def result(part: str, **changes: Any) -> Callable[[Path], None]:
    """Fields of one part's result.json as they would be, in the scenario Server."""
    return lambda place: edit(place / "Server" / part, lambda found: found.update(changes))


def inside(part: str, key: str, **changes: Any) -> Callable[[Path], None]:
    """The same, one level down."""
    return lambda place: edit(place / "Server" / part, lambda found: found[key].update(changes))


def machine(**changes: Any) -> Callable[[Path], None]:
    return lambda place: edit(place / "Server/accuracy", lambda found: found["environment"]["machine"].update(changes))


def file(name: str, text: str | None) -> Callable[[Path], None]:
    """Another content of a file in Server's directories; None takes it away."""

    def change(place: Path) -> None:
        path = place / "Server" / name
        path.unlink() if text is None else path.write_text(text)

    return change


def changed_log(place: Path) -> None:
    path = place / "Server/performance/mlperf_log_summary.txt"
    path.write_bytes(path.read_bytes() + b" ")


def everywhere(**changes: Any) -> Callable[[Path], None]:
    """Fields of all parts of Server."""

    def change(place: Path) -> None:
        for part in PARTS:
            edit(place / "Server" / part, lambda found: found.update(changes))

    return change


def without(*parts: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        for part in parts:
            shutil.rmtree(place / "Server" / part)

    return change


def an_error_line(place: Path) -> None:
    log = place / "Server/performance/mlperf_log_detail.txt"
    entry = {"key": "error_runtime", "value": "late", "metadata": {"is_error": True}}
    log.write_text(log.read_text() + f":::MLLOG {json.dumps(entry)}\n")


def invalid_log(place: Path) -> None:
    log = place / "Server/performance/mlperf_log_detail.txt"
    log.write_text(
        log.read_text().replace('"result_validity", "value": "VALID"', '"result_validity", "value": "INVALID"')
    )


def empty_log(part: str) -> Callable[[Path], None]:
    """A detail log without a line, in a run that knows no checksums."""

    def change(place: Path) -> None:
        (place / "Server" / part / "mlperf_log_detail.txt").write_text("")
        edit(place / "Server" / part, lambda found: found.pop("files"))

    return change


def no_verdict(place: Path) -> None:
    log = place / "Server/performance/mlperf_log_detail.txt"
    log.write_text("\n".join(line for line in log.read_text().split("\n") if "result_validity" not in line))


def half_the_scores(place: Path) -> None:
    scores = json.loads((place / "Server/accuracy/result.json").read_text())["accuracy"]
    text = f"{ {name: scores[name] for name in ('rouge1', 'rouge2')} }\n"
    (place / "Server/accuracy/accuracy.txt").write_text(text)


def checksummed(name: str, more: str) -> Callable[[Path], None]:
    """A file whose checksum the result knows, and to which something was added since."""

    def change(place: Path) -> None:
        path = place / "Server" / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit(path.parent, lambda found: found["files"].update({path.name: digest}))
        path.write_text(path.read_text() + more)

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "not complete": (
        result("performance", status="interrupted", valid=False),
        4,
        "the run was interrupted: run it again",
    ),
    "not valid": (
        result("performance", valid=False, invalid_reasons=["3 of 96 queries failed", "x"]),
        4,
        "Server/performance: the run is not valid: 3 of 96 queries failed (and 1 more in its result.json)",
    ),
    "a failed compliance run": (
        result("TEST06", valid=False, invalid_reasons=["LoadGen says INVALID", "1 of 100 queries failed"]),
        4,
        "Server/TEST06: the run is not valid: 1 of 100 queries failed; run it again.",
    ),
    "errors in LoadGen's log": (an_error_line, 4, "LoadGen's log holds 1 errors, the first error_runtime: late"),
    "a log that contradicts the result": (invalid_log, 4, "calls the run valid and LoadGen's log says INVALID"),
    "accuracy below its target": (
        inside("accuracy", "accuracy", passed=False, why="rouge1 is 3, below 44"),
        5,
        "accuracy is below its target (rouge1 is 3, below 44): only the open division takes it",
    ),
    "accuracy not decided": (
        inside("accuracy", "accuracy", passed=None, why="no punkt"),
        5,
        "is not decided (no punkt)",
    ),
    "no accuracy run": (without("accuracy"), 5, "has no accuracy run: make one with --mode accuracy"),
    "no compliance run": (
        without("TEST06"),
        5,
        "has no TEST06 run: make one with --mode submission or `compliance run",
    ),
    "compliance failed": (
        result("TEST06", compliance={"passed": False, "why": ["sample 3: odd"]}),
        5,
        "TEST06 has failed (sample 3: odd): mend that and run it again",
    ),
    "compliance not verified": (
        file("TEST06/verify_accuracy.txt", None),
        5,
        "is missing: verify it with `python -m harness",
    ),
    "another verdict": (
        file("TEST06/verify_accuracy.txt", PASSED.replace("EOS check pass: True", "EOS check pass: False")),
        5,
        "verify_accuracy.txt does not say that TEST06 has passed",
    ),
    "no performance run": (without("performance"), 3, "has no performance run: make one with --mode performance"),
    "no second scenario": (without(*PARTS), 3, "lacks a scenario: a datacenter system needs Server or Interactive"),
    "a scenario that is none here": (
        everywhere(scenario="MultiStream"),
        3,
        f"{ROW} has no MultiStream on a datacenter system: leave the run out",
    ),
    "answers of an interrupted run": (result("accuracy", resumed=12), 3, "12 answers come from an interrupted run"),
    "retries": (
        result("performance", retries=2),
        3,
        "2 queries were retried: run it again with --failure-policy strict",
    ),
    "the harness in the way": (result("performance", client_limited=True), 3, "itself was the limit (client_limited)"),
    "an audit file of one's own": (
        result("TEST06", audit=None),
        5,
        "Server/TEST06: it ran with an audit file that is no compliance test's",
    ),
    "a changed log": (changed_log, 3, "mlperf_log_summary.txt was changed after the run: put the original back"),
    "a missing log": (
        file("accuracy/mlperf_log_detail.txt", None),
        3,
        "mlperf_log_detail.txt is missing: run it again",
    ),
    "scores of one's own": (
        file("accuracy/accuracy.txt", "{'rouge1': 44.5, 'rouge2': 22.1}\n"),
        3,
        "accuracy.txt says rouge1 44.5 and result.json ",
    ),
    "a truncated log": (file("accuracy/accuracy.txt", "{}\nhash=00\n"), 3, "accuracy.txt holds a hash already"),
    "another model": (inside("accuracy", "config", model="other"), 3, "differ in model ("),
    "another dataset": (inside("TEST06", "environment", dataset_sha256="0"), 3, "differ in dataset ("),
    "another backend": (inside("accuracy", "config", backend="remote"), 3, "differ in backend (vllm and remote)"),
    "other arguments": (
        inside("accuracy", "config", engine_arg={"max_num_seqs": 8}),
        3,
        '({"engine_arg": {"max_num_seqs": 8}} and {"engine_arg": {}}): all runs of a scenario share them, so run one',
    ),
    "another engine": (inside("accuracy", "environment", engines={"e": {"dtype": "half"}}), 3, "differ in engines ("),
    "other versions": (
        inside("accuracy", "environment", packages={"vllm": "0.1"}),
        3,
        "a system has one of each, so name the systems apart (NAME=DIR) or run one of them again.",
    ),
    "another commit": (inside("accuracy", "environment", commit="0123456789ab"), 3, "differ in commit ("),
    "another host": (machine(hostname="elsewhere"), 3, "differ in hostname ("),
    "another processor": (machine(cpu="Z80"), 3, '{"cpu": "Z80"}): a system has one of each'),
    "a benchmark of nobody's": (
        everywhere(benchmark="demo"),
        3,
        "demo is no benchmark of MLCommons, so no division takes it: run another.",
    ),
    "empty scores": (
        file("accuracy/accuracy.txt", ""),
        3,
        "accuracy.txt does not say rouge1, rouge2, rougeL, tokens_per_sample as MLCommons' checker reads it: put the",
    ),
    "half the scores": (half_the_scores, 3, "accuracy.txt does not say rougeL, tokens_per_sample as"),
    "scores below the targets beside them": (
        inside("accuracy", "accuracy", targets={"rouge1": {"low": 99.0, "high": None}}),
        5,
        "accuracy is below its target (result.json calls it met, and rouge1 is ",
    ),
    "accuracy met without a target": (
        inside("accuracy", "accuracy", targets={}),
        5,
        "accuracy is not decided (result.json calls it met, and held it to no target)",
    ),
    "an empty log without a checksum": (
        empty_log("performance"),
        4,
        "mlperf_log_detail.txt holds nothing that LoadGen wrote: put the original back",
    ),
    "an empty log of accuracy": (empty_log("accuracy"), 4, "Server/accuracy: mlperf_log_detail.txt holds nothing"),
    "a log that ends before its verdict": (no_verdict, 4, "LoadGen's log says nothing of it (result_validity)"),
    "a verdict of both kinds": (
        file("TEST06/verify_accuracy.txt", PASSED + "EOS check pass: False\n"),
        5,
        "does not say that TEST06 has passed",
    ),
    "other scores than were checksummed": (
        checksummed("accuracy/accuracy.txt", " "),
        3,
        "Server/accuracy: accuracy.txt was changed after the run: put the original back",
    ),
    "another verdict than was checksummed": (
        checksummed("TEST06/verify_accuracy.txt", "\n"),
        3,
        "Server/TEST06: verify_accuracy.txt was changed after the run",
    ),
    "a checksummed file that is gone": (
        inside("performance", "files", **{"more.txt": "00"}),
        3,
        "more.txt is missing: run it again",
    ),
    "a checksum of a file elsewhere": (
        inside("performance", "files", **{"../accuracy/user.conf": "00"}),
        3,
        "result.json has the checksum of '../accuracy/user.conf', which is no file of this folder",
    ),
    "no result": (file("accuracy/result.json", None), 3, "holds neither submission.json nor result.json"),
    "half a result": (
        file("accuracy/result.json", '{"format_version": 1}'),
        3,
        "is no result of this harness: Object missing required field",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, code, sentence = REFUSED[name]
    change(real)
    folders = [folder for folder in runs_in(real) if folder.is_dir()]
    assert pack(real, runs=folders) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if sentence in line], lines
    assert all(line.startswith("error: ") and line.endswith(".") for line in lines)
    assert not list(real.glob("package*"))


def test_all_refusals_are_said_at_once_and_the_gravest_gives_the_code(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("retries", "accuracy below its target", "not valid"):
        REFUSED[name][0](real)
    assert pack(real, "--json") == 4
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 3
    assert [refusal["code"] for refusal in json.loads(out.splitlines()[-1])["refusals"]] == [4, 3, 5]


def test_two_runs_for_one_place_are_refused(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(real / "Server/performance", real / "again")
    assert pack(real, runs=[*runs_in(real), real / "again"]) == 3
    assert "are both the performance run of box · llama2-70b-99.9 · Server: name one" in capsys.readouterr().err


def test_a_hostname_is_no_other_machine_where_the_gpus_are_the_same(real: Path) -> None:
    """A container has another name at each start."""
    gpu = {"name": "H200", "memory_bytes": 1, "uuid": "GPU-1"}
    for folder in runs_in(real):
        edit(folder, lambda found: found["environment"].update(devices=[gpu]))
    machine(hostname="elsewhere")(real)
    assert pack(real) == 0
    other = [{**gpu, "uuid": "GPU-2"}]
    edit(real / "Server/accuracy", lambda found: found["environment"].update(devices=other))
    assert pack(real) == 3


@pytest.mark.parametrize(
    ("there", "code"),
    [
        ("package/notes.txt", 2),
        ("package-originals/mlperf_log_accuracy.json", 2),
        ("package.part/half", 2),
        ("package-OPEN_POINTS.md", 2),
    ],
)
def test_nothing_is_overwritten(there: str, code: int, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = real / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = digests(real)
    assert pack(real) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert digests(real) == before


def test_runs_without_checksums_are_packed_and_the_doubt_is_said(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(real / "Server/accuracy", lambda found: found.pop("files"))
    assert pack(real) == 0
    assert "cannot be told: result.json has no checksums in " in capsys.readouterr().out


def test_originals_do_not_go_into_the_package(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(real, "--originals", "package/originals") == 2
    assert "lie in each other" in capsys.readouterr().err


def test_a_packing_that_fails_leaves_nothing_half_made(
    real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Path] = []
    content = File.content

    def full_disk(self: File) -> bytes:
        written.append(self.path)
        if len(written) == 9:
            raise OSError(28, "No space left on device")
        return content(self)

    monkeypatch.setattr(File, "content", full_disk)
    assert pack(real) == 3
    assert capsys.readouterr().err == "error: No space left on device.\n"
    assert not list(real.glob("package*"))


def test_a_file_larger_than_a_repository_takes_is_refused(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (real / "code").mkdir()
    with (real / "code/weights.bin").open("wb") as sparse:
        sparse.truncate(51 * 2**20)
    assert pack(real, "--src", "code") == 3
    assert "code/weights.bin has 51 MiB, and a file may have 50: leave it out." in capsys.readouterr().err
    assert not list(real.glob("package*"))


@pytest.mark.parametrize(
    ("test", "text", "passed"),
    [
        ("TEST06", PASSED, True),
        ("TEST06", PASSED.replace("Skipped", "True"), True),
        ("TEST06", PASSED.replace("Skipped", "False"), False),
        ("TEST06", PASSED.replace("length check pass: True", "length check pass: False"), False),
        ("TEST06", PASSED + "EOS check pass: False\n", False),
        ("TEST06", PASSED + "TEST06 verification failed\n", False),
        ("TEST06", "TEST PASS\n", False),
        ("TEST09", "Min check pass: True\n\nTEST PASS\n", True),
        ("TEST09", "TEST FAIL\n", False),
        ("TEST09", "Max check pass: False\n\nTEST PASS\n", False),
    ],
)
def test_a_verdict_is_read_as_the_official_checker_reads_it(test: str, text: str, passed: bool) -> None:
    assert verdicts.says_passed(test, text) is passed


USAGE: dict[str, tuple[list[str], str]] = {
    "division": (["--division", "closd"], "unknown division 'closd': choose one of closed, open, network."),
    "submitter": (["--submitter", "A c"], "the submitter 'A c' cannot name a directory of a package"),
    "system": (["--system-name", "../x"], "the system '../x' cannot name a directory of a package"),
    "system file": (["--system", "odd.json"], "odd.json: cooling is [1]: write a text or a whole number."),
    "no system file": (["--system", "none.json"], "cannot read none.json: No such file or directory."),
    "another submitter": (["--system", "other.json"], "other.json: submitter is 'Else': write Acme, or leave it out."),
    "a system of no run": (["--system", "x=fine.json"], "--system describes x, and no run is of it: there is box."),
    "a link in the source": (["--src", "linked"], "linked/link is a link or has a blank in its name"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (real / "odd.json").write_text('{"cooling": [1]}')
    (real / "other.json").write_text('{"submitter": "Else"}')
    (real / "fine.json").write_text("{}")
    (real / "linked").mkdir()
    (real / "linked/link").symlink_to("nowhere")
    words, sentence = USAGE[name]
    assert pack(real, *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not list(real.glob("package*"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"accuracy": None}, "at `$.accuracy`"),
        ({"config": {}}, "missing required field `model` - at `$.config`"),
        ({"accuracy": {}}, "missing required field `passed` - at `$.accuracy`"),
        ({"accuracy": {"passed": True, "rouge1": "44"}}, "accuracy.rouge1 is no number"),
        ({"environment": []}, "at `$.environment`"),
        ({"metrics": {"samples_per_second": None, "tokens_per_second": 1}}, "at `$.metrics.samples_per_second`"),
        ({"files": {"user.conf": 1}}, "at `$.files[...]`"),
        ({"compliance": {"passed": None}}, "missing required field `why` - at `$.compliance`"),
    ],
)
def test_a_result_of_another_form_is_one_sentence(
    changes: dict[str, Any], fault: str, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(real / "Server/accuracy", lambda found: found.update(changes))
    assert pack(real) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {real}/Server/accuracy/result.json is ") and fault in lines[0]


# -- what MLCommons' graders decide -----------------------------------------------------------------------------------

# What language/deepseek-r1/eval_accuracy.py and language/gpt-oss-120b/eval_mlperf_accuracy.py print.
R1_PRINTS = "\nResults\n\n{'exact_match': 81.2, 'tokens_per_sample': 3886.2274, 'num-samples': 4388}\n"
OSS_PRINTS = "FINAL SCORE: 83.10%\n\n\nPrinting for submission_checker:\n\n'exact_match': 83.100\n"
TEST07_PASSED = "'exact_match': 64.1\nAccuracy score: 64.1\nAccuracy threshold: 60.698\nTEST PASS\n"


@pytest.fixture
def deepseek(real: Path) -> Path:
    """Runs as deepseek-r1's look: the accuracy waits for MLCommons' graders."""
    unpassed = {"passed": None, "why": "no grader", "targets": {"exact_match": {"low": 80.5}}}
    unpassed |= {"tokens_per_sample": 3886.2}
    for folder in runs_in(real):
        edit(folder, lambda found: found.update(benchmark="deepseek-r1"))
    for scenario in ("Offline", "Server"):
        edit(real / scenario / "accuracy", lambda found: found.update(accuracy=dict(unpassed)))
        (real / scenario / "accuracy/accuracy.txt").write_text(R1_PRINTS)
    return real


def test_what_a_grader_printed_decides_accuracy(deepseek: Path) -> None:
    assert pack(deepseek) == 0
    folder = deepseek / "package/closed/Acme/results/box/deepseek-r1/Server"
    assert "- accuracy: exact_match 81.2, tokens_per_sample 3886.2274\n" in (folder / "README.md").read_text()
    assert json.loads((folder / "provenance.json").read_text())["runs"]["accuracy"]["accuracy_passed"] is True
    assert (folder / "accuracy/accuracy.txt").read_text().startswith(R1_PRINTS)


GRADED: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "nothing printed": (
        file("accuracy/accuracy.txt", None),
        5,
        "with language/deepseek-r1/eval_accuracy.py of mlcommons/inference, and put what it prints there as "
        "accuracy.txt.",
    ),
    "an empty text": (
        file("accuracy/accuracy.txt", ""),
        3,
        "does not say exact_match, tokens_per_sample as MLCommons' checker reads it: put the whole of what the grader",
    ),
    "below the target": (
        file("accuracy/accuracy.txt", R1_PRINTS.replace("81.2", "70.5")),
        5,
        "accuracy is below its target (exact_match is 70.5, below 80.5446): only the open division takes it.",
    ),
    "two scores": (
        file("accuracy/accuracy.txt", f"{R1_PRINTS}'exact_match': 70\n"),
        5,
        "(accuracy.txt says exact_match as 81.2, 70)",
    ),
    "no number": (file("accuracy/accuracy.txt", R1_PRINTS.replace("81.2", "81.2.1")), 5, "exact_match as nan"),
    "another log's": (
        inside("accuracy", "accuracy", targets={"tokens_per_sample": {"low": 1}}, tokens_per_sample=3500.0),
        3,
        "accuracy.txt says tokens_per_sample 3886.2274 and result.json 3500.0",
    ),
    "other samples, for which there are no targets": (
        inside("accuracy", "accuracy", targets={}),
        5,
        "accuracy is not decided (no grader)",
    ),
}


@pytest.mark.parametrize("name", GRADED)
def test_a_grader_s_words_that_do_not_do(name: str, deepseek: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, code, sentence = GRADED[name]
    change(deepseek)
    assert pack(deepseek) == code
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


@pytest.fixture
def gpt_oss(real: Path) -> Path:
    """Runs as gpt-oss-120b's look: the accuracy run stands alone, the rest is of one start; TEST07 was verified since
    the run, and its file is no longer the one that the run left."""
    for scenario in ("Offline", "Server"):
        place = real / scenario
        for folder in (place / "accuracy", place / "performance", place / "TEST06"):
            edit(folder, lambda found: found.update(benchmark="gpt-oss-120b"))
        unpassed = {"passed": None, "why": "no grader", "targets": {"exact_match": {"low": 82.3}}}
        edit(place / "accuracy", lambda found, unpassed=unpassed: found.update(accuracy=unpassed))
        (place / "accuracy/accuracy.txt").write_text(OSS_PRINTS)
        (place / "accuracy").rename(real / f"{scenario}-accuracy")
        for folder in (place / "performance", place / "TEST06"):
            edit(folder, lambda found: found["config"].update(dataset="perf.parquet", audit_dataset="own.parquet"))
        for test, file_name in (("TEST07", "verify_accuracy.txt"), ("TEST09", "verify_output_len.txt")):
            shutil.copytree(place / "TEST06", place / test)
            (place / test / "verify_accuracy.txt").unlink()
            (place / test / file_name).write_text(TEST07_PASSED if test == "TEST07" else "TEST PASS\n")
            edit(
                place / test, lambda found, test=test: found.update(audit=test, compliance={"passed": True, "why": []})
            )
        shutil.rmtree(place / "TEST06")
        edit(place / "TEST07", lambda found: found.update(compliance={"passed": None, "why": ["no script"]}))
        edit(place / "TEST07", lambda found: found["config"].update(dataset="own.parquet"))
        edit(place / "TEST07", lambda found: found["environment"].update(dataset_sha256="own"))
        edit(place / "TEST07", lambda found: found["files"].update({"verify_accuracy.txt": "as the run left it"}))
        parts = {"runs": {part: part for part in ("performance", "TEST07", "TEST09")}}
        (place / "submission.json").write_text(json.dumps(parts))
    return real


def gpt_oss_runs(place: Path) -> list[Path]:
    return [place / name for name in ("Offline", "Offline-accuracy", "Server", "Server-accuracy")]


def test_runs_with_a_grader_for_accuracy_and_test07_are_packed(gpt_oss: Path) -> None:
    assert pack(gpt_oss, runs=gpt_oss_runs(gpt_oss)) == 0
    folder = gpt_oss / "package/closed/Acme/results/box/gpt-oss-120b/Offline"
    assert (folder / "TEST07/verify_accuracy.txt").read_text() == TEST07_PASSED
    origin = json.loads((folder / "provenance.json").read_text())["runs"]
    assert "verify_accuracy.txt" not in origin["TEST07"]["files"], "the run left another"
    assert origin["TEST07"]["command"] == origin["performance"]["command"]
    text = (folder / "README.md").read_text()
    told = [line for line in text.splitlines() if line.startswith("python -m harness ")]
    assert [line.split()[5] for line in told] == ["submission", "accuracy"]
    assert "--dataset perf.parquet" in told[0]
    assert "--audit-dataset own.parquet" in told[0], "--mode submission of gpt-oss-120b is refused without it"


@pytest.mark.parametrize(
    ("text", "compliance", "sentence"),
    [
        (
            "Error: Could not parse accuracy score\nTEST FAIL\n",
            {"passed": None, "why": ["no script"]},
            "TEST07 is not decided (no script): run `python -m harness compliance verify {0} --test TEST07 "
            "--accuracy-script CMD --output {0}`.",
        ),
        (TEST07_PASSED, {"passed": False, "why": ["the score is 3"]}, "TEST07 has failed (the score is 3): mend that"),
        (None, {"passed": None, "why": []}, "verify_accuracy.txt is missing: verify it with `python -m harness comp"),
    ],
)
def test_a_verdict_that_is_open_needs_the_verifier_s_words(
    text: str | None, compliance: dict[str, Any], sentence: str, gpt_oss: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gpt_oss / "Server/TEST07/verify_accuracy.txt"
    path.write_text(text) if text is not None else path.unlink()
    edit(path.parent, lambda found: found.update(compliance=compliance))
    edit(path.parent, lambda found: found["files"].pop("verify_accuracy.txt"))
    assert pack(gpt_oss, runs=gpt_oss_runs(gpt_oss)) == 5
    assert sentence.format(path.parent) in capsys.readouterr().err


# -- divisions --------------------------------------------------------------------------------------------------------


def test_the_open_division_takes_another_model_any_accuracy_and_no_compliance(real: Path) -> None:
    for scenario in ("Offline", "Server"):
        shutil.rmtree(real / scenario / "TEST06")
        edit(real / scenario / "accuracy", lambda found: found["accuracy"].update(passed=False, why="below"))
        edit(real / scenario / "performance", lambda found: found["not_ready_reasons"].append("the model is my own"))
    folders = [folder for folder in runs_in(real) if folder.is_dir()]
    assert pack(real, division="closed", runs=folders) == 5
    assert pack(real, division="open", runs=folders) == 0
    measured = real / f"package/open/Acme/results/box/{ROW}/Offline/measurements.json"
    assert json.loads(measured.read_text())["retraining"].startswith(FILL)


def test_the_network_division_needs_a_network(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(real, division="network") == 3
    assert "the network division is for replicas behind a network" in capsys.readouterr().err


def test_a_network_package_describes_the_network_and_not_the_client(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in runs_in(real):
        edit(folder, lambda found: found["config"].update(endpoint=["http://10.0.0.7:8000"], backend="remote"))
    assert pack(real, division="network") == 3
    assert "calls the SUT 'PyFastSUT', and the network division asks for 'Network SUT'" in capsys.readouterr().err
    for folder in runs_in(real):
        log = folder / "mlperf_log_detail.txt"
        log.write_text(log.read_text().replace("PyFastSUT", "Network SUT"))
        edit(folder, lambda found: found.pop("files", None))
    assert pack(real, division="network") == 0
    system = json.loads((real / "package/network/Acme/systems/box.json").read_text())
    assert system["is_network"] == "true"
    for name in ("host_processor_model_name", "accelerators_per_node", "network_type", "nic_sut", "number_of_nodes"):
        assert system[name].startswith(FILL), f"{name} of another host is not the client's"


# -- what the packer relies on ----------------------------------------------------------------------------------------


def test_the_reasons_of_real_results_are_understood(echo_runs: Path) -> None:
    """The sentences of results.not_ready_reasons that are decided here otherwise do not come back as reasons."""
    runs, none = gather([str(echo_runs / part) for part in PARTS], "box")
    assert none == []
    found = {run.role: refusals.unfit(run, "closed") for run in runs}
    assert found["TEST06"] == []
    assert any("does not show that accuracy is met" in reason for reason in runs[1]["not_ready_reasons"])
    shared = ["samples are not the benchmark's own", "the model is ", "the echo backend is a rehearsal"]
    for role, extra in (("accuracy", []), ("performance", ["the benchmark's "] * 3)):
        assert len(found[role]) == len(shared + extra), found[role]
        for start in shared:
            assert any(start in reason for reason in found[role])
    opened = refusals.unfit(runs[0], "open")
    assert not any(reason.startswith("the model is ") for reason in opened)


@pytest.mark.parametrize("part", PARTS)
def test_the_command_in_the_readme_makes_the_same_run(
    part: str, echo_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.cli.run import run as run_command
    from harness.config import as_json, resolve

    monkeypatch.chdir(echo_runs)
    found = Run(Path(part), json.loads((echo_runs / part / "result.json").read_text()))
    words = shlex.split(documents.command(found))
    assert words[:4] == ["python", "-m", "harness", "run"]
    options = run_command.make_context("run", words[4:]).params
    talk = ("as_json", "quiet", "dry_run", "debug", "mlflow_uri")
    own = {name: value for name, value in options.items() if name not in talk}
    again, recorded = as_json(resolve(**own)), dict(found.config)
    for name in ("settings", "min_duration", "min_queries", "chosen", "user_conf"):
        again.pop(name), recorded.pop(name)  # fitted to the dataset, once it was read
    assert again == recorded


def made_of(content: dict[str, Any], **config: Any) -> Run:
    return Run(Path("out"), {**content, "config": {**content["config"], **config}})


def test_no_secret_stands_in_a_command_and_the_reader_is_told(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither one that the result hides already, nor one of an older result, nor one in a URL."""
    for folder in runs_in(real):
        arguments = {"hf_token": "hf_SECRET", "api_key": "***", "loader": {"password": "SECRET"}, "hf_overrides": {}}
        edit(folder, lambda found, known=arguments: found["config"].update(engine_arg=known))
        more = {"HF_TOKEN": "***", "HF_ENDPOINT": "http://u:SECRET@h/"}
        edit(folder, lambda found, known=more: found["config"].update(engine_env=known))
        edit(folder, lambda found: found["environment"]["variables"].update(HF_ENDPOINT="http://u:SECRET@h/"))
        facts = {"http://u:SECRET@h:1": {"url": "http://u:SECRET@h:1"}}
        edit(folder, lambda found, known=facts: found["environment"].update(engines=known))
    assert pack(real) == 0
    folder = real / f"package/closed/Acme/results/box/{ROW}/Server"
    for path in (real / "package").rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path
    text = (folder / "README.md").read_text()
    for word in ("--engine-arg 'hf_token=***'", "--engine-arg 'api_key=***'", "--engine-env 'HF_TOKEN=***'"):
        assert word in text
    assert "--engine-env HF_ENDPOINT=http://h/" in text
    assert "\n`***` stands for a secret, which no result records: fill it in.\n" in text


def test_a_readme_without_secrets_does_not_speak_of_any(real: Path) -> None:
    edit_all = {"max_num_batched_tokens": 8192, "tokenizer": "a/b"}
    for folder in runs_in(real):
        edit(folder, lambda found: found["config"].update(engine_arg=edit_all))
    assert pack(real) == 0
    text = (real / f"package/closed/Acme/results/box/{ROW}/Server/README.md").read_text()
    assert "--engine-arg max_num_batched_tokens=8192 --engine-arg tokenizer=a/b" in text
    assert "***" not in text


def test_a_command_says_every_digit_and_every_option_as_it_is_read(echo_runs: Path) -> None:
    from harness.cli.run import run as run_command

    content = json.loads((echo_runs / "performance/result.json").read_text())
    settings = {"min_duration": 1_234_567, "target_qps": 0.1 + 0.2, "min_query_count": 24_576_001}
    given = {"revision": "12", "flag": True, "mode": "True", "plain": "fp8"}
    run = made_of(content, settings=settings, chosen=list(settings), engine_arg=given, ready_timeout=60.5)
    words = shlex.split(documents.command(run))
    options = run_command.make_context("run", words[4:]).params
    assert options["min_duration"] == 1234.567
    assert options["target_qps"] == 0.1 + 0.2
    assert options["min_queries"] == 24_576_001
    assert options["engine_arg"] == given, "a text that reads as JSON stays a text"
    assert options["ready_timeout"] == 60.5


def test_a_test07_run_that_stands_alone_names_its_samples_once(echo_runs: Path) -> None:
    """Outside of --mode submission, --audit-dataset is refused."""
    content = json.loads((echo_runs / "performance/result.json").read_text())
    text = documents.command(made_of(content, dataset="own.parquet", audit_dataset="own.parquet"))
    assert "--dataset own.parquet" in text
    assert "--audit-dataset" not in text
