"""ROUGE as MLCommons' evaluate-accuracy.py computes it: each score is rouge-score's, bit for bit, and much sooner.

The reference splits both texts into sentences with NLTK, one per line, and gives them to rouge-score 0.1.2 with its
stemmer and without its aggregator; a metric's score is the mean of its f-measures. Here each stem is found once and
becomes a number, and the longest common subsequences are computed on the bits of integers.

A line's end is no part of a word, so only rougeLsum, which compares sentence by sentence, needs NLTK's sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import chain, count, repeat
from multiprocessing import get_context
from os import sched_getaffinity
from types import MappingProxyType
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from sut.errors import SetupError

METRICS = ("rouge1", "rouge2", "rougeL")

# A process takes half a second and 50 MB to start: it must have that much to do, and more than these save no time.
_PAIRS_PER_WORKER, _MOST_WORKERS = 2000, 8
# Few enough that all processes take their last chunk together, and that none holds many texts.
_CHUNK = 64


def rouge_table(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str] = METRICS
) -> npt.NDArray[np.float64]:
    """F-measures from 0 to 1 of each pair, shape (pairs, metrics); many pairs are scored on all cores.

    `metrics` are of METRICS, and "rougeLsum". Raises SetupError where rougeLsum is asked for and NLTK cannot split
    sentences here, or a process was killed, and ValueError for texts without a counterpart.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions cannot be held against {len(references)} references.")
    if "rougeLsum" in metrics and (missing := sentences_missing()):
        raise SetupError(f"rougeLsum cannot be computed: {missing}")
    workers = _workers(len(predictions))
    starts = range(0, len(predictions), _CHUNK)
    chunks = [(predictions[start : start + _CHUNK], references[start : start + _CHUNK]) for start in starts]
    if workers == 1:
        parts = [_score(*chunk, metrics) for chunk in chunks]
    else:
        # Spawned, not forked: this process may hold an engine's threads.
        try:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                parts = list(pool.map(_score, *zip(*chunks, strict=True), repeat(tuple(metrics))))
        except BrokenProcessPool as error:
            raise SetupError(
                "a process that scores answers was killed, maybe for want of memory: score them again with `accuracy`."
            ) from error
    rows = [row for part in parts for row in part]
    return np.array(rows, np.float64).reshape(len(predictions), len(metrics))


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str] = METRICS
) -> dict[str, float]:
    """Mean f-measure of each metric in percent, rounded to four places as the reference script prints it."""
    return mean_scores(rouge_table(predictions, references, metrics), metrics)


def mean_scores(table: npt.NDArray[np.float64], metrics: Sequence[str] = METRICS) -> dict[str, float]:
    """Of a table with a column for each metric."""
    return {name: round(float(np.mean(table[:, column])) * 100, 4) for column, name in enumerate(metrics)}


def sentences_missing() -> str | None:
    """Why rougeLsum cannot be computed here and how to get what it needs; None where it can."""
    import nltk

    try:
        nltk.sent_tokenize("")
    except (LookupError, OSError, BadZipFile, ValueError) as error:
        why = "is not installed" if isinstance(error, LookupError) else f"cannot be read ({error})"
        return (
            f"NLTK's sentence data (punkt_tab) {why}: get it with `python -m nltk.downloader punkt_tab`, or set "
            "NLTK_DATA to a folder that holds tokenizers/punkt_tab."
        )
    return None


