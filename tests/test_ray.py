"""Replicas on a real Ray cluster: a node that is lost, an actor that is killed, and real vLLM engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.results import load, read_detail

ROOT = Path(__file__).parent.parent

Told = dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("ray")
    process = subprocess.run(
        [sys.executable, "-m", "tests.ray_story", folder], cwd=ROOT, timeout=300, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    told: Told = json.loads((folder / "told.json").read_text())
    return told


@pytest.mark.parametrize("chapter", ["quiet", "node lost", "after", "actor killed"])
def test_every_query_is_answered_once_and_right_answers_are_right(told: Told, chapter: str) -> None:
    facts = told[chapter]
    assert (facts["answered"], facts["ends"]) == (100, 100)
    assert facts["all_right_answers_are"] and facts["firsts_agree"]


@pytest.mark.parametrize("chapter", ["quiet", "after"])
def test_both_replicas_serve_where_nothing_happens(told: Told, chapter: str) -> None:
    assert told[chapter]["kinds"] == {"right": 100}
    assert min(told[chapter]["queries"]) > 20


@pytest.mark.parametrize("chapter", ["node lost", "actor killed"])
def test_a_lost_replica_loses_only_what_was_streaming(told: Told, chapter: str) -> None:
    facts = told[chapter]
    assert sum(facts["ejected"]) == 1
    assert facts["retries"]["replica_died"] > 0
    assert facts["kinds"].get("replica_died", 0) == facts["streaming_when_lost"] <= 8  # the slots of one replica
    assert set(facts["kinds"]) <= {"right", "replica_died"}


def test_a_replica_is_back_when_ray_has_started_it_anew(told: Told) -> None:
    assert (sum(told["lost"]), told["back"], told["back again"]) == (1, True, True)


# -- real engines -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two real engines on a cluster that is started for them, and gone after."""
    folder = tmp_path_factory.mktemp("ray") / "accuracy"
    words = ["--scenario", "Offline", "--mode", "accuracy", "--backend", "ray", "--ray-address", "local"]
    process = subprocess.run(
        [sys.executable, "-m", "harness", *words, "--replicas", "2", "--output-dir", folder],
        cwd=folder.parent,
        timeout=400,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    yield folder


@pytest.mark.engine
def test_two_engines_on_ray_answer_as_they_should(accuracy: Path) -> None:
    result = load(accuracy)
    assert (result["valid"], read_detail(accuracy / "mlperf_log_detail.txt").errors) == (True, ())
    assert result["accuracy"]["passed"] is True
    assert result["accuracy"]["rouge1"] == pytest.approx(88.24, abs=5e-5)  # as in this process: tests/test_engine.py
    assert min(replica["queries"] for replica in result["replicas"]) > 200


@pytest.mark.engine
def test_the_engines_log_comes_back_from_its_node_and_nothing_of_the_cluster_is_left(accuracy: Path) -> None:
    assert "vllm" in (accuracy / "ray-0.log").read_text()
    names = [process.info["name"] for process in psutil.process_iter(["name"])]
    assert not [name for name in names if name.startswith("ray::Host")]
