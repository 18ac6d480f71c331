"""From LoadGen's accuracy log to a verdict: the log is read strictly, scored plainly, and held against targets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import accuracy
from harness.accuracy import Accuracy, AccuracyLog
from harness.benchmarks import Target
from harness.dataset import Samples, Tokenizer
from harness.demo import MODEL
from harness.rouge import rouge_scores
from sut.errors import SetupError
from sut.query import as_tokens

TOKENIZER = Tokenizer(MODEL)
END = 2

Write = Callable[..., Path]


def hexed(ids: Sequence[int]) -> str:
    return as_tokens(ids).tobytes().hex().upper()


def entry(index: int, ids: Sequence[int], **changes: Any) -> dict[str, Any]:
    plain = {"seq_id": 0, "qsl_idx": index, "data": hexed(ids), "token_count": len(ids)}
    return plain | changes


def samples(*references: str) -> Samples:
    count = len(references)
    return Samples([str(n) for n in range(count)], list(references), as_tokens([]), np.zeros(count + 1, np.int64), "")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_log(*entries: dict[str, Any]) -> Path:
        path = tmp_path / "mlperf_log_accuracy.json"
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        path.write_text(f"[\n{lines}\n]\n")
        return path

    return write_log


# -- the log ---------------------------------------------------------------------------------------------------


def test_answers_come_back_as_the_int32_ids_that_they_were(write: Write) -> None:
    ids = [5, 0, 2**31 - 1, -1, END]
    log = accuracy.read_log(write(entry(3, ids, token_data=hexed(ids[:1])), entry(0, [])))
    assert log.answers[3].dtype == np.int32
    assert {index: tokens.tolist() for index, tokens in log.answers.items()} == {3: ids, 0: []}
    assert log.indices == [3, 0]


def test_of_two_answers_the_first_counts_and_both_are_seen(write: Write) -> None:
    log = accuracy.read_log(write(entry(1, [7, END]), entry(1, [8, END]), entry(0, [9, END])))
    assert log.answers[1].tolist() == [7, END]
    assert log.indices == [1, 1, 0]


def test_a_log_of_offline_has_no_first_tokens_and_one_without_token_latencies_no_counts(write: Write) -> None:
    assert accuracy.read_log(write({"seq_id": 0, "qsl_idx": 0, "data": hexed([4, END])})).answers[0].tolist() == [
        4,
        END,
    ]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (entry(4, [5, END], token_count=3), "the answer to sample 4 has 2 tokens and claims 3."),
        (entry(4, [5, END], token_data=hexed([6])), "the answer to sample 4 does not begin with its first token."),
        (
            entry(4, [5], token_count=1, token_data=hexed([5, END])),
            "the answer to sample 4 does not begin with its first token.",
        ),
        (entry(4, [], data="050000"), "an answer of 3 bytes is no row of int32 token ids."),
        (
            entry(4, [], data="0500000G"),
            "an answer is not hexadecimal: non-hexadecimal number found in fromhex() arg at position 7.",
        ),
        (
            entry(4, [], data="05000"),
            "an answer is not hexadecimal: non-hexadecimal number found in fromhex() arg at position 5.",
        ),
    ],
)
def test_an_answer_that_test06_would_not_take_is_refused(write: Write, bad: dict[str, Any], sentence: str) -> None:
    path = write(entry(0, [5, END]), bad)
    with pytest.raises(SetupError) as refused:
        accuracy.read_log(path)
    assert str(refused.value) == f"{path}: {sentence}"


def test_a_failed_answer_has_a_first_token_and_no_data(write: Write) -> None:
    log = accuracy.read_log(write(entry(0, [5, END]), entry(1, [], token_data=hexed([5]))))
    assert log.answers[1].tolist() == []


def test_a_log_that_is_cut_off_missing_or_anothers_is_one_sentence(write: Write, tmp_path: Path) -> None:
    path = write(entry(0, [5, END]), entry(1, [5, END]))
    whole = path.read_text()
    for text, sentence in (
        (whole[:-20], f"{path} is cut off or not LoadGen's: "),
        (whole[: whole.index(",\n") + 2], f"{path} is cut off or not LoadGen's: "),
        ("", f"{path} is cut off or not LoadGen's: "),
        ('{"qsl_idx": 0}', f"{path} is not an accuracy log of LoadGen's"),
        ('[{"qsl_idx": 0}]', f"{path} is not an accuracy log of LoadGen's"),
        ("[[]]", f"{path} is not an accuracy log of LoadGen's"),
    ):
        path.write_text(text)
        with pytest.raises(SetupError) as refused:
            accuracy.read_log(path)
        assert str(refused.value).startswith(sentence)
    with pytest.raises(SetupError) as refused:
        accuracy.read_log(tmp_path / "missing.json")
    assert str(refused.value) == f"cannot read {tmp_path}/missing.json: No such file or directory."


# -- the scores ------------------------------------------------------------------------------------------------


def answers(*texts: str) -> list[list[int]]:
    """The ids of texts as a model gives them: no BOS, and ended."""
    return [[*ids[1:], END] for ids in TOKENIZER.encode(texts)]


def test_scores_are_rouges_of_the_decoded_answers_and_count_the_end_of_sequence() -> None:
    said, expected = ["the cat sat", "nothing at all"], ["the cat sat down", "nothing"]
    ids = answers(*said)
    scored = accuracy.score({1: as_tokens(ids[1]), 0: as_tokens(ids[0])}, samples(*expected), TOKENIZER)
    length = round((len(ids[0]) + len(ids[1])) / 2, 1)
    assert scored == rouge_scores(said, expected) | {"tokens_per_sample": length}


def test_an_empty_answer_scores_nothing() -> None:
    scored = accuracy.score({0: as_tokens([])}, samples("something"), TOKENIZER)
    assert scored == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0, "tokens_per_sample": 0.0}


@pytest.mark.parametrize(
    ("scores", "why_not", "passed", "why"),
    [
        ({"rouge1": 40.0, "tokens_per_sample": 30.0}, None, True, None),
        ({"rouge1": 39.9, "tokens_per_sample": 30.0}, None, False, "rouge1 is 39.9, below 40"),
        (
            {"rouge1": 39.9, "tokens_per_sample": 34.0},
            None,
            False,
            "rouge1 is 39.9, below 40; tokens_per_sample is 34, above 33",
        ),
        # one score is missing: neither passed nor failed
        ({"rouge1": 39.9}, None, None, "tokens_per_sample cannot be computed here"),
        ({}, None, None, "rouge1, tokens_per_sample cannot be computed here"),
        # no target applies, whatever the scores are
        ({"rouge1": 0.0, "tokens_per_sample": 30.0}, "not this dataset", None, "not this dataset"),
    ],
)
def test_decide(scores: Mapping[str, float], why_not: str | None, passed: bool | None, why: str | None) -> None:
    targets = {"rouge1": Target(low=40), "tokens_per_sample": Target(27, 33)}
    assert accuracy.decide(scores, targets, why_not) == (passed, why)


def test_an_empty_log_and_an_index_outside_the_dataset_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for found, sentence in (
        ({}, f"{path} holds no answer."),
        ({0: as_tokens([5, END]), 9: as_tokens([5, END])}, f"{path}: sample 9 is not in the dataset of 2."),
        ({-1: as_tokens([5, END])}, f"{path}: sample -1 is not in the dataset of 2."),
    ):
        with pytest.raises(SetupError) as refused:
            accuracy.evaluate(AccuracyLog(path, found, list(found)), samples("a", "b"), TOKENIZER, {}, None)
        assert str(refused.value) == sentence


def test_evaluate_says_how_many_were_scored_and_whether_they_pass(tmp_path: Path) -> None:
    (ids,) = answers("the cat sat")
    log = AccuracyLog(tmp_path / "log.json", {0: as_tokens(ids)}, [0])
    verdict = accuracy.evaluate(log, samples("the cat sat", "b"), TOKENIZER, {"rouge1": Target(low=99)}, None)
    assert (verdict.samples, verdict.passed, verdict.scores["rouge1"]) == (1, True, 100.0)
    untargeted = accuracy.evaluate(log, samples("the cat sat"), TOKENIZER, {"rouge1": Target(low=99)}, "no target")
    assert (untargeted.passed, untargeted.why) == (None, "no target")


# -- the files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float, np.float64])
def test_accuracy_txt_is_what_mlcommons_checker_reads(tmp_path: Path, number: Callable[[float], Any]) -> None:
    scores = {"rouge1": 44.5, "rouge2": 22.25, "rougeL": 28.75, "tokens_per_sample": 294.5}
    verdict = Accuracy({name: number(value) for name, value in scores.items()}, {}, True, None, 64)
    accuracy.save(verdict, tmp_path)
    text = (tmp_path / "accuracy.txt").read_text()
    assert "np." not in text
    for name in ("rouge1", "rouge2", "rougeL"):
        match = re.match(rf".*'{name}':\s+'?([\d.]+)'?.*", text)  # submission_checker/constants.py
        assert match is not None
        assert float(match[1]) == scores[name]
    tokens = re.match(r".*'tokens_per_sample':\s([\d.]+)", text)
    assert tokens is not None
    assert float(tokens[1]) == 294.5
    assert "'gen_num': 64" in text


def test_accuracy_json_holds_scores_targets_and_verdict(tmp_path: Path) -> None:
    accuracy.save(Accuracy({"rouge1": 39.5}, {"rouge1": Target(low=40)}, False, "below", 7), tmp_path)
    assert json.loads((tmp_path / "accuracy.json").read_text()) == {
        "rouge1": 39.5,
        "samples": 7,
        "targets": {"rouge1": {"low": 40, "high": None}},
        "passed": False,
        "why": "below",
    }
