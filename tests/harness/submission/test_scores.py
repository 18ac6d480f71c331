"""What is said of an accuracy run: its log, accuracy.txt, the truncated answers, and the whole ones where given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.submission.check import check
from harness.submission.tree import truncated
from tests.harness.submission.made_package import make_package
from tests.harness.submission.spoil import (
    ANSWERS,
    SCORES,
    Spoil,
    added,
    copied,
    cut,
    gone,
    hashed,
    logged,
    replaced,
    results,
    said,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of llama3.1-8b, whose accuracy is measured by ROUGE."""
    return make_package(tmp_path_factory.mktemp("made"), benchmark="llama3.1-8b")


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        (
            "the run did not cover the dataset",
            logged("effective_accuracy_sample_count", 1000, "Server/accuracy"),
            "the run covered 1000 samples",
        ),
        (
            "the run asked one sample again and again",
            logged("loaded_qsl_set", [0] * 13368, "Server/accuracy"),
            "13368 samples were loaded, 1 different ones",
        ),
        ("no accuracy.txt", gone(SCORES), "accuracy.txt is missing"),
        ("a score below its target", replaced(SCORES, "38.8", "38.3"), "rouge1 is 38.3, below 38.3914"),
        ("answers too long", replaced(SCORES, "8167644", "9167644"), "gen_len is 9.16764e+06, above"),
        (
            "a score that numpy 2 printed",
            replaced(SCORES, "'38.8'", "np.float64(38.8)"),
            "rouge1 stands there as np.float64(38.8), as numpy 2",
        ),
        ("a score is not there", replaced(SCORES, "rougeLsum", "rougeM"), "rougeLsum is not there"),
        (
            "two scores, the better one first",
            lambda root: replaced(SCORES, "{'rouge1'", "{'rouge1': '45.0'}\n{'rouge1'")(root),
            "rouge1 is said more than once",
        ),
        ("a score that is no number", replaced(SCORES, "38.8", "3.8.8"), "rouge1 is no number"),
        ("scores of 100 answers", replaced(SCORES, "13368", "100"), "100 answers were scored"),
        ("rougeL above rouge1", replaced(SCORES, "'24.5'", "'54.5'"), "rougeL or rouge2 is above rouge1"),
        ("no hash", replaced(SCORES, "hash=", "# "), "accuracy.txt gives 0 hashes"),
        ("two hashes", added("hash=" + "0" * 64, "Server/accuracy", "accuracy.txt"), "accuracy.txt gives 2 hashes"),
        ("a hash of another kind", hashed("d41d8cd98f00b204e9800998ecf8427e"), "the hash is no SHA-256"),
        ("no answers", gone(f"Server/accuracy/{ANSWERS}"), "the accuracy log is missing"),
        (
            "answers that were not truncated",
            copied(f"Server/TEST06/accuracy/{ANSWERS}", f"Server/accuracy/{ANSWERS}"),
            "is not truncated",
        ),
        (
            "answers that were shortened in another way",
            cut(f"Server/accuracy/{ANSWERS}", 0.5),
            "not the form of a truncated one",
        ),
        (
            "two ends of something else",
            lambda root: (results(root) / "Server/accuracy" / ANSWERS).write_bytes(truncated(b"x" * 9999)),
            "the two ends are not LoadGen's",
        ),
    ],
)
def test_an_accuracy_run_of_no_value_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil"),
    [
        ("a score at its target, rounded as it is printed", replaced(SCORES, "38.8", "38.3915")),
    ],
)
def test_a_score_at_its_target_is_right(meaning: str, spoil: Spoil, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert not said(report) and not said(report, "warning"), (meaning, report.text())


# -- originals --------------------------------------------------------------------------------------------------------


def whole(package: Path) -> Path:
    """The untruncated accuracy log of Server."""
    return package.parent / "originals" / (results(package) / "Server/accuracy" / ANSWERS).relative_to(package)


def repack(package: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Other answers in the whole log, truncated and hashed as if they had been there from the start."""
    original = whole(package)
    begin, *rows, end, _ = original.read_text().split("\n")
    rows = change([row.rstrip(",") for row in rows])
    content = "\n".join([begin, ",\n".join(rows), end, ""]).encode()
    original.write_bytes(content)
    (results(package) / "Server/accuracy" / ANSWERS).write_bytes(truncated(content))
    hashed(hashlib.sha256(content).hexdigest())(package)


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("the hash is of another log", hashed("0" * 64), "the hash in accuracy.txt is not that of the original log"),
        (
            "the ends are of another log",
            copied(f"Offline/accuracy/{ANSWERS}", f"Server/accuracy/{ANSWERS}"),
            "is not the truncated form of the original",
        ),
        (
            "the original is not there",
            lambda root: (whole(root)).unlink(),
            "its original is missing among the originals",
        ),
        ("one sample has no answer", lambda root: repack(root, lambda rows: rows[:-1]), "1 have no answer, 0 several"),
        ("one sample has two", lambda root: repack(root, lambda rows: [*rows, rows[0]]), "0 have no answer, 1 several"),
        (
            "one answer is of no dataset",
            lambda root: repack(root, lambda rows: [*rows, rows[0].replace('"qsl_idx" : 0', '"qsl_idx" : 99999')]),
            "and 1 are of no dataset",
        ),
    ],
)
def test_with_the_originals_hashes_and_answers_are_verified(
    meaning: str, spoil: Spoil, words: str, package: Path
) -> None:
    spoil(package)
    report = check(package, originals=package.parent / "originals")
    assert any(words in what for what in said(report)), (meaning, said(report))
