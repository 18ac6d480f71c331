"""From LoadGen's accuracy log to a verdict: log → token ids → texts → scores → targets.

Scores are those of MLCommons' evaluate-accuracy.py (llama2-70b) and evaluation.py (llama3.1-8b): means over the samples
that were answered, of repeated answers the first, rounded as these scripts print them; that is what the submission
checker compares with the targets. Texts are decoded without special tokens and stripped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness import rouge
from harness.answers import find_dtype, read_entries, strangers, token_ids
from harness.benchmarks import Benchmark, Target, same_file
from harness.dataset import Samples, Tokenizer
from sut.errors import SetupError
from sut.query import Tokens

TEXT, JSON, ROWS = "accuracy.txt", "accuracy.json", "accuracy_samples.parquet"

CONFIDENCE = 0.95

_FEW = 30
"""Below so many samples the normal approximation of an interval is worth little, and nothing is decided."""

_BATCH = 500_000
"""Tokens decoded at once: a tokenizer takes lists of Python ints, which are ten times as big as the ids."""

_SENTENCES = ("rougeLsum", "gen_len")
"""What the reference computes from texts split into sentences by NLTK's punkt."""

Floats = npt.NDArray[np.float64]


# -- the log ----------------------------------------------------------------------------------------------------------


class AccuracyLog(NamedTuple):
    """LoadGen's accuracy log: the first answer by sample index, and the index of every answer, repetitions included.

    `notes` are oddities that do not change the scores.
    """

    path: Path
    answers: dict[int, Tokens]
    indices: list[int]
    dtype: str = "int32"
    notes: tuple[str, ...] = ()


def read_log(path: Path, dtype: str = "int32", vocabulary: int = 0, strict: bool = True) -> AccuracyLog:
    """Read mlperf_log_accuracy.json; the first answer to a sample counts, as in the reference scripts.

    `dtype` is one of answers.DTYPES, or "auto": found from the data and the size of the `vocabulary`. Raises SetupError
    for a log that is cut off, and if `strict` for answers that are not what TEST06 needs: as long as their
    `token_count`, and beginning with the first token that was reported. If not, that is a note.
    """
    entries = read_entries(path)
    if dtype == "auto":
        dtype = find_dtype(entries, vocabulary, path)
    log = AccuracyLog(path, {}, [], dtype)
    miscounted = misbegun = 0
    for entry in entries:
        where = f"{path}: the answer to sample {entry.index}"
        data = token_ids(entry.data, dtype, where)
        if entry.count is not None and entry.count != len(data):
            if strict:
                raise SetupError(f"{where} has {len(data)} tokens and claims {entry.count}.")
            miscounted += 1
        # A query that failed after its first token is logged with that token and no data.
        if len(data) and not entry.data.startswith(entry.head):
            if strict:
                raise SetupError(f"{where} does not begin with its first token.")
            misbegun += 1
        log.answers.setdefault(entry.index, data)
        log.indices.append(entry.index)
    return log._replace(notes=tuple(_oddities(len(entries), len(log.answers), miscounted, misbegun)))


def _oddities(entries: int, samples: int, miscounted: int, misbegun: int) -> list[str]:
    notes = []
    if repeated := entries - samples:
        notes.append(f"answers that repeat a sample: {repeated}; the first counts, as in the reference")
    if miscounted:
        notes.append(f"answers that are not as long as their token_count: {miscounted}; TEST06 does not allow that")
    if misbegun:
        notes.append(f"answers that do not begin with their first token: {misbegun}; TEST06 does not allow that")
    return notes


