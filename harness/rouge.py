"""ROUGE as MLCommons' evaluate-accuracy.py computes it: rouge-score, stemmer on, no aggregator, mean of f-measures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import sched_getaffinity

import numpy as np
import numpy.typing as npt

METRICS = ("rouge1", "rouge2", "rougeL")

# Below this many pairs a pool of processes costs more than it saves.
_POOL_FROM = 200


def rouge_table(predictions: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.float64]:
    """F-measures from 0 to 1 of each pair, shape (pairs, 3), columns as METRICS; on all cores this process may use."""
    pairs = list(zip(predictions, references, strict=True))
    workers = len(sched_getaffinity(0))
    if len(pairs) < _POOL_FROM or workers == 1:
        rows = _score(pairs)
    else:
        size = -(-len(pairs) // (4 * workers))
        chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        # Spawned, not forked: this process may hold an engine's threads.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = [row for part in pool.map(_score, chunks) for row in part]
    return np.array(rows, np.float64).reshape(len(pairs), len(METRICS))


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean f-measure of each metric in percent, rounded to four places as the reference script prints it."""
    return mean_scores(rouge_table(predictions, references))


def mean_scores(table: npt.NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(np.mean(table[:, column])) * 100, 4) for column, name in enumerate(METRICS)}


def _score(pairs: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
    from rouge_score.rouge_scorer import RougeScorer

    score = RougeScorer(list(METRICS), use_stemmer=True).score
    rows = []
    for prediction, reference in pairs:
        scores = score(reference.strip(), prediction.strip())
        rows.append(tuple(scores[name].fmeasure for name in METRICS))
    return rows
