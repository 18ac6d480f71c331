"""From LoadGen's accuracy log to a verdict: the log is read strictly, scored plainly, and held against targets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import accuracy, benchmarks, rouge
from harness.accuracy import Accuracy, AccuracyLog, Scope, find_scope
from harness.benchmarks import Benchmark, Target
from harness.dataset import Samples, Tokenizer
from harness.demo import MODEL, QUESTIONS
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
        (entry(4, [], data="050000"), "the answer to sample 4 has 3 bytes, which are no row of int32 token ids."),
    ],
)
def test_an_answer_that_test06_would_not_take_is_refused(write: Write, bad: dict[str, Any], sentence: str) -> None:
    path = write(entry(0, [5, END]), bad)
    with pytest.raises(SetupError) as refused:
        accuracy.read_log(path)
    assert str(refused.value) == f"{path}: {sentence}"


def test_another_harness_log_that_test06_would_not_take_is_scored_with_a_note(write: Write) -> None:
    path = write(
        entry(0, [5, END], token_count=3),
        entry(1, [5, END], token_data=hexed([6])),
        entry(2, [7, END]),
        entry(2, [8, END]),
    )
    log = accuracy.read_log(path, strict=False)
    assert sorted(log.answers) == [0, 1, 2]
    assert log.notes == (
        "answers that repeat a sample: 1; the first counts, as in the reference",
        "answers that are not as long as their token_count: 1; TEST06 does not allow that",
        "answers that do not begin with their first token: 1; TEST06 does not allow that",
    )


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_another_harness_ids_may_have_another_format(write: Write, dtype: str) -> None:
    data = np.array([5, 300, END], dtype).tobytes().hex()
    path = write({"seq_id": 0, "qsl_idx": 0, "data": data, "token_count": 3})
    found = accuracy.read_log(path, "auto", 700, strict=False)
    assert (found.dtype, found.answers[0].tolist()) == (dtype, [5, 300, END])
    assert accuracy.read_log(path, dtype).answers[0].tolist() == [5, 300, END]


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


def row(**changes: Any) -> Benchmark:
    """A benchmark of a few samples that ships no dataset."""
    plain: dict[str, Any] = {"name": "small", "samples": 2, "dataset": None, "targets": {"rouge1": Target(low=99)}}
    return replace(benchmarks.find("demo"), **plain | changes)


def test_scores_are_rouges_of_the_decoded_answers_and_count_the_end_of_sequence() -> None:
    said, expected = ["the cat sat", "nothing at all"], ["the cat sat down", "nothing"]
    ids = answers(*said)
    scored = accuracy.score({1: as_tokens(ids[1]), 0: as_tokens(ids[0])}, samples(*expected), TOKENIZER)
    length = round((len(ids[0]) + len(ids[1])) / 2, 1)
    assert scored.scores == rouge_scores(said, expected) | {"tokens_per_sample": length}
    assert scored.texts == said


def test_an_empty_answer_scores_nothing() -> None:
    scored = accuracy.score({0: as_tokens([])}, samples("something"), TOKENIZER)
    assert scored.scores == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0, "tokens_per_sample": 0.0}


def test_batches_are_decoded_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"the cat sat {number} times" for number in range(7)]
    ids = [as_tokens(ids) for ids in answers(*texts)]
    monkeypatch.setattr(accuracy, "_BATCH", len(ids[0]) + 1)
    assert [len(batch) for batch in accuracy.batches(ids)] == [2, 2, 2, 1]
    assert accuracy.decode(ids, TOKENIZER) == texts


def test_without_graders_only_the_length_is_scored() -> None:
    scored = accuracy.score({0: as_tokens([5, 6, END])}, samples("a"), TOKENIZER, ("exact_match", "tokens_per_sample"))
    assert scored.scores == {"tokens_per_sample": 3.0}
    assert accuracy.worst(scored, samples("a"), 5) == []


SUMMED = ("rouge1", "rouge2", "rougeL", "rougeLsum", "gen_len")


def test_what_needs_sentences_is_left_out_where_they_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "sentences_missing", lambda: "get punkt")
    ids = answers("the cat sat")
    scored = accuracy.score({0: as_tokens(ids[0])}, samples("the cat sat"), TOKENIZER, SUMMED)
    assert set(scored.scores) == {"rouge1", "rouge2", "rougeL", "tokens_per_sample"}
    targets = {"rouge1": Target(low=40), "rougeLsum": Target(low=40), "gen_len": Target(low=9)}
    assert accuracy.decide(scored.scores, targets, None) == (
        None,
        "rougeLsum, gen_len cannot be computed here: get punkt",
    )


def test_gen_len_counts_characters_with_a_line_for_each_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rouge.rouge_table
    monkeypatch.setattr(rouge, "sentences_missing", lambda: None)
    monkeypatch.setattr("nltk.tokenize.sent_tokenize", lambda text: re.split(r"(?<=\.)\s+", text))
    # rougeLsum has a double: it stands in the fourth column, whatever it is
    monkeypatch.setattr(
        rouge, "rouge_table", lambda said, meant, metrics: np.insert(table(said, meant), 3, 0.5, axis=1)
    )
    ids = answers("A cat.  It sat.", "No.")
    scored = accuracy.score(dict(enumerate(map(as_tokens, ids))), samples("A cat.", "No."), TOKENIZER, SUMMED)
    assert scored.characters.tolist() == [len("A cat.\nIt sat."), len("No.")]  # two blanks have become one break
    assert scored.scores["gen_len"] == 17
    assert scored.scores["rougeLsum"] == 50.0
    assert list(scored.scores) == [*SUMMED, "tokens_per_sample"]


@pytest.mark.parametrize(
    ("scores", "ungraded", "passed", "why"),
    [
        ({"rouge1": 40.0, "tokens_per_sample": 30.0}, None, True, None),
        # the printed value is compared, with >=
        ({"rouge1": 39.9, "tokens_per_sample": 30.0}, None, False, "rouge1 is 39.9, below 40"),
        (
            {"rouge1": 39.9, "tokens_per_sample": 34.0},
            None,
            False,
            "rouge1 is 39.9, below 40; tokens_per_sample is 34, above 33",
        ),
        # one score is missing, and the other fails all the same
        ({"rouge1": 39.9}, None, False, "rouge1 is 39.9, below 40"),
        # one score is missing: neither passed nor failed
        ({"rouge1": 40.1}, None, None, "tokens_per_sample cannot be computed here: get punkt"),
        ({}, None, None, "rouge1, tokens_per_sample cannot be computed here: get punkt"),
        # there is no grader: never decided
        ({"tokens_per_sample": 30.0}, "no grader", None, "no grader"),
        ({"tokens_per_sample": 34.0}, "no grader", None, "no grader; tokens_per_sample is 34, above 33"),
    ],
)
def test_decide(
    scores: Mapping[str, float],
    ungraded: str | None,
    passed: bool | None,
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rouge, "sentences_missing", lambda: "get punkt")
    targets = {"rouge1": Target(low=40), "tokens_per_sample": Target(27, 33)}
    assert accuracy.decide(scores, targets, ungraded) == (passed, why)


def test_a_score_rounded_as_printed_meets_a_target_with_more_places() -> None:
    targets = benchmarks.find("llama2-70b-99.9").targets
    good = {"rouge1": 44.3868, "rouge2": 22.0132, "rougeL": 28.5876, "tokens_per_sample": 265.1}
    assert accuracy.decide(good, targets, None) == (True, None)
    assert accuracy.decide(good | {"rouge1": 44.3867}, targets, None)[0] is False
    assert accuracy.decide(good | {"tokens_per_sample": 265.0}, targets, None)[0] is False


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({}, " holds no answer."),
        ({0: [5, END], 9: [5, END]}, ": sample 9 is not in the dataset of 2."),
        ({-1: [5, END]}, ": sample -1 is not in the dataset of 2."),
        (
            {0: [5, END], 1: [5, 40_000, END]},
            ": the answer to sample 1 holds the id 40000, outside the tokenizer's vocabulary of 700 "
            "(1 such answers): name the model that answered with --model.",
        ),
        (
            {0: [5, -1], 1: [-2]},
            ": the answer to sample 0 holds the id -1, outside the tokenizer's vocabulary of 700 "
            "(2 such answers): name the model that answered with --model.",
        ),
    ],
    ids=["empty", "index beyond", "negative index", "id beyond", "negative id"],
)
def test_a_log_of_something_else_is_refused(tmp_path: Path, found: dict[int, list[int]], sentence: str) -> None:
    path = tmp_path / "log.json"
    log = AccuracyLog(path, {index: as_tokens(ids) for index, ids in found.items()}, list(found))
    with pytest.raises(SetupError) as refused:
        accuracy.evaluate(log, samples("a", "b"), TOKENIZER, row(), Scope(None))
    assert str(refused.value) == str(path) + sentence.replace("700", str(TOKENIZER.size))


def log_of(*texts: str) -> AccuracyLog:
    found = {index: as_tokens(ids) for index, ids in enumerate(answers(*texts))}
    return AccuracyLog(Path("log.json"), found, list(found))


def test_evaluate_holds_scores_against_the_benchmarks_targets() -> None:
    verdict = accuracy.evaluate(log_of("the cat sat", "b"), samples("the cat sat", "b"), TOKENIZER, row(), Scope(None))
    assert (verdict.samples, verdict.passed, verdict.scores["rouge1"], verdict.exit_code) == (2, True, 100.0, 0)
    failed = accuracy.evaluate(log_of("the cat sat", "c"), samples("the cat sat", "b"), TOKENIZER, row(), Scope(None))
    assert (failed.passed, failed.why, failed.exit_code) == (False, "rouge1 is 50, below 99", 5)


def test_where_no_target_holds_nothing_is_decided() -> None:
    verdict = accuracy.evaluate(log_of("the cat sat"), samples("the cat sat"), TOKENIZER, row(), Scope("no target"))
    assert (verdict.passed, verdict.why, verdict.targets, verdict.exit_code) == (None, "no target", {}, 0)


def test_a_log_that_lacks_samples_is_scored_without_a_verdict() -> None:
    verdict = accuracy.evaluate(log_of("the cat sat"), samples("the cat sat", "b"), TOKENIZER, row(), Scope(None))
    assert (verdict.passed, verdict.why) == (None, "1 of 2 samples have no answer")
    assert verdict.scores["rouge1"] == 100.0


def test_a_benchmark_without_a_grader_here_is_not_decided_and_says_what_to_run() -> None:
    ungraded = row(targets=benchmarks.find("deepseek-r1").targets, ungraded=benchmarks.find("deepseek-r1").ungraded)
    verdict = accuracy.evaluate(log_of("a", "b"), samples("a", "b"), TOKENIZER, ungraded, Scope(None))
    assert (verdict.passed, verdict.exit_code) == (None, 3)
    assert verdict.why is not None
    assert verdict.why.startswith("exact_match needs MLCommons' graders")
    assert "language/deepseek-r1/eval_accuracy.py" in verdict.why
    assert "rouge1" not in verdict.scores
    part = accuracy.evaluate(log_of("a", "b"), samples("a", "b"), TOKENIZER, ungraded, Scope("a part", first=True))
    assert part.why == f"a part; {ungraded.ungraded}"


def test_answers_that_begin_with_bos_are_noted() -> None:
    bos = TOKENIZER.bos
    assert bos is not None
    log = AccuracyLog(Path("log.json"), {0: as_tokens([bos, 5, END]), 1: as_tokens([5, END])}, [0, 1])
    (note,) = accuracy.evaluate(log, samples("a", "b"), TOKENIZER, row(), Scope(None)).notes
    assert note.startswith(f"1 of 2 answers begin with the beginning-of-sequence id {bos}, as text that was tokenised")


# -- which targets hold ----------------------------------------------------------------------------------------

SMOKE = "the targets are for all {} samples and these are the first {}: a smoke test, since "
NONE = "there is no target for this dataset, only for the benchmark's own {} samples"


@pytest.mark.parametrize(
    ("name", "dataset", "asked", "count", "why", "first"),
    [
        # the embedded dataset is told by its path
        ("demo", str(QUESTIONS), None, 1024, None, False),
        ("demo", str(QUESTIONS), 64, 64, SMOKE.format("1,024", 64), True),
        ("demo", str(QUESTIONS), 5000, 1024, None, False),
        ("demo", os.path.relpath(QUESTIONS), None, 1024, None, False),
        ("demo", os.path.relpath(QUESTIONS), 64, 64, SMOKE.format("1,024", 64), True),
        ("demo", "mine.jsonl", None, 1024, NONE.format(1024), False),
        ("demo", "mine.jsonl", 64, 64, NONE.format(1024), False),
        # another is told by its size, and a part of it by having been asked for
        ("llama2-70b-99.9", "orca.pkl", None, 24_576, None, False),
        ("llama2-70b-99.9", "orca.pkl", 200, 200, SMOKE.format("24,576", 200), True),
        ("llama2-70b-99.9", "mine.jsonl", None, 200, NONE.format(24_576), False),
        # accuracy has a dataset of its own
        ("gpt-oss-120b", "acc.parquet", None, 4395, None, False),
        ("gpt-oss-120b", "perf.parquet", None, 6396, NONE.format(4395), False),
    ],
)
def test_targets_hold_for_all_of_the_benchmarks_own_samples(
    name: str, dataset: str, asked: int | None, count: int, why: str | None, first: bool
) -> None:
    scope = find_scope(benchmarks.find(name), dataset, asked, count)
    assert scope.first == first
    assert scope.why_not == why or (why is not None and first and str(scope.why_not).startswith(why))


def test_the_first_rows_of_openorca_are_said_to_be_of_one_origin() -> None:
    scope = find_scope(benchmarks.find("llama2-70b-99.9"), "orca.pkl", 200, 200)
    assert scope.why_not is not None
    assert scope.why_not.endswith("the first 6,144 rows of OpenOrca's selection are of one origin (cot)")


# -- intervals -------------------------------------------------------------------------------------------------


def test_an_interval_covers_the_mean_of_all_in_about_95_of_100_draws() -> None:
    draw = np.random.default_rng(5)
    everything = draw.beta(2, 3, 24_576) * 100
    covered = 0
    for _ in range(1000):
        low, high = accuracy.interval(draw.choice(everything, 200, replace=False))
        covered += low <= everything.mean() <= high
    assert 930 <= covered <= 970


def test_one_value_has_no_interval() -> None:
    assert accuracy.interval(np.array([3.0])) == (float("-inf"), float("inf"))


@pytest.mark.parametrize(
    ("bound", "samples", "side"),
    [
        (39.0, 200, "above"),
        (40.0, 200, "above"),
        (40.1, 200, "undecided"),
        (42.0, 200, "undecided"),
        (42.1, 200, "below"),
        (10.0, 29, "undecided"),  # too few for a normal approximation
    ],
)
def test_an_interval_from_40_to_42_lies_on_one_side_of_a_bound_or_not(bound: float, samples: int, side: str) -> None:
    assert accuracy.side_of(bound, 40.0, 42.0, samples) == side


def test_a_quick_look_says_per_bound_on_which_side_a_score_lies() -> None:
    texts = ["the cat sat", "a dog ran"] * 20
    targets = {
        "rouge1": Target(low=99.0),
        "rouge2": Target(low=101.0),
        "rougeL": Target(low=50.0),
        "tokens_per_sample": Target(1.0, 1000.0),
    }
    small = row(samples=400, targets=targets)
    meant = samples(*texts[:-4], *["nothing alike"] * 4)
    verdict = accuracy.evaluate(log_of(*texts), meant, TOKENIZER, small, Scope("a part", first=True))
    assert (verdict.passed, verdict.why, verdict.targets, verdict.exit_code) == (None, "a part", {}, 0)
    assert verdict.quick is not None
    assert (verdict.quick["samples"], verdict.quick["of"]) == (40, 400)
    assert verdict.quick["method"] == "normal approximation on per-sample scores"
    looks = verdict.quick["scores"]
    assert {name: look["verdict"] for name, look in looks.items()} == {
        "rouge1": {"low": "undecided"},
        "rouge2": {"low": "below"},
        "rougeL": {"low": "above"},
        "tokens_per_sample": {"low": "above", "high": "below"},
    }
    assert looks["rouge1"]["estimate"] == 90.0
    half = 1.959964 * np.std([100.0] * 36 + [0.0] * 4, ddof=1) / 40**0.5
    assert looks["rouge1"]["interval"] == pytest.approx([90 - half, 90 + half], abs=1e-4)


def test_the_length_of_all_texts_is_estimated_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = replace(accuracy.score({0: as_tokens([5]), 1: as_tokens([6])}, samples("a", "b"), TOKENIZER, ()))
    scored = replace(scored, sentences=True, characters=np.array([100, 300]))
    look = accuracy.quick_look(scored, row(samples=1000, targets={"gen_len": Target(1.0, 2.0)}))["scores"]["gen_len"]
    assert scored.scores["gen_len"] == 400
    assert look["estimate"] == 200_000.0


# -- single samples --------------------------------------------------------------------------------------------


def test_the_worst_samples_come_first_with_the_beginnings_of_their_texts() -> None:
    meant = samples("the cat sat down", "nothing alike", "word " * 80)
    log = log_of("the cat sat", "quite other", "word " * 80)
    scored = accuracy.score(log.answers, meant, TOKENIZER)
    first, second = accuracy.worst(scored, meant, 2)
    assert (first["sample_index"], first["id"], first["rouge1"], first["answer"]) == (1, "1", 0.0, "quite other")
    assert first["reference"] == "nothing alike"
    assert second["sample_index"] == 0
    (third,) = accuracy.worst(scored, meant, 3)[2:]
    assert len(third["answer"]) == len(third["reference"]) == 100
    assert third["answer"].endswith("…")


# -- the files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float, np.float64])
def test_accuracy_txt_is_what_mlcommons_checker_reads(tmp_path: Path, number: Callable[[float], Any]) -> None:
    scores = {"rouge1": 44.5, "rouge2": 22.25, "rougeL": 28.75, "rougeLsum": 41.0, "tokens_per_sample": 294.5}
    whole = {name: number(value) for name, value in scores.items()} | {"gen_len": 8_167_644}
    accuracy.save(Accuracy(whole, {}, True, None, 64), tmp_path)
    (text,) = (tmp_path / "accuracy.txt").read_text().splitlines()
    assert "np." not in text
    # submission_checker/constants.py, ACC_PATTERN
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        match = re.match(rf".*'{name}':\s+'?([\d.]+)'?.*", text)
        assert match is not None
        assert float(match[1]) == scores[name]
    for name, value in (("tokens_per_sample", 294.5), ("gen_len", 8_167_644)):
        match = re.match(rf".*'{name}':\s([\d.]+).*", text)
        assert match is not None
        assert float(match[1]) == value
    assert "'gen_num': 64" in text


def test_accuracy_json_holds_scores_targets_and_verdict(tmp_path: Path) -> None:
    accuracy.save(Accuracy({"rouge1": 39.5}, {"rouge1": Target(low=40)}, False, "below", 7, notes=("odd",)), tmp_path)
    assert json.loads((tmp_path / "accuracy.json").read_text()) == {
        "rouge1": 39.5,
        "samples": 7,
        "targets": {"rouge1": {"low": 40, "high": None}},
        "passed": False,
        "why": "below",
        "dtype": "int32",
        "notes": ["odd"],
        "quick": None,
    }


def test_what_mlcommons_grades_has_no_accuracy_txt_of_ours(tmp_path: Path) -> None:
    accuracy.save(Accuracy({"tokens_per_sample": 39.5}, {}, None, "no grader", 7, graded=False), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]


def test_a_run_that_was_not_valid_leaves_no_accuracy_txt_and_code_4(tmp_path: Path) -> None:
    verdicts = [Accuracy({"rouge1": 39.5}, {"rouge1": Target(40)}, passed, None, 7) for passed in (True, False, None)]
    assert [verdict.exit_code for verdict in verdicts] == [0, 5, 3]
    for verdict in (replace(verdict, trouble=("3 queries failed",)) for verdict in verdicts):
        assert verdict.exit_code == 4  # wins over all others
        accuracy.save(verdict, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]
    saved = json.loads((tmp_path / "accuracy.json").read_text())
    assert (saved["valid"], saved["invalid_reasons"]) == (False, ["3 queries failed"])


def test_a_row_per_sample_is_saved(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    log = log_of("the cat sat", "b")
    verdict = accuracy.evaluate(
        log, samples("the cat sat down", "b"), TOKENIZER, row(targets=row_targets()), Scope(None)
    )
    accuracy.save(verdict, tmp_path)
    table = parquet.read_table(tmp_path / "accuracy_samples.parquet").to_pydict()
    assert list(table) == ["sample_index", "id", "rouge1", "rouge2", "rougeL", "output_tokens", "characters", "crc32"]
    assert (table["sample_index"], table["id"]) == ([0, 1], ["0", "1"])
    assert table["output_tokens"] == [len(log.answers[0]), len(log.answers[1])]
    assert table["characters"] == [len("the cat sat"), 1]
    assert np.mean(table["rouge1"]) == pytest.approx(verdict.scores["rouge1"], abs=1e-4)
    assert table["crc32"][0] != table["crc32"][1]


def row_targets() -> dict[str, Target]:
    return {name: Target(low=1) for name in rouge.METRICS}


def test_files_that_would_change_are_named_and_identical_ones_are_not(tmp_path: Path) -> None:
    small, meant = row(targets=row_targets()), samples("the cat sat", "b")
    verdict = accuracy.evaluate(log_of("the cat sat", "b"), meant, TOKENIZER, small, Scope(None))
    assert accuracy.other_files(verdict, tmp_path) == []
    accuracy.save(verdict, tmp_path)
    assert accuracy.other_files(verdict, tmp_path) == []
    other = accuracy.evaluate(log_of("the cat ran", "b"), meant, TOKENIZER, small, Scope(None))
    assert accuracy.other_files(other, tmp_path) == ["accuracy.txt", "accuracy.json", "accuracy_samples.parquet"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("accuracy.txt", b"\xff\xfe{'rouge1': 100.0}\n"),  # not UTF-8
        ("accuracy.json", b"\x80"),
        ("accuracy_samples.parquet", b"PAR1 and no table PAR1"),
        ("accuracy_samples.parquet", b""),
    ],
)
def test_what_cannot_be_read_is_another_file(name: str, content: bytes, tmp_path: Path) -> None:
    meant = samples("the cat sat", "b")
    verdict = accuracy.evaluate(log_of("the cat sat", "b"), meant, TOKENIZER, row(), Scope(None))
    accuracy.save(verdict, tmp_path)
    (tmp_path / name).write_bytes(content)
    assert accuracy.other_files(verdict, tmp_path) == [name]
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert accuracy.other_files(verdict, tmp_path) == [name]
