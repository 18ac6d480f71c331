"""What is said of an audit that does not show compliance, whatever its verifier wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.submission.check import check
from tests.harness.submission.made_package import make_package
from tests.harness.submission.spoil import (
    ANSWERS,
    TEST06,
    Spoil,
    answered,
    cut,
    gone,
    logged,
    longer,
    replaced,
    results,
    said,
)


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("no audit", gone("Server/TEST06"), "TEST06 is missing"),
        ("no verdict of the verifier", gone("Server/TEST06/verify_accuracy.txt"), "verify_accuracy.txt is missing"),
        (
            "the verifier failed",
            replaced("Server/TEST06/verify_accuracy.txt", "EOS check pass: True", "EOS check pass: False"),
            "does not say 'EOS check pass: True'",
        ),
        (
            "the verifier failed, in its last line alone",
            replaced("Server/TEST06/verify_accuracy.txt", "complete", "failed"),
            "the audit has failed",
        ),
        (
            "first tokens not verified in Server",
            replaced(
                "Server/TEST06/verify_accuracy.txt", "First token check pass: True", "First token check pass: Skipped"
            ),
            "first tokens are right",
        ),
        (
            "no answers of the audit, which the checker does not miss",
            gone("Server/TEST06/accuracy"),
            "the audit's accuracy log is missing",
        ),
        ("half a number", answered(lambda all: all[3].update(data=all[3]["data"][:-1])), "cannot be used"),
        ("an audit log cut off", cut(f"Server/TEST06/accuracy/{ANSWERS}", 0.5), "is cut off"),
        ("50 answers", answered(lambda all: all.__delitem__(slice(50, None))), "the audit logged 50 answers"),
        ("two ends", answered(lambda all: longer(all[3], "01000000")), "1 tokens follow the end-of-sequence id 1"),
        (
            "an end in the middle",
            answered(lambda all: longer(all[3], "0A000000")),
            "1 tokens follow the end-of-sequence id 1",
        ),
        (
            "a count that is not the answer's",
            answered(lambda all: all[0].update(token_count=1)),
            "it has 10 tokens and claims 1",
        ),
        (
            "a first token as float32",
            answered(lambda all: all[0].update(token_data="0000803F")),
            "the answer does not begin with the first token that was reported",
        ),
        (
            "no first token",
            answered(lambda all: all[0].update(token_data="")),
            "no first token was reported with its id",
        ),
        (
            "ids as int64",
            answered(
                lambda all: all[0].update(data="00000000".join(re.findall("........", all[0]["data"])) + "00000000")
            ),
            "it has 20 tokens and claims 10",
        ),
        (
            "an id of no vocabulary",
            answered(lambda all: all[0].update(data="FFFFFF7F" * 10, token_data="FFFFFF7F")),
            "outside the model's vocabulary of 129280",
        ),
        (
            "an answer above the limit",
            answered(lambda all: longer(all[0], "0A000000" * 20_000)),
            "longer than 20000 tokens",
        ),
        (
            "a sample of no dataset",
            answered(lambda all: all[0].update(qsl_idx=99_999)),
            "the sample is none of the dataset",
        ),
        ("one answer to all", answered(lambda all: [each.update(all[0]) for each in all]), "all answers are the same"),
        (
            "an audit without its settings",
            logged("warning_generic_message", "hello", TEST06),
            "LoadGen found no audit.config",
        ),
        (
            "an audit with other settings",
            logged("effective_accuracy_log_rng_seed", 1, TEST06),
            "effective_accuracy_log_rng_seed is 1",
        ),
    ],
)
def test_an_audit_that_shows_nothing_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


def test_answers_in_int64_throughout_are_as_good(package: Path) -> None:
    def widen(digits: str) -> str:
        return "".join(f"{each}00000000" for each in re.findall("........", digits))

    answered(lambda all: [each.update({key: widen(each[key]) for key in ("data", "token_data")}) for each in all])(
        package
    )
    assert check(package).passed


def test_the_audits_of_gpt_oss_are_verified_where_their_originals_are_given(tmp_path: Path) -> None:
    package = make_package(tmp_path, benchmark="gpt-oss-120b")
    assert check(package).passed
    found = said(check(package, originals=tmp_path / "originals"))
    assert found == ["the answers have 10.00 tokens on average, and 1150.38 to 1406.02 are needed"] * 2
    verdict = results(package) / "Server/TEST07/verify_accuracy.txt"
    verdict.write_text("Accuracy score: 50.1\nAccuracy threshold: 50.0\nTEST PASS\n")
    assert said(check(package)) == [
        "Accuracy score is 50.1, which is not from 60.698 to 100.0",
        "Accuracy threshold is 50.0, which is not from 60.698 to 100.0",
    ]