# -- the scores -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """The answered samples by index, a row each; `rouge` are f-measures from 0 to 1, shape (samples, len(metrics)).

    `characters` are those of the text, counted as the benchmark's script does (`sentences`: with the line breaks that
    it puts between them). `digests` are CRC-32 of the ids.
    """

    metrics: tuple[str, ...]
    sentences: bool
    indices: list[int]
    ids: list[str]
    rouge: Floats
    tokens: npt.NDArray[np.int64]
    characters: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint32]
    texts: list[str]

    @cached_property
    def scores(self) -> dict[str, float]:
        """As printed: ROUGE in percent with four places, tokens per sample (the end-of-sequence id counts) with one."""
        scores: dict[str, float] = rouge.mean_scores(self.rouge, metrics=self.metrics) if self.metrics else {}
        if self.sentences:
            scores["gen_len"] = int(self.characters.sum())
        return scores | {"tokens_per_sample": round(int(self.tokens.sum()) / len(self.tokens), 1)}

    def columns(self) -> dict[str, Any]:
        """What accuracy_samples.parquet holds; ROUGE in percent."""
        return {
            "sample_index": np.array(self.indices, np.int64),
            "id": self.ids,
            **{name: self.rouge[:, column] * 100 for column, name in enumerate(self.metrics)},
            "output_tokens": self.tokens,
            "characters": self.characters,
            "crc32": self.digests,
        }

    def values(self, metric: str, whole: int) -> Floats:
        """Per sample, what a score is the mean of; for the length of all texts of a dataset, `whole` samples long."""
        if metric in self.metrics:
            return np.asarray(self.rouge[:, self.metrics.index(metric)] * 100, np.float64)
        return np.asarray(self.characters * whole if metric == "gen_len" else self.tokens, np.float64)


def score(
    answers: Mapping[int, Tokens], samples: Samples, tokenizer: Tokenizer, metrics: Sequence[str] = rouge.METRICS
) -> Scored:
    """Score the samples that were answered by those of `metrics` that can be computed here."""
    order = sorted(answers)
    texts = decode([answers[index] for index in order], tokenizer)
    sentences = bool(set(metrics) & set(_SENTENCES)) and rouge.sentences_missing() is None
    wanted = tuple(name for name in metrics if name in rouge.METRICS or (name == "rougeLsum" and sentences))
    references = [samples.references[index] for index in order]
    return Scored(
        metrics=wanted,
        sentences=sentences,
        indices=order,
        ids=[samples.ids[index] for index in order],
        rouge=rouge.rouge_table(texts, references, metrics=wanted) if wanted else np.empty((len(order), 0)),
        tokens=np.array([len(answers[index]) for index in order], np.int64),
        characters=np.array([len(split(text) if sentences else text) for text in texts], np.int64),
        digests=np.array([zlib.crc32(answers[index].data) for index in order], np.uint32),
        texts=texts,
    )


def decode(answers: Sequence[Tokens], tokenizer: Tokenizer) -> list[str]:
    """The texts of answers, without special tokens and surrounding space."""
    return [text.strip() for batch in batches(answers) for text in tokenizer.decode(batch)]


def batches(answers: Sequence[Tokens]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    tokens = 0
    for ids in answers:
        batch.append(ids.tolist())
        tokens += len(ids)
        if tokens >= _BATCH:
            yield batch
            batch, tokens = [], 0
    yield batch


def split(text: str) -> str:
    """A line for each sentence, as the reference scripts' postprocess_text does it; gen_len counts the result."""
    from nltk.tokenize import sent_tokenize  # type: ignore[import-untyped, unused-ignore]

    return "\n".join(sent_tokenize(text))


# -- the verdict ------------------------------------------------------------------------------------------------------


class Scope(NamedTuple):
    """Which targets hold: the benchmark's, or none and why; `first` if the samples are the first of its own."""

    why_not: str | None
    first: bool = False


def find_scope(row: Benchmark, dataset: str, asked: int | None, samples: int) -> Scope:
    """Whether a benchmark's targets hold for `samples` of a dataset, of which the first `asked` were to be loaded.

    A dataset that does not ship with the harness is told by its size, and a part of it only where one was asked for.
    """
    whole, own = row.accuracy_samples, row.dataset is None or same_file(row.dataset, dataset)
    if own and samples == whole:
        return Scope(None)
    if own and samples < whole and (row.dataset is not None or asked is not None):
        return Scope(
            f"the targets are for all {whole:,} samples and these are the first {samples:,}: a smoke test, since "
            f"{row.first_rows}",
            first=True,
        )
    return Scope(f"there is no target for this dataset, only for the benchmark's own {whole} samples")


