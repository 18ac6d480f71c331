"""`accuracy` scores a saved log in this very process: what it prints, writes, refuses, and the code it leaves with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from harness import benchmarks
from harness.benchmarks import Target
from harness.cli import call
from harness.dataset import Tokenizer, load
from harness.demo import MODEL
from sut.query import as_tokens

TOKENIZER = Tokenizer(MODEL)
END = 2
MEANT = [f"The {animal} sat on the {thing}." for animal in ("cat", "dog", "hen", "fox") for thing in ("mat", "box")]
TARGETS = {"rouge1": Target(low=90.0), "tokens_per_sample": Target(5.0, 50.0)}


def answers(texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts as a model gives them: no BOS, and ended."""
    return [[*ids[1:], END] for ids in TOKENIZER.encode(texts)]


def entries(texts: Sequence[str], dtype: str = "int32") -> list[dict[str, Any]]:
    return [
        {"seq_id": index, "qsl_idx": index, "data": np.array(ids, dtype).tobytes().hex(), "token_count": len(ids)}
        for index, ids in enumerate(answers(texts))
    ]


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])


Call = Callable[..., Said]


@pytest.fixture
def accuracy(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str | Path) -> Said:
        code = call(["accuracy", *map(str, words)])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture(autouse=True)
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with eight questions of its own, and targets that a right answer meets."""
    path = tmp_path / "questions.jsonl"
    lines = [
        {"id": f"q.{number}", "system_prompt": "", "question": f"What is {number}?", "response": text}
        for number, text in enumerate(MEANT)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = replace(benchmarks.find("demo"), dataset=str(path), samples=len(MEANT), targets=TARGETS)
    monkeypatch.setattr(benchmarks, "demo", lambda: small)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_log(logged: Any, name: str = "theirs") -> Path:
        path = tmp_path / name / "mlperf_log_accuracy.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(logged if isinstance(logged, str) else json.dumps(logged))
        return path

    return write_log


def run_directory(log: Path, dataset: Path, **changes: Any) -> Path:
    """A finished run of this harness around a log."""
    digest = load(str(dataset), TOKENIZER).sha256
    content = {
        "format_version": 1,
        "invalid_reasons": [],
        "config": {"benchmark": "demo", "dataset": str(dataset), "model": str(MODEL), "samples": None},
        "environment": {"dataset_sha256": digest},
    }
    (log.parent / "result.json").write_text(json.dumps(content | changes))
    return log.parent


DEMO = ("--benchmark", "demo")


# -- scores and verdicts ---------------------------------------------------------------------------------------

PASSED = """\
demo · {log}: 8 of 8 samples, int32 ids

  accuracy passed
  rouge1                100.0000   at least 90.0000                            met
  tokens_per_sample      {length}   at least 5.0000, at most 50.0000            met

  worst samples
  0 (q.0): rouge1 100.00, {tokens} tokens
      answer     The cat sat on the mat.
      reference  The cat sat on the mat.
