"""Compliance verdicts on logs written here, in LoadGen's form; the official verifier's own words are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.audits import AUDITS
from harness.compliance import eos_ids, recognise, save, verify
from sut.errors import ConfigError, SetupError

Entry = dict[str, Any]
SCENARIOS = ("Offline", "Server")


def hexed(ids: Sequence[int], dtype: type = np.int32) -> str:
    return np.array(ids, dtype).tobytes().hex().upper()


def entry(index: int, *ids: int, **changes: Any) -> Entry:
    whole = {
        "seq_id": index,
        "qsl_idx": index,
        "data": hexed(ids),
        "token_data": hexed(ids[:1]),
        "token_count": len(ids),
    }
    return whole | changes


def right(number: int = 100) -> list[Entry]:
    return [entry(index, 10 + index, 11, 12, 2) for index in range(number)]


REPORTED = {
    "mode": None,
    "accuracy_log_rng_seed": "effective_accuracy_log_rng_seed",
    "accuracy_log_sampling_target": "effective_accuracy_log_sampling_target",
    "min_query_count": "requested_min_query_count",
    "min_duration": "effective_min_duration_ms",
    "sample_concatenate_permutation": "effective_sample_concatenate_permutation",
    "performance_issue_unique": "effective_performance_issue_unique",
}


def write_logs(folder: Path, test: str, entries: list[Entry], scenario: str = "Server", **changes: Any) -> Path:
    """A folder with the two logs that a verifier reads; `changes` are values of LoadGen's detail log."""
    folder.mkdir(exist_ok=True)
    values = {"effective_scenario": scenario, "effective_test_mode": "PerformanceOnly"}
    values |= {REPORTED[key]: value for key, value in AUDITS[test].settings.items() if REPORTED[key]} | changes
    error = values.pop("error", None)
    rows = [(key, value, False) for key, value in values.items()] + ([("error_runtime", error, True)] if error else [])
    lines = [json.dumps({"key": key, "value": value, "metadata": {"is_error": bad}}) for key, value, bad in rows]
    (folder / "mlperf_log_detail.txt").write_text("".join(f":::MLLOG {line}\n" for line in lines))
    (folder / "mlperf_log_accuracy.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_right_log_passes_in_the_verifiers_words(scenario: str, tmp_path: Path) -> None:
    verdict = verify("TEST06", write_logs(tmp_path, "TEST06", right(), scenario), scenario, {2})
    assert (verdict.passed, verdict.why) == (True, [])
    first = "Skipped" if scenario == "Offline" else "True"
    assert save(verdict, tmp_path).read_text() == (
        f"First token check pass: {first}\nEOS check pass: True\nSample length check pass: True\n"
        "TEST06 verification complete\n"
    )
    assert save(verdict, tmp_path).name == "verify_accuracy.txt"


WRONG: dict[str, tuple[Entry, str, str]] = {
    "the first token is another": (entry(7, 5, 6, 2, token_data=hexed([9])), "first_token", "does not begin with"),
    "no first token was reported": (entry(7, 5, 6, 2, token_data=""), "first_token", "no first token"),
    "the first token is a float, as in the reference": (
        entry(7, 5, 6, 2, token_data=hexed([5], np.float32)),  # type: ignore[arg-type]
        "first_token",
        "does not begin with",
    ),
    "two ends of sequence": (entry(7, 5, 6, 2, 2), "eos", "1 tokens follow the end-of-sequence id 2"),
    "another end of the model's, twice": (entry(7, 5, 128009, 128009), "eos", "follow the end-of-sequence id 128009"),
    "the answer goes on after its end": (entry(7, 5, 2, 6, 7, 2), "eos", "3 tokens follow"),
    "a count that is not its length": (entry(7, 5, 6, 2, token_count=4), "sample_length", "has 3 tokens and claims 4"),
    "no count": (entry(7, 5, 6, 2, token_count=None), "sample_length", "has no token count"),
    "an empty answer": (entry(7, token_count=0), "sample_length", "has 0 tokens"),
    "half a token": (entry(7, 5, data=hexed([5])[:4]), "sample_length", "no row of int32"),
    "64-bit tokens": (
        entry(7, 5, 6, 2, data=hexed([5, 6, 2], np.int64)),  # type: ignore[arg-type]
        "sample_length",
        "has 6 tokens and claims 3",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_one_wrong_answer_fails(what: str, tmp_path: Path) -> None:
    wrong, check, says = WRONG[what]
    entries = [wrong if index == 7 else good for index, good in enumerate(right())]
    verdict = verify("TEST06", write_logs(tmp_path, "TEST06", entries), "Server", {2, 128009})
    assert verdict.passed is False and verdict.checks[check] is False
    assert any(says in why and "sample 7" in why for why in verdict.why), verdict.why
    assert verdict.text.endswith("TEST06 verification failed\n")


def test_offline_has_no_first_tokens(tmp_path: Path) -> None:
    entries = [{key: value for key, value in row.items() if key != "token_data"} for row in right()]
    folder = write_logs(tmp_path, "TEST06", entries, "Offline")
    assert verify("TEST06", folder, "Offline", {2}).passed is True
    assert verify("TEST06", folder, "Server", {2}).passed is False


RUNS: dict[str, tuple[list[Entry], dict[str, Any], str]] = {
    "fewer samples": (right(99), {}, "holds 99 answers, and TEST06 logs 100"),
    "nothing": ([], {}, "holds 0 answers"),
    "an accuracy run": (right(), {"effective_test_mode": "AccuracyOnly"}, "mode AccuracyOnly"),
    "another scenario": (right(), {"effective_scenario": "Offline"}, "ran the scenario Offline, not Server"),
    "another seed": (right(), {"effective_accuracy_log_rng_seed": 0}, "accuracy_log_rng_seed is 720381539243781796"),
    "passes over the dataset": (right(), {"effective_sample_concatenate_permutation": True}, "sample_concatenate"),
    "an error": (right(), {"error": "twice"}, "logged 1 errors; the first: error_runtime: twice"),
}


@pytest.mark.parametrize("what", RUNS)
def test_the_run_must_be_the_tests_own(what: str, tmp_path: Path) -> None:
    entries, changes, says = RUNS[what]
    verdict = verify("TEST06", write_logs(tmp_path, "TEST06", entries, **changes), "Server", {2})
    assert verdict.passed is False
    assert any(says in why for why in verdict.why), verdict.why


def test_interactive_is_loadgens_server(tmp_path: Path) -> None:
    assert verify("TEST06", write_logs(tmp_path, "TEST06", right()), "Interactive", {2}).passed is True


# -- TEST09 and TEST07 -------------------------------------------------------------------------------------------------


def long_answers(*lengths: int) -> list[Entry]:
    return [entry(index, *([5] * lengths[index % len(lengths)])) for index in range(6396)]


@pytest.mark.parametrize(
    ("lengths", "passed"),
    [((1278,), True), ((1000, 1400), True), ((1100,), False), ((1450,), False)],  # mean within, within, below, above
)
def test_the_mean_length_decides_test09(lengths: tuple[int, ...], passed: bool, tmp_path: Path) -> None:
    verdict = verify("TEST09", write_logs(tmp_path, "TEST09", long_answers(*lengths)), "Server", ())
    assert verdict.passed is passed
    assert f"\nTEST {'PASS' if passed else 'FAIL'}\n" in verdict.text
    assert f"Mean output tokens: {sum(lengths) / len(lengths):.2f}\n" in verdict.text
    assert save(verdict, tmp_path).name == "verify_output_len.txt"


def test_test09_counts_each_sample_once(tmp_path: Path) -> None:
    entries = [*long_answers(1278)[:-1], entry(0, *([5] * 1278))]
    verdict = verify("TEST09", write_logs(tmp_path, "TEST09", entries), "Server", ())
    assert verdict.passed is False and "1 answers in the log are to a sample" in verdict.why[0]


@pytest.mark.parametrize(
    ("script", "passed", "says"),
    [
        (None, None, "graded by the reference's evaluation script"),
        ("echo \"'exact_match': 71.2\" # {accuracy_log}", True, ""),
        ("echo \"'exact_match': 60.1\" # {accuracy_log}", False, "the score is 60.1, below 60.698"),
        ("echo \"'exact_match': 71.2.1\" # {accuracy_log}", None, "prints no 'exact_match'"),
        ("echo done # {accuracy_log}", None, "prints no 'exact_match'"),
        ("grep -c qsl_idx {accuracy_log} && echo \"'exact_match': 71\"", True, ""),  # it is told where the log is
    ],
)
def test_a_script_scores_test07(script: str | None, passed: bool | None, says: str, tmp_path: Path) -> None:
    folder = write_logs(tmp_path, "TEST07", [entry(index, 5, 6) for index in range(990)])
    verdict = verify("TEST07", folder, "Server", (), script)
    assert verdict.passed is passed
    assert [why for why in verdict.why if says in why] or not says
    assert ("TEST PASS" in verdict.text) is (passed is True)


def test_a_script_that_fails_is_said(tmp_path: Path) -> None:
    folder = write_logs(tmp_path, "TEST07", [entry(index, 5, 6) for index in range(990)])
    with pytest.raises(SetupError, match="ended with code 3: no dataset"):
        verify("TEST07", folder, "Server", (), "echo no dataset >&2; exit 3 # {accuracy_log}")


def test_a_script_is_told_the_log_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = write_logs(tmp_path / "o'; touch pwned; '", "TEST07", [entry(index, 5, 6) for index in range(990)])
    script = "test -s {accuracy_log} && echo \"'exact_match': 71\""
    assert verify("TEST07", folder, "Server", (), script).passed is True
    assert not Path("pwned").exists()
    with pytest.raises(ConfigError, match="does not say where the log goes"):
        verify("TEST07", folder, "Server", (), "echo \"'exact_match': 71\"")


def test_another_verdict_is_not_written_over(tmp_path: Path) -> None:
    verdict = verify("TEST06", write_logs(tmp_path, "TEST06", right()), "Server", {2})
    save(verdict, tmp_path / "new")
    save(verdict, tmp_path / "new")  # the same: nothing is lost
    (tmp_path / "new" / "verify_accuracy.txt").write_text("by another harness")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        save(verdict, tmp_path / "new")


# -- whose logs, whose ids --------------------------------------------------------------------------------------------


def test_a_folder_is_recognised_by_what_loadgen_ran_with(tmp_path: Path) -> None:
    folder = write_logs(tmp_path, "TEST06", right(), "Offline")
    assert recognise(folder)[:2] == ("TEST06", "Offline")
    assert recognise(folder, "TEST09", "Interactive", "m") == ("TEST09", "Interactive", "m")
    write_logs(tmp_path, "TEST06", right(), effective_min_duration_ms=600_000)
    with pytest.raises(SetupError, match="of no compliance test"):
        recognise(folder)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        # this harness's, whose scenario LoadGen does not know
        (
            {"format_version": 1, "audit": "TEST06", "scenario": "Interactive", "config": {"model": "m"}},
            ("TEST06", "Interactive", "m"),
        ),
        # this harness's, which says nothing: LoadGen's settings do
        ({"format_version": 1}, ("TEST06", "Server", None)),
        ({"format_version": 1, "audit": None, "config": {}}, ("TEST06", "Server", None)),
        # another harness's
        ({"scenario": "offline", "audit": 6, "config": None}, ("TEST06", "Server", None)),
        (["anything"], ("TEST06", "Server", None)),
    ],
)
def test_a_result_says_what_it_can_and_another_harness_nothing(content: Any, found: Any, tmp_path: Path) -> None:
    folder = write_logs(tmp_path, "TEST06", right())
    (folder / "result.json").write_text(json.dumps(content))
    assert recognise(folder) == found


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"format_version": 2}, "has format 2, and this harness reads 1"),
        ({"format_version": 1, "config": None}, "is damaged: .*config"),
        ({"format_version": 1, "scenario": ["Server"]}, "is damaged: .*scenario"),
    ],
)
def test_a_result_of_another_format_or_damaged_is_refused(content: Any, sentence: str, tmp_path: Path) -> None:
    folder = write_logs(tmp_path, "TEST06", right())
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match=sentence):
        recognise(folder)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 7]}, "config.json": {"eos_token_id": 3}}, {1, 7}),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 3}}, {3}),
        ({"config.json": {"eos_token_id": 0}}, {0}),
        ({"config.json": {}}, None),
        ({"config.json": []}, None),
    ],
)
def test_the_models_own_ends_count(files: dict[str, Any], ids: set[int] | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    if ids is None:
        with pytest.raises(SetupError, match="name them with --eos"):
            eos_ids(tmp_path)
    else:
        assert eos_ids(tmp_path) == ids


def test_a_test_that_is_no_language_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TEST01 is no compliance test of a language model"):
        verify("TEST01", tmp_path, "Server", {2})