@dataclass(frozen=True)
class Accuracy:
    """Scores, and whether they meet the targets; `passed` None means not decided, and `why` then says why.

    `targets` is empty where none applies. `quick` is what the first samples of a dataset let expect (quick_look).
    `trouble` is why the run that left the log was not valid.
    """

    scores: Mapping[str, float]
    targets: Mapping[str, Target]
    passed: bool | None
    why: str | None
    samples: int
    dtype: str = "int32"
    notes: tuple[str, ...] = ()
    quick: Mapping[str, Any] | None = None
    rows: Scored | None = None
    graded: bool = True
    trouble: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            **self.scores,
            "samples": self.samples,
            "targets": bounds(self.targets),
            "passed": self.passed,
            "why": self.why,
            "dtype": self.dtype,
            "notes": list(self.notes),
            "quick": self.quick,
            **({"valid": False, "invalid_reasons": list(self.trouble)} if self.trouble else {}),
        }

    @property
    def exit_code(self) -> int:
        """4 the run is not valid, else 0 passed or no target applies, 5 below a target, 3 not to be decided here."""
        if self.trouble:
            return 4
        if self.passed is None:
            return 3 if self.targets else 0
        return 0 if self.passed else 5


def bounds(targets: Mapping[str, Target]) -> dict[str, dict[str, float | None]]:
    return {name: {"low": target.low, "high": target.high} for name, target in targets.items()}


def evaluate(log: AccuracyLog, samples: Samples, tokenizer: Tokenizer, row: Benchmark, scope: Scope) -> Accuracy:
    """Score a log and hold it against a benchmark's targets, where they hold. Raises SetupError for a log that is not
    of these samples or not of this tokenizer's model."""
    refuse_foreign(log, samples, tokenizer)
    scored = score(log.answers, samples, tokenizer, row.metrics)
    targets: Mapping[str, Target] = row.targets
    missing = len(samples) - len(log.answers)
    if missing or scope.why_not is not None:
        targets, passed = {}, None
        reason = f"{missing} of {len(samples)} samples have no answer" if missing else scope.why_not
        why: str | None = "; ".join(filter(None, [reason, row.ungraded]))
    else:
        passed, why = decide(scored.scores, targets, row.ungraded)
    return Accuracy(
        scores=scored.scores,
        targets=targets,
        passed=passed,
        why=why,
        samples=len(log.answers),
        dtype=log.dtype,
        notes=log.notes + notes_on(log, tokenizer),
        quick=quick_look(scored, row) if scope.first and not missing and len(samples) > 1 else None,
        rows=scored,
        graded=row.ungraded is None,
    )


def refuse_foreign(log: AccuracyLog, samples: Samples, tokenizer: Tokenizer) -> None:
    """Raises SetupError for a log without answers, or with sample indices or token ids that there are none of."""
    if not log.answers:
        raise SetupError(f"{log.path} holds no answer.")
    unknown = [index for index in log.answers if not 0 <= index < len(samples)]
    if unknown:
        raise SetupError(f"{log.path}: sample {unknown[0]} is not in the dataset of {len(samples)}.")
    odd = list(strangers(iter(log.answers.items()), tokenizer.size))
    if odd:
        index, number = odd[0]
        raise SetupError(
            f"{log.path}: the answer to sample {index} holds the id {number}, outside the tokenizer's vocabulary of "
            f"{tokenizer.size} ({len(odd)} such answers): name the model that answered with --model."
        )


def notes_on(log: AccuracyLog, tokenizer: Tokenizer) -> tuple[str, ...]:
    begun = sum(1 for ids in log.answers.values() if len(ids) and ids[0] == tokenizer.bos)
    if not begun:
        return ()
    return (
        f"{begun} of {len(log.answers)} answers begin with the beginning-of-sequence id {tokenizer.bos}, as text that "
        "was tokenised again does: tokens_per_sample counts it",
    )


def decide(
    scores: Mapping[str, float], targets: Mapping[str, Target], ungraded: str | None
) -> tuple[bool | None, str | None]:
    """(passed, why): False where a score misses its target, None where one is missing or there is no grader."""
    faults = [
        f"{name} {fault}" for name, score in scores.items() if (fault := targets.get(name, Target()).fault(score))
    ]
    if ungraded is not None:
        return None, "; ".join([ungraded, *faults])
    if faults:
        return False, "; ".join(faults)
    if missing := [name for name in targets if name not in scores]:
        return None, f"{', '.join(missing)} cannot be computed here: {rouge.sentences_missing()}"
    return True, None


