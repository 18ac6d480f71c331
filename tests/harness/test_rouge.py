"""Every score is rouge-score's own, to the last bit, in one process and on a pool of them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import nltk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import _get_punkt_tokenizer
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
from rouge_score.rouge_scorer import RougeScorer, lcs_ind

from harness import rouge
from sut.errors import SetupError

ALL = (*rouge.METRICS, "rougeLsum")
SCORER = RougeScorer(list(ALL), use_stemmer=True)

# What Punkt learns from: an abbreviation, a sentence starter, words in both cases.
LESSON = """
Mr. Smith went to see Dr. Brown. The doctor was out. Mr. Brown was in, and Dr. Smith too. The two of them talked.
However, nobody knew why. However, it was late. Mr. Smith said so. Dr. Brown agreed. The end came. Then it was over.
"""

PAIRS = [
    pytest.param("the cat sat on the mat", "the cat sat on the mat", id="the same"),
    pytest.param("the cats were sitting", "the cat was sitting on a mat", id="words with one stem"),
    pytest.param("gas has lies", "ga ha lie", id="words of three letters keep their endings"),
    pytest.param("", "something was expected", id="no prediction"),
    pytest.param("something was said", "", id="no reference"),
    pytest.param("", "", id="neither"),
    pytest.param("word", "word", id="one word, so no bigram"),
    pytest.param("...", "?!", id="no words at all"),
    pytest.param("  spaces around\n", "spaces around", id="spaces around"),
    pytest.param("ünïcödé — and 数字 7", "unicode and 7", id="letters that are no words"),
    pytest.param("\u212aelvin D\u0130Y", "kelvin di y", id="letters that lower() turns into ASCII"),
    pytest.param("ΣΑΣ ſet ﬁsh ẞ", "set fish ss", id="letters that lower() keeps out of ASCII"),
    pytest.param("snake_case ٣ 7² a-b", "snake case 3 7 2 ab", id="underscores and digits"),
    pytest.param("lone \ud800 surrogate", "lone surrogate", id="half a character"),
    pytest.param("a a a b", "a b a", id="words several times"),
    pytest.param(
        "Mr. Smith left. It was late.", "It was late. Mr. Smith had left.", id="sentences the other way round"
    ),
    pytest.param("One.\nTwo\n\n \nthree. Four", "One two.\n\nThree\nfour", id="lines within sentences"),
    pytest.param("yyyyyyyyyyyyyyyying " * 9, "0" * 5000, id="long words"),
    pytest.param("entirely different words", "nothing in common here", id="nothing in common"),
]


@pytest.fixture(scope="module")
def punkt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small model of sentences where NLTK, here and in new processes, looks for its own."""
    data = tmp_path_factory.mktemp("nltk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(data))
        patch.setattr(nltk.data, "path", [str(data)])
        model = data / "tokenizers" / "punkt_tab" / "english"
        model.parent.mkdir(parents=True)
        save_punkt_params(PunktTrainer(LESSON).get_params(), dir=str(model))
        _get_punkt_tokenizer.cache_clear()
        yield data
    _get_punkt_tokenizer.cache_clear()


@pytest.fixture
def no_punkt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder, the only one where NLTK looks for data."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    _get_punkt_tokenizer.cache_clear()
    yield tmp_path
    _get_punkt_tokenizer.cache_clear()


def theirs(prediction: str, reference: str) -> list[float]:
    """As MLCommons' evaluate-accuracy.py: strip, one sentence per line, score."""
    prediction, reference = ("\n".join(nltk.sent_tokenize(text.strip())) for text in (prediction, reference))
    scores = SCORER.score(reference, prediction)
    return [scores[name].fmeasure for name in ALL]


def random_pair(r: random.Random) -> tuple[str, str]:
    """Two texts of the same few words, so that subsequences tie often; some sentences, some lines."""
    few = [
        r.choice(("walk", "gener", "hous", "the", "re")) + r.choice(("ing", "ed", "s", "ation", "")) for _ in range(9)
    ]
    few = few[: r.randrange(1, 10)]
    prediction, reference = (
        "".join(r.choice(few) + r.choice((" ", " ", " ", ". The ", "! ", "\n")) for _ in range(r.randrange(60)))
        for _ in range(2)
    )
    return prediction, reference


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_a_pair_is_scored_as_rouge_score_does(prediction: str, reference: str, punkt: Path) -> None:
    assert rouge.rouge_table([prediction], [reference], ALL).tolist() == [theirs(prediction, reference)]


def test_random_pairs_are_scored_as_rouge_score_does(punkt: Path) -> None:
    r = random.Random(0)
    pairs = [random_pair(r) for _ in range(300)]
    table = rouge.rouge_table(*zip(*pairs, strict=True), ALL)
    assert table.tolist() == [theirs(*pair) for pair in pairs]
    assert len(set(table[:, 3].tolist())) > 200


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_any_characters_are_scored_as_rouge_score_does(punkt: Path, prediction: str, reference: str) -> None:
    for one, other in ((prediction, reference), (prediction, prediction + reference)):
        assert rouge.rouge_table([one], [other], ALL).tolist() == [theirs(one, other)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=5), st.lists(st.integers(0, 3), max_size=40))
def test_of_longest_subsequences_the_one_of_rouge_score_is_found(lines: list[list[int]], line: list[int]) -> None:
    """Places count from one and pass over a free bit after each line."""
    starts = [sum(len(before) + 1 for before in lines[:number]) for number in range(len(lines))]
    expected = [start + 1 + index for start, one in zip(starts, lines, strict=True) for index in lcs_ind(one, line)]
    assert sorted(rouge._common(line, rouge._lay_out(lines))) == expected


