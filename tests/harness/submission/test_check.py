"""`submission check` on whole packages: right ones, ones of other kinds, and anything at all in their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.submission.check import check
from sut.errors import ConfigError
from tests.harness.submission.made_package import SUBMITTER, SYSTEM, make_package
from tests.harness.submission.spoil import (
    DETAIL,
    RUN,
    SCORES,
    Spoil,
    copied,
    gone,
    replaced,
    results,
    said,
    written,
)

# -- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_of", "fields"),
    [
        ("closed, with the Interactive scenario too", {"scenarios": ("Offline", "Server", "Interactive")}),
        ("closed, Interactive in Server's place", {"scenarios": ("Interactive", "Offline")}),
        ("network, described as such", {"division": "network"}),
        ("open, where no scenario and no audit is required", {"division": "open", "scenarios": ("Offline",)}),
        ("open, in a scenario that closed does not have", {"division": "open", "scenarios": ("SingleStream",)}),
        (
            "edge, with a benchmark that has no audit",
            {"benchmark": "llama3.1-8b-edge", "scenarios": ("Offline", "SingleStream"), "system_type": "edge"},
        ),
        ("a system of both types", {"system_type": "datacenter,edge"}),
    ],
)
def test_nothing_is_said_of_a_package_that_is_right(made_of: str, fields: dict[str, Any], tmp_path: Path) -> None:
    report = check(make_package(tmp_path, **{"benchmark": "llama3.1-8b", **fields}), originals=tmp_path / "originals")
    assert report.problems == (), made_of
    assert report.passed
    assert report.checked == report.results == len(fields.get("scenarios", (1, 2)))


def test_without_the_originals_it_is_noted_that_hashes_were_not_verified(made: Path) -> None:
    report = check(made)
    assert report.passed
    assert [problem.level for problem in report.problems] == ["note", "note"]
    assert all("hash cannot be verified" in what for what in said(report, "note"))


def test_nothing_is_changed(package: Path) -> None:
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    check(package)
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        (
            "one log for two results",
            copied(f"{RUN}/{DETAIL}", f"Offline/performance/run_1/{DETAIL}"),
            "this is the very file of",
        ),
    ],
)
def test_one_log_for_two_results_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


# -- what is not checked here -----------------------------------------------------------------------------------------


def test_a_benchmark_of_the_round_that_is_no_llm_is_noted(package: Path) -> None:
    shutil.move(results(package), results(package).with_name("stable-diffusion-xl"))
    report = check(package)
    assert report.checked == 0
    assert "stable-diffusion-xl is no LLM benchmark of this harness and is not checked here" in said(report, "note")
    assert not said(report)


@pytest.mark.parametrize(("benchmark", "level"), [("deepseek-r1", "note"), ("llama2-70b-99.9", "error")])
def test_endpoints_packages_are_known_and_llama2_may_not_be_one(benchmark: str, level: str, package: Path) -> None:
    results(package).rename(results(package).with_name(benchmark))
    for scenario in ("Offline", "Server"):
        gone(scenario)(package)
        written(f"{scenario}/config.yaml", "x")(package)
    assert any("mlcommons/endpoints" in what for what in said(check(package), level))


def test_an_open_submitter_may_name_a_benchmark_as_it_likes(tmp_path: Path) -> None:
    package = make_package(tmp_path, division="open")
    results(package).rename(results(package).with_name("ours"))
    assert "has no benchmark of this name" in said(check(package))[0]
    (package / f"open/{SUBMITTER}/model_mapping.json").write_text('{"ours": "deepseek-r1"}')
    assert check(package).passed


def test_in_the_open_division_accuracy_is_told_and_no_error(tmp_path: Path) -> None:
    package = make_package(tmp_path, division="open")
    replaced(SCORES, "81.0", "70.1")(package)
    report = check(package)
    assert report.passed
    assert said(report, "warning") == ["exact_match is 70.1, below 80.5446"]


def test_an_edge_system_may_infer_offline_from_single_stream(tmp_path: Path) -> None:
    package = make_package(
        tmp_path, benchmark="llama3.1-8b-edge", scenarios=("Offline", "SingleStream"), system_type="edge"
    )
    shutil.rmtree(results(package) / "Offline")
    shutil.copytree(results(package) / "SingleStream", results(package) / "Offline")
    report = check(package)
    assert "the result of Offline is inferred from SingleStream" in said(report, "note")
    assert not said(report)


# -- one submitter, and what is no package ----------------------------------------------------------------------------


def test_one_submitter_is_checked_alone(package: Path) -> None:
    shutil.copytree(package / "closed" / SUBMITTER, package / "closed" / "Other")
    assert check(package, SUBMITTER).passed
    assert not check(package, "Other").passed  # its description says ACME


@pytest.mark.parametrize(
    ("folder", "submitter", "sentence"),
    [
        ("nowhere", None, "is not a directory: name the one that holds closed, open or network."),
        ("package/closed/ACME/src/deepseek-r1/README.md", None, "is not a directory"),
        ("package", "Nobody", "holds no submitter 'Nobody': there is ACME."),
    ],
)
def test_what_is_no_package_is_a_usage_error(folder: str, submitter: str | None, sentence: str, made: Path) -> None:
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        check(made.parent / folder, submitter)


def test_an_empty_directory_is_no_package(tmp_path: Path) -> None:
    assert said(check(tmp_path)) == ["there is no result in it"]


# -- anything at all --------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["VALID", "Server", "6.0.17 @ x", "11-01-2026 12:00:00.000", "\ud800", "\x1b[31m", "datacenter", 10**30]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
BYTES = st.one_of(
    st.binary(max_size=300),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.integers(1, 5000).map(lambda depth: b"[" * depth + b"]" * depth),
    st.integers(1, 5000).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth),
    st.just(b"*.*.target_qps = nan\n*.*.min_duration = " + b"9" * 5000),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_may_lie_in_a_file_ends_in_a_traceback(data: st.DataObject, fuzzed: Path) -> None:
    files = sorted(path for path in fuzzed.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files), label="file")
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(BYTES, label="content"))
        assert report_of(fuzzed)
    finally:
        path.write_bytes(before)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_a_log_or_a_json_file_ends_in_a_traceback(data: st.DataObject, fuzzed: Path) -> None:
    names = (DETAIL, "measurements.json", "provenance.json", f"{SYSTEM}.json")
    path = data.draw(st.sampled_from(sorted(each for name in names for each in fuzzed.rglob(name))), label="file")
    before = path.read_text()
    mark = ":::MLLOG " if path.name == DETAIL else ""
    rows = before.splitlines()
    number = data.draw(st.integers(0, len(rows) - 1), label="line")
    content = json.loads(rows[number].removeprefix(mark))
    within = content["metadata"] if mark and data.draw(st.booleans(), label="in the metadata") else content
    within[data.draw(st.sampled_from(sorted(within)), label="key")] = data.draw(VALUES, label="value")
    rows[number] = mark + json.dumps(content)
    try:
        path.write_text("\n".join(rows) + "\n")
        assert report_of(fuzzed)
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small package, for it is checked many times."""
    package = make_package(tmp_path_factory.mktemp("fuzzed"), scenarios=("Server",))
    runs = {"performance": {"valid": True, "files": {DETAIL: "0"}}}
    written("Server/provenance.json", json.dumps({"submission_ready": True, "runs": runs}))(package)
    return package


def report_of(package: Path) -> bool:
    """A report that can be printed and read again."""
    report = check(package, originals=package.parent / "originals")
    report.text().encode()
    return bool(json.loads(json.dumps(report.as_json()))["problems"]) or report.passed
