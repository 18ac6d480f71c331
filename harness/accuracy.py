"""From LoadGen's accuracy log to a verdict: log → token ids → texts → ROUGE → targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import rouge
from harness.answers import read_entries
from harness.benchmarks import Target
from harness.dataset import Samples, Tokenizer
from sut.errors import SetupError
from sut.query import TOKEN_DTYPE, Tokens


@dataclass(frozen=True)
class Accuracy:
    """Scores in percent; `passed` None means not decided, and `why` then says why."""

    scores: Mapping[str, float]
    targets: Mapping[str, Target]
    passed: bool | None
    why: str | None
    samples: int

    def as_json(self) -> dict[str, Any]:
        targets = {name: {"low": target.low, "high": target.high} for name, target in self.targets.items()}
        return {**self.scores, "samples": self.samples, "targets": targets, "passed": self.passed, "why": self.why}


class AccuracyLog(NamedTuple):
    """LoadGen's accuracy log: the first answer by sample index, and the index of every answer, repetitions included."""

    path: Path
    answers: dict[int, Tokens]
    indices: list[int]


def read_log(path: Path) -> AccuracyLog:
    """Read mlperf_log_accuracy.json; the first answer to a sample counts, as in the reference script.

    Raises SetupError for a log that is cut off, or whose answers are not what TEST06 needs: int32, as long as their
    `token_count`, and beginning with the first token that was reported.
    """
    log = AccuracyLog(path, {}, [])
    for entry in read_entries(path):
        index, data, head = entry.index, _tokens(entry.data, path), _tokens(entry.head, path)
        if entry.count is not None and entry.count != len(data):
            raise SetupError(f"{path}: the answer to sample {index} has {len(data)} tokens and claims {entry.count}.")
        # A query that failed after its first token is logged with that token and no data.
        if len(data) and not np.array_equal(head, data[: len(head)]):
            raise SetupError(f"{path}: the answer to sample {index} does not begin with its first token.")
        log.answers.setdefault(index, data)
        log.indices.append(index)
    return log


def score(answers: Mapping[int, Tokens], samples: Samples, tokenizer: Tokenizer) -> dict[str, float]:
    """ROUGE in percent and tokens per sample (the end-of-sequence id counts), over the samples that were answered."""
    order = sorted(answers)
    texts = tokenizer.decode([answers[index].tolist() for index in order])
    scores = rouge.rouge_scores(texts, [samples.references[index] for index in order])
    total = sum(len(answers[index]) for index in order)
    return scores | {"tokens_per_sample": round(total / len(order), 1)}


def decide(
    scores: Mapping[str, float], targets: Mapping[str, Target], why_not: str | None
) -> tuple[bool | None, str | None]:
    """(passed, why): None where there is no target or a score is missing; else whether each score meets its target."""
    if why_not is not None:
        return None, why_not
    missing = [name for name in targets if name not in scores]
    if missing:
        return None, f"{', '.join(missing)} cannot be computed here"
    failed = [f"{name} {fault}" for name, target in targets.items() if (fault := target.fault(scores[name]))]
    return not failed, "; ".join(failed) or None


def evaluate(
    log: AccuracyLog, samples: Samples, tokenizer: Tokenizer, targets: Mapping[str, Target], why_not: str | None
) -> Accuracy:
    """Score a log and hold it against targets; `why_not` says why no target applies. Raises SetupError."""
    if not log.answers:
        raise SetupError(f"{log.path} holds no answer.")
    unknown = [index for index in log.answers if not 0 <= index < len(samples)]
    if unknown:
        raise SetupError(f"{log.path}: sample {unknown[0]} is not in the dataset of {len(samples)}.")
    scores = score(log.answers, samples, tokenizer)
    passed, why = decide(scores, targets, why_not)
    return Accuracy(scores, {} if why_not else targets, passed, why, len(log.answers))


def save(accuracy: Accuracy, folder: Path) -> None:
    """accuracy.txt in the form that MLCommons' checker reads (plain floats, never np.float64(…)), and accuracy.json."""
    scores = {name: float(value) for name, value in accuracy.scores.items()}
    (folder / "accuracy.txt").write_text(f"{scores | {'gen_num': accuracy.samples}}\n")
    (folder / "accuracy.json").write_text(json.dumps(accuracy.as_json(), indent=2) + "\n")


def _tokens(data: bytes, path: Path) -> Tokens:
    if len(data) % TOKEN_DTYPE().itemsize:
        raise SetupError(f"{path}: an answer of {len(data)} bytes is no row of int32 token ids.")
    return np.frombuffer(data, TOKEN_DTYPE)
