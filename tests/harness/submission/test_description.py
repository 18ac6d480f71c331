"""What is said of what a person wrote: system descriptions, measurements.json, README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.submission.check import check
from tests.harness.submission.spoil import (
    MEASUREMENTS,
    SYSTEM_FILE,
    Spoil,
    field,
    gone,
    said,
    written,
)


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("a required field is missing", field("hw_notes", ...), "the field hw_notes is missing"),
        ("a field without a value", field("cooling", ""), "cooling is empty"),
        ("a field of blanks, which the checker takes", field("cooling", "  "), "cooling is empty"),
        (
            "the number 0, which the checker takes for empty",
            field("accelerators_per_node", 0),
            "is the number 0, which counts as empty",
        ),
        (
            "a field that somebody had yet to write",
            field("framework", "TO BE FILLED IN: the server"),
            "yet to be written",
        ),
        (
            "a count that the checker cannot multiply",
            field("number_of_nodes", "one"),
            "number_of_nodes is 'one', and must be",
        ),
        ("another such count", field("accelerators_per_node", "8x"), "accelerators_per_node is '8x', and must be"),
        (
            "notes that are no text, on which the checker crashes",
            field("sw_notes", 3),
            "sw_notes is 3, and must be text",
        ),
        ("a list where text should be", field("framework", ["vLLM"]), "framework is a list"),
        ("an unknown availability", field("status", "soon"), "status is 'soon'"),
        ("an availability that is no text", field("status", 1), "status is 1"),
        ("an unknown type of system", field("system_type", "datacenter, edge"), "system_type is 'datacenter, edge'"),
        ("the division is another's", field("division", "open"), "division is 'open', and the directory says closed"),
        ("the submitter is another", field("submitter", "Other"), "submitter is 'Other'"),
        ("a network in the closed division", field("is_network", "true"), "is_network is true in the closed division"),
        (
            "is_network drags 12 fields along even as false",
            field("is_network", "false"),
            "the field nic_sut is missing",
        ),
        ("is_network as a boolean, on which the checker fails", field("is_network", False), "is_network is not text"),
        ("the description is no JSON", written(SYSTEM_FILE, "{", base=""), "description is not JSON"),
        ("the description is a list", written(SYSTEM_FILE, "[]", base=""), "does not hold a JSON object"),
        ("no measurements.json", gone("Server/measurements.json"), "measurements.json is missing"),
        ("a field of it is missing", field("retraining", ..., MEASUREMENTS, None), "retraining is missing"),
        ("a field of it is blank", field("retraining", " ", MEASUREMENTS, None), "retraining is empty"),
        ("retrained in closed", field("retraining", "yes", MEASUREMENTS, None), "retraining is 'yes'"),
        (
            "a rehearsal by its measurements",
            field("rehearsal", True, MEASUREMENTS, None),
            "this is a rehearsal: no model answered; it cannot be submitted",
        ),
        ("a rehearsal by its README", written("Server/README.md", "REHEARSAL: echo.\n"), "this is a rehearsal"),
        ("no README", gone("Server/README.md"), "README.md is missing"),
        ("an empty README, which the checker takes", written("Server/README.md", "\n"), "README.md is empty"),
    ],
)
def test_each_thing_written_wrongly_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("a field of no use to a reviewer", field("host_networking", "N/A"), "host_networking is 'N/A'"),
        (
            "a count in words",
            field("host_processors_per_node", "two"),
            "host_processors_per_node is 'two', which is no count",
        ),
        ("a README yet to be written", written("Server/README.md", "TO BE FILLED IN LATER"), "it is yet to be written"),
    ],
)
def test_what_a_reviewer_will_ask_is_a_warning(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert report.passed, (meaning, said(report))
    assert any(words in what for what in said(report, "warning")), (meaning, said(report, "warning"))
