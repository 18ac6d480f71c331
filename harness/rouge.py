"""ROUGE as MLCommons' evaluate-accuracy.py computes it: rouge-score, stemmer on, no aggregator, mean of f-measures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from os import sched_getaffinity

import numpy as np
import numpy.typing as npt

METRICS = ("rouge1", "rouge2", "rougeL")

# Below this many pairs a pool of processes costs more than it saves.
_POOL_FROM = 200


def rouge_table(
    predictions: Sequence[str], references: Sequence[str], metrics: tuple[str, ...] = METRICS
) -> npt.NDArray[np.float64]:
    """F-measures from 0 to 1 of each pair, shape (pairs, metrics); on all cores this process may use.

    `metrics` may include "rougeLsum", for which texts are split into sentences (sentences_missing must be None).
    """
    pairs = list(zip(predictions, references, strict=True))
    score = partial(_score, metrics=metrics)
    workers = len(sched_getaffinity(0))
    if len(pairs) < _POOL_FROM or workers == 1:
        rows = score(pairs)
    else:
        size = -(-len(pairs) // (4 * workers))
        chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        # Spawned, not forked: this process may hold an engine's threads.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = [row for part in pool.map(score, chunks) for row in part]
    return np.array(rows, np.float64).reshape(len(pairs), len(metrics))


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean f-measure of each metric in percent, rounded to four places as the reference script prints it."""
    return mean_scores(rouge_table(predictions, references))


def mean_scores(table: npt.NDArray[np.float64], metrics: tuple[str, ...] = METRICS) -> dict[str, float]:
    return {name: round(float(np.mean(table[:, column])) * 100, 4) for column, name in enumerate(metrics)}


def sentences_missing() -> str | None:
    """Why texts cannot be split into sentences here and what to do about it, or None if they can."""
    import nltk  # type: ignore[import-untyped, unused-ignore]

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return "NLTK's punkt data is not here: run `python -m nltk.downloader punkt_tab`"
    return None


def _score(pairs: Sequence[tuple[str, str]], metrics: tuple[str, ...]) -> list[tuple[float, ...]]:
    from nltk import sent_tokenize
    from rouge_score.rouge_scorer import RougeScorer

    score = RougeScorer(list(metrics), use_stemmer=True).score
    rows = []
    for prediction, reference in pairs:
        texts = reference.strip(), prediction.strip()
        if "rougeLsum" in metrics:
            texts = "\n".join(sent_tokenize(texts[0])), "\n".join(sent_tokenize(texts[1]))
        scores = score(*texts)
        rows.append(tuple(scores[name].fmeasure for name in metrics))
    return rows