"""


def test_another_harness_log_is_scored_against_the_benchmark_that_is_named(
    write: Callable[..., Path], accuracy: Call
) -> None:
    log = write(entries(MEANT))
    said = accuracy(log, *DEMO, "--worst", "1")
    counts = [len(ids) for ids in answers(MEANT)]
    length = f"{round(sum(counts) / 8, 1):.4f}"
    assert (said.code, said.err) == (0, "")
    assert said.out == PASSED.format(log=log, length=length, tokens=counts[0])
    assert sorted(path.name for path in log.parent.iterdir()) == ["mlperf_log_accuracy.json"]


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_the_format_of_the_ids_is_found_and_said(write: Callable[..., Path], accuracy: Call, dtype: str) -> None:
    said = accuracy(write(entries(MEANT, dtype)), *DEMO, "--json")
    assert (said.code, said.json["dtype"], said.json["rouge1"]) == (0, dtype, 100.0)
    assert f"8 of 8 samples, {dtype} ids" in said.out


def test_answers_below_a_target_leave_with_5(write: Callable[..., Path], accuracy: Call) -> None:
    said = accuracy(write(entries([*MEANT[:-1], "Nothing."])), *DEMO, "--worst", "1")
    assert said.code == 5
    assert "accuracy FAILED: rouge1 is 87.5, below 90" in said.out
    assert "7 (q.7): rouge1 0.00" in said.out
    assert "answer     Nothing." in said.out


def test_another_dataset_has_no_target(
    write: Callable[..., Path], accuracy: Call, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text(dataset.read_text())
    said = accuracy(write(entries(MEANT)), *DEMO, "--dataset", copy)
    assert said.code == 0
    assert (
        "accuracy not decided: there is no target for this dataset, only for the benchmark's own 8 samples" in said.out
    )


def test_a_benchmark_that_mlcommons_grades_is_not_decided_here(
    write: Callable[..., Path], accuracy: Call, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmarks.ROWS, "deepseek-r1", replace(benchmarks.find("deepseek-r1"), samples=8))
    said = accuracy(write(entries(MEANT)), "--benchmark", "deepseek-r1", "--dataset", dataset, "--model", MODEL)
    assert said.code == 3
    assert "accuracy not decided: exact_match needs MLCommons' graders" in said.out
    assert "rouge" not in said.out


def test_sentences_that_cannot_be_told_leave_with_3(
    write: Callable[..., Path], accuracy: Call, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmarks.ROWS, "llama3.1-8b", replace(benchmarks.find("llama3.1-8b"), samples=8))
    monkeypatch.setattr("harness.rouge.sentences_missing", lambda: "NLTK's punkt is not here")
    said = accuracy(write(entries(MEANT)), "--benchmark", "llama3.1-8b", "--dataset", dataset, "--model", MODEL)
    assert said.code == 3
    assert "not decided: rougeLsum, gen_len cannot be computed here: NLTK's punkt is not here" in said.out


def test_repeated_answers_count_once_and_are_said(write: Callable[..., Path], accuracy: Call) -> None:
    said = accuracy(write([*entries(MEANT), *entries(["Nothing."] * 3)]), *DEMO, "--json")
    assert (said.code, said.json["rouge1"]) == (0, 100.0)
    assert said.json["notes"] == ["answers that repeat a sample: 3; the first counts, as in the reference"]


# -- a run of this harness -------------------------------------------------------------------------------------


def test_a_run_directory_says_itself_what_was_asked(write: Callable[..., Path], accuracy: Call, dataset: Path) -> None:
    folder = run_directory(write(entries(MEANT)), dataset)
    assert accuracy(folder).code == 0
    assert accuracy(folder / "mlperf_log_accuracy.json").code == 0


def test_the_accuracy_part_of_a_submission_is_found(
    write: Callable[..., Path], accuracy: Call, dataset: Path, tmp_path: Path
) -> None:
    run_directory(write(entries(MEANT), "accuracy"), dataset)
    assert accuracy(tmp_path).code == 0


def test_of_a_run_of_the_first_samples_a_quick_look_is_all_there_is(
    write: Callable[..., Path], accuracy: Call, dataset: Path
) -> None:
    log = write(entries(MEANT[:4]))
    config = {"benchmark": "demo", "dataset": str(dataset), "model": str(MODEL), "samples": 4}
    said = accuracy(run_directory(log, dataset, config=config), "--json")
    assert (said.code, said.json["passed"]) == (0, None)
    assert said.json["quick"]["scores"]["rouge1"]["verdict"] == {"low": "undecided"}  # four are too few
    assert "if the other 4 samples were like these" in said.out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"valid": False, "invalid_reasons": ["3 of 8 queries failed"]}, "3 of 8 queries failed"),
        ({"valid": False}, "its result.json calls it so and gives no reason"),
    ],
)
def test_a_run_that_was_not_valid_is_scored_says_so_and_leaves_with_4(
    write: Callable[..., Path], accuracy: Call, dataset: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    folder = run_directory(write(entries(MEANT)), dataset, **changes)
    output = tmp_path / "scores"
    said = accuracy(folder, "--output", output, "--json")
    assert said.code == 4
    log = folder / "mlperf_log_accuracy.json"
    assert said.out.startswith(
        f"demo · {log}: NOT VALID, 8 of 8 samples, int32 ids\n  ! the run was not valid: {reason}\n"
    )
    assert (said.json["valid"], said.json["invalid_reasons"], said.json["run_trouble"]) == (False, [reason], [reason])
    assert "No accuracy.txt was written: the run was not valid.\n" in said.out
    assert sorted(path.name for path in output.iterdir()) == ["accuracy.json", "accuracy_samples.parquet"]
    assert json.loads((output / "accuracy.json").read_text())["invalid_reasons"] == [reason]
    again = accuracy(folder, "--output", output)
    assert (again.code, f"{output} holds exactly these files already.\n" in again.out) == (4, True)


def test_not_valid_wins_over_below_target(write: Callable[..., Path], accuracy: Call, dataset: Path) -> None:
    logged = write(entries([*MEANT[:-1], "Nothing."]))
    assert accuracy(run_directory(logged, dataset, valid=False)).code == 4
    assert accuracy(run_directory(logged, dataset, valid=True)).code == 5


def test_the_help_names_the_code_of_a_run_that_was_not_valid(accuracy: Call) -> None:
    assert "4 the run was not valid" in " ".join(accuracy("--help").out.split())


@pytest.mark.parametrize("content", ['{"config": null, "valid": false}', "[1, 2]"])
def test_another_harness_result_json_counts_as_absent(write: Callable[..., Path], accuracy: Call, content: str) -> None:
    log = write(entries(MEANT))
    (log.parent / "result.json").write_text(content)
    assert accuracy(log.parent, *DEMO).code == 0
    said = accuracy(log.parent)
    assert (said.code, "has no result.json of this harness that says what was run" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config": None}, "is damaged: Expected `object`, got `null` - at `$.config`.\n"),
        ({"invalid_reasons": 3}, "is damaged: Expected `array`, got `int` - at `$.invalid_reasons`.\n"),
        ({"format_version": 2}, "has format 2, and this harness reads 1.\n"),
    ],
)
def test_a_damaged_result_is_one_sentence(
    write: Callable[..., Path], accuracy: Call, dataset: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = run_directory(write(entries(MEANT)), dataset, **changes)
    said = accuracy(folder, *DEMO)
    assert (said.code, said.out, said.err) == (3, "", f"error: {folder}/result.json {sentence}")


def test_the_runs_own_dataset_keeps_its_targets_under_a_relative_path(
    write: Callable[..., Path], accuracy: Call, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_directory(write(entries(MEANT)), dataset)
    monkeypatch.chdir(dataset.parent)
    said = accuracy(folder, "--dataset", dataset.name, "--json")
    assert (said.code, said.json["passed"]) == (0, True)


def test_a_dataset_that_is_not_the_runs_any_more_is_refused(
    write: Callable[..., Path], accuracy: Call, dataset: Path
) -> None:
    folder = run_directory(write(entries(MEANT)), dataset)
    dataset.write_text(dataset.read_text().replace("cat", "cow"))
    said = accuracy(folder)
    assert (said.code, said.out) == (3, "")
    assert said.err == (
        f"error: the dataset {dataset} is not what the run was asked: its SHA-256 differs from the one in result.json; "
        "name the right file with --dataset.\n"
    )
    assert accuracy(folder, "--dataset", dataset).code == 0


def test_a_run_of_ours_is_held_to_test06_and_anothers_is_not(
    write: Callable[..., Path], accuracy: Call, dataset: Path
) -> None:
    logged = entries(MEANT)
    logged[3]["token_count"] += 1
    log = write(logged)
    assert "answers that are not as long as their token_count: 1" in accuracy(log, *DEMO).out
    said = accuracy(run_directory(log, dataset))
    assert said.code == 3
    assert "the answer to sample 3 has" in said.err


# -- files -----------------------------------------------------------------------------------------------------


def test_files_are_written_where_asked_and_never_over_others(
    write: Callable[..., Path], accuracy: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "scores" / "here"
    good, bad = write(entries(MEANT)), write(entries(["Nothing."] * 8), "bad")
    said = accuracy(good, *DEMO, "--output", folder)
    names = ["accuracy.json", "accuracy.txt", "accuracy_samples.parquet"]
    assert said.out.endswith("".join(f"Wrote {folder / name}\n" for name in names))
    kept = {name: (folder / name).read_bytes() for name in names}
    again = accuracy(good, *DEMO, "--output", folder)
    assert (again.code, again.out.splitlines()[-1]) == (0, f"{folder} holds exactly these files already.")
    other = accuracy(bad, *DEMO, "--output", folder)
    assert other.code == 2
    assert other.err == (
        f"error: {folder} holds another accuracy.txt: choose another --output, nothing is overwritten.\n"
    )
    assert {name: (folder / name).read_bytes() for name in names} == kept


@pytest.mark.parametrize(
    ("name", "content"), [("accuracy.txt", b"\xff"), ("accuracy_samples.parquet", b"PAR1 and no table PAR1")]
)
def test_a_damaged_file_is_another_one(
    write: Callable[..., Path], accuracy: Call, tmp_path: Path, name: str, content: bytes
) -> None:
    log, folder = write(entries(MEANT)), tmp_path / "scores"
    assert accuracy(log, *DEMO, "--output", folder).code == 0
    (folder / name).write_bytes(content)
    said = accuracy(log, *DEMO, "--output", folder)
    assert (said.code, said.out) == (2, "")
    assert said.err == f"error: {folder} holds another {name}: choose another --output, nothing is overwritten.\n"
    assert (folder / name).read_bytes() == content


def test_two_runs_are_compared_sample_by_sample(write: Callable[..., Path], accuracy: Call, tmp_path: Path) -> None:
    before = write(entries(MEANT), "before")
    assert accuracy(before, *DEMO, "--output", tmp_path / "then").code == 0
    now = write(entries([*MEANT[:-1], "The fox sat."]), "now")
    said = accuracy(now, *DEMO, "--compare", tmp_path / "then", "--json")
    assert "1 of 8 shared samples have another answer than earlier (0 were answered only then, 0 only now)" in said.out
    assert "largest drops of the mean ROUGE of a sample\n    7 (q.7): 100.00 to 66.67" in said.out
    assert "answers are 0." in said.out
    assert said.json["compare"]["metrics"]["rouge1"]["difference"] == pytest.approx(-100 / 3 / 8)


# -- refusals --------------------------------------------------------------------------------------------------


def hexed(*ids: int) -> str:
    return as_tokens(ids).tobytes().hex()


def damaged(index: int, **changes: Any) -> list[dict[str, Any]]:
    logged = entries(MEANT)
    logged[index] |= changes
    return logged


WHOLE = json.dumps(entries(MEANT * 40))

BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], " holds no answer."),
    "cut in half": (WHOLE[: len(WHOLE) // 2], " is cut off or not LoadGen's: "),
    "truncated for a submission": (
        f"{WHOLE[:4096]}\n\n...\n\n{WHOLE[-4096:]}",
        " has been truncated to its first and last 4,096 bytes for a submission: score the original, ",
    ),
    "partial": (
        entries(MEANT[:5]),
        " lacks 3 of 8 samples (the first: 5), and an accuracy is that of all of them: finish the run, or add "
        "--partial for scores without a verdict.",
    ),
    "an id outside the vocabulary": (
        damaged(2, data=hexed(5, 40_000), token_count=2),
        ": the answer to sample 2 holds the id 40000, outside the tokenizer's vocabulary of ",
    ),
    "a negative id": (damaged(2, data=hexed(5, -1), token_count=2), ": the answer to sample 2 holds the id -1, "),
    "one index outside the dataset, and no other": (
        [damaged(2, qsl_idx=99)[2]],
        ": sample 99 is not in the dataset of 8.",
    ),
    "an index outside the dataset": (damaged(2, qsl_idx=99), ": sample 99 is not in the dataset of 8."),
    "hex of odd length": (damaged(2, data="050"), ": the answer to sample 2 has 3 hexadecimal digits, an odd number: "),
}


@pytest.mark.parametrize("what", BAD)
def test_a_log_that_cannot_be_scored_is_one_sentence(write: Callable[..., Path], accuracy: Call, what: str) -> None:
    logged, sentence = BAD[what]
    log = write(logged)
    said = accuracy(log, *DEMO, "--dtype", "int32")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"error: {log}{sentence}")
    assert said.err.count("\n") == 1


def test_a_partial_log_is_scored_without_a_verdict_if_asked_for(write: Callable[..., Path], accuracy: Call) -> None:
    said = accuracy(write(entries(MEANT[:5])), *DEMO, "--partial", "--json")
    assert (said.code, said.json["passed"], said.json["samples"]) == (0, None, 5)
    assert said.json["why"] == "3 of 8 samples have no answer"


def test_a_log_that_nobody_knows_the_benchmark_of(write: Callable[..., Path], accuracy: Call) -> None:
    said = accuracy(write(entries(MEANT)))
    assert said.code == 2
    assert (
        "has no result.json of this harness that says what was run: name the benchmark with --benchmark, one of demo, "
        in said.err
    )


def test_a_device_is_no_log(accuracy: Call, tmp_path: Path) -> None:
    device = tmp_path / "mlperf_log_accuracy.json"
    device.symlink_to("/dev/null")
    for place in (device, tmp_path):
        said = accuracy(place, *DEMO)
        assert (said.code, said.out) == (3, "")
        assert said.err.startswith(f"error: {device} is no regular file: ")


def test_a_benchmark_that_ships_no_dataset(write: Callable[..., Path], accuracy: Call) -> None:
    said = accuracy(write(entries(MEANT)), "--benchmark", "llama3.1-8b")
    assert said.code == 2
    assert "name the one that was asked with --dataset (MLCommons' is cnn_eval.json)" in said.err