def _workers(pairs: int) -> int:
    return max(1, min(len(sched_getaffinity(0)), _MOST_WORKERS, pairs // _PAIRS_PER_WORKER))


def _score(predictions: Iterable[str], references: Iterable[str], metrics: Sequence[str]) -> list[tuple[float, ...]]:
    read = _text if "rougeLsum" not in metrics else _text_of_sentences
    measures = [_MEASURES[name] for name in metrics]
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        stems = _stems()
        predicted, expected = read(prediction, stems), read(reference, stems)
        rows.append(tuple(measure(predicted, expected) for measure in measures))
        if len(stems) > _MOST_STEMS:
            _stems.cache_clear()
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Words


class _Text(NamedTuple):
    """Words as the numbers of their stems; the same by line, as far as there are lines."""

    words: list[int]
    lines: list[list[int]]


class _Stems(dict[bytes, int]):
    """From a word to the number of its stem: rouge-score stems words of more than three letters, with NLTK's Porter."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem: Callable[[str], str] = PorterStemmer().stem
        self._numbers: dict[str, int] = {}
        self._free = count()

    def __missing__(self, word: bytes) -> int:
        text = word.decode()
        stem = self._stem(text) if len(text) > 3 else text
        number = self[word] = self._numbers.setdefault(stem, next(self._free))
        return number


# One process's own, so that stems outlive a chunk; begun anew between two pairs, never within one.
_stems = cache(_Stems)
_MOST_STEMS = 100_000

# What rouge-score takes for words, a-z and 0-9 after lower(); a line's end stays, all else becomes a space.
_PLAIN = bytes(byte if chr(byte) in "\nabcdefghijklmnopqrstuvwxyz0123456789" else ord(" ") for byte in range(256))


def _plain(text: str) -> bytes:
    # Only after lower(), which makes ASCII of some other letters: K of the kelvin sign, i of the dotted capital I.
    return text.lower().encode("ascii", "replace").translate(_PLAIN)


def _text(text: str, stems: _Stems) -> _Text:
    return _Text(list(map(stems.__getitem__, _plain(text).split())), [])


def _text_of_sentences(text: str, stems: _Stems) -> _Text:
    """As the reference does, a line that a sentence already holds ends it too."""
    from nltk import sent_tokenize

    plain = _plain("\n".join(sent_tokenize(text.strip())))
    lines = [list(map(stems.__getitem__, line.split())) for line in plain.split(b"\n")]
    return _Text(list(chain.from_iterable(lines)), lines)


# ---------------------------------------------------------------------------------------------------------------
# Measures


def _f_measure(hits: int, predicted: int, expected: int) -> float:
    """rouge-score's operations in its order, or the last bit differs."""
    precision = hits / max(predicted, 1)
    recall = hits / max(expected, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _rouge_1(predicted: _Text, expected: _Text) -> float:
    return _f_measure(_overlap(predicted.words, expected.words), len(predicted.words), len(expected.words))


def _rouge_2(predicted: _Text, expected: _Text) -> float:
    ours, theirs = (list(zip(text.words, text.words[1:], strict=False)) for text in (predicted, expected))
    return _f_measure(_overlap(ours, theirs), len(ours), len(theirs))


def _rouge_l(predicted: _Text, expected: _Text) -> float:
    from rapidfuzz.distance import LCSseq

    length = LCSseq.similarity(predicted.words, expected.words)
    return _f_measure(length, len(predicted.words), len(expected.words))


def _rouge_l_sum(predicted: _Text, expected: _Text) -> float:
    """Each line of the reference is covered by its LCS with every predicted line; words count as often as in both."""
    bits = _lay_out(expected.lines)
    covered = set(chain.from_iterable(_common(line, bits) for line in predicted.lines))
    hits = _overlap([bits.words[place] for place in covered], predicted.words)
    return _f_measure(hits, len(predicted.words), len(expected.words))


_MEASURES: Mapping[str, Callable[[_Text, _Text], float]] = MappingProxyType(
    {"rouge1": _rouge_1, "rouge2": _rouge_2, "rougeL": _rouge_l, "rougeLsum": _rouge_l_sum}
)


def _overlap(some: Iterable[Hashable], others: Iterable[Hashable]) -> int:
    """Size of the intersection of two multisets."""
    left, hits = Counter(some), 0
    left_of = left.get
    for item in others:
        if times := left_of(item):
            left[item] = times - 1
            hits += 1
    return hits


# ---------------------------------------------------------------------------------------------------------------
# The LCS that rouge-score would read out


class _Bits(NamedTuple):
    """Lines side by side on the bits of an integer, a free bit after each to stop carries; place p is bit p - 1."""

    words: list[int]  # by place
    before: list[int]  # by place: the last place before its line
    within: list[int]  # by place: all bits up to the end of its line
    places: dict[int, int]  # by word: the bits where it stands
    used: int  # the bits of all words


def _lay_out(lines: Iterable[list[int]]) -> _Bits:
    words, before, within, used, bit = [-1], [0], [0], 0, 1
    places: dict[int, int] = {}
    for line in lines:
        start, first = len(words) - 1, bit
        for word in line:
            places[word] = places.get(word, 0) | bit
            bit <<= 1
        words += [*line, -1]
        before += [start] * (len(line) + 1)
        within += [bit - 1] * (len(line) + 1)
        used |= bit - first
        bit <<= 1
    return _Bits(words, before, within, places, used)


def _common(line: list[int], bits: _Bits) -> list[int]:
    """For each reference line, the places of the LCS with `line` that rouge-score's _backtrack_norec finds.

    steps[j] has the rows in which column j of the table of LCS lengths grows, for all reference lines at once (Hyyrö,
    "Bit-parallel LCS-length computation revisited", 2004). From row i of column j, rouge-score goes up to the next
    match, but not above the next step; at a step without a match it goes left to the next match in that row.
    """
    words, before, within, places, used = bits
    matches, steps, flat = [0], [0], used
    for word in line:
        if match := places.get(word, 0):
            common = flat & match
            flat = (flat + common | flat - common) & used
        matches.append(match)
        steps.append(flat ^ used)
    found, rest, backwards = [], steps[-1], line[::-1]
    while rest:
        place, column = rest.bit_length(), len(line)
        first, below = before[place], within[place]
        while place > first:
            match = (matches[column] & below).bit_length()
            if match >= place:
                place = match
            else:
                column = len(line) - backwards.index(words[place], len(line) - column)
            found.append(place)
            column -= 1
            below = (1 << place - 1) - 1
            place = (steps[column] & below).bit_length()
        rest &= (1 << first) - 1
    return found
