"""ROUGE equals rouge-score itself, in one process and on a pool of them."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from harness import rouge

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cats were sitting", "the cat was sitting on a mat"),
    ("", "something was expected"),
    ("something was said", ""),
    ("", ""),
    ("  spaces around\n", "spaces around"),
    ("ünïcödé — and 数字 7", "unicode and 7"),
    ("entirely different words", "nothing in common here"),
]


def theirs(prediction: str, reference: str) -> list[float]:
    scores = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, prediction)
    return [scores[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_a_pair_is_scored_as_rouge_score_does(prediction: str, reference: str) -> None:
    assert rouge.rouge_table([prediction], [reference]).tolist() == [theirs(prediction, reference)]


def test_a_pool_of_processes_gives_the_same_rows_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = [f"{prediction} {number}" for number in range(13) for prediction, _ in PAIRS]
    references = [f"{reference} {number % 5}" for number in range(13) for _, reference in PAIRS]
    alone = rouge.rouge_table(predictions, references)
    monkeypatch.setattr(rouge, "_POOL_FROM", 1)
    monkeypatch.setattr(rouge, "sched_getaffinity", lambda pid: {0, 1})
    pooled = rouge.rouge_table(predictions, references)
    assert np.array_equal(alone, pooled)
    assert alone.shape == (len(predictions), 3)


def test_scores_are_means_in_percent_with_four_places_and_plain_floats() -> None:
    predictions, references = zip(*PAIRS, strict=True)
    scores = rouge.rouge_scores(predictions, references)
    expected = np.mean([theirs(p.strip(), r.strip()) for p, r in PAIRS], axis=0)
    assert scores == {name: round(float(value) * 100, 4) for name, value in zip(rouge.METRICS, expected, strict=True)}
    assert {type(value) for value in scores.values()} == {float}


def test_nothing_to_score_is_an_empty_table() -> None:
    assert rouge.rouge_table([], []).shape == (0, 3)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        rouge.rouge_table(["one"], [])