def test_only_rouge_lsum_depends_on_sentences(punkt: Path) -> None:
    predictions, references = zip(*(param.values for param in PAIRS), strict=True)
    with_sentences = rouge.rouge_table(predictions, references, ALL)
    assert np.array_equal(rouge.rouge_table(predictions, references), with_sentences[:, :3])
    assert rouge.rouge_table(predictions, references, ("rougeLsum", "rouge2")).tolist() == (
        with_sentences[:, [3, 1]].tolist()
    )
    joined = rouge.rouge_table(*([t.replace(".", ",") for t in texts] for texts in (predictions, references)), ALL)
    assert not np.array_equal(joined[:, 3], with_sentences[:, 3])


def test_a_pool_of_processes_gives_the_same_rows_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch, punkt: Path
) -> None:
    r = random.Random(1)
    predictions, references = zip(*(random_pair(r) for _ in range(100)), strict=True)
    alone = rouge.rouge_table(predictions, references, ALL)
    monkeypatch.setattr(rouge, "_PAIRS_PER_WORKER", 50)
    monkeypatch.setattr(rouge, "_CHUNK", 7)
    monkeypatch.setattr(rouge, "sched_getaffinity", lambda pid: {0, 1, 2})
    started: list[str] = []
    monkeypatch.setattr(rouge, "get_context", lambda how: started.append(how) or get_context(how))
    rouge._stems.cache_clear()
    pooled = rouge.rouge_table(predictions, references, ALL)
    assert started == ["spawn"], "a fork would copy an engine's threads"
    assert not rouge._stems.cache_info().currsize, "scored here"
    assert np.array_equal(alone, pooled)
    assert alone.shape == (100, 4)


@pytest.mark.parametrize(
    ("pairs", "cores", "workers"),
    [
        pytest.param(0, 8, 1, id="nothing to do"),
        pytest.param(1024, 8, 1, id="done before a process has started"),
        pytest.param(24_576, 1, 1, id="one core"),
        pytest.param(24_576, 2, 2, id="all cores"),
        pytest.param(24_576, 192, 8, id="no more than memory should be spent on"),
    ],
)
def test_processes_are_as_many_as_have_enough_to_do(
    pairs: int, cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rouge, "sched_getaffinity", lambda pid: set(range(cores)))
    assert rouge._workers(pairs) == workers


def test_a_worker_imports_nothing_heavy(punkt: Path) -> None:
    program = f"""
import sys
from harness import rouge
rouge._score(["A cat. It sat."], ["A cat sat."], {ALL})
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    words = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"nltk", "rapidfuzz"} <= set(words)
    heavy = {"torch", "transformers", "vllm", "tokenizers", "datasets", "pandas", "pyarrow", "mlperf_loadgen", "click"}
    assert not heavy & set(words)


def test_stems_forgotten_between_pairs_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    r = random.Random(2)
    predictions, references = zip(*(random_pair(r) for _ in range(50)), strict=True)
    remembered = rouge.rouge_table(predictions, references)
    monkeypatch.setattr(rouge, "_MOST_STEMS", 5)
    assert np.array_equal(rouge.rouge_table(predictions, references), remembered)
    assert len(rouge._stems()) < 90


def test_scores_are_means_in_percent_with_four_places_and_plain_floats(punkt: Path) -> None:
    predictions, references = zip(*(param.values for param in PAIRS), strict=True)
    scores = rouge.rouge_scores(predictions, references, ALL)
    rows = [theirs(*param.values) for param in PAIRS]
    expected = {
        name: round(np.mean(column) * 100, 4) for name, column in zip(ALL, zip(*rows, strict=True), strict=True)
    }
    assert scores == expected
    assert {type(value) for value in scores.values()} == {float}
    assert rouge.rouge_scores(predictions, references) == {name: expected[name] for name in rouge.METRICS}


def test_nothing_to_score_is_an_empty_table() -> None:
    assert rouge.rouge_table([], []).shape == (0, 3)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 predictions cannot be held against 0 references"):
        rouge.rouge_table(["one"], [])


def test_without_sentence_data_it_is_said_how_to_get_it(no_punkt: Path) -> None:
    why = rouge.sentences_missing()
    assert why == (
        "NLTK's sentence data (punkt_tab) is not installed: get it with `python -m nltk.downloader punkt_tab`, or set "
        "NLTK_DATA to a folder that holds tokenizers/punkt_tab."
    )
    with pytest.raises(SetupError, match="rougeLsum cannot be computed: NLTK's sentence data"):
        rouge.rouge_table(["one"], ["one"], ALL)
    assert rouge.rouge_table(["one two"], ["one two"]).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("punkt_tab.zip", b"PK\x03\x04 cut off", id="a download cut off"),
        pytest.param("punkt_tab/english/collocations.tab", b"\xff\xfe", id="another encoding"),
    ],
)
def test_sentence_data_that_cannot_be_read_is_said_to_be_so(name: str, content: bytes, no_punkt: Path) -> None:
    path = no_punkt / "tokenizers" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    why = rouge.sentences_missing()
    assert why is not None
    assert "cannot be read" in why
    assert "python -m nltk.downloader punkt_tab" in why
    assert "\n" not in why


def test_with_sentence_data_nothing_is_missing(punkt: Path) -> None:
    assert rouge.sentences_missing() is None