# -- what a part lets expect ------------------------------------------------------------------------------------------


def interval(values: Floats) -> tuple[float, float]:
    """Of a mean, with CONFIDENCE, by the normal approximation."""
    if len(values) < 2:
        return float("-inf"), float("inf")
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    return mean - half, mean + half


def quick_look(scored: Scored, row: Benchmark) -> dict[str, Any]:
    """Scores with intervals, and on which side of each bound of its target a score lies, as far as that can be told."""
    looks = {}
    for name in (name for name in row.targets if name in scored.scores):
        values = scored.values(name, row.accuracy_samples)
        low, high = interval(values)
        target = bounds(row.targets)[name]
        looks[name] = {
            "estimate": round(float(values.mean()), 4),
            "interval": [round(low, 4), round(high, 4)],
            "target": target,
            "verdict": {
                side: side_of(bound, low, high, len(values)) for side, bound in target.items() if bound is not None
            },
        }
    return {
        "samples": len(scored.indices),
        "of": row.accuracy_samples,
        "confidence": CONFIDENCE,
        "method": "normal approximation on per-sample scores",
        "caution": row.first_rows,
        "scores": looks,
    }


def side_of(bound: float, low: float, high: float, samples: int) -> str:
    """Whether an interval lies above or below a bound."""
    if samples < _FEW or low < bound <= high:
        return "undecided"
    return "above" if low >= bound else "below"


# -- single samples ---------------------------------------------------------------------------------------------------


def worst(scored: Scored, samples: Samples, count: int) -> list[dict[str, Any]]:
    """The samples with the lowest mean of all ROUGE scores, lowest first, with the beginnings of both texts."""
    if not scored.metrics:
        return []
    order = np.argsort(scored.rouge.mean(axis=1), kind="stable")[:count].tolist()
    return [
        {
            "sample_index": scored.indices[at],
            "id": scored.ids[at],
            **{name: round(float(scored.rouge[at, column]) * 100, 4) for column, name in enumerate(scored.metrics)},
            "output_tokens": int(scored.tokens[at]),
            "answer": beginning(scored.texts[at]),
            "reference": beginning(samples.references[scored.indices[at]].strip()),
        }
        for at in order
    ]


def beginning(text: str, length: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


# -- the files --------------------------------------------------------------------------------------------------------


def save(accuracy: Accuracy, folder: Path) -> None:
    """Write accuracy.json, accuracy.txt and, a row per sample, accuracy_samples.parquet; what is there is replaced."""
    for name, text in as_files(accuracy).items():
        (folder / name).write_text(text, encoding="utf-8")
    if accuracy.rows is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(accuracy.rows.columns()), folder / ROWS)


def as_files(accuracy: Accuracy) -> dict[str, str]:
    """accuracy.txt is in the form that MLCommons' checker reads: plain numbers, never np.float64(…). A benchmark whose
    grader is MLCommons' own has none of ours, nor has a run that is not valid, where it could pass for a good one's."""
    files = {JSON: json.dumps(accuracy.as_json(), indent=2) + "\n"}
    if accuracy.graded and not accuracy.trouble:
        scores = {name: value if type(value) is int else float(value) for name, value in accuracy.scores.items()}
        files[TEXT] = f"{scores | {'gen_num': accuracy.samples}}\n"
    return files


def other_files(accuracy: Accuracy, folder: Path) -> list[str]:
    """The files in a folder that `save` would change, or has none of; so too one that cannot be read."""
    wanted = as_files(accuracy)
    there = [name for name in (TEXT, JSON) if (folder / name).exists()]
    changed = [name for name in there if not _holds_text(folder / name, wanted.get(name))]
    if accuracy.rows is not None and (folder / ROWS).exists() and not _holds_rows(folder / ROWS, accuracy.rows):
        changed.append(ROWS)
    return changed


def _holds_text(path: Path, text: str | None) -> bool:
    try:
        return text is not None and path.is_file() and path.read_bytes() == text.encode()
    except OSError:
        return False


def _holds_rows(path: Path, rows: Scored) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return path.is_file() and bool(pq.read_table(path).equals(pa.table(rows.columns())))
    except (pa.ArrowException, OSError):
        return False
